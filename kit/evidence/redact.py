"""What may not leave the machine: found and replaced in everything that is written, looked for again at the end.

Known values (user, host, home, values of secret variables) are searched in every spelling that a program may give
them: escaped, in URL form, in base64, in hex. What is not known is found by its shape: a UUID, an address, the value
after a secret-like name, a string too random to be words that is no hash of ours. Nothing here reads the machine:
`kit.evidence.bundle` gathers the known values. Redaction is idempotent, so `scan` asks one question: would it still
change something?
"""

import base64
import dataclasses
import functools
import hashlib
import hmac
import html
import json
import re
import struct
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

# Ordinary words that are also user or host names: replaced only where they stand as a name (user@, /home/).
COMMON_NAMES = re.compile(
    r"(?i)root|user|admin|administrator|guest|test|dev|main|local|localhost|home|ubuntu|debian|runner|jovyan|jupyter"
    r"|vscode|docker|nobody|train|data|model|gpu|cuda|nvidia|torch|python|kit|adam|max|min|server|node|worker"
)

_EDGE, _END = r"(?<![A-Za-z0-9])", r"(?![A-Za-z0-9])"
# What follows the first is always a secret. The others are words of this field too: a variable of such a name, in upper
# case, holds a secret, and in lower case the value has to look like one, so that `"token": "Hello"` stays.
_STRONG = re.compile(
    r"(?i)[\w-]*(?:passw(?:or)?d|passphrase|secret|(?:api|access|private|signing|encryption)[_-]?key|credential|cookie"
    r"|[a-z0-9]_pwd|connection_string)s?\d*"
)
_VARIABLE = re.compile(
    r"[A-Z0-9_]*(?:(?:TOKEN|PASSW(?:OR)?D|SECRET|CREDENTIAL|COOKIE)S?_?\d*"
    r"|(?:^|_)(?:AUTH|WEBHOOK|WEBHOOK_URL|PAT|KEY)_?\d*|[A-Z0-9]_?PASS\d*|_PWD\d*)"
)
_WEAK = re.compile(r"(?i)(?:[\w-]*[_-])?(?:token|auth|key|webhook|webhook_url|pass|pwd)s?\d*")
_NAMES = "passw|passphrase|secret|key|credential|cookie|token|auth|webhook|pass|pwd|pat|connection_string"
_HARMLESS = re.compile(r"(?i)[-+\d.e]{0,5}|none|null|true|false|[<\[({$].*", re.S)

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# PNG in base64: it holds pixels and nothing else once `strip_png` was there.
_PICTURE = re.compile(r"iVBORw0KGgo[\w+/=\\]*")

_HARMLESS_IP = ("127.0.0.1", "0.0.0.0", "255.255.255.255")
_PACKAGE_BEFORE = re.compile(r"(?i)(?:==|[<>~!]=|\bv|[\w.]-|\bversion|\b(?:nvidia|cu|lib)[a-z0-9_.-]*)[\"'\s:=]{0,4}$")
_PLACE_BEFORE = re.compile(
    r"(?i)\b(?:to|from|at|on|via|by|host\w*|ip\w*|inet6?|addr\w*|connect\w*|peer|node|server|listen\w*|bind\w*|driver"
    r"|nccl|rank ?\d*|eth\d|ib\d|en\w+\d|using)\W{0,4}$"
)


@dataclasses.dataclass(frozen=True)
class Secrets:
    """Known values of this machine and its user.

    values: (kind, value) pairs that are secret wherever they stand. users: names of the user. paths: (path, what
    stands for it) pairs. salt: keys the pseudonyms. ours: random values that are no secret, as a run's nonce.
    """

    values: tuple[tuple[str, str], ...] = ()
    users: tuple[str, ...] = ()
    host: str | None = None
    paths: tuple[tuple[str, str], ...] = ()
    salt: bytes = b""
    ours: tuple[str, ...] = ()


# A secret that is still there: in which file and of which kind. Never its value.
Hit = tuple[str, str]
# Kind, pattern, what stands for it, and hints: in lower case, one of them stands in every text that the pattern can
# match, which costs little to ask.
_Rule = tuple[str, re.Pattern[str], Any, Iterable[str]]


