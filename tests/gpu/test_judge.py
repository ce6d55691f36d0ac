"""Sabotage of an environment, each row with its healthy twin: what the judge must say.

The base is a real H100's facts; each case changes one thing.
"""

import dataclasses

import pytest
from machine_sample import (
    GOOD,
    GPU_A,
    GPU_B,
    NO_KERNEL,
    card,
    check,
    driver,
    failed,
    h100,
    machine,
    torch,
    verdict,
)

from kit.gpu.diagnose import DIAGNOSES, mask_problem
from kit.gpu.facts import Driver, Gpu, KernelProof, MachineFacts, Platform, Torch
from kit.gpu.judge_machine import matches, still_there
from kit.records import Outcome


def test_a_healthy_h100_passes_every_check():
    found = verdict(h100(), "H100", (13, 0))
    assert found.outcome is Outcome.PASS and found.diagnosis == "ok"
    assert {check.outcome for check in found.checks} == {Outcome.PASS}


def test_a_cpu_wheel_beside_a_healthy_driver_fails_and_names_the_gpu():
    found = verdict(h100(torch=Torch("2.13.0+cpu", None, True, is_available=False, device_count=0), proof=None))
    assert found.outcome is Outcome.FAIL and found.diagnosis == "cpu_only_build"
    assert "driver sees NVIDIA H100" in check(found, "environment.torch_build").found


def test_a_cuda_wheel_without_a_driver_never_falls_through_to_the_cpu():
    bare = torch(
        is_available=False,
        device_count=0,
        gpus=(),
        arch_list=(),
        error="Found no NVIDIA driver on your system.",
    )
    proof = KernelProof("cpu", True, 1024, "float32", max_relative_error=1e-7, limit=1e-5)
    found = verdict(
        h100(
            driver=Driver(nvml_error="NVML Shared Library Not Found"),
            torch=bare,
            proof=proof,
            has_nvidia_device=False,
            nvidia_smi_gpus=(),
        )
    )
    assert found.outcome is Outcome.FAIL and found.diagnosis == "no_driver_or_no_gpu"
    assert "native.kernel_ran" in failed(found)


@pytest.mark.parametrize("value", ["", "-1", "99", "NoDevFiles", "0,0", "GPU-ffffffff"])
def test_a_mask_that_hides_the_gpu_fails_and_quotes_the_variable(value):
    facts = h100(
        environment={"CUDA_VISIBLE_DEVICES": value},
        proof=None,
        torch=torch(is_available=False, device_count=0, gpus=(), error="No CUDA GPUs are available"),
    )
    found = verdict(facts)
    assert found.outcome is Outcome.FAIL and found.diagnosis == "visible_devices_masked"
    assert f"CUDA_VISIBLE_DEVICES={value!r}" in check(found, "environment.cuda_starts").found


def test_a_space_before_the_number_is_no_fault():
    found = verdict(h100(environment={"CUDA_VISIBLE_DEVICES": " 0"}))
    assert found.outcome is Outcome.PASS and "' 0'" in check(found, "environment.cuda_starts").found


def test_a_mask_names_devices_up_to_the_first_that_is_not_there():
    assert mask_problem("0,7", 2) is None
    assert mask_problem("7,0", 2) is not None
    assert mask_problem("GPU-00", 2, [GPU_A]) is None
    assert mask_problem(None, 2) is None
    assert mask_problem("3", None) is None


def test_a_stub_libcuda_is_named():
    facts = h100(
        driver=driver(libcuda="stub", cuda_init_error=34),
        proof=None,
        torch=torch(is_available=False, gpus=(), error="CUDA driver is a stub library"),
    )
    found = verdict(facts)
    assert found.outcome is Outcome.FAIL and "stub" in check(found, "environment.cuda_starts").found


def test_a_driver_below_the_builds_minimum_fails_with_both_versions():
    facts = h100(
        driver=driver(version="570.133.20", cuda_version=(12, 8)),
        proof=None,
        torch=torch(
            is_available=False,
            gpus=(),
            error="The NVIDIA driver on your system is too old (found version 12080)",
        ),
    )
    found = verdict(facts)
    assert found.diagnosis == "driver_too_old_for_runtime"
    row = check(found, "environment.driver_for_build")
    assert row.outcome is Outcome.FAIL and "570.133.20" in row.found and "580" in row.expected


