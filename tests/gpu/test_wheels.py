"""The tables of wheels and drivers, and the choice of a build from them."""

import itertools

import pytest

from kit.gpu import compat, wheels
from kit.gpu.specs import families

LINUX, WINDOWS, ARM = "linux_x86_64", "windows_x86_64", "linux_aarch64"


def choose(capabilities, driver, platform=LINUX, **more):
    return wheels.choose(capabilities=capabilities, driver_version=driver, platform=platform, **more)


def test_every_row_names_sources_that_exist():
    table = compat.load("wheels")
    for row in table["wheels"]:
        assert row["sources"] or row["known"] == "unverified", row
        assert set(row["sources"]) <= set(table["sources"]), row
        assert row["known"] in table["known"], row
    for table in (compat.load("drivers"), compat.load("gpus")):
        assert table["checked"] and table["sources"]


def test_no_row_stands_twice():
    rows = [(row.torch, row.variant, row.platform) for row in wheels.wheels()]
    assert len(rows) == len(set(rows))


def test_a_release_has_at_most_one_pypi_build_for_a_platform():
    for torch, platform in itertools.product({row.torch for row in wheels.wheels()}, (LINUX, WINDOWS, ARM)):
        found = [r.variant for r in wheels.wheels() if (r.torch, r.platform) == (torch, platform) and r.is_pypi_default]
        assert len(found) <= 1, (torch, platform, found)


def test_no_build_holds_code_that_its_toolkit_cannot_compile():
    known = families()
    for row in wheels.wheels():
        native = [code.capability for code in compat.codes(row.arch_list) if not code.is_ptx and not code.kind]
        for capability in native:
            family = known[capability]
            assert family["first_toolkit"] is None or family["first_toolkit"] <= row.cuda, (row, capability)
            assert family["dropped_in"] is None or row.cuda < family["dropped_in"], (row, capability)


def test_a_later_toolkit_never_needs_an_older_driver():
    for system in ("Linux", "Windows"):
        floors = [
            compat.toolkit_driver(cuda, system) for cuda in ((11, 8), (12, 0), (12, 4), (12, 8), (13, 0), (13, 2))
        ]
        assert floors == sorted(floors)


def test_the_minimum_of_a_major_is_the_driver_of_its_first_toolkit():
    """12.0 came with 527.41 on Windows; NVIDIA's table gives the driver of its first update, 528.33."""
    for system, major in itertools.product(("Linux", "Windows"), (12, 13)):
        shipped = [floor for cuda, floor in compat.toolkits(system) if cuda == (major, 0)]
        floor = compat.driver_floor(f"cu{major}0", system)
        assert floor[0] == min(shipped)[0] or floor in shipped


@pytest.mark.parametrize(
    ("what", "capabilities", "driver", "platform", "expected"),
    [
        ("the milestone's machine", [(12, 0)], "576.88", WINDOWS, "2.11.0+cu128"),
        ("Blackwell, newest driver", [(12, 0)], "595.58.03", LINUX, "2.15.0+cu132"),
        ("GTX 1080 on R580", [(6, 1)], "580.95.05", LINUX, "2.14.1+cu126"),
        ("V100 on R580", [(7, 0)], "580.95.05", LINUX, "2.14.1+cu126"),
        ("H100 on R580", [(9, 0)], "580.159.04", LINUX, "2.15.0+cu132"),
        ("H100 on R535", [(9, 0)], "535.129.03", LINUX, "2.14.1+cu126"),
        ("V100 beside RTX 5090", [(7, 0), (12, 0)], "580.95.05", LINUX, "2.10.0+cu128"),
        ("GB10", [(12, 1)], "580.95.05", ARM, "2.15.0+cu132"),
        ("RTX 4090 on Windows R581", [(8, 9)], "581.29", WINDOWS, "2.15.0+cu130"),
    ],
)
def test_the_choice_is_the_newest_build_that_serves_gpu_and_driver(what, capabilities, driver, platform, expected):
    wheel, _, _ = choose(capabilities, driver, platform, python=(3, 12))
    assert f"{wheel.release}+{wheel.variant}" == expected, what


@pytest.mark.parametrize(
    ("capabilities", "driver", "more", "variant", "words"),
    [
        # none serves Pascal and Blackwell together, nor Turing on Arm
        ([(6, 1), (12, 0)], "580.95.05", {}, None, "6.1 and 12.0 together"),
        ([(7, 5)], "580.95.05", {"platform": ARM}, None, ""),
        # a driver of the CUDA 11 era gets no recent build but an old one
        ([(8, 0)], "470.82.01", {}, None, "525.60.13"),
        ([(8, 0)], "470.82.01", {"torch_min": "2.0"}, "cu118", ""),
        # an unknown capability is not guessed, a Python without builds is said so
        ([], "580.95.05", {}, None, ""),
        ([(13, 7)], "640.10", {}, None, ""),
        ([(9, 0)], "580.95.05", {"python": (3, 8)}, None, "Python 3.8"),
        # an unknown driver: the build that the oldest one starts, or what its CUDA tells
        ([(8, 6)], None, {}, "cu12", "525.60.13"),
        ([(12, 0)], None, {}, "cu12", "570"),
        ([(8, 6)], None, {"driver_cuda": (12, 8)}, "cu12", ""),
        ([(8, 6)], None, {"driver_cuda": (13, 0)}, "cu13", ""),
        # 528.33 is the Windows minimum of CUDA 12, which WSL is measured by; on Linux a driver 526 would do
        ([(8, 6)], "526.10", {}, "cu12", ""),
        ([(8, 6)], "526.10", {"is_wsl": True}, None, ""),
    ],
)
def test_a_choice_says_why_it_is_none_and_what_a_driver_would_bring(capabilities, driver, more, variant, words):
    wheel, *said = choose(capabilities, driver, **more)
    assert wheel is None if variant is None else wheel.variant.startswith(variant), wheel
    assert words in str(said)


@pytest.mark.parametrize(
    ("variant", "driver", "system", "runs"),
    [
        ("cu128", "525.60.13", "Linux", True),
        ("cu130", "570.133.20", "Linux", False),
        ("cu130", "580.65.06", "Linux", True),
        ("cu124", "535.183.01", "Linux", True),
        ("cu118", "450.80.02", "Linux", True),
        ("cu121", "527.41", "Windows", False),
        ("cu102", "440.33", "Linux", True),
        ("cu102", "418.39", "Linux", False),
        ("cu130", None, "Linux", None),
        ("cpu", "390.10", "Linux", True),
    ],
)
def test_minor_versions_of_cuda_share_a_driver_and_majors_do_not(variant, driver, system, runs):
    assert compat.driver_runs(variant, driver, system) is runs
