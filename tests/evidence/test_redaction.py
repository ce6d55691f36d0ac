"""Nothing private leaves the machine, in any form; harmless look-alikes do."""

import base64
import hashlib
import json
import os
import random
import re
import stat
from urllib.parse import quote

import evidence_sample as sample
import pytest

from kit.errors import BundleInvalid
from kit.evidence import bundle
from kit.evidence.bundle import open_bundle
from kit.evidence.redact import Secrets, decode, pseudonym, redact_text, redact_value, scan, strip_png
from kit.evidence.verify import verify

UUID = "GPU-6f1c9a52-7f0e-4d0b-9a55-0c1de2f3a4b5"
KNOWN = {
    "value of HF_TOKEN": "hf_" + "QmFzZTY0" * 4,
    "value of DB_PASSWORD": "korrekt-pferd-batterie",
    "serial": "1652922012345",
}
SECRETS = Secrets(
    values=tuple(KNOWN.items()),
    user="mgoldberg",
    host="tatooine.lab.example.org",
    paths=(("/srv/people/mgoldberg", "~"),),
    uuids=(UUID,),
    salt=b"a salt",
)
# 12 kinds; what is searched for afterwards is the second of each pair.
PLANTED = {
    "token in the environment": ("HF_TOKEN={}", KNOWN["value of HF_TOKEN"]),
    "password in the environment": ("DB_PASSWORD={}", KNOWN["value of DB_PASSWORD"]),
    "token by its pattern": ("gave {} to git", "ghp_" + "a1B2" * 9),
    "cloud key": ("key {}", "AKIAIOSFODNN7EXAMPLE"),
    "user name": ("run by {}", "mgoldberg"),
    "host name": ("on {} at night", "tatooine.lab.example.org"),
    "home path": ("File {}/proj/a.py", "/srv/people/mgoldberg"),
    "address": ("Connection to {} refused", "192.0.2.77"),
    "hardware address": ("link/ether {}", "00:1b:44:11:3a:b7"),
    "GPU UUID": ("device {}", UUID),
    "serial number": ("Serial Number : {}", KNOWN["serial"]),
    "URL user info": ("https://{}@pypi.example.org/simple", "ada:s3cr3tpass"),
}
PLACES = ("capture", "record", "lines", "notebook output or traceback", "notebook parameter")


