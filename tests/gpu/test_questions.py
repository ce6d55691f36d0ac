"""Each question to a machine: what makes its answer red, what leaves it open, and what it may not be blamed for."""

import dataclasses

import pytest
from machine_sample import GOOD, GPU_B, NO_KERNEL, card, check, diagnose, driver, failed, h100, machine, torch, verdict

from kit.gpu.facts import Driver, Gpu, KernelProof, MachineFacts, Platform, Torch
from kit.gpu.judge_machine import still_there
from kit.records import Outcome

PASS, FAIL, INCONCLUSIVE, REHEARSAL = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.REHEARSAL
ADA, BLACKWELL, PASCAL = "NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 5090", "NVIDIA GeForce GTX 1060 6GB"
RAN_CPU = KernelProof("cpu", True, 64, "float32", max_relative_error=1e-7, limit=1e-5)
FAILED = KernelProof("cuda", False, 4096, "float32", error=NO_KERNEL)


def said(facts, name, **expected):
    found = check(verdict(facts, **expected), name)
    return found.outcome, found.required


# --- the driver ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of", "proof", "answer"),
    [
        (driver(gpus=()), None, (FAIL, True)),
        (driver(gpus=()), GOOD, (PASS, True)),
        (Driver(nvml_error="x"), None, (FAIL, True)),
        (Driver(nvml_error="x"), GOOD, (INCONCLUSIVE, False)),
        (Driver(), None, (INCONCLUSIVE, True)),
        (Driver(), GOOD, (INCONCLUSIVE, False)),
        (None, GOOD, (INCONCLUSIVE, False)),
        (Driver(gpus=(card("x", (9, 0)),)), None, (PASS, True)),
        (Driver(version="580.1"), GOOD, (PASS, True)),
    ],
)
def test_a_driver_that_does_not_answer_is_red_only_where_nothing_ran(of, proof, answer):
    assert said(h100(driver=of, proof=proof), "environment.driver") == answer


def test_a_text_is_not_blamed_for_a_list_that_it_does_not_show():
    quoted = MachineFacts(source="text", driver=Driver("580.1"), torch=torch())
    assert said(quoted, "environment.driver")[0] is PASS
    assert said(dataclasses.replace(quoted, source="recorded"), "environment.driver")[0] is FAIL


# --- the build ----------------------------------------------------------------------


def test_a_missing_torch_is_red_on_a_machine_and_open_in_a_text():
    assert said(h100(torch=None, proof=None), "environment.torch_build")[0] is FAIL
    assert said(MachineFacts(source="text", driver=driver()), "environment.torch_build")[0] is INCONCLUSIVE


@pytest.mark.parametrize(
    ("version", "packaged", "outcome"),
    [
        ("2.11.0+cu130", "2.13.0", FAIL),
        ("2.13.0+cu130", "2.13.0", PASS),
        ("2.13.0", "2.13.0+cu130", PASS),
        (None, "2.13.0", PASS),
        ("2.13.0", None, PASS),
    ],
)
def test_two_installations_are_told_by_their_versions_without_the_tag(version, packaged, outcome):
    assert said(h100(torch=torch(version=version, metadata_version=packaged)), "environment.torch_build")[0] is outcome


@pytest.mark.parametrize(
    ("cuda", "wanted", "outcome"),
    [((13, 0), (13, 0), PASS), ((12, 8), (13, 0), FAIL), ((13, 0), (12, 9), PASS), (None, (12, 8), INCONCLUSIVE)],
)
def test_the_least_cuda_is_enough_and_an_unknown_one_is_open(cuda, wanted, outcome):
    assert said(h100(torch=torch(cuda=cuda)), "environment.min_cuda", min_cuda=wanted)[0] is outcome


def test_a_cpu_build_has_no_cuda_at_all():
    cpu = h100(torch=Torch("2.13.0+cpu", is_cpu_build=True, is_available=False), proof=None)
    assert said(cpu, "environment.min_cuda", min_cuda=(12, 8))[0] is FAIL