def test_forward_compatibility_that_works_is_no_fault():
    found = verdict(h100(driver=driver(version="570.133.20", cuda_version=(12, 8), libcuda="compat")))
    assert found.outcome is Outcome.PASS
    assert "forward compatibility" in check(found, "environment.driver_for_build").found


def test_an_old_minor_driver_is_no_fault_for_the_same_major():
    assert (
        verdict(machine([card("NVIDIA A100-SXM4-80GB", (8, 0))], "2.8.0+cu128", version="535.129.03")).outcome
        is Outcome.PASS
    )


def test_a_build_without_the_gpus_code_fails_by_the_table_and_by_the_run():
    gpu = card("NVIDIA GeForce RTX 5090", (12, 0))
    proof = KernelProof("cuda", False, 4096, "float32", error=NO_KERNEL)
    found = verdict(machine([gpu], "2.6.0+cu126", "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90", proof=proof))
    assert found.diagnosis == "arch_missing_from_build"
    assert "no sm_120 code" in check(found, "native.arch_in_build").found
    assert failed(found) == {"native.arch_in_build", "native.kernel_ran"}


def test_code_of_a_lower_minor_version_passes_with_a_note():
    found = verdict(machine([card("NVIDIA GeForce RTX 4090", (8, 9))]))
    row = check(found, "native.arch_in_build")
    assert found.outcome is Outcome.PASS and "runs sm_86 code" in row.found and row.values["is_exact"] is False


def test_a_forced_jit_blames_the_variable_and_not_the_gpu():
    proof = KernelProof("cuda", False, 4096, "float32", error="CUBLAS_STATUS_NOT_INITIALIZED when calling cublasCreate")
    found = verdict(h100(environment={"CUDA_FORCE_PTX_JIT": "1"}, proof=proof))
    assert found.outcome is Outcome.FAIL and "CUDA_FORCE_PTX_JIT=1" in check(found, "native.kernel_ran").found


def test_the_wrong_gpu_among_several_fails_and_says_how_to_choose():
    gpus = [
        card("NVIDIA GeForce RTX 3060", (8, 6), GPU_A, 0),
        card("NVIDIA GeForce RTX 5090", (12, 0), GPU_B, 1),
    ]
    found = verdict(machine(gpus), "RTX 5090")
    row = check(found, "environment.expected_gpu")
    assert row.outcome is Outcome.FAIL and "CUDA_VISIBLE_DEVICES=1" in row.todo
    assert verdict(machine(gpus[::-1]), "RTX 5090").outcome is Outcome.PASS


def test_a_mig_slice_is_not_the_full_card():
    full = dataclasses.replace(card("NVIDIA H100 80GB HBM3", (9, 0)), mig_profile="enabled")
    part = dataclasses.replace(card("NVIDIA H100 80GB HBM3 MIG 1g.10gb", (9, 0)), memory_bytes=10 * 10**9)
    facts = machine([part])
    facts = dataclasses.replace(facts, driver=dataclasses.replace(facts.driver, gpus=(full,)))
    assert "MIG slice" in check(verdict(facts, "H100"), "environment.expected_gpu").found
    assert verdict(facts, "H100 MIG").outcome is Outcome.PASS
    assert verdict(facts).outcome is Outcome.PASS


@pytest.mark.parametrize(
    "environment", [{"CUDA_MPS_PIPE_DIRECTORY": "/x"}, {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "50"}]
)
def test_a_shared_gpu_is_flagged_and_no_fault_of_the_environment(environment):
    found = verdict(h100(environment=environment))
    assert found.outcome is Outcome.PASS
    assert check(found, "environment.exclusive_gpu").outcome is Outcome.INCONCLUSIVE


def test_another_process_on_the_gpu_is_flagged():
    busy = dataclasses.replace(h100().driver.gpus[0], compute_processes=1)
    found = verdict(h100(driver=driver(gpus=(busy,))))
    assert "shared device" in check(found, "environment.exclusive_gpu").found


def test_a_container_without_driver_libraries_is_told_to_start_with_the_gpu():
    facts = h100(
        driver=Driver(nvml_error="NVML Shared Library Not Found", libcuda="none"),
        proof=None,
        has_nvidia_device=False,
        nvidia_smi_gpus=(),
        torch=torch(is_available=False, gpus=(), error="Found no NVIDIA driver"),
    )
    found = verdict(facts)
    assert found.diagnosis == "no_driver_or_no_gpu" and "container" in check(found, "environment.cuda_starts").found


