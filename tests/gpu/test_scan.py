"""What the scan finds in libraries and wheels: a genuine fat binary, and broken ones.

`genuine.fatbin` was made by ptxas and fatbinary of CUDA 13.0 from an empty kernel, with --compress-all:
sm_80, sm_90a, sm_100f and sm_120 code and compute_120 PTX.
"""

import io
import os
import random
import zipfile
from pathlib import Path

import pytest

from kit.errors import UsageError
from kit.extras import wheelcode

GENUINE = (Path(__file__).parent / "genuine.fatbin").read_bytes()
HELD = ("sm_80", "sm_90a", "sm_100f", "sm_120", "compute_120")


def wheel(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "/").replace("_so", ".so").replace("_dll", ".dll"), content)
    return path


def codes(content):
    return [str(code) for code in wheelcode.images(io.BytesIO(content))]


def test_a_genuine_fat_binary_gives_its_code_with_a_and_f():
    assert codes(GENUINE) == list(HELD)


@pytest.mark.parametrize("before", [0, 1, 4095, wheelcode._CHUNK - 2, wheelcode._CHUNK - 20, 2 * wheelcode._CHUNK + 7])
def test_code_is_found_wherever_it_lies_in_the_file(before):
    assert codes(b"x" * before + GENUINE + b"\0" * 100) == list(HELD)


def test_several_fat_binaries_are_counted(tmp_path):
    (library,) = wheelcode.scan_wheel(wheel(tmp_path / "x.whl", a_so=b"\x7fELF" + GENUINE + b"pad" + GENUINE)).libraries
    assert library.counts == dict.fromkeys(HELD, 2)


def test_the_magic_by_chance_is_no_code():
    assert codes(b"\x50\xed\x55\xba" * 1000) == []
    assert codes(b"\x50\xed\x55\xba" + bytes(60)) == []


def test_a_cut_file_ends_without_an_error():
    for end in range(0, len(GENUINE), 37):
        assert set(codes(GENUINE[:end])) <= set(HELD)


def test_random_bytes_after_the_magic_never_fail():
    source = random.Random(7)
    for _ in range(200):
        codes(b"\x50\xed\x55\xba\x01\x00\x10\x00" + source.randbytes(300))


def test_a_wheel_is_read_library_by_library(tmp_path):
    path = wheel(tmp_path / "x-1.0-py3-none-any.whl", pkg__a_so=GENUINE, pkg__b_dll=b"MZ" + GENUINE, pkg__c_py=GENUINE)
    found = wheelcode.scan_wheel(path)
    assert found.arch_list == HELD
    assert (found.files_read, [library.name for library in found.libraries]) == (2, ["pkg/a.so", "pkg/b.dll"])


def test_a_wheel_without_gpu_code_says_so(tmp_path):
    found = wheelcode.scan_wheel(wheel(tmp_path / "y.whl", pkg__a_so=b"\x7fELF"))
    assert found.arch_list == ()
    assert "no GPU code" in wheelcode.check(found, (9, 0)).found


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04broken"])
def test_a_broken_wheel_is_refused_in_words(tmp_path, content):
    path = tmp_path / "z.whl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="wheel"):
        wheelcode.scan_wheel(path)


def installed(folder):
    info = folder / "pkg-1.0.dist-info"
    info.mkdir()
    (folder / "pkg").mkdir()
    (folder / "pkg" / "x.so").write_bytes(GENUINE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pkg\nVersion: 1.0\n", encoding="utf-8")
    (info / "RECORD").write_text("pkg/x.so,,\npkg-1.0.dist-info/METADATA,,\npkg/gone.so,,\n", encoding="utf-8")


def test_an_installed_package_is_read_by_its_metadata_and_not_imported(tmp_path, monkeypatch):
    installed(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    found = wheelcode.scan_installed("pkg")
    assert (found.name, found.arch_list) == ("pkg 1.0", HELD)


def test_a_package_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="not installed"):
        wheelcode.scan_installed("nothing-of-this-name")


def verdict(libraries, capability):
    held = tuple(wheelcode.Library(name, counts) for name, counts in libraries.items())
    arch_list = wheelcode.in_order(code for library in held for code in library.counts)
    return wheelcode.check(wheelcode.Scan("pkg", arch_list, held, len(held)), capability).outcome


@pytest.mark.parametrize(
    ("libraries", "capability", "outcome"),
    [
        ({"a.so": {"sm_80": 1, "sm_90": 1}}, (12, 0), "FAIL"),
        ({"a.so": {"sm_80": 1, "sm_90": 1}}, (8, 9), "PASS"),
        # PTX alone is no native code
        ({"a.so": {"sm_80": 1, "compute_90": 1}}, (12, 0), "FAIL"),
        # a library of somebody else, or for another chip, does not decide
        ({"pkg/_C.so": {"sm_70": 6}, "pkg.libs/libnvjpeg.so.12": {"sm_50": 11, "sm_61": 11}}, (6, 1), "FAIL"),
        ({"_C.so": {"sm_80": 6}, "_C_90a.so": {"sm_90a": 8}}, (8, 0), "PASS"),
        # parts that differ are not called fine
        ({"big.so": {"sm_80": 60, "sm_90": 60}, "small.so": {"sm_80": 1}}, (9, 0), "INCONCLUSIVE"),
        ({"big.so": {"sm_80": 60}, "small.so": {"sm_90": 1}}, (9, 0), "FAIL"),
    ],
)
def test_the_parts_with_most_code_decide(libraries, capability, outcome):
    assert verdict(libraries, capability) == outcome


@pytest.mark.parametrize(
    ("name", "library", "expected"),
    [
        (
            "torchvision-0.20.1-cp311-cp311-manylinux1_x86_64.whl",
            "torchvision/_C.so",
            ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "compute_50"),
        ),
        (
            "torchvision-0.24.1-cp311-cp311-manylinux_2_28_x86_64.whl",
            "torchvision/_C.so",
            ("sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
        ),
    ],
)
def test_published_wheels_hold_what_the_table_says_of_their_torch(name, library, expected):
    """torchvision 0.20.1 is built beside torch 2.5 (cu124), 0.24.1 beside 2.9 (cu128). Needs the wheels:
    `pip download --no-deps torchvision==0.20.1 -d FOLDER`, then KIT_WHEELS=FOLDER."""
    path = Path(os.environ.get("KIT_WHEELS", "")) / name
    if not os.environ.get("KIT_WHEELS") or not path.exists():
        pytest.skip(f"KIT_WHEELS names no folder with {name}")
    found = {part.name: tuple(part.counts) for part in wheelcode.scan_wheel(path).libraries}
    assert found[library] == expected