@pytest.mark.parametrize(
    ("proof", "available", "outcome"),
    [(GOOD, True, PASS), (None, True, PASS), (GOOD, None, PASS), (None, False, FAIL), (None, None, FAIL)],
)
def test_a_driver_below_the_floor_is_no_fault_where_cuda_runs(proof, available, outcome):
    old = h100(driver=driver(version="470.1", cuda_version=(11, 4)), proof=proof, torch=torch(is_available=available))
    assert said(old, "environment.driver_for_build")[0] is outcome


def test_a_driver_that_is_not_known_is_asked_for_only_where_nothing_ran():
    assert said(h100(driver=None), "environment.driver_for_build") == (INCONCLUSIVE, False)
    assert said(h100(driver=None, proof=None), "environment.driver_for_build") == (INCONCLUSIVE, True)


def test_a_start_that_was_not_tried_is_open_and_one_that_failed_is_red():
    untried = MachineFacts(source="text", torch=torch(is_available=None), driver=driver())
    assert said(untried, "environment.cuda_starts")[0] is INCONCLUSIVE
    vague = MachineFacts(
        source="text", messages=(f"torch.AcceleratorError: {NO_KERNEL}",), torch=Torch("2.9.0", (12, 8))
    )
    assert diagnose(vague).confidence == "low" and said(vague, "environment.cuda_starts")[0] is INCONCLUSIVE
    dark = h100(torch=torch(is_available=False, gpus=()), proof=None)
    assert diagnose(dark).confidence == "low" and said(dark, "environment.cuda_starts")[0] is FAIL


# --- the card -----------------------------------------------------------------------


def test_a_name_that_only_torch_gives_counts_on_a_jetson_alone():
    """A Jetson has no NVML that lists it; a desktop card without a driver's word is no proof."""
    orin = machine(
        [Gpu(0, "Orin", (8, 7))], arch="sm_87", driver=None, platform=Platform("Linux", "aarch64", is_tegra=True)
    )
    assert said(orin, "environment.two_witnesses") == (PASS, True)
    beside = dataclasses.replace(orin.torch, gpus=(*orin.torch.gpus, card(ADA, (8, 9))))
    assert said(dataclasses.replace(orin, torch=beside), "environment.two_witnesses") == (INCONCLUSIVE, True)
    desktop = dataclasses.replace(orin, platform=Platform("Linux", "aarch64"))
    assert said(desktop, "environment.two_witnesses") == (INCONCLUSIVE, True)
    assert said(dataclasses.replace(desktop, has_nvidia_device=False), "environment.two_witnesses") == (FAIL, True)
    assert said(dataclasses.replace(desktop, source="text"), "environment.two_witnesses") == (INCONCLUSIVE, False)


def test_either_witness_beside_torch_is_enough():
    for facts in (h100(nvidia_smi_gpus=()), h100(driver=None, nvidia_smi_gpus=("NVIDIA H100 80GB HBM3",))):
        assert said(facts, "environment.two_witnesses")[0] is PASS


def test_the_device_that_torch_would_use_is_the_one_that_is_expected():
    cards = [card(PASCAL, (6, 1)), card(ADA, (8, 9), GPU_B, 1)]
    found = check(verdict(machine(cards), "RTX 4090"), "environment.expected_gpu")
    assert found.outcome is FAIL and found.todo == "Show torch that card alone: CUDA_VISIBLE_DEVICES=1"
    found = check(verdict(machine(cards), "H100"), "environment.expected_gpu")
    assert found.outcome is FAIL and "CUDA_VISIBLE_DEVICES" not in found.todo
    nameless = h100(torch=torch(gpus=(Gpu(0, None, (9, 0)),)), driver=None, nvidia_smi_gpus=())
    assert said(nameless, "environment.expected_gpu", gpu_name="H100")[0] is INCONCLUSIVE