def plant(bundle, place, text, is_failing):
    if place == "capture":
        bundle.write("env_info.txt", f"line\n{text}\n")
    elif place == "record":
        bundle.write_json("raw/records/01_smoke.json", {"notebook": "01_smoke", "nonce": sample.NONCE, "said": [text]})
    elif place == "lines":
        bundle.append_line("raw/notes.jsonl", {"note": text})
    else:
        value = sample.notebook("a = 1", "b = 2")
        if place == "notebook parameter":
            value["metadata"]["papermill"] = {"parameters": {"note": text}, "input_path": text}
            value["cells"].insert(
                1,
                {
                    "cell_type": "code",
                    "id": "p",
                    "metadata": {"tags": ["injected-parameters"]},
                    "source": f"note = {text!r}",
                    "execution_count": 1,
                    "outputs": [],
                },
            )
            for index, cell in enumerate(value["cells"][1:], 1):
                cell["execution_count"] = index
        elif is_failing:
            value["cells"][2]["outputs"] = [
                {
                    "output_type": "error",
                    "ename": "E",
                    "evalue": text,
                    "traceback": ["\x1b[31mE\x1b[0m", text],
                }
            ]
        else:
            value["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["a\n", text, "\n"]}]
        # As a notebook kernel or papermill writes it: past the bundle.
        (bundle.path / "notebooks/01_smoke.ipynb").write_text(json.dumps(value), encoding="utf-8")


def found_forms(folder, secret):
    """A search of its own: every file, and what stands in base64 in it, for the secret as it is, in base64, hex and URL form."""
    data = secret.encode()
    needles = {
        data,
        data.hex().encode(),
        data.hex().upper().encode(),
        quote(secret, safe="").encode(),
        secret.encode("utf-16-le"),
    }
    if len(data) >= 6:
        needles |= {base64.b64encode(b"\0" * shift + data).rstrip(b"=")[4 if shift else 0 : -2] for shift in range(3)}
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            layers = [content]
            for packed in re.findall(rb"[A-Za-z0-9+/]{40,}", content):
                layers.append(base64.b64decode(packed[: len(packed) // 4 * 4]))
            yield from (path.name for layer in layers for needle in needles if needle in layer)


def test_the_search_of_these_tests_finds_what_was_not_redacted(tmp_path):
    for kind, (template, secret) in PLANTED.items():
        for form in (
            str,
            lambda s: base64.b64encode(f"x{s}".encode()).decode(),
            lambda s: s.encode().hex(),
            lambda s: quote(s, safe=""),
        ):
            (tmp_path / "a.txt").write_text(template.format(form(secret)), encoding="utf-8")
            assert list(found_forms(tmp_path, secret)), kind


@pytest.mark.parametrize("state", ["COMPLETE", "FAILED"])
def test_planted_secrets_are_in_no_bundle(tmp_path, state, tally):
    found = []
    for number, (kind, (template, secret)) in enumerate(PLANTED.items()):
        for index, place in enumerate(PLACES):
            run_id = f"r{number}-{index}"
            with open_bundle(tmp_path, run_id, secrets=SECRETS) as bundle:
                sample.fill(bundle, sample.run_record(state, run_id=run_id))
                plant(bundle, place, template.format(secret), state != "COMPLETE")
                path = bundle.finish(sample.conclude(bundle.settle()))
            found += [f"{kind} in {name} ({place})" for name in found_forms(path, secret)]
    tally(
        f"secrets planted in a {state} run, {len(PLANTED)} kinds × {len(PLACES)} places",
        len(PLANTED) * len(PLACES),
        f"{len(found)} found",
    )
    assert not found


@pytest.mark.parametrize(
    "form",
    [
        lambda s: base64.b64encode(s.encode()).decode(),
        lambda s: base64.b64encode(f"x{s}y".encode()).decode(),
        lambda s: base64.urlsafe_b64encode(f"ab{s}?>".encode()).decode(),
        lambda s: s.encode().hex(),
        lambda s: s.encode().hex().upper(),
        lambda s: quote(s, safe=""),
        lambda s: "".join(f"%{b:02x}" for b in s.encode()),
    ],
)
@pytest.mark.parametrize("name", ["value of DB_PASSWORD", "user", "host", "home", "uuid"])
def test_known_values_are_found_in_every_form(form, name):
    value = {"user": SECRETS.user, "host": SECRETS.host, "home": SECRETS.paths[0][0], "uuid": UUID}.get(name) or KNOWN[
        name
    ]
    text = f"before {form(value)} after"
    assert form(value) not in redact_text(text, SECRETS)
    assert scan({"a.txt": text.encode()}, SECRETS)


@pytest.mark.parametrize(
    "text",
    [
        "sha256 " + hashlib.sha256(b"x").hexdigest(),
        "commit 4aaaaed8d3c9d3bcf1d0e3b6ab8f6bd4f0d8a6b1",
        "driver 580.159.04, CUDA 13.0",
        "nvidia-curand-cu12==10.3.9.90",
        '"nvidia-cudnn-cu13": "9.15.1.9"',
        "nvidia-cublas 12.8.4.1",
        "tokens_per_s: 91234.5",
        "tokenizer=gpt2, pad_token=<|endoftext|>, eos_token_id: 50256",
        "token = tokenizer.encode(text)",
        "2026-11-22T10:20:30.123+00:00",
        "x[1::2] and a[::-1]",
        "std::vector<at::Tensor>",
        "c10::cuda::CUDAStream",
        "127.0.0.1:8888",
        "sort_key=flop_per_s",
        "AdamW(lr=2e-05)",
        "NVIDIA GeForce RTX 5090",
        "12:34:56",
        "password",
        "secret sauce",
        "9f" * 16,
        "step 1/14 @ 0.1 s",
        "a risk-averse-and-long-word",
    ],
)
def test_harmless_look_alikes_survive(text):
    assert redact_text(text, SECRETS) == text
    assert not scan({"a.txt": text.encode()}, SECRETS)


def test_root_does_not_shred_words():
    secrets = Secrets(user="root", host="gpu", paths=(("/root", "~"),), salt=b"s")
    text = 'the root hash "root": /mnt/root/x, chroot; cuda on the gpu, uproot'
    assert redact_text(text, secrets) == text
    assert redact_text("root@gpu:/root/.cache# ls /root", secrets) == "<user>@<host>:~/.cache# ls ~"


@pytest.mark.parametrize(
    "text,expected",
    [
        ("C:\\Users\\Jane Doe\\x.py", "~\\x.py"),
        ("C:\\\\Users\\\\Jane Doe\\\\x.py", "~\\\\x.py"),
        ("C:/Users/Jane Doe/x", "~/x"),
        ("D:\\Users\\other\\x", "D:\\Users\\<user>\\x"),
        ("/home/other/x", "/home/<user>/x"),
    ],
)
def test_home_paths_of_windows_and_of_others(text, expected):
    secrets = Secrets(user="Jane Doe", paths=(("C:\\Users\\Jane Doe", "~"),), salt=b"s")
    assert redact_text(text, secrets) == expected


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n-----END OPENSSH PRIVATE KEY-----",
        "Authorization: Bearer abc123def456ghi789",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
        "api_key: 'no digits here'",
        "pip --token correcthorse install",
        "PASSWORD=hunter42",
        "0000:3b:00.0",
        "00000000:3B:00.0",
        "fe80::1ff:fe23:4567:890a",
        "2001:0db8:0000:0000:0000:ff00:0042:8329",
        "ada@example.org",
        "10.1.2.3 is up",
        "GPU-11111111-2222-3333-4444-555555555555",
    ],
)
def test_unknown_secrets_are_found_by_pattern(text):
    once = redact_text(text, SECRETS)
    assert once != text and redact_text(once, SECRETS) == once
    assert scan({"a.txt": text.encode()}, SECRETS)


def test_redaction_is_idempotent_over_everything():
    text = "\n".join(template.format(secret) for template, secret in PLANTED.values()) * 2
    once = redact_text(text, SECRETS)
    assert redact_text(once, SECRETS) == once and not scan({"a.txt": once.encode()}, SECRETS)


def test_values_under_secret_names_and_after_secret_flags_go_whole():
    value = {
        "env": {"API_KEY": "a b", "TOKENIZERS_PARALLELISM": "false"},
        "argv": ["x", "--password", "two words", "--steps", "14"],
        "eos_token": "<|endoftext|>",
        "n": [1, 2.5, None, True],
    }
    assert redact_value(value, SECRETS) == {
        "env": {"API_KEY": "<secret>", "TOKENIZERS_PARALLELISM": "false"},
        "argv": ["x", "--password", "<secret>", "--steps", "14"],
        "eos_token": "<|endoftext|>",
        "n": [1, 2.5, None, True],
    }


def test_secret_over_several_lines_of_a_notebook_goes_whole():
    lines = [
        "-----BEGIN RSA PRIVATE KEY-----\n",
        "MIIEpAIBAAKCAQEA7\n",
        "-----END RSA PRIVATE KEY-----\n",
        "after\n",
    ]
    assert redact_value(lines, SECRETS) == ["<private key>\nafter\n"]


def test_token_in_base64_that_nobody_knows_is_seen_by_the_scan():
    hidden = base64.b64encode(b"token=ghp_" + b"Zx9Y" * 9).decode()
    assert [hit.kind for hit in scan({"a.txt": f"auth {hidden}\n".encode()}, SECRETS)] == ["token"]


def test_pseudonym_is_keyed_and_the_same_however_it_is_spelt():
    name = pseudonym(UUID, b"salt")
    assert re.fullmatch("gpu-[0-9a-f]{12}", name)
    assert name == pseudonym(UUID.removeprefix("GPU-").upper(), b"salt") != pseudonym(UUID, b"other")
    assert (
        redact_text(f"{UUID} {UUID[4:]} {UUID[4:].replace('-', '')}", Secrets(uuids=(UUID,), salt=b"salt"))
        == f"{name} {name} {name}"
    )


def test_picture_loses_its_metadata_and_keeps_its_pixels():
    picture = sample.png(extra=sample.text_chunk("mgoldberg"))
    assert strip_png(picture) == sample.png() and [h.kind for h in scan({"a.png": picture}, SECRETS)][-1] == "metadata"
    with pytest.raises(ValueError):
        strip_png(b"GIF89a")


def test_pictures_in_notebooks_lose_their_metadata_too(tmp_path):
    with open_bundle(tmp_path, "r1", secrets=SECRETS) as bundle:
        sample.fill(bundle)
        value = sample.notebook("a = 1", "b = 2")
        picture = base64.b64encode(sample.png(extra=sample.text_chunk("mgoldberg was here"))).decode()
        value["cells"][1]["outputs"] = [
            {
                "output_type": "display_data",
                "data": {"image/png": picture},
                "metadata": {"image/png": {"alt": "a"}},
            }
        ]
        (bundle.path / "notebooks/01_smoke.ipynb").write_text(json.dumps(value), encoding="utf-8")
        path = bundle.finish(sample.conclude(bundle.settle()))
    assert not list(found_forms(path, "mgoldberg"))
    assert base64.b64encode(sample.png()) in (path / "notebooks/01_smoke.html").read_bytes()


def test_scan_hit_takes_the_file_out_and_makes_the_run_failed(tmp_path):
    hidden = base64.b64encode(b"export T=ghp_" + b"Zx9Y" * 9).decode()
    with open_bundle(tmp_path, "r1", secrets=SECRETS) as bundle:
        sample.fill(bundle)
        whole = sample.conclude(
            {p.relative_to(bundle.path).as_posix(): p.read_bytes() for p in bundle.path.rglob("*.json*")}
        )
        bundle.write("nvidia_smi.txt", hidden + "\n")
        files = bundle.settle()
        assert json.loads(files["raw/privacy.json"]) == {
            "hits": [{"file": "nvidia_smi.txt", "kind": "token", "form": "base64 or hex"}]
        }
        assert "token in nvidia_smi.txt" in json.loads(files["raw/run.json"])["reason"]
        with pytest.raises(BundleInvalid, match="token in nvidia_smi.txt"):
            bundle.finish(whole)
        evidence = sample.conclude(files)
        path = bundle.finish(evidence)
    assert evidence.state == "FAILED" and verify(path).exit_code == 1
    assert hidden.encode() not in b"".join(p.read_bytes() for p in path.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    "data",
    [
        "häuser".encode("utf-16"),
        b"\xff\xfe" + "häuser".encode("utf-16-le"),
        "häuser".encode("utf-16-le"),
        "\ufeffhäuser".encode(),
        "häuser".encode(),
    ],
)
def test_output_of_any_tool_becomes_text(data):
    assert decode(data) == "häuser"


def test_salt_is_made_once_and_is_private(tmp_path, monkeypatch):
    monkeypatch.delenv("KIT_SALT", raising=False)
    first = bundle.salt(tmp_path / "kit")
    assert bundle.salt(tmp_path / "kit") == first and len(first) == 32
    if os.name != "nt":
        assert stat.S_IMODE((tmp_path / "kit/salt").stat().st_mode) == 0o600


def test_salt_lasts_for_the_process_where_nothing_can_be_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_SALT", "")
    (tmp_path / "kit").write_text("a file in the way", encoding="utf-8")
    assert bundle.salt(tmp_path / "kit") == bundle.salt(tmp_path / "kit") == bytes.fromhex(os.environ["KIT_SALT"])


def test_gathered_secrets_are_of_this_machine(monkeypatch):
    monkeypatch.setenv("KIT_SALT", "00" * 32)
    environ = {
        "HF_TOKEN": "hf_abcdefgh1234",
        "KEYBOARD": "standard-us",
        "API_KEY": "ordinary",
        "TOKENIZERS_PARALLELISM": "falsetruefalse",
        "PIP_INDEX_URL": "https://ada:geheim99@pypi.example.org",
    }
    found = bundle.gather(environ=environ, uuids=[UUID])
    assert found.values == (("value of HF_TOKEN", "hf_abcdefgh1234"), ("url userinfo", "geheim99"))
    assert found.user and found.host and found.uuids == (UUID,) and any(name == "~" for _, name in found.paths)


def test_speed_of_a_scan_of_ten_megabytes(tally):
    import time

    noise = base64.b64encode(random.Random(2).randbytes(7_500_000))
    began = time.perf_counter()
    assert not scan({"a.ipynb": noise}, SECRETS)
    taken = time.perf_counter() - began
    tally("scan of 10 MB for secrets", 1, f"{taken:.1f} s")
    assert taken < 20
