"""The remedy is a command that fits GPU, driver and platform, or the reason why there is none."""

import itertools
import re

import pytest

from kit.gpu import compat, wheels
from kit.gpu.facts import Driver, Gpu, MachineFacts, Platform, Torch
from kit.gpu.judge_machine import Expectation, judge
from kit.gpu.remedy import remedy

LINUX, WINDOWS = Platform("Linux", "x86_64", python=(3, 12)), Platform("Windows", "x86_64", python=(3, 12))
ARM = Platform("Linux", "aarch64", python=(3, 12))


def facts(capability, driver, platform=LINUX, name=None, build="2.6.0+cpu", **more):
    gpu, cuda = Gpu(0, name, capability), None if build.endswith("cpu") else (int(build[-3:-1]), int(build[-1]))
    torch = Torch(build, cuda, is_cpu_build=cuda is None, is_available=False)
    return MachineFacts("recorded", platform, Driver(driver, gpus=(gpu,)), torch, has_nvidia_device=True, **more)


def cure(found):
    return remedy(judge(found, Expectation()), found)


def named(cure):
    """(release, variant) of the pip command."""
    match = re.search(r'"torch==([\d.]+)\+(\w+)"', cure.commands[0])
    return match[1], match[2]


def test_the_milestones_machine_gets_the_cu128_command_for_windows():
    found = cure(facts((12, 0), "576.88", WINDOWS))
    assert found.commands[0] == (
        'python -m pip install "torch==2.11.0+cu128" --index-url https://download.pytorch.org/whl/cu128'
    )
    assert found.torch_variants == ("cu128",)


def test_the_same_change_is_given_for_uv_and_conda():
    found = cure(facts((12, 0), "576.88", WINDOWS))
    assert found.uv[0].startswith("uv pip install") and "cu128" in found.uv[0]
    assert found.conda[0].startswith("conda install -c conda-forge pytorch-gpu") and found.pip == found.commands


def test_packages_that_belong_to_torch_are_changed_with_it():
    found = cure(facts((8, 6), "580.95.05", packages={"torchvision": "0.21.0", "numpy": "2.4.6"}))
    assert ' "torchvision==0.21.0+cu124" --index-url' in found.commands[0] and "numpy" not in found.commands[0]


CAPABILITIES = ((5, 0), (6, 1), (7, 0), (7, 5), (8, 9), (9, 0), (10, 3), (12, 0), (12, 1))
DRIVERS = ("418.39", "470.82.01", "526.98", "535.129.03", "576.88", "580.95.05", "595.58.03", None)
PLATFORMS = {"linux_x86_64": LINUX, "windows_x86_64": WINDOWS, "linux_aarch64": ARM}


@pytest.mark.parametrize("driver", DRIVERS)
def test_no_remedy_names_a_build_without_the_code_or_above_the_driver(driver):
    """The law over the whole grid: nothing that the tables themselves deny, and nothing unverified."""
    for capability, (key, platform) in itertools.product(CAPABILITIES, PLATFORMS.items()):
        found, where = cure(facts(capability, driver, platform)), (capability, driver, key)
        if not found.torch_variants:
            assert "pip install" not in " ".join(found.commands), where
            continue
        release, variant = named(found)
        assert variant == found.torch_variants[0], where
        for name in found.torch_variants:
            (row,) = [w for w in wheels.wheels() if (w.release, w.variant, w.platform) == (release, name, key)]
            assert row.status != "unverified" and wheels.serves(row, capability).how == "native", (where, found)
            assert compat.driver_runs(name, driver, platform.system) is not False, (where, found)


@pytest.mark.parametrize(
    ("capability", "driver", "more", "variants", "needs", "words"),
    [
        # an older build comes before a newer driver
        ((8, 6), "550.54.15", {"build": "2.13.0+cu130"}, ("cu126",), "580", "Or keep the build"),
        ((8, 6), "418.39", {}, (), "450.80.02", ""),
        ((3, 5), "470.256.02", {"name": "Tesla K40m"}, (), "", "1.12"),
        ((6, 1), "595.58.03", {}, (), "", "R580 for Maxwell"),
        (
            (8, 7),
            None,
            {"platform": Platform("Linux", "aarch64", is_tegra=True), "name": "Orin"},
            (),
            "",
            "Jetson wheels",
        ),
        ((9, 0), "580.95.05", {"platform": Platform("Linux", "x86_64", python=(3, 6))}, None, "", "It needs Python"),
        # a GPU newer than the table is not guessed
        ((13, 0), "640.10", {}, (), "", "not in this kit's table"),
    ],
)
def test_what_has_to_change_is_named(capability, driver, more, variants, needs, words):
    answer = cure(facts(capability, driver, **more))
    assert variants in (None, answer.torch_variants), answer
    assert needs in (answer.driver or "") and words in answer.summary, answer


def test_two_gpus_that_no_build_serves_together_get_an_environment_each():
    gpus = (Gpu(0, "a", (6, 1)), Gpu(1, "b", (12, 0)))
    found = MachineFacts("recorded", LINUX, Driver("580.95.05", gpus=gpus), Torch("2.6.0+cpu", is_cpu_build=True))
    assert "one environment for each" in cure(found).summary


def test_an_unknown_gpu_is_told_what_the_build_covers():
    found = MachineFacts("recorded", LINUX, Driver("570.133.20"), Torch("2.6.0+cpu", is_cpu_build=True))
    answer = cure(found)
    assert answer.torch_variants == ("cu128",) and "not named" in answer.summary and "7.0 to 12.0" in answer.summary


@pytest.mark.parametrize("platform", [LINUX, WINDOWS])
def test_a_mask_is_taken_away_in_the_words_of_the_system(platform):
    found = MachineFacts(
        "recorded",
        platform,
        Driver("580.95.05", gpus=(Gpu(0, "x", (9, 0)),)),
        Torch("2.13.0+cu130", (13, 0), is_available=False),
        environment={"CUDA_VISIBLE_DEVICES": "5"},
    )
    first = cure(found).commands[0]
    assert first == ("Remove-Item Env:CUDA_VISIBLE_DEVICES" if platform is WINDOWS else "unset CUDA_VISIBLE_DEVICES")


def test_a_fine_machine_has_nothing_to_do():
    assert (
        remedy(judge(MachineFacts(torch=Torch("x")), Expectation(device="cpu")), MachineFacts()).summary
        == "Nothing to do."
    )