def test_a_slice_that_only_the_driver_tells_is_not_the_full_card():
    """torch names the card alone; its profile stands in the driver's list, or 'enabled' where the slice is not known."""
    gpu = card("NVIDIA H100 80GB HBM3", (9, 0))
    for profile, words in (("1g.10gb", "a MIG slice 1g.10gb of"), ("enabled", "a MIG slice of")):
        facts = machine([gpu], driver=Driver("580.95.05", gpus=(dataclasses.replace(gpu, mig_profile=profile),)))
        found = check(verdict(facts, "H100"), "environment.expected_gpu")
        assert found.outcome is FAIL and words in found.found and found.values["mig"] is True
    unheard = machine([gpu], driver=None, nvidia_smi_gpus=(gpu.name,))
    assert said(unheard, "environment.expected_gpu", gpu_name="H100")[0] is PASS
    slice_ = dataclasses.replace(unheard.torch.gpus[0], mig_profile="2g.20gb")
    named = dataclasses.replace(unheard, torch=dataclasses.replace(unheard.torch, gpus=(slice_,)))
    assert "a MIG slice 2g.20gb of" in check(verdict(named, "H100"), "environment.expected_gpu").found


def test_gpus_that_the_build_cannot_serve_are_told_and_decide_nothing():
    cards = [card(ADA, (8, 9)), card(PASCAL, (6, 1), GPU_B, 1)]
    assert said(machine(cards), "environment.other_gpus") == (INCONCLUSIVE, False)
    by_ptx = machine(cards, arch="sm_89 compute_60")
    assert said(by_ptx, "environment.other_gpus") == (INCONCLUSIVE, False)
    assert not any(c.id == "environment.other_gpus" for c in verdict(machine(cards[:1])).checks)


# --- native code --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "proof", "answer"),
    [
        ("sm_120", GOOD, (PASS, True)),
        ("sm_120", None, (PASS, True)),
        ("sm_90", None, (FAIL, True)),
        ("sm_90", FAILED, (FAIL, True)),
        ("sm_90", GOOD, (INCONCLUSIVE, False)),
        ("sm_90", dataclasses.replace(GOOD, jit=None), (INCONCLUSIVE, False)),
        ("sm_90", dataclasses.replace(GOOD, jit_error=NO_KERNEL), (FAIL, True)),
        ("sm_90 compute_90", None, (FAIL, True)),
        ("sm_90 compute_90", GOOD, (INCONCLUSIVE, False)),
    ],
)
def test_the_table_decides_until_a_native_kernel_ran(arch, proof, answer):
    assert said(machine([card(BLACKWELL, (12, 0))], arch=arch, proof=proof), "native.arch_in_build") == answer


def test_a_table_that_does_not_know_is_required_until_something_ran():
    unknown = {"driver": Driver("580.1"), "torch": Torch("9.0+cu130", (13, 0), is_available=True)}
    assert said(h100(**unknown), "native.arch_in_build") == (INCONCLUSIVE, False)
    assert said(h100(**unknown, proof=None), "native.arch_in_build") == (INCONCLUSIVE, True)


@pytest.mark.parametrize(("proof", "outcome"), [(GOOD, PASS), (None, INCONCLUSIVE), (RAN_CPU, FAIL), (FAILED, FAIL)])
def test_a_kernel_has_to_have_run_on_the_gpu(proof, outcome):
    assert said(h100(proof=proof), "native.kernel_ran")[0] is outcome


@pytest.mark.parametrize(
    ("error", "limit", "outcome"),
    [(1e-5, 1e-5, PASS), (2e-5, 1e-5, FAIL), (None, 1e-5, INCONCLUSIVE), (1e-5, None, INCONCLUSIVE)],
)
def test_numbers_may_be_off_by_the_limit_and_no_more(error, limit, outcome):
    facts = h100(proof=dataclasses.replace(GOOD, max_relative_error=error, limit=limit))
    assert said(facts, "native.numbers")[0] is outcome
    assert diagnose(facts).word == ("other" if outcome is FAIL else "ok")


@pytest.mark.parametrize(
    ("arch", "proof", "outcome"),
    [
        ("sm_120", GOOD, PASS), ("sm_90", FAILED, PASS), ("sm_90", GOOD, INCONCLUSIVE), ("sm_120", FAILED, INCONCLUSIVE),
        ("sm_90 compute_90", dataclasses.replace(GOOD, jit_error=NO_KERNEL), PASS), ("sm_120", RAN_CPU, None), ("sm_120", None, None),
    ],
)  # fmt: skip
def test_table_and_run_are_compared_where_both_speak(arch, proof, outcome):
    found = [
        c
        for c in verdict(machine([card(BLACKWELL, (12, 0))], arch=arch, proof=proof)).checks
        if c.id == "native.rule_agrees_with_run"
    ]
    assert [(c.outcome, c.required) for c in found] == ([] if outcome is None else [(outcome, False)])


