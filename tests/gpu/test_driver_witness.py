"""Reading the driver with the standard library alone, on fake machines."""

import subprocess

import pytest
from sabotage.seams import card, fake_nvml, nvml_file

from kit.gpu.facts import Gpu
from kit.gpu.nvml import Nvml, NvmlError, has_nvidia_hardware, is_wsl, kernel_module_version, platform_name, read_driver

ROW = "0, NVIDIA GeForce RTX 5090, 32607, GPU-1234, 576.88, 12.0\n"


def smi(text, code=0, error=""):
    """A fake `subprocess.run`: one answer, or one for each call."""
    answers = iter(text if isinstance(text, list) else [(text, code, error)] * 9)

    def run(argv, **_):
        out, rc, err = next(answers)
        return subprocess.CompletedProcess(argv, rc, out, err)

    return run


def read(tmp_path, *, run=None):
    return read_driver(find=lambda: "nvidia-smi" if run else None, run=run, root=tmp_path)


INVALID_FIELD = ('Field "compute_cap" is not a valid field to query.', 2, "")
RTX = Gpu(0, "NVIDIA GeForce RTX 5090", (12, 0), 32607 * 1024**2, "GPU-1234")


@pytest.mark.parametrize(
    ("run", "version", "gpus", "error"),
    [
        (smi(ROW), "576.88", (RTX,), None),
        # the text of a failing program is no witness, nor is one that is no table
        (smi(ROW, code=9), None, (), "exit code 9"),
        (smi("surprise\n"), None, (), "not 6 fields"),
        (None, None, (), "nvidia-smi is not in PATH"),
        # unknown values stay None
        (smi("0, [N/A], [Not Supported], [N/A], 580.65.06, 12.1\n"), "580.65.06", (Gpu(0, None, (12, 1)),), None),
        # an old one, which knows no compute_cap, still names driver and GPU
        (
            smi([INVALID_FIELD, ("0, Tesla P100, 16280, GPU-1, 470.1\n", 0, "")]),
            "470.1",
            (Gpu(0, "Tesla P100", None, 16280 * 1024**2, "GPU-1"),),
            None,
        ),
    ],
)
def test_the_driver_is_what_nvidia_smi_lists_or_why_it_lists_nothing(tmp_path, run, version, gpus, error):
    driver = read(tmp_path, run=run)
    assert (driver.version, driver.gpus) == (version, gpus)
    assert error in driver.nvml_error if error else driver.nvml_error is None


def test_a_hanging_smi_is_not_asked_again(tmp_path):
    calls = []

    def hang(argv, **_):
        calls.append(argv)
        raise subprocess.TimeoutExpired(argv, 10)

    assert "timed out" in read(tmp_path, run=hang).nvml_error
    assert len(calls) == 1


def test_nvml_keeps_what_a_card_does_not_tell_apart_from_a_card_that_is_gone(tmp_path):
    silent = card(name="NVIDIA GB10", missing=["memory"])
    with fake_nvml(nvml_file(tmp_path / "nvml.json", silent)), Nvml() as nvml:
        (handle,) = nvml.handles()
        assert nvml.ask("nvmlDeviceGetName", handle) == "NVIDIA GB10"
        assert nvml.ask("nvmlDeviceGetMemoryInfo", handle, told="memory") is None
        assert nvml.ask("nvmlOfALaterPackage") is None and nvml.missing == {"memory", "nvmlOfALaterPackage"}
    with fake_nvml(nvml_file(tmp_path / "lost.json", card(), raise_after=0)), Nvml() as nvml:
        with pytest.raises(NvmlError, match="lost"):
            nvml.ask("nvmlDeviceGetMemoryInfo", nvml.handles()[0])
    with fake_nvml(nvml_file(tmp_path / "off.json", card(), error="Driver Not Loaded")):
        with pytest.raises(NvmlError, match="Driver Not Loaded"), Nvml():
            pass


@pytest.mark.parametrize(
    ("files", "is_there"),
    [
        ({}, False),
        ({"dev/nvidia0": ""}, True),
        ({"proc/driver/nvidia/version": "x"}, True),
        ({"sys/bus/pci/devices/0/vendor": "0x10de\n", "sys/bus/pci/devices/0/class": "0x030200\n"}, True),
        ({"sys/bus/pci/devices/0/vendor": "0x10de\n", "sys/bus/pci/devices/0/class": "0x040300\n"}, False),
        ({"sys/bus/pci/devices/0/vendor": "0x8086\n", "sys/bus/pci/devices/0/class": "0x030000\n"}, False),
    ],
)
def test_hardware_is_seen_without_a_driver_but_not_its_sound_chip(tmp_path, files, is_there):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert has_nvidia_hardware(tmp_path) is is_there


@pytest.mark.parametrize(
    "line",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  Tue Sep 30 2025",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build",
    ],
)
def test_kernel_module_version_is_read_from_both_flavours(tmp_path, line):
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(line + "\nGCC version: 12\n")
    assert kernel_module_version(tmp_path) == "580.159.04"


def test_platform_names_are_those_of_the_wheel_facts(tmp_path):
    from kit.gpu.wheels import wheels

    known = {wheel.platform for wheel in wheels()}
    assert {platform_name("Linux", "x86_64"), platform_name("Linux", "aarch64")} <= known
    assert platform_name("Windows", "AMD64") in known


def test_wsl_is_told_by_its_kernel(tmp_path):
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("5.15.90.1-microsoft-standard-WSL2\n")
    assert is_wsl(tmp_path) and not is_wsl(tmp_path / "elsewhere")
