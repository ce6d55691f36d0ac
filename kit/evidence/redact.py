"""What may not leave the machine: found and replaced before the first write, looked for again at the end.

Known values (user, host, home, values of secret environment variables, UUIDs) are
searched as they are and in base64, hex and URL form; unknown ones by pattern. Nothing
here reads the machine: `kit.evidence.redact` gathers the known values. Redaction is
idempotent, so `scan` asks one question: would redaction still change something?
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import hmac
import html
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

# Ordinary words that are also user or host names: replaced only where they stand as a name (user@, /home/).
COMMON_NAMES = frozenset(
    [
        "root",
        "user",
        "admin",
        "administrator",
        "guest",
        "test",
        "dev",
        "main",
        "local",
        "localhost",
        "home",
        "ubuntu",
        "debian",
        "runner",
        "jovyan",
        "jupyter",
        "vscode",
        "docker",
        "nobody",
        "train",
        "data",
        "model",
        "gpu",
        "cuda",
        "nvidia",
        "torch",
        "python",
        "kit",
        "adam",
        "max",
        "min",
        "server",
        "node",
        "worker",
    ]
)
SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|COOKIE|CREDENTIALS?|PAT)S?(_|$)", re.I)

_TOKENS = (
    r"hf_[A-Za-z0-9]{16,}|gh[opsur]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|sk-[\w-]{16,}"
    r"|AKIA[0-9A-Z]{16}|xox[abeprs]-[\w-]{10,}|pypi-AgE[\w-]{16,}|AIza[\w-]{30,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
)
_SECRET_WORD = r"token|secret|password|passwd|(?:api|access|secret|private)[_-]?key|cookie|credentials?"
_EDGE, _END = r"(?<![A-Za-z0-9])", r"(?![A-Za-z0-9])"
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_VERSION_BEFORE = re.compile(r"(?i)(nvidia|cuda|cudnn|cublas|cu[a-z]+|nccl|nvjitlink|version|driver|==)[\w.-]*[\W_]*$")
_HARMLESS_IP = ("127.0.0.1", "0.0.0.0", "255.255.255.255")


@dataclasses.dataclass(frozen=True)
class Secrets:
    """Known values of this machine and its user.

    values: (kind, value) pairs that are secret wherever they stand. paths: (path, what
    stands for it) pairs. uuids: of GPUs; each becomes a pseudonym keyed with `salt`.
    """

    values: tuple[tuple[str, str], ...] = ()
    user: str | None = None
    host: str | None = None
    paths: tuple[tuple[str, str], ...] = ()
    uuids: tuple[str, ...] = ()
    salt: bytes = b""


@dataclasses.dataclass(frozen=True)
class Hit:
    """A secret that is still there: in which file, of which kind, in which form. Never its value."""

    file: str
    kind: str
    form: str


@dataclasses.dataclass(frozen=True)
class _Rule:
    kind: str
    pattern: re.Pattern[str]
    replacement: str | Callable[[re.Match[str]], str]
    # whether it looks for a value that is known, which is safe to search in bytes that are no text
    is_known: bool = False


def pseudonym(uuid: str, salt: bytes) -> str:
    """'gpu-' and 12 hex digits: the same for one UUID and one salt, however the UUID is spelt."""
    plain = re.sub(r"(?i)^(GPU|MIG)-", "", uuid.strip()).lower()
    return "gpu-" + hmac.new(salt, plain.encode(), hashlib.sha256).hexdigest()[:12]


def redact_text(text: str, secrets: Secrets) -> str:
    for rule in _rules(secrets):
        text = rule.pattern.sub(rule.replacement, text)
    return text


def redact_value(value: Any, secrets: Secrets) -> Any:
    """`value` (plain JSON) with every string redacted, keys too; a value under a secret name goes whole."""
    if isinstance(value, str):
        return redact_text(value, secrets)
    if isinstance(value, Mapping):
        return {redact_text(str(key), secrets): _redact_item(str(key), item, secrets) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [
            "<secret>"
            if isinstance(item, str) and at and _is_secret_name(value[at - 1], "--")
            else redact_value(item, secrets)
            for at, item in enumerate(value)
        ]
        if parts and all(isinstance(item, str) for item in value):
            # A notebook keeps text as a list of lines: a secret may go over several of them.
            whole = redact_text("".join(value), secrets)
            return parts if whole in ("".join(parts), "".join(value)) else [whole]
        return parts
    return value


def _redact_item(key: str, value: Any, secrets: Secrets) -> Any:
    if isinstance(value, str) and _is_secret_name(key) and not value.startswith(("<", "[")):
        return "<secret>" if value else value
    return redact_value(value, secrets)


def _is_secret_name(name: Any, prefix: str = "") -> bool:
    return isinstance(name, str) and re.fullmatch(rf"(?i){prefix}[\w-]*(?:{_SECRET_WORD})", name) is not None


def scan(files: Mapping[str, bytes], secrets: Secrets) -> tuple[Hit, ...]:
    """What redaction would still change, file by file; text by every rule, other bytes by known values."""
    return tuple(hit for name in sorted(files) for hit in _scan_file(name, files[name], secrets))


def _scan_file(name: str, data: bytes, secrets: Secrets) -> Iterator[Hit]:
    is_png = data.startswith(b"\x89PNG")
    text = data.decode("latin-1") if is_png else _unescaped(name, decode(data))
    for rule in _rules(secrets):
        if (rule.is_known or not is_png) and rule.pattern.sub(rule.replacement, text) != text:
            yield Hit(name, rule.kind, "known value, plain or encoded" if rule.is_known else "pattern")
    if is_png and strip_png(data) != data:
        yield Hit(name, "metadata", "PNG text chunk")
    if not is_png:
        for kind in sorted(set(_encoded_kinds(text, secrets))):
            yield Hit(name, kind, "base64 or hex")


def _unescaped(name: str, text: str) -> str:
    """What a reader of the file sees, so that `<user>` is the same in JSON and in HTML."""
    if name.endswith((".html", ".md", ".xml", ".svg")):
        return html.unescape(text)
    if name.endswith((".json", ".jsonl", ".ipynb")):
        return re.sub(r"\\([\"\\/n])", lambda found: "\n" if found[1] == "n" else found[1], text)
    return text


def _encoded_kinds(text: str, secrets: Secrets) -> Iterator[str]:
    """Kinds of secrets inside printable text that stands encoded in `text`."""
    for match in re.finditer(r"(?<![\w+/])(?:(?:[0-9a-fA-F]{2}){12,}|[\w+/-]{20,4096}={0,2})(?![\w+/=])", text):
        run = match.group()
        for plain in _decodings(run):
            for rule in _rules(secrets):
                if rule.kind in ("token", "private key", "url userinfo") and rule.pattern.search(plain):
                    yield rule.kind


def _decodings(run: str) -> Iterator[str]:
    try:
        yield bytes.fromhex(run).decode("ascii")
    except ValueError:
        pass
    try:
        body = run.rstrip("=").replace("-", "+").replace("_", "/")
        yield base64.b64decode(body + "=" * (-len(body) % 4), validate=True).decode("ascii")
    except ValueError:
        pass


# --- rules --------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _rules(secrets: Secrets) -> tuple[_Rule, ...]:
    return (*_known_rules(secrets), *_pattern_rules(secrets.salt), *_name_rules(secrets))


def _known_rules(secrets: Secrets) -> Iterator[_Rule]:
    for kind, value in sorted(set(secrets.values), key=lambda pair: -len(pair[1])):
        parts = [value, *(line for line in value.splitlines() if len(line) >= 16)]
        forms = {form for part in parts for form in _forms(part)}
        yield _Rule(kind, _any_of(forms), f"<{kind}>", is_known=True)
    for uuid in secrets.uuids:
        plain = re.sub(r"(?i)^(GPU|MIG)-", "", uuid)
        forms = {plain, plain.replace("-", "")} | set(_forms(plain))
        pattern = re.compile(r"(?i)(?:(?:GPU|MIG)-)?" + _any_of(forms).pattern)
        yield _Rule("gpu uuid", pattern, pseudonym(uuid, secrets.salt), is_known=True)
    for path, stands_for in sorted(set(secrets.paths), key=lambda pair: -len(pair[0])):
        spellings = {path, path.replace("\\", "\\\\"), path.replace("\\", "/"), quote(path)}
        pattern = rf"(?<![\w.~-])(?:{_any_of(spellings).pattern})(?![\w.-]*\w)"
        yield _Rule("path", re.compile(pattern), stands_for, is_known=len(path) > 5)
        if len(path) > 5:
            yield _Rule("path", _any_of(set(_forms(path)) - spellings), stands_for, is_known=True)


def _name_rules(secrets: Secrets) -> Iterator[_Rule]:
    """User and host: everywhere where the name is a rare word, else only where it stands as a name."""
    for kind, name in (("user", secrets.user), ("host", secrets.host)):
        if not name:
            continue
        spelt = re.escape(name)
        if name.lower() in COMMON_NAMES or len(name) < 4:
            around = rf"(?:(?<=@){spelt}{_END}|{_EDGE}{spelt}(?=@)|(?<=[\\/]){spelt}(?=@))"
            yield _Rule(kind, re.compile(around), f"<{kind}>")
            continue
        yield _Rule(kind, re.compile(rf"(?i){_EDGE}{spelt}{_END}"), f"<{kind}>", is_known=True)
        short = name.partition(".")[0]
        if kind == "host" and short != name and len(short) >= 4 and short.lower() not in COMMON_NAMES:
            yield _Rule(kind, re.compile(rf"(?i){_EDGE}{re.escape(short)}{_END}"), f"<{kind}>", is_known=True)
        if len(name) >= 6:
            yield _Rule(kind, _any_of(set(_forms(name)) - {name}), f"<{kind}>", is_known=True)


def _pattern_rules(salt: bytes) -> Iterator[_Rule]:
    def rule(kind: str, pattern: str, replacement: str | Callable[[re.Match[str]], str]) -> _Rule:
        return _Rule(kind, re.compile(pattern), replacement)

    yield rule(
        "private key",
        r"-----BEGIN[A-Z ]*PRIVATE KEY-----[^\"]*?(?:-----END[A-Z ]*-----|(?=\")|\Z)",
        "<private key>",
    )
    yield rule("url userinfo", r"(?<=://)(?!<)[^/\s@\"'<>]{1,300}@", "<userinfo>@")
    yield rule("token", f"{_EDGE}(?:{_TOKENS})", "<token>")
    yield rule("token", r"(?i)(\b(?:bearer|basic)\s+)(?!<)[\w.+/~-]{12,}=*", r"\1<secret>")
    # An unquoted value needs a digit, so that `token = tokenizer.encode(text)` in a cell stays code.
    value = r"(?![\[<]|[\d.e+-]+(?![\w-])|(?:none|null|true|false)\b)"
    quoted, bare = rf"[\"']{value}[^\"'<>\n]{{4,}}", rf"{value}(?=[^\s\"']*\d)[^\s\"'&,;()<>]{{6,}}"
    yield rule("secret", rf"(?i)((?:{_SECRET_WORD})[\"']?\s*[:=]\s*)(?:{quoted}|{bare})", r"\1<secret>")
    yield rule("secret", rf"(?i)((?<!\S)--?[\w-]*(?:{_SECRET_WORD})\s+)(?![-<])[^\s\"']{{4,}}", r"\1<secret>")
    yield rule("home path", r"(/home/|/Users/|[A-Za-z]:[\\/]{1,2}Users[\\/]{1,2})(?!<)[^/\\\s\"':<>]+", r"\1<user>")
    yield rule("gpu uuid", rf"(?i){_EDGE}(?:GPU|MIG)-{_UUID}{_END}", lambda found: pseudonym(found.group(), salt))
    yield rule(
        "serial",
        r"(?i)(\bserial(?:[ _]number)?[\"']?\s*[:=]\s*[\"']?)(?!<)(?=[\w-]*\d)[\w-]{6,}",
        r"\1<serial>",
    )
    yield rule("pci address", rf"{_EDGE}[0-9a-fA-F]{{4,8}}:[0-9a-fA-F]{{2}}:[0-9a-fA-F]{{2}}\.[0-7]{_END}", "<pci>")
    yield rule(
        "mac",
        r"(?i)(?<![\w:-])(?:(?:[0-9a-f]{2}:){5}|(?=[\d-]*[a-f])(?:[0-9a-f]{2}-){5})[0-9a-f]{2}(?![\w:-])",
        "<mac>",
    )
    yield rule("email", r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64})+", "<email>")
    octet = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
    yield rule("ip", rf"(?<![\w.])(?:{octet}\.){{3}}{octet}(?!\w|\.\w)", _ip)
    yield rule(
        "ip",
        r"(?i)(?<![\w:])(?=[\w:]*\d)"
        r"(?:[0-9a-f]{3,4}(?::[0-9a-f]{1,4}){0,6}::(?:[0-9a-f]{1,4}(?::[0-9a-f]{1,4}){0,6})?"
        r"|(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4})(?![\w:])",
        "<ip>",
    )


def _ip(match: re.Match[str]) -> str:
    """A number with four parts is an address, unless it is a version: nvidia-curand 10.3.9.90."""
    before = match.string[max(0, match.start() - 60) : match.start()].rpartition("\n")[2]
    return match.group() if match.group() in _HARMLESS_IP or _VERSION_BEFORE.search(before) else "<ip>"


def _forms(value: str) -> Iterator[str]:
    """`value` as it is, in hex and URL form, and in base64: what no neighbour changes, at 3 offsets."""
    data = value.encode()
    yield value
    yield quote(value, safe="")
    yield "".join(f"%{byte:02X}" for byte in data)
    yield "".join(f"%{byte:02x}" for byte in data)
    yield data.hex()
    yield data.hex().upper()
    if len(data) < 6:
        return
    for offset in range(3):
        text = base64.b64encode(b"\0" * offset + data).decode()
        whole = (offset + len(data)) * 8 // 6
        stable = text[(0, 2, 3)[offset] : whole]
        yield stable
        yield stable.replace("+", "-").replace("/", "_")


def _any_of(texts: set[str]) -> re.Pattern[str]:
    return re.compile("(?:" + "|".join(re.escape(text) for text in sorted(texts, key=lambda t: (-len(t), t))) + ")")


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
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        end = at + 12 + size
        if end > len(data):
            raise ValueError("PNG ends inside a chunk")
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME"):
            kept.append(data[at:end])
        at = end
        if kind == b"IEND":
            break
    return b"".join(kept)


# Asks this machine what must not leave it: user, host, home, secret variables, its own addresses, the salt.
#
# The only part of privacy that touches the machine; the rules are in `kit.evidence.redact`.