def test_a_failing_nvidia_smi_is_recorded_and_its_text_not_believed():
    found = verdict(h100(nvidia_smi_exit_code=9, nvidia_smi_gpus=("NVIDIA GeForce RTX 4090",)))
    row = check(found, "environment.two_witnesses")
    assert row.outcome is Outcome.PASS and row.values["nvidia_smi_exit_code"] == 9


def test_an_nvidia_smi_of_another_machine_is_a_disagreement():
    found = verdict(h100(nvidia_smi_gpus=("NVIDIA GeForce RTX 4090",)))
    assert found.outcome is Outcome.FAIL and found.diagnosis == "other"
    assert failed(found) == {"environment.two_witnesses"}


@pytest.mark.parametrize(
    "lie",
    [
        {"name": "NVIDIA GeForce RTX 5090"},
        {"compute_capability": (12, 0)},
        {"uuid": GPU_B},
        {"memory_bytes": 34 * 10**9},
        {"name": "NVIDIA GeForce RTX 5090", "compute_capability": (12, 0)},
    ],
)
def test_each_patched_property_of_the_card_is_caught(lie):
    fake = dataclasses.replace(h100().torch.gpus[0], **lie)
    found = verdict(h100(torch=torch(gpus=(fake,))))
    assert found.outcome is Outcome.FAIL and "environment.two_witnesses" in failed(found)


def test_a_name_without_a_second_witness_is_no_proof():
    alone = h100(driver=None, nvidia_smi_gpus=(), nvidia_smi_exit_code=None)
    assert verdict(alone).outcome is Outcome.INCONCLUSIVE
    lied = verdict(dataclasses.replace(alone, has_nvidia_device=False))
    assert lied.outcome is Outcome.FAIL


def test_a_rocm_build_is_no_nvidia_gpu():
    found = verdict(h100(torch=torch(hip="6.2.41134", cuda=None, version="2.6.0+rocm6.2.4")))
    assert found.outcome is Outcome.FAIL and "ROCm" in check(found, "environment.torch_build").found


def test_an_xid_in_the_log_fails_and_an_unreadable_log_does_not():
    assert "79" in check(verdict(h100(xids=(79,))), "environment.driver_state").found
    assert verdict(h100(xids=())).outcome is Outcome.PASS
    assert verdict(h100(xids=None)).outcome is Outcome.PASS


def test_a_gpu_that_is_gone_at_the_end_fails():
    assert still_there(h100(), h100()).outcome is Outcome.PASS
    assert still_there(h100(), h100(driver=driver(gpus=()))).outcome is Outcome.FAIL
    assert still_there(h100(), h100(driver=driver(version="590.1"))).outcome is Outcome.FAIL
    assert still_there(h100(), h100(xids=(79,))).outcome is Outcome.FAIL
    assert still_there(h100(), None).outcome is Outcome.INCONCLUSIVE


def test_two_installations_of_torch_in_one_environment_fail():
    found = verdict(h100(torch=torch(version="2.11.0+cu130", metadata_version="2.13.0")))
    assert "two installations" in check(found, "environment.torch_build").found


def test_wrong_numbers_fail_though_the_kernel_ran():
    found = verdict(h100(proof=dataclasses.replace(GOOD, max_relative_error=0.2)))
    assert failed(found) == {"native.numbers"}


def test_no_run_is_never_a_pass():
    assert verdict(h100(proof=None)).outcome is Outcome.INCONCLUSIVE


def test_a_run_that_the_table_denies_counts_and_the_disagreement_is_reported():
    orin = Gpu(0, "Orin", (8, 7), None, None)
    facts = machine([orin], arch="sm_80 sm_90", platform=Platform("Linux", "aarch64", is_tegra=True))
    found = verdict(facts)
    assert found.outcome is Outcome.PASS and found.diagnosis == "ok"
    assert check(found, "native.rule_agrees_with_run").outcome is Outcome.INCONCLUSIVE


def test_a_second_gpu_that_the_build_cannot_serve_is_told():
    gpus = [card("NVIDIA GeForce RTX 4090", (8, 9)), card("NVIDIA GeForce GTX 1060 6GB", (6, 1), GPU_B, 1)]
    found = verdict(machine(gpus))
    assert found.outcome is Outcome.PASS
    assert "GTX 1060" in check(found, "environment.other_gpus").found