# --- one word -----------------------------------------------------------------------


def test_the_gpu_without_any_code_decides_before_the_one_with_ptx():
    both = [card(BLACKWELL, (12, 0)), card(ADA, (8, 9), GPU_B, 1)]
    for order in (both, both[::-1]):
        found = diagnose(machine(order, arch="sm_80a compute_90", proof=None))
        assert (found.word, found.cause) == ("arch_missing_from_build", "arch_missing") and ADA in found.because[0]


def test_a_build_whose_list_is_only_looked_up_is_less_sure_until_cuda_was_tried():
    gpu = Gpu(0, BLACKWELL, (12, 0))
    looked_up = Torch("2.6.0+cu126", (12, 6), gpus=(gpu,))
    printed = dataclasses.replace(looked_up, arch_list=("sm_90",))
    warned = dataclasses.replace(looked_up, min_capability=(5, 0), max_capability=(9, 0))
    tried = dataclasses.replace(looked_up, is_available=True)
    for build, confidence in ((looked_up, "medium"), (printed, "high"), (warned, "high"), (tried, "high")):
        found = diagnose(MachineFacts(source="text", torch=build))
        assert (found.word, found.confidence) == ("arch_missing_from_build", confidence), build


@pytest.mark.parametrize(
    ("capability", "word", "confidence"),
    [
        ((3, 5), "gpu_too_old_dropped", "high"),
        ((3, 7), "gpu_too_old_dropped", "medium"),
        ((7, 0), "gpu_too_old_dropped", "medium"),
        ((7, 5), "arch_missing_from_build", "medium"),
    ],
)
def test_how_old_the_gpu_is_decides_what_a_missing_kernel_means(capability, word, confidence):
    facts = MachineFacts(source="text", messages=(NO_KERNEL,), torch=Torch(gpus=(Gpu(0, "a card", capability),)))
    assert (diagnose(facts).word, diagnose(facts).confidence) == (word, confidence)


def test_torchs_warning_counts_where_its_build_could_hold_the_code():
    """The list is not known; the toolkit could compile for it, and torch says that it did not."""
    gpu = Gpu(0, "Tesla T4", (7, 5))
    warning = "Tesla T4 with CUDA capability sm_75 is not compatible with the current PyTorch installation"
    facts = MachineFacts(source="text", messages=(warning,), torch=Torch("9.0.0+cu130", (13, 0), gpus=(gpu,)))
    assert diagnose(facts).word == "arch_missing_from_build" and "its list is not there" in diagnose(facts).because[0]


@pytest.mark.parametrize(
    ("jetpack", "version", "runs"),
    [
        ("7.1", None, False), ("7.2", None, True), ("8.0", None, True), ("36.4", None, False), ("39", None, True), ("R39.0", None, True),
        ("r36.4.3", None, False), ("29.9", None, True), ("30.0", None, False), (None, "594.99", False), (None, "595.00", True), (None, None, False),
    ],
)  # fmt: skip
def test_orin_may_run_desktop_code_from_jetpack_7_2_or_its_driver_on(jetpack, version, runs):
    """JetPack by its own number or by its L4T release, 39 for 7.2."""
    platform = Platform("Linux", "aarch64", is_tegra=True, jetpack=jetpack)
    found = diagnose(machine([Gpu(0, "Orin", (8, 7))], arch="sm_80", version=version, proof=None, platform=platform))
    assert found.word == ("ok" if runs else "arch_missing_from_build")


def test_an_orin_with_code_of_its_own_needs_no_new_jetpack():
    platform = Platform("Linux", "aarch64", is_tegra=True, jetpack="7.2")
    found = diagnose(machine([Gpu(0, "Orin", (8, 7))], arch="sm_87", version=None, proof=None, platform=platform))
    assert found.because == ("Orin: sm_87 code is in the build",)


