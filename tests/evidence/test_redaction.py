"""Nothing private leaves the machine, in any spelling; harmless look-alikes do.

The shapes are rows; that the doors use them is shown by whole reports of `python -m kit report`, with real values of
this machine and others that a cell prints, and a search of every byte of the bundle.
"""

import base64
import json
import os
import re
import stat
import time
import unicodedata
from pathlib import Path
from urllib.parse import quote

import evidence_sample as sample
import pytest

from kit.evidence import bundle
from kit.evidence.bundle import open_bundle
from kit.evidence.redact import Secrets, decode, pseudonym, redact_text, redact_value, scan, strip_png
from kit.evidence.verify import verify
from kit.gpu.diagnose import mask_problem
from tools import torture

ROOT = Path(__file__).resolve().parents[2]
UUID = "6f1c9a52-7f0e-4d0b-9a55-0c1de2f3a4b5"
SECRETS = Secrets(
    values=(("value of X", "korrekt-pferd-batterie"),),
    users=("mgoldberg", "jürgen", "田中"),
    host="tatooine.lab.example.org",
    paths=(("/srv/people/mgoldberg", "~"), ("C:\\Users\\Jane Doe", "~")),
    salt=b"a salt",
)
# Each line of the first is private, and nothing of it between « and » may stay; each of the second is not.
PRIVATE, HARMLESS = (
    Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines() for name in ("private.txt", "harmless.txt")
)


@pytest.mark.parametrize("line", PRIVATE)
def test_what_is_private_goes(line):
    text = re.sub("[«»]", "", line)
    once = redact_text(text, SECRETS)
    assert not [part for part in re.findall("«(.+?)»", line) if part.strip("-") in once]
    assert redact_text(once, SECRETS) == once
    assert scan({"a.txt": text.encode()}, SECRETS) and not scan({"a.txt": once.encode()}, SECRETS)


@pytest.mark.parametrize("line", [*HARMLESS, "sha256 " + "9f" * 32])
def test_what_is_harmless_stays(line):
    assert redact_text(line, SECRETS) == line and not scan({"a.txt": line.encode()}, SECRETS)


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_the_kits_own_notebooks_hold_nothing_that_looks_private(path):
    template = json.loads(path.read_text(encoding="utf-8"))
    assert redact_value(template, SECRETS) == template