def test_nvml_broken_with_cuda_fine_is_not_called_broken():
    found = verdict(h100(driver=Driver(nvml_error="Unknown Error")))
    assert found.diagnosis == "ok" and not failed(found)


@pytest.mark.parametrize(
    ("code", "text", "diagnosis", "word"),
    [
        (804, "Error 804: forward compatibility was attempted", "forward_compat_mismatch", "804"),
        (803, "Error 803: system has unsupported display driver", "other", "803"),
        (802, "Error 802: system not yet initialized", "other", "fabric manager"),
        (999, "CUDA unknown error", "other", "nvidia-uvm"),
        (46, "all CUDA-capable devices are busy", "other", "exclusive"),
    ],
)
def test_cudas_start_errors_are_told_apart(code, text, diagnosis, word):
    facts = h100(driver=driver(cuda_init_error=code), torch=torch(is_available=False, gpus=(), error=text), proof=None)
    found = verdict(facts)
    assert found.diagnosis == diagnosis and word in check(found, "environment.cuda_starts").found


def test_804_after_an_upgrade_without_a_restart_is_a_matter_of_restarting():
    changed = driver(cuda_init_error=804, kernel_version="570.133.20")
    facts = h100(driver=changed, torch=torch(is_available=False, gpus=(), error="Error 804"), proof=None)
    found = verdict(facts)
    assert found.diagnosis == "other" and "not restarted" in check(found, "environment.cuda_starts").found


def test_too_small_a_cuda_fails_only_where_it_was_asked_for():
    assert verdict(h100(), min_cuda=(13, 2)).outcome is Outcome.FAIL
    assert verdict(h100(), min_cuda=(12, 8)).outcome is Outcome.PASS


def test_a_rehearsal_claims_nothing_about_a_gpu():
    found = verdict(
        h100(driver=None, proof=KernelProof("cpu", True, 64, "float32", max_relative_error=1e-7, limit=1e-5)),
        device="cpu",
    )
    assert found.outcome is Outcome.REHEARSAL and found.diagnosis is None
    wrong = KernelProof("cpu", True, 64, "float32", max_relative_error=1.0, limit=1e-5)
    assert verdict(h100(proof=wrong), device="cpu").outcome is Outcome.FAIL


def test_auto_is_strict_wherever_a_device_exists():
    nothing = MachineFacts(source="recorded", torch=Torch("2.13.0+cpu", is_cpu_build=True), has_nvidia_device=False)
    assert verdict(nothing, device="auto").outcome is Outcome.REHEARSAL
    assert verdict(dataclasses.replace(nothing, has_nvidia_device=True), device="auto").outcome is Outcome.FAIL


def test_nothing_known_is_inconclusive():
    found = verdict(MachineFacts(source="text"))
    assert found.outcome is Outcome.INCONCLUSIVE and found.diagnosis in DIAGNOSES


def test_text_without_a_run_does_not_make_a_fine_machine_look_broken():
    found = verdict(h100(source="text", proof=None))
    assert found.outcome is Outcome.INCONCLUSIVE and found.diagnosis == "ok" and not failed(found)


@pytest.mark.parametrize(
    ("expected", "name", "fits"),
    [
        ("RTX 5090", "NVIDIA GeForce RTX 5090", True),
        ("rtx5090", "NVIDIA GeForce RTX 5090", True),
        ("RTX 5090", "NVIDIA GeForce RTX 5090 D", False),
        ("RTX 5090", "NVIDIA GeForce RTX 5090 Laptop GPU", False),
        ("RTX 5090 D", "NVIDIA GeForce RTX 5090 D", True),
        ("5090 laptop", "NVIDIA GeForce RTX 5090 Laptop GPU", True),
        ("RTX 4070", "NVIDIA GeForce RTX 4070 Ti", False),
        ("RTX 4070 Ti", "NVIDIA GeForce RTX 4070 Ti SUPER", False),
        ("H100", "NVIDIA H100 80GB HBM3", True),
        ("H100 PCIe", "NVIDIA H100 80GB HBM3", False),
        ("H100", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", False),
        ("RTX 6000", "NVIDIA RTX 6000 Ada Generation", False),
        ("A100", "NVIDIA A100-SXM4-80GB", True),
        ("A10", "NVIDIA A100-SXM4-80GB", False),
        ("", "NVIDIA H100", False),
    ],
)
def test_an_expected_name_means_that_card_and_no_relative(expected, name, fits):
    assert matches(expected, name) is fits