def pseudonym(uuid: str, salt: bytes) -> str:
    """12 hex digits for a UUID, the same however it is spelt or cut off: keyed on its first eight digits, which every
    spelling holds. 'GPU-' and 'MIG-' stay, since judges tell by them what a UUID is of."""
    prefix = re.findall("(?i)^(?:GPU-|MIG-)?", uuid)[0].upper()
    return prefix + hmac.new(salt, uuid[len(prefix) :][:8].lower().encode(), hashlib.sha256).hexdigest()[:12]


def redact_text(text: str, secrets: Secrets) -> str:
    return _redacted(text, secrets)[0]


def _redacted(text: str, secrets: Secrets, *, is_text: bool = True) -> tuple[str, list[str]]:
    """The text as it may leave, and the kinds of what was replaced. Known values are looked for in bytes too."""
    whole, by_line = _rules(secrets)
    text, kinds = _without(text, whole)
    if not is_text:
        return text, kinds
    low = text.lower()
    by_line = [rule for rule in by_line if any(hint in low for hint in rule[3])]
    lines = [_without(line, by_line) for line in text.splitlines(keepends=True)]
    return "".join(line for line, _ in lines), [*kinds, *(kind for _, more in lines for kind in more)]


def _without(text: str, rules: Iterable[_Rule]) -> tuple[str, list[str]]:
    kinds, low = [], text.lower()
    for kind, pattern, replacement, hints in rules:
        if any(hint in low for hint in hints):
            clean = pattern.sub(replacement, text)
            kinds += [kind] * (clean != text)
            text = clean
    return text, kinds


