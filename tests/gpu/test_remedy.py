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
    gpu = Gpu(0, name, capability)
    torch = Torch(build, is_cpu_build=True, is_available=False)
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


def test_no_remedy_names_a_build_without_the_code_or_above_the_driver():
    capabilities = (
        (5, 0),
        (6, 1),
        (7, 0),
        (7, 5),
        (8, 0),
        (8, 9),
        (9, 0),
        (10, 0),
        (10, 3),
        (12, 0),
        (12, 1),
    )
    drivers = (
        "418.39",
        "470.82.01",
        "526.98",
        "535.129.03",
        "550.54.15",
        "576.88",
        "580.95.05",
        "595.58.03",
        None,
    )
    for capability, driver, platform in itertools.product(capabilities, drivers, (LINUX, WINDOWS, ARM)):
        found = cure(facts(capability, driver, platform))
        if not found.torch_variants:
            assert "pip install" not in " ".join(found.commands)
            continue
        release, variant = named(found)
        key = {LINUX: "linux_x86_64", WINDOWS: "windows_x86_64", ARM: "linux_aarch64"}[platform]
        for name in found.torch_variants:
            (row,) = [w for w in wheels.wheels() if (w.release, w.variant, w.platform) == (release, name, key)]
            assert row.status != "unverified", (capability, driver, platform, found)
            assert wheels.serves(row, capability).how == "native", (capability, driver, platform, found)
            assert compat.driver_runs(name, driver, platform.system) is not False, (capability, driver, found)
        assert variant == found.torch_variants[0]


def test_an_older_build_comes_before_a_newer_driver():
    found = facts((8, 6), "550.54.15", build="2.13.0+cu130")
    found = MachineFacts(
        "recorded",
        LINUX,
        found.driver,
        Torch("2.13.0+cu130", (13, 0), is_available=False),
        has_nvidia_device=True,
    )
    answer = cure(found)
    assert answer.torch_variants == ("cu126",) and "580" in answer.driver and "Or keep the build" in answer.summary


def test_a_driver_below_every_build_is_the_thing_to_change():
    answer = cure(facts((8, 6), "418.39"))
    assert answer.torch_variants == () and "450.80.02" in answer.driver


def test_a_gpu_that_no_release_serves_is_told_so_and_which_was_the_last():
    answer = cure(facts((3, 5), "470.256.02", name="Tesla K40m"))
    assert answer.torch_variants == () and "1.12" in answer.summary


def test_a_driver_that_left_the_gpu_behind_is_the_thing_to_change():
    answer = cure(facts((6, 1), "595.58.03"))
    assert "R580 for Maxwell" in answer.summary and not answer.torch_variants


def test_a_jetson_is_sent_to_nvidias_wheels():
    answer = cure(facts((8, 7), None, Platform("Linux", "aarch64", is_tegra=True), name="Orin"))
    assert "jetson" in answer.commands[0] and not answer.torch_variants


def test_two_gpus_that_no_build_serves_together_get_an_environment_each():
    gpus = (Gpu(0, "a", (6, 1)), Gpu(1, "b", (12, 0)))
    found = MachineFacts("recorded", LINUX, Driver("580.95.05", gpus=gpus), Torch("2.6.0+cpu", is_cpu_build=True))
    assert "one environment for each" in cure(found).summary


def test_a_python_without_builds_is_told_which_one_fits():
    answer = cure(facts((9, 0), "580.95.05", Platform("Linux", "x86_64", python=(3, 6))))
    assert "It needs Python" in answer.summary


def test_an_unknown_gpu_is_told_what_the_build_covers():
    found = MachineFacts("recorded", LINUX, Driver("570.133.20"), Torch("2.6.0+cpu", is_cpu_build=True))
    answer = cure(found)
    assert answer.torch_variants == ("cu128",) and "not named" in answer.summary and "7.0 to 12.0" in answer.summary


def test_a_gpu_newer_than_the_table_is_not_guessed():
    answer = cure(facts((13, 0), "640.10"))
    assert answer.torch_variants == () and "not in this kit's table" in answer.summary


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