def spellings(value):
    """`value` as a reader of bytes could still find it."""
    for text in {value, unicodedata.normalize("NFD", value)}:
        data = text.encode()
        yield from {text, json.dumps(text)[1:-1], ascii(text)[1:-1], repr(data)[2:-1], quote(text, safe="")}
        yield from ("".join(f"%{byte:02x}" for byte in data), data.hex(), data.hex().upper())
        for shift in range(3):
            # What no neighbour changes.
            yield base64.b64encode(b"\0" * shift + data).decode()[(0, 2, 3)[shift] : (shift + len(data)) * 8 // 6]
        yield text.encode("ascii", "xmlcharrefreplace").decode()


@pytest.mark.parametrize("value", ["korrekt-pferd-batterie", *SECRETS.users, SECRETS.host, "/srv/people/mgoldberg"])
def test_a_known_value_goes_in_every_spelling(value):
    for text in spellings(value):
        if len(text) >= 6 or text == value:
            found = redact_text(f"before {text} after", SECRETS)
            assert text not in found, (text, found)


def test_root_does_not_shred_words():
    secrets = Secrets(users=("root",), host="gpu", paths=(("/root", "~"),), salt=b"s")
    text = 'the root hash "root": /mnt/root/x, chroot; cuda on the gpu, uproot'
    assert redact_text(text, secrets) == text
    assert redact_text("root@gpu:/root/.cache# ls /root", secrets) == "<user>@<host>:~/.cache# ls ~"


def test_values_under_secret_names_and_after_secret_flags_go_whole():
    value = {
        "env": {"API_KEY": "a b", "TOKENIZERS_PARALLELISM": "false", "token": "Hello"},
        "argv": ["x", "--password", "two words", "--steps", "14"],
        "n": [1, 2.5, None, True],
    }
    assert redact_value(value, SECRETS) == {
        "env": {"API_KEY": "<secret>", "TOKENIZERS_PARALLELISM": "false", "token": "Hello"},
        "argv": ["x", "--password", "<secret>", "--steps", "14"],
        "n": [1, 2.5, None, True],
    }


def test_secret_over_several_lines_of_a_notebook_goes_whole():
    lines = ["-----BEGIN RSA PRIVATE KEY-----\n", "MIIEpAIBAAKCAQEA7\n", "-----END RSA PRIVATE KEY-----\n", "after\n"]
    assert redact_value(lines, SECRETS) == ["<private key>\nafter\n"]


def test_pseudonym_is_keyed_and_the_same_however_it_is_spelt():
    name = pseudonym(UUID, SECRETS.salt)
    assert re.fullmatch("[0-9a-f]{12}", name) and name != pseudonym(UUID, b"other")
    for text in (UUID, UUID.upper(), UUID.replace("-", ""), UUID[:13]):
        assert redact_text(f"x {text} y", SECRETS) == f"x {name} y"
    for text in (f"GPU-{UUID}", f"GPU-{UUID[:8]}", f"gpu-{UUID.replace('-', '')}"):
        assert redact_text(f"x {text} y", SECRETS) == f"x GPU-{name} y"


def test_a_mask_of_uuids_means_the_same_after_redaction():
    facts = {"mask": f"GPU-{UUID[:8]}", "gpus": [f"GPU-{UUID}"], "slice": f"MIG-{UUID}"}
    told = redact_value(facts, SECRETS)
    assert mask_problem(told["mask"], 1, told["gpus"]) is None and mask_problem(told["slice"], 1, told["gpus"]) is None


def test_a_picture_loses_its_metadata_and_keeps_its_pixels(tmp_path):
    picture = sample.png(extra=sample.text_chunk("mgoldberg was here"))
    assert strip_png(picture) == sample.png() and scan({"a.png": picture}, SECRETS)[0] == ("a.png", "metadata")
    output = {"output_type": "display_data", "data": {"image/png": base64.b64encode(picture).decode()}, "metadata": {}}
    value = {**sample.notebook("a = 1"), "cells": [{"cell_type": "code", "source": "", "outputs": [output]}]}
    data = bundle.cleaned("notebooks/a.ipynb", json.dumps(value).encode(), SECRETS)
    assert (
        json.loads(data)["cells"][0]["outputs"][0]["data"]["image/png"].strip()
        == base64.b64encode(sample.png()).decode()
    )


def test_what_the_last_scan_finds_is_taken_out_and_fails_the_run(tmp_path, monkeypatch):
    writer = open_bundle(tmp_path, "r1", secrets=SECRETS)
    sample.fill(writer)
    monkeypatch.setattr(bundle, "cleaned", lambda name, data, secrets: data)
    (writer.path / "nvidia_smi.txt").write_text("by mgoldberg\n", encoding="utf-8")
    files = writer.settle()
    assert json.loads(files["raw/privacy.json"]) == {"hits": [{"file": "nvidia_smi.txt", "kind": "user"}]}
    assert "user in nvidia_smi.txt" in json.loads(files["raw/run.json"])["reason"]
    path = writer.finish(sample.conclude(files))
    assert (
        not (path / "nvidia_smi.txt").exists()
        and json.loads((path / "evidence.json").read_bytes())["state"] == "FAILED"
    )


@pytest.mark.parametrize(
    "data", ["häuser".encode("utf-16"), "häuser".encode("utf-16-le"), "\ufeffhäuser".encode(), "häuser".encode()]
)
def test_output_of_any_tool_becomes_text(data):
    assert decode(data) == "häuser"


def test_salt_is_made_once_and_is_private(tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_SALT", "")
    first = bundle.salt(tmp_path / "kit")
    assert bundle.salt(tmp_path / "kit") == first and len(first) == 32
    assert os.name == "nt" or stat.S_IMODE((tmp_path / "kit/salt").stat().st_mode) == 0o600
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert bundle.salt(tmp_path / "file") == bundle.salt(tmp_path / "file") == bytes.fromhex(os.environ["KIT_SALT"])


def test_gathered_secrets_are_of_this_machine(monkeypatch):
    monkeypatch.setattr(
        os,
        "environ",
        {
            "KIT_SALT": "00" * 32,
            "HOME": "/tmp/田中",
            "HF_TOKEN": "hf_abcdefgh1234",
            "KEYBOARD": "standard-us",
            "API_KEY": "ordinary",
            "PIP_INDEX_URL": "https://ada:geheim99@pypi.example.org",
        },
    )
    found = bundle.gather()
    assert found.values == (("value of HF_TOKEN", "hf_abcdefgh1234"), ("url userinfo", "geheim99"))
    assert "田中" in found.users and found.host and ("/tmp/田中", "~") in found.paths


def test_a_megabyte_is_scanned_in_a_moment(tally):
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("kit/**/*.py"))).encode()[:500_000]
    picture = base64.b64encode(sample.png(extra=os.urandom(500_000)))
    began = time.process_time()
    scan({"a.txt": text, "b.txt": picture}, SECRETS)
    taken = time.process_time() - began
    tally("scan of 1 MB, half text and half pictures", 1, f"{taken:.2f} s")
    assert taken < 1


