"""Bundles made to harm whoever looks at them: refused within 5 s and 200 MB, and nothing outside is read."""

import json
import os
import socket
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import evidence_sample as sample
import pytest

from kit.evidence.manifest import MANIFEST, MAX_FILES
from kit.evidence.verify import text, verify
from kit.records import loads

ROOT = Path(__file__).resolve().parents[2]
posix = pytest.mark.skipif(os.name == "nt", reason="links and devices of POSIX")
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


def refused(path, words):
    found = verify(path)
    assert found.exit_code == 4, text(found)
    assert words in text(found)


@posix
@pytest.mark.parametrize("name", ["raw/steps.jsonl", "raw", MANIFEST])
def test_symbolic_link_is_refused(bundle, tmp_path, name):
    outside = tmp_path / "outside"
    (bundle / name).rename(outside)
    (bundle / name).symlink_to(outside)
    refused(bundle, "is a link or a device")


@posix
def test_link_that_the_reader_made_is_followed_and_none_inside(bundle, tmp_path):
    (tmp_path / "link").symlink_to(bundle)
    assert verify(tmp_path / "link").exit_code == 0
    os.link(bundle / "README.md", tmp_path / "other")
    refused(bundle, "second hard link")
    (bundle / "raw/link.json").symlink_to(bundle / "README.md")
    refused(tmp_path / "link", "a link or a device")


@posix
def test_fifo_and_socket_are_refused_without_opening(bundle, tmp_path, monkeypatch):
    os.mkfifo(bundle / "raw/pipe.jsonl")
    refused(bundle, "'raw/pipe.jsonl' is a link or a device")
    (bundle / "raw/pipe.jsonl").unlink()
    # A socket's whole path has to be short.
    monkeypatch.chdir(bundle)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.json")
    refused(bundle, "'s.json' is a link or a device")
    refused(Path("/dev/null"), "a link or a device")