def test_the_same_release_number_means_nothing_on_a_desktop():
    platform = Platform("Linux", "x86_64", jetpack="7.2")
    found = diagnose(machine([card(PASCAL, (6, 1))], version="595.1", proof=None, platform=platform))
    assert found.word == "gpu_too_old_dropped"


def test_a_pip_that_found_nothing_is_no_fault_of_the_gpu():
    """Beside a build that would be blamed for the rest."""
    facts = h100(
        messages=("ERROR: No matching distribution found for torch==9.9.9",), proof=None, torch=torch(is_cpu_build=True)
    )
    assert (diagnose(facts).word, diagnose(facts).cause) == ("other", "pip_found_nothing")


def test_what_is_unknown_is_said_with_a_command_that_would_tell():
    for facts in (
        MachineFacts(source="text"),
        MachineFacts(source="text", messages=("unexpected error from cudaGetDeviceCount()",), torch=torch(gpus=())),
    ):
        found = diagnose(facts)
        assert (found.word, found.confidence) == ("other", "low") and found.ask
    assert diagnose(MachineFacts(source="recorded")).cause == "no_torch"


# --- rehearsal and end --------------------------------------------------------------


@pytest.mark.parametrize(
    ("proof", "outcome"),
    [
        (RAN_CPU, REHEARSAL),
        (dataclasses.replace(RAN_CPU, max_relative_error=1e-5), REHEARSAL),
        (dataclasses.replace(RAN_CPU, max_relative_error=2e-5), FAIL),
        (dataclasses.replace(RAN_CPU, max_relative_error=None), REHEARSAL),
        (dataclasses.replace(RAN_CPU, max_relative_error=9.0, limit=None), REHEARSAL),
        (dataclasses.replace(RAN_CPU, ran=False, error="killed"), FAIL),
    ],
)
def test_a_rehearsal_still_needs_right_numbers(proof, outcome):
    found = verdict(h100(proof=proof), device="cpu")
    assert found.outcome is outcome and check(found, "native.numbers").outcome is outcome


def test_a_rehearsal_needs_torch_unless_a_text_is_read():
    assert failed(verdict(MachineFacts(source="recorded"), device="cpu")) == {"environment.torch_build"}
    assert failed(verdict(MachineFacts(source="text"), device="cpu")) == set()


@pytest.mark.parametrize(
    ("facts", "is_rehearsal"),
    [
        (MachineFacts(source="recorded", torch=torch(gpus=()), has_nvidia_device=False), True),
        (MachineFacts(source="recorded", torch=torch(), has_nvidia_device=False), False),
        (MachineFacts(source="recorded", torch=torch(gpus=()), driver=driver(), has_nvidia_device=False), False),
        (MachineFacts(source="recorded", torch=torch(gpus=()), has_nvidia_device=None), False),
        (MachineFacts(source="recorded", torch=torch(gpus=()), has_nvidia_device=True), False),
    ],
)
def test_auto_rehearses_only_where_no_witness_shows_a_gpu(facts, is_rehearsal):
    assert (verdict(facts, device="auto").outcome is REHEARSAL) is is_rehearsal
    assert verdict(facts, device="cuda").outcome is not REHEARSAL


@pytest.mark.parametrize(
    "end",
    [
        h100(driver=None),
        h100(driver=driver(gpus=())),
        h100(driver=driver(version="590.1")),
        h100(driver=driver(gpus=(card("NVIDIA H100 80GB HBM3", (9, 0), GPU_B),))),
    ],
)
def test_a_machine_that_ends_with_other_devices_has_lost_one(end):
    found = still_there(h100(), end)
    assert found.outcome is FAIL and "not the same ones" in found.found and found.todo


def test_only_xid_errors_of_the_run_itself_count():
    assert still_there(h100(xids=(13,)), h100(xids=(13,))).outcome is PASS
    assert still_there(h100(xids=None), h100(xids=None)).outcome is PASS
    found = still_there(h100(xids=(13,)), h100(xids=(79, 13, 31)))
    assert (
        found.outcome is FAIL and found.values == {"new_xids": [31, 79]} and "new Xid errors: [31, 79]" in found.found
    )
