"""Which torch build is picked for which machine."""

import pytest

from kit.errors import GpuNotUsable, UsageError
from kit.gpu.facts import Driver, Gpu
from kit.setup.plan import Machine, no_gpu, pick_torch


def machine(capability=None, driver=None, *, platform="linux_x86_64", python=(3, 12), name="A GPU", **more):
    gpus = (Gpu(0, name, capability),) if driver else ()
    error = None if driver else "nvidia-smi is not in PATH"
    facts = Driver(driver, gpus=gpus, nvml_error=error)
    return Machine(facts, more.pop("has_hardware", bool(driver)), platform, python, **more)


def test_a_gpu_and_its_driver_pick_the_build_with_a_reason():
    pick = pick_torch("cuda", machine((9, 0), "580.159.04", name="NVIDIA H100 80GB HBM3"))
    assert pick.kind == "gpu" and pick.cuda[0] == 13
    assert "NVIDIA H100 80GB HBM3" in pick.reason and "580.159.04" in pick.reason


@pytest.mark.parametrize("platform", ["linux_x86_64", "windows_x86_64"])
def test_the_rtx_5090_with_driver_576_gets_a_cu128_build(platform):
    pick = pick_torch("cuda", machine((12, 0), "576.88", platform=platform))
    assert pick.cuda == (12, 8) and pick.requirement.endswith("+cu128")
    assert pick.index_url == "https://download.pytorch.org/whl/cu128"


def test_an_old_gpu_still_gets_a_build_with_its_code():
    assert pick_torch("cuda", machine((6, 1), "580.65.06")).cuda == (12, 6)


def test_the_build_of_pypi_is_demanded_letter_by_letter():
    """`torch==2.15.0` would also accept a '2.15.0+cpu' wheel from a folder; '===' does not."""
    pick = pick_torch("cuda", machine((9, 0), "580.159.04"))
    assert pick.index_url is None and pick.requirement.startswith("torch===")


def test_without_a_gpu_the_cuda_device_is_refused_before_anything_is_installed():
    with pytest.raises(GpuNotUsable, match="no_driver_or_no_gpu") as caught:
        pick_torch("cuda", machine())
    assert "--device cpu" in caught.value.todo and caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("more", "advice"),
    [({}, "install the NVIDIA driver"), ({"is_container": True}, "--gpus all")],
)
def test_hardware_without_a_driver_is_no_cpu_machine(more, advice):
    with pytest.raises(GpuNotUsable, match="an NVIDIA GPU is there") as caught:
        pick_torch("cuda", machine(has_hardware=True, **more))
    assert advice in caught.value.todo


def test_a_driver_upgraded_without_restart_is_told_to_restart():
    driver = Driver(nvml_error="Failed to initialize NVML: Driver/library version mismatch")
    assert "restart the machine" in no_gpu(Machine(driver, True, "linux_x86_64", (3, 12))).todo


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_without_a_gpu_the_cpu_build_is_taken(device):
    pick = pick_torch(device, machine())
    assert (pick.kind, pick.requirement, pick.cuda) == ("cpu", "torch==2.13.0", None)
    assert pick.index_url.endswith("/cpu")


def test_the_cpu_by_name_wins_over_a_gpu():
    assert pick_torch("cpu", machine((9, 0), "580.159.04")).kind == "cpu"


def test_auto_takes_the_gpu_where_there_is_one():
    assert pick_torch("auto", machine((9, 0), "580.159.04")).kind == "gpu"


def test_a_driver_too_old_for_every_build_names_the_driver_to_install():
    with pytest.raises(GpuNotUsable, match="no torch build serves") as caught:
        pick_torch("cuda", machine((8, 9), "470.82.01"))
    assert "install driver 5" in caught.value.todo


def test_a_gpu_that_no_build_serves_is_said_so():
    with pytest.raises(GpuNotUsable, match="no torch build serves"):
        pick_torch("cuda", machine((3, 5), "470.82.01"))


def test_an_unknown_capability_is_never_guessed():
    with pytest.raises(GpuNotUsable, match="not its compute capability"):
        pick_torch("cuda", machine(None, "470.82.01"))


def test_two_equal_gpus_are_named_once():
    gpus = (Gpu(0, "NVIDIA H200", (9, 0)), Gpu(1, "NVIDIA H200", (9, 0)))
    pick = pick_torch("cuda", Machine(Driver("580.159.04", gpus=gpus), True, "linux_x86_64", (3, 12)))
    assert pick.reason.startswith("2 x NVIDIA H200, driver 580.159.04: ")


def test_a_python_newer_than_the_pins_is_told_which_to_use():
    with pytest.raises(UsageError, match="Python 3.15") as caught:
        pick_torch("cpu", machine(python=(3, 15)))
    assert "3.11 to 3.14" in caught.value.expected