UNSAFE = (
    *("../outside.json", "/etc/passwd", "C:\\x.json", "\\\\server\\x", "raw/../../x", "raw//x", "raw/a/b/c/d/e/f.json"),
    *("x" * 300, "a\nb", "trailing.", "aux:stream", "raw/\u202ecod.json"),
)


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_name_in_a_zip_or_manifest_is_refused(bundle, tmp_path, name):
    secret = tmp_path / "outside.json"
    secret.write_text("secret", encoding="utf-8")
    packed = zipped(bundle, tmp_path / "a.zip", extra={name: b"x"})
    found = verify(packed)
    assert found.exit_code == 4 and "secret" not in text(found) and "\u202e" not in text(found)
    manifest = loads((bundle / MANIFEST).read_bytes())
    manifest["files"].append({"path": name, "size": 6, "sha256": "0" * 64})
    (bundle / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    refused(bundle, "missing: ")


def zipped(bundle, path, extra=(), method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(bundle.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(bundle))
        for name, data in dict(extra).items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return path


def edited(path, edit):
    path.write_bytes(edit(path.read_bytes()))
    return path


def encrypted(data):
    at = data.rfind(b"PK\1\2") + 8
    return data[:at] + bytes([data[at] | 1]) + data[at + 1 :]


def shortened(data):
    at = data.find(b"PK\1\2") + 24
    size = struct.unpack("<I", data[at : at + 4])[0]
    return data[:at] + struct.pack("<I", size - 1) + data[at + 4 :]


def _only(path, names, mode=0):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, b"/etc/passwd")
    return path


ARCHIVES = {
    "stands twice": lambda b, p: zipped(b, p, {"README.md": b"x"}),
    "differ only in case": lambda b, p: zipped(b, p, {"readme.MD": b"x"}),
    "unsafe": lambda b, p: edited(zipped(b, p, {"raw/aXb.json": b"x"}), lambda d: d.replace(b"raw/aXb", b"raw/a\0b")),
    "is a link or a device": lambda b, p: _only(p, [MANIFEST], 0o120777),
    "encrypted": lambda b, p: edited(zipped(b, p), encrypted),
    "zip the folder again": lambda b, p: zipped(b, p, method=zipfile.ZIP_LZMA),
    "over 32.0 MiB": lambda b, p: zipped(b, p, {"raw/big.json": b"0" * (40 << 20)}),
    f"more than {MAX_FILES} files": lambda b, p: _only(p, (f"raw/{index}.json" for index in range(MAX_FILES + 1))),
    "list of files is too long": lambda b, p: _only(p, (f"{index}{'x' * 60_000}" for index in range(80))),
    "": lambda b, p: edited(zipped(b, p), shortened),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("words", ARCHIVES)
def test_archive_that_is_none_of_ours_is_refused(bundle, tmp_path, words):
    refused(ARCHIVES[words](bundle, tmp_path / "a.zip"), words)


def test_deep_folder_is_refused(tmp_path):
    (tmp_path / "deep" / "/".join("abcdefgh")).mkdir(parents=True)
    refused(tmp_path / "deep", "nested too deeply")


@pytest.mark.parametrize(
    "data,words",
    [
        (b'{"a": NaN}', "NaN"),
        (b'{"a": Infinity}', "Infinity"),
        (b'{"a": 1e999}', "no finite number"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b"[" * 200_000, "nested too deeply"),
        (b"[" + b"9" * 100_000 + b"]", "not strict JSON"),
        (b"\xff\xfe{}", "not strict JSON"),
        (b"[" + b"0," * 1_200_000 + b"0]", "JSON values"),
        (b'"' + b"x" * (33 << 20) + b'"', "over 32.0 MiB"),
    ],
)
@pytest.mark.parametrize("name", [MANIFEST, "evidence.json", "raw/training.json", "notebooks/01_smoke.ipynb"])
def test_json_that_is_not_strict_is_refused(bundle, name, data, words):
    (bundle / name).write_bytes(data)
    if name not in (MANIFEST, "evidence.json"):
        sample.rehash(bundle)
    refused(bundle, words)


@pytest.mark.parametrize(
    "data,words",
    [
        (b'{"step": 1, "step_time_s": 0.1', "the last line was cut"),
        (b'"' + b"x" * (2 << 20) + b'"\n', "a line of"),
        ((b"[]," * 1000 + b"0\n") * 1600, "JSON values"),
        (b'{"step_time_s": 0.1}\n[]\n', "raw/steps.jsonl line 1"),
    ],
)
def test_lines_that_are_huge_cut_or_mixed_are_refused(bundle, data, words):
    (bundle / "raw/steps.jsonl").write_bytes(data)
    sample.rehash(bundle)
    refused(bundle, words)


def test_boolean_is_no_number(bundle):
    data = (bundle / "evidence.json").read_bytes()
    (bundle / "evidence.json").write_bytes(data.replace(b'"value": 56', b'"value": true'))
    refused(bundle, "value")


@linux
@pytest.mark.parametrize("kind", ["json", "lines", "zeros", "big", "markdown"])
def test_worst_cases_stay_within_5_seconds_and_200_megabytes(bundle, tmp_path, kind, tally):
    """Largest inputs that the limits let through, hashed as they should be; measured in a process of its own."""
    if kind == "json":
        (bundle / "raw/training.json").write_bytes(b"[" + b"[]," * 330_000 + b"0]")
    if kind == "lines":
        (bundle / "raw/steps.jsonl").write_bytes((b'{"step_time_s":0.1,"samples":4,"loss":4.0}\n') * 160_000)
    if kind == "big":
        for index in range(7):
            (bundle / f"raw/blob{index}.csv").write_bytes((b"0" * (1 << 19) + b"\n") * 8)
        for index in range(12):
            (bundle / f"figures/big{index}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * (15 << 20))
    if kind == "markdown":
        nasty = "[" * 300_000 + "`" * 300_000 + "*_" * 300_000 + "|" * 300_000 + "](http:" * 100_000 + "\n- " * 100_000
        value = json.loads((bundle / "notebooks/01_smoke.ipynb").read_text(encoding="utf-8"))
        value["cells"][0]["source"] = nasty
        (bundle / "notebooks/01_smoke.ipynb").write_text(json.dumps(value), encoding="utf-8")
    sample.rehash(bundle)
    path = bundle
    if kind == "zeros":
        # 225 MB behind 3 MB.
        for index in range(15):
            (bundle / f"figures/f{index}.png").write_bytes((os.urandom(10_700) + b"\0" * ((1 << 20) - 10_700)) * 15)
        sample.rehash(bundle)
        path = zipped(bundle, tmp_path / "zeros.zip")
    code = (
        f"import sys, time; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n"
        "import evidence_sample as sample\nfrom kit.evidence.verify import verify\n"
        "began = time.process_time()\nfound = verify(sys.argv[1])\n"
        "memory = int(next(line for line in open('/proc/self/status', encoding='ascii') if 'VmHWM' in line).split()[1])\n"
        "print(found.exit_code, time.process_time() - began, memory / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    exit_code, seconds, megabytes = (float(part) for part in done.stdout.split())
    tally(f"largest hostile bundle of kind {kind!r}", 1, f"exit {exit_code:.0f}, {seconds:.1f} s, {megabytes:.0f} MiB")
    assert exit_code == 4 and seconds < 5 * 2 and megabytes < 200


def test_compressed_noise_in_place_of_a_zip_gives_no_traceback(tmp_path):
    import random

    draw = random.Random(5)
    whole = zipped(sample.make(tmp_path / "b"), tmp_path / "a.zip").read_bytes()
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 6)):
            data[draw.choice([draw.randrange(len(data)), draw.randrange(len(data) - 1500, len(data))])] = (
                draw.randrange(256)
            )
        path = tmp_path / "fuzzed.zip"
        path.write_bytes(data[: draw.choice([len(data), draw.randrange(len(data))])])
        # A byte that says nothing, as a date in the list, may change.
        assert verify(path).exit_code in (0, 1, 3, 4)