@pytest.mark.parametrize("path", sorted(ROOT.glob("reports/*/evidence.json")), ids=lambda path: path.parent.name)
def test_in_a_report_of_a_real_machine_nothing_would_be_destroyed(path):
    secrets = Secrets(salt=b"s", ours=(json.loads(path.read_bytes())["nonce"],))
    files = [file for file in path.parent.rglob("*") if file.is_file()]
    assert not scan({file.name: file.read_bytes() for file in files}, secrets)


PLANTED = {
    "GPU UUID": UUID,
    "part of a UUID": UUID[:13],
    "password without a digit": "hunterundbeute",
    "token": "hf_QmFzZTY0QmFzZTY0QmFzZTY0",
    "another one's home": "Ärmel",
    "address": "10.17.4.5",
    "environment": "korrektes-pferd",
}
_CELL = f"""import os, pathlib, sys, uuid
print('device', {UUID!r}, {UUID!r}[:13], uuid.UUID({UUID!r}).hex, 'GPU-' + {UUID!r}.upper())
print('DB_PASS=' + 'hunterund' + 'beute', 'driver: 10.17.' + '4.5', 'hf_' + 'QmFzZTY0' * 3)
print(pathlib.Path.home(), [str(pathlib.Path.home())], ascii(str(pathlib.Path.home())), pathlib.Path.home().as_uri())
print('/home/Ärmel/x', ascii('/home/Ärmel/x'), os.environ['TEST_PASSWORD'], sys.executable, os.getcwd())
print(os.environ['TEST_PASSWORD'].encode().hex(), __import__('base64').b64encode(os.environ['HOME'].encode()).decode())
session.keep_json('raw/records/extra.json', {{'nonce': nonce, 'uuid': {UUID!r}, 'home': str(pathlib.Path.home())}})
(session.raw / 'more.jsonl').write_text(ascii({{'home': str(pathlib.Path.home())}}) + chr(10))
raise ValueError('ended in ' + str(pathlib.Path.home()))"""


def test_no_byte_of_a_report_tells_whose_machine_it_was(tmp_path):
    """In a home with a name beyond ASCII, with a cell that prints and one that fails."""
    home = tmp_path / "jürgen-田中"
    home.mkdir()
    kit = torture.small_kit(tmp_path / "kit", {"02_smoke_training": _CELL})
    environment = {"HOME": str(home), "TEST_PASSWORD": PLANTED["environment"], "XDG_CONFIG_HOME": "", "KIT_SALT": ""}
    code, told = torture.finished(torture.report(kit, tmp_path / "out", **environment))
    assert code == 1, told
    [path] = (tmp_path / "out").glob("[!.]*-cpu-*")
    whole = b"\n".join(file.read_bytes() for file in path.rglob("*") if file.is_file())
    # The cell ran: what it printed stands there without what is private.
    assert b"DB_PASS=" in whole and b"<secret>" in whole and b"GPU-" in whole
    private = {**PLANTED, "home": str(home), "its name": home.name, "a part of it": "田中", "test": str(tmp_path)}
    found = {
        kind
        for kind, value in private.items()
        for text in (spelt.encode() for spelt in spellings(value))
        if len(text) >= 6 and text in whole
    }
    assert not found
    assert verify(path).integrity.value == "PASS"