def redact_value(value: Any, secrets: Secrets) -> Any:
    """`value` (plain JSON) with every string redacted, keys too; a value under a secret name goes whole."""
    if isinstance(value, str):
        return redact_text(value, secrets)
    if isinstance(value, Mapping):
        return {redact_text(str(key), secrets): _under(str(key), item, secrets) for key, item in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    names = [name if isinstance(name, str) and name.startswith("--") else "" for name in ("", *value)]
    parts = [_under(name, item, secrets, is_flag=True) for name, item in zip(names, value)]
    if parts and all(isinstance(item, str) for item in value) and all(item.endswith("\n") for item in value[:-1]):
        # A notebook keeps text as a list of lines: a secret may go over several of them. Other lists are no text.
        whole = redact_text("".join(value), secrets)
        return parts if whole in ("".join(parts), "".join(value)) else [whole]
    return parts


def _under(name: str, value: Any, secrets: Secrets, *, is_flag: bool = False) -> Any:
    """What stands under a key, or after a flag, as it may leave."""
    if name == "image/png":
        return value
    return (
        "<secret>"
        if hides(name.lstrip("-") if is_flag else name, value, is_flag=is_flag)
        else redact_value(value, secrets)
    )


def hides(name: str, value: Any, *, is_flag: bool = False) -> bool:
    """Whether `value`, which stands under `name`, is a secret."""
    if not isinstance(value, str) or _HARMLESS.fullmatch(value):
        return False
    if _STRONG.fullmatch(name) or _VARIABLE.fullmatch(name):
        return True
    if is_flag or not _WEAK.fullmatch(name):
        return is_flag and len(value) > 4 and _WEAK.fullmatch(name) is not None
    least = 5 if re.search("(?i)p(ass|wd)s?$", name) else 8
    is_code = not value.isascii() or re.search(r"[\s/._:]", value) is not None
    return not is_code and (len(value) > 20 or (len(value) > least and re.search(r"\d", value) is not None))


def scan(files: Mapping[str, bytes], secrets: Secrets) -> tuple[Hit, ...]:
    """What redaction would still change, file by file; text by every rule, other bytes by known values."""
    found = []
    for name in sorted(files):
        data, is_png = files[name], files[name].startswith(b"\x89PNG")
        text = data.decode("latin-1") if is_png else _unescaped(name, _PICTURE.sub("", decode(data)))
        kinds = ["metadata"] if is_png and strip_png(data) != data else []
        kinds += _redacted(text, secrets, is_text=not is_png)[1]
        found += [(name, kind) for kind in dict.fromkeys(kinds)]
    return tuple(found)


def _unescaped(name: str, text: str) -> str:
    """What a reader of the file sees, so that `<user>` is the same in JSON and in HTML."""
    if name.endswith((".html", ".md", ".xml", ".svg")):
        return html.unescape(text)
    if name.endswith((".json", ".jsonl", ".ipynb")):
        return re.sub(r"\\([\"\\/n])", lambda found: "\n" if found[1] == "n" else found[1], text)
    return text


# --- rules --------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _rules(secrets: Secrets) -> tuple[list[_Rule], list[_Rule]]:
    """The rules for a whole text, bytes that are none included, and those for one line."""
    whole: list[_Rule] = [("private key", re.compile(_PRIVATE_KEY), "<private key>", ("private key",))]
    for kind, value in sorted(set(secrets.values), key=lambda pair: -len(pair[1])):
        parts = [value, *(line for line in value.splitlines() if len(line) >= 16)]
        whole.append(_known(kind, {form for part in parts for form in _escaped(part) | _packed(part)}, f"<{kind}>"))
    for path, stands_for in sorted(set(secrets.paths), key=lambda pair: -len(pair[0])):
        spellings = _escaped(path) | _escaped(path.replace("\\", "/"))
        whole.append(_known("path", spellings, stands_for, r"(?i)(?<![\w.~-])", r"(?![\w.-]*\w)"))
        whole += [_known("path", _packed(path), stands_for)] if len(path) > 5 else []
    by_line: list[_Rule] = [
        (kind, re.compile(pattern), make if isinstance(make, str) else functools.partial(make, secrets), hints)
        for kind, pattern, make, hints in _SHAPES
    ]
    host = secrets.host or ""
    names = [*(("user", user) for user in secrets.users), ("host", host), ("host", host.partition(".")[0])]
    for kind, name in dict.fromkeys(pair for pair in names if pair[1]):
        # Everywhere where the name is a rare word, else only where it stands as a name.
        if COMMON_NAMES.fullmatch(name) or (len(name) < 4 and name.isascii()):
            spelt = re.escape(name)
            around = rf"(?:(?<=@){spelt}{_END}|{_EDGE}{spelt}(?=@)|(?<=[\\/]){spelt}(?=@))"
            by_line.append((kind, re.compile(around), f"<{kind}>", ("@",)))
            continue
        whole.append(_known(kind, _escaped(name), f"<{kind}>", f"(?i){_EDGE}", _END))
        whole += [_known(kind, _packed(name), f"<{kind}>")] if len(name.encode()) >= 6 else []
    return whole, by_line


def _known(kind: str, forms: set[str], stands_for: str, before: str = "", after: str = "") -> _Rule:
    spelt = "|".join(re.escape(form) for form in sorted(forms, key=lambda form: (-len(form), form)))
    return kind, re.compile(f"{before}(?:{spelt}){after}"), stands_for, {form.lower() for form in forms}


def _named(_: Secrets, match: re.Match[str]) -> str:
    """A value after its name. The name begins before the word by which it was found: SSH_ASK_PASS."""
    before = re.findall(r"[\w-]*$", match.string[max(0, match.start() - 60) : match.start()])
    value = match[3].strip("\"'")
    if not hides((before[0] + match[1]).lstrip("-"), value, is_flag=match[1].startswith("-")):
        return match[0]
    mark = match[3][0] if match[3][0] in "\"'" else ""
    return f"{match[1]}{match[2]}{mark}<secret>{mark}"


def _uuid(secrets: Secrets, match: re.Match[str]) -> str:
    return match[0] if match[0] in secrets.ours else pseudonym(match[0], secrets.salt)


def _random(secrets: Secrets, match: re.Match[str]) -> str:
    """A run of letters and digits that changes its kind too often to be made of words. Names of kernels break up at
    '_', hashes of ours have a length of theirs, and what a compiler mangled begins with _Z."""
    token, before = match[0], match.string[max(0, match.start() - 1) : match.start() + 1]
    run = max(re.findall("[A-Za-z0-9]+", token), key=len)
    is_ours = token in secrets.ours
    if re.fullmatch("(?i)[0-9a-f]{32}", run) and not is_ours:
        return pseudonym(token if token[:4].upper() in ("GPU-", "MIG-") else run, secrets.salt)
    if is_ours or _PICTURE.match(token) or before == "_Z":
        return token
    least = 12 if re.search("[a-z]", run) and re.search("[A-Z]", run) else 20
    is_words = len(run) < least or _HASH.fullmatch(run) or run.isdigit() or len(run) > 3.4 * len(_WORD.findall(run))
    if is_words:
        return "<secret>" if re.fullmatch(r"(?=.*\d)(?=.*[A-Z])[A-Z0-9]{20,}", run) else token
    return "<secret>" if sum(map(len, re.findall("[a-z]{3,}", run))) < 0.45 * len(run) else token


def _ip(_: Secrets, match: re.Match[str]) -> str:
    """A number with four parts is an address, unless it is a version: nvidia-curand 10.3.9.90."""
    before = match.string[max(0, match.start() - 60) : match.start()].rpartition("\n")[2]
    is_low = int(match[0].partition(".")[0]) < 32 and not match[0].startswith("10.")
    is_version = _PACKAGE_BEFORE.search(before) or (is_low and before.strip() and not _PLACE_BEFORE.search(before))
    return match[0] if match[0] in _HARMLESS_IP or is_version else "<ip>"


# A secret that nobody knows, by its shape.
_VALUE = r"\"[^\"\n]*\"|'[^'\n]*'|[^\s\"',;&()<>\[\]{}\\]++(?!\()"
# Windows' names may hold blanks: up to the next separator, else up to the last capitalised word.
_NAME = r"(?:\\+(?:u[0-9a-f]{4}|U[0-9a-f]{8}|x[0-9a-f]{2}|[0-7]{3})|[^/\\\s\"'`:*?<>|])+"
_BLANK = rf"(?:[^/\\\"'`:*?<>|\n]{{1,60}}(?=[\\/])|{_NAME}(?: (?-i:[A-Z]){_NAME})*)"
_UNC = r"[\\/]{2,}[\w.$-]+[\\/]+(?:home|user|profile)s?\$?[\\/]+"
_UUID = r"(?:gpu|mig)-[0-9a-f]{8}(?:-[0-9a-f]{1,12})*|[0-9a-f]{8}-[0-9a-f]{4}(?:-[0-9a-f]{1,12}){0,3}"
# W @ x.grad is no address.
_DOMAIN = (
    r"(?:[a-z]{2}|[A-Z]{2}|(?i:com|org|net|edu|gov|mil|info|cloud|local|lan|corp|internal|example|test|tech|dev|app))"
)
_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_IPV6 = r"[0-9a-f]{3,4}(?::P){0,6}::(?:P(?::P){0,6})?|(?:P:){7}P".replace("P", "[0-9a-f]{1,4}")
_PRIVATE_KEY = r"-----BEGIN[A-Z ]*PRIVATE KEY-----[^\"]*?(?:-----END[A-Z ]*-----|(?=\")|\Z)"
# Kind, pattern, what stands for it, and hints.
_SHAPES: tuple[tuple[Any, ...], ...] = (
    ("url userinfo", r"(?<=://)(?!<)[^/\s@\"'<>]{1,300}@", "<userinfo>@", ("://",)),
    ("secret", r"(?i)\b(basic\s+(?=\S*[\d=])|bearer\s+)(?!<)[\w.+/~-]{8,}=*", r"\1<secret>", ("basic", "bearer")),
    ("secret", rf"(?i)((?:{_NAMES})[\w-]*)([\"']?\s*[:=]\s*)({_VALUE})", _named, tuple(_NAMES.split("|"))),
    ("secret", rf"(?i)(?<!\S)(--?[\w-]*(?:{_NAMES})[\w-]*)(\s+)(?!-)({_VALUE})", _named, ("-",)),
    ("home path", rf"(?i)(/home/|/Users/)(?!<){_NAME}", r"\1<user>", ("/home/", "/users/")),
    ("home path", rf"(?i)([a-z]:[\\/]+Users[\\/]+|{_UNC})(?!<){_BLANK}", r"\1<user>", ("home", "users", "profile")),
    ("gpu uuid", rf"(?i){_EDGE}(?!(?:19|20)\d{{6}}-\d{{4}}{_END})(?:{_UUID}){_END}", _uuid, ("-",)),
    ("serial", r"(?i)(\bserial(?:[ _]number)?[\"']?\s*[:=]\s*[\"']?)(?!<)(?=[\w-]*\d)[\w-]{6,}", r"\1<serial>", ("serial",)),
    ("pci address", rf"{_EDGE}[0-9a-fA-F]{{4,8}}:[0-9a-fA-F]{{2}}:[0-9a-fA-F]{{2}}\.[0-7]{_END}", "<pci>", (":",)),
    ("mac", r"(?i)(?<![\w:-])(?:(?:[0-9a-f]{2}:){5}|(?=[\d-]*[a-f])(?:[0-9a-f]{2}-){5})[0-9a-f]{2}(?![\w:-])", "<mac>", (":", "-")),
    ("email", rf"(?<![\w.+-])[\w.+-]{{1,64}}@(?:[\w-]{{1,64}}\.)+{_DOMAIN}(?![\w(])", "<email>", ("@",)),
    ("ip", rf"(?<![\w.])(?:{_OCTET}\.){{3}}{_OCTET}(?!\w|\.\w)", _ip, (".",)),
    ("ip", rf"(?i)(?<![\w:])(?=[\w:]*\d)(?:{_IPV6})(?![\w:])", "<ip>", ("::", *(f":{digit}" for digit in "0123456789abcdef"))),
    ("secret", r"[A-Za-z0-9][A-Za-z0-9+/_=-]{18,}[A-Za-z0-9+/_=-]", _random, ("",)),
)  # fmt: skip


def _escaped(value: str) -> set[str]:
    """`value` as programs write it: composed or not, with the escapes of Python, JSON, HTML and URLs."""
    spelt = {value, *(unicodedata.normalize(form, value) for form in ("NFC", "NFD"))}
    for text in tuple(spelt):
        data = text.encode()
        escapes = {json.dumps(text)[1:-1], ascii(text)[1:-1], repr(data)[2:-1]}
        spelt |= escapes | {escape.replace("\\", "\\\\") for escape in escapes}
        spelt |= {html.escape(text), text.encode("ascii", "xmlcharrefreplace").decode()}
        spelt |= {quote(text), quote(text, safe=""), "".join(f"%{byte:02x}" for byte in data)}
    return spelt


def _packed(value: str) -> set[str]:
    """`value` in hex, and in base64: what no neighbour changes, at 3 offsets."""
    forms = set()
    for data in {unicodedata.normalize(form, value).encode() for form in ("NFC", "NFD")}:
        forms |= {data.hex(), data.hex().upper()}
        for offset, cut in ((0, 0), (1, 2), (2, 3)) if len(data) >= 6 else ():
            text = base64.b64encode(b"\0" * offset + data)[cut : (offset + len(data)) * 8 // 6].decode()
            forms |= {text, text.replace("+", "-").replace("/", "_")}
    return forms


# --- bytes --------------------------------------------------------------------------


def decode(data: bytes) -> str:
    """Text of a tool's output, whatever wrote it: UTF-8 with or without a BOM, UTF-16 from PowerShell."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    if data.count(0) > len(data) // 4:
        return data.decode("utf-16-le", "replace")
    return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")


def strip_png(data: bytes) -> bytes:
    """The PNG without text, time and EXIF chunks. Raises ValueError where it is no PNG."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("not a PNG")
    kept, at, kind = bytearray(data[:8]), 8, b""
    while at + 12 <= len(data) and kind != b"IEND":
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        start, at = at, at + 12 + size
        if at > len(data):
            raise ValueError("PNG ends inside a chunk")
        kept += b"" if kind in (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME") else data[start:at]
    return bytes(kept)
