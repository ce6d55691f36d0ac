"""Which of the driver's cards a device of torch is, and where two witnesses contradict each other."""

import dataclasses

import pytest
from machine_sample import GPU_A, GPU_B, card, disagreements, driver, h100, machine, torch

from kit.gpu.facts import Driver, Gpu, MachineFacts, Torch
from kit.gpu.judge_machine import is_slice, matches, partner

ADA, PASCAL = "NVIDIA GeForce RTX 4090", "NVIDIA GeForce GTX 1060 6GB"
GB = 10**9


def seen(torch_gpu, *driver_gpus, **facts):
    """What the two witnesses say differently."""
    return disagreements(
        MachineFacts(
            source="recorded", driver=Driver("580.1", gpus=driver_gpus), torch=Torch("2.13", gpus=(torch_gpu,)), **facts
        )
    )


# --- the driver's view of the same card ---------------------------------------------


def test_a_card_is_found_by_its_uuid_in_any_spelling():
    first, second = Gpu(0, ADA, uuid="GPU-AAAA"), Gpu(1, ADA, uuid="GPU-BBBB")
    for uuid in ("GPU-BBBB", "GPU-bbbb", "BBBB", "bbbb"):
        assert partner(Gpu(0, ADA, uuid=uuid), (first, second)) is second
    assert partner(Gpu(0, PASCAL, uuid="GPU-BBBB"), (first, second)) is second


def test_a_uuid_that_no_card_has_is_no_card_of_the_driver():
    assert partner(Gpu(0, ADA, uuid="GPU-cc"), (Gpu(0, ADA, uuid="GPU-aa"),)) is None
    assert partner(Gpu(0, ADA, uuid="GPU-cc"), (Gpu(0, ADA, uuid="GPU-aa"), Gpu(1, ADA, uuid="GPU-bb"))) is None


def test_the_only_card_is_meant_where_a_uuid_says_nothing():
    only = Gpu(0, ADA, uuid="GPU-aa")
    assert partner(Gpu(0, "another name"), (only,)) is only
    assert partner(Gpu(0, ADA, uuid="MIG-cc"), (only,)) is only
    assert partner(Gpu(0, f"{ADA} MIG 1g.10gb", uuid="GPU-cc"), (only,)) is only
    assert partner(Gpu(0, ADA, uuid="cc"), (only,)) is only
    nameless = Gpu(0, ADA)
    assert partner(Gpu(0, ADA, uuid="GPU-cc"), (nameless,)) is nameless


def test_among_several_cards_without_uuid_the_name_decides():
    cards = (Gpu(0), Gpu(1, PASCAL), Gpu(2, ADA), Gpu(3, ADA))
    assert partner(Gpu(0, ADA), cards) is cards[2]
    assert partner(Gpu(0, "GeForce RTX 4090"), cards) is cards[2]
    assert partner(Gpu(0, f"{ADA} MIG 1g.10gb"), cards) is cards[2]
    assert partner(Gpu(0, "NVIDIA H200"), cards) is None
    assert partner(Gpu(0), cards) is None
    assert partner(Gpu(0, ADA), ()) is None


@pytest.mark.parametrize(
    ("gpu", "other", "answer"),
    [
        (Gpu(0, "NVIDIA A100 MIG 1g.5gb"), None, True),
        (Gpu(0, "NVIDIA A100", mig_profile="1g.5gb"), None, True),
        (Gpu(0, "NVIDIA A100", uuid="MIG-1"), None, True),
        (Gpu(0, "NVIDIA A100"), Gpu(0, mig_profile="enabled"), True),
        (Gpu(0, "NVIDIA A100", uuid="GPU-1"), Gpu(0, "NVIDIA A100"), False),
        (Gpu(0, "NVIDIA MIGHTY"), None, False),
        (Gpu(0), None, False),
    ],
)
def test_a_slice_is_known_by_its_name_its_profile_its_uuid_or_its_card(gpu, other, answer):
    assert is_slice(gpu, other) is answer


# --- contradictions -----------------------------------------------------------------


def test_witnesses_that_agree_or_are_alone_contradict_nothing():
    assert disagreements(h100()) == ()
    assert disagreements(MachineFacts()) == ()
    assert disagreements(MachineFacts(torch=Torch("2.13", gpus=(card("NVIDIA H100 PCIe", (9, 0)),)))) == ()
    assert disagreements(MachineFacts(nvidia_smi_gpus=(ADA,))) == ()


def test_a_card_that_the_driver_does_not_list_is_named_with_those_it_lists():
    cards = (Gpu(0, PASCAL, uuid="GPU-bb"), Gpu(1, ADA, uuid="GPU-aa"), Gpu(2, uuid="GPU-dd"))
    said = "torch sees NVIDIA A100, which the driver does not list (it lists ?, NVIDIA GeForce GTX 1060 6GB, NVIDIA GeForce RTX 4090)"
    assert seen(Gpu(0, "NVIDIA A100", uuid="GPU-cc"), *cards) == (said,)
    assert seen(Gpu(0, uuid="GPU-cc"), cards[1]) == (
        "torch sees a GPU, which the driver does not list (it lists NVIDIA GeForce RTX 4090)",
    )


def test_another_name_or_capability_is_told_with_both():
    assert seen(Gpu(0, PASCAL), Gpu(0, ADA)) == (f"torch says {PASCAL}, the driver says {ADA}",)
    assert seen(Gpu(0, None, (8, 6)), Gpu(0, ADA, (8, 9))) == ("torch says compute capability 8.6, the driver 8.9",)
    for ours, theirs in (
        (Gpu(0, PASCAL), Gpu(0)),
        (Gpu(0), Gpu(0, ADA)),
        (Gpu(0, None, (8, 6)), Gpu(0)),
        (Gpu(0), Gpu(0, None, (8, 6))),
    ):
        assert seen(ours, theirs) == ()


def test_a_capability_that_the_card_cannot_have_is_a_patched_one():
    said = "torch names NVIDIA H100 PCIe with compute capability 8.0, but that card has 9.0"
    assert seen(Gpu(0, "NVIDIA H100 PCIe", (8, 0))) == (said,)
    both = seen(Gpu(0, "NVIDIA H100 PCIe", (8, 0)), Gpu(0, "NVIDIA H100 PCIe", (9, 0)))
    assert both == (said, "torch says compute capability 8.0, the driver 9.0")
    assert seen(Gpu(0, "a card of tomorrow", (8, 0))) == ()
    assert seen(Gpu(0, "NVIDIA H100 PCIe")) == ()


def test_two_devices_with_the_same_fault_are_told_once():
    fake = Gpu(0, "NVIDIA H100 PCIe", (8, 0))
    facts = MachineFacts(source="recorded", torch=Torch("2.13", gpus=(fake, fake)))
    assert len(disagreements(facts)) == 1


@pytest.mark.parametrize(("ours", "fits"), [(85, True), (84, False), (105, True), (106, False), (200, False)])
def test_torch_may_see_85_to_105_percent_of_the_drivers_memory(ours, fits):
    said = seen(Gpu(0, ADA, memory_bytes=ours * GB), Gpu(0, ADA, memory_bytes=100 * GB))
    assert said == (() if fits else (f"torch says {ours * GB:,} bytes of memory, the driver 100,000,000,000",))


def test_memory_is_not_compared_where_it_may_differ():
    """A slice, an integrated GPU and a pasted text have good reasons; a missing figure has none at all."""
    little, much = Gpu(0, ADA, memory_bytes=10 * GB), Gpu(0, ADA, memory_bytes=100 * GB)
    assert seen(little, much)
    assert seen(little, dataclasses.replace(much, mig_profile="enabled")) == ()
    assert seen(dataclasses.replace(little, mig_profile="1g.10gb"), much) == ()
    assert seen(dataclasses.replace(little, is_integrated=True), much) == ()
    assert seen(dataclasses.replace(little, memory_bytes=None), much) == ()
    assert seen(little, dataclasses.replace(much, memory_bytes=None)) == ()
    text = MachineFacts(source="text", driver=Driver("580.1", gpus=(much,)), torch=Torch("2.13", gpus=(little,)))
    assert disagreements(text) == ()


# --- nvidia-smi ---------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, None])
def test_an_nvidia_smi_that_ended_well_is_a_witness(code):
    said = disagreements(h100(nvidia_smi_gpus=(ADA, PASCAL), nvidia_smi_exit_code=code))
    assert said == (f"torch sees NVIDIA H100 80GB HBM3, nvidia-smi lists {ADA}, {PASCAL}",)


def test_one_that_failed_or_listed_nothing_is_none():
    assert disagreements(h100(nvidia_smi_gpus=(ADA,), nvidia_smi_exit_code=9)) == ()
    assert disagreements(h100(nvidia_smi_gpus=())) == ()
    nameless = torch(gpus=(Gpu(0, None, (9, 0)),))
    assert disagreements(h100(torch=nameless, driver=None, nvidia_smi_gpus=(ADA,))) == ()


def test_every_device_of_torch_has_to_be_on_the_list():
    both = machine([card(ADA, (8, 9)), card(PASCAL, (6, 1), GPU_B, 1)], nvidia_smi_gpus=(ADA, PASCAL))
    assert disagreements(both) == ()
    assert disagreements(dataclasses.replace(both, nvidia_smi_gpus=(ADA,))) == (
        f"torch sees {PASCAL}, nvidia-smi lists {ADA}",
    )


@pytest.mark.parametrize(
    ("listed", "name", "same"),
    [
        ("NVIDIA GeForce RTX 40...", ADA, True),
        ("NVIDIA GeForce ...", ADA, True),
        ("NVIDIA GeForce RTX 30...", ADA, False),
        ("GeForce RTX 4090", ADA, True),
        ("NVIDIA GeForce RTX 409", ADA, False),
        ("4090", ADA, False),
        ("NVIDIA GeForce RTX 4090 MIG 1g.10gb", ADA, True),
        ("NVIDIA TITAN V ...", "NVIDIA TITAN V", True),
    ],
)
def test_a_name_may_be_shortened_by_three_dots_and_in_no_other_way(listed, name, same):
    for driver_name, smi_name in ((name, listed), (listed, name)):
        facts = h100(
            driver=driver(gpus=(Gpu(0, driver_name),)),
            torch=torch(gpus=(Gpu(0, driver_name),)),
            nvidia_smi_gpus=(smi_name,),
        )
        assert (disagreements(facts) == ()) is same


@pytest.mark.parametrize(
    ("expected", "name", "fits"),
    [
        ("A100 SXM4", "NVIDIA A100-SXM4-80GB", True),
        ("A100-SXM4", "NVIDIA A100 SXM4 80GB", True),
        ("gtx1060", "NVIDIA GeForce GTX 1060 6GB", True),
        ("GTX 1060", "NVIDIA GeForce GTX1060 6GB", True),
        ("MX450", "NVIDIA GeForce MX 450", True),
        ("GT 1030", "NVIDIA GeForce GT1030", True),
        ("RTX 3080", "NVIDIA GeForce RTX 3080 Ti", False),
        ("RTX 3080 Ti", "NVIDIA GeForce RTX 3080", False),
        ("TITAN", "NVIDIA TITAN Xp", False),
        ("RTX 2080 Super", "NVIDIA GeForce RTX 2080 SUPER", True),
        ("RTX 2080", "NVIDIA GeForce RTX 2080 SUPER", False),
        ("RTX 2080", "NVIDIA GeForce RTX 2080 Max-Q", False),
        ("GTX 1060", "NVIDIA GeForce GTX 1060 Mobile", False),
        ("GTX 1060", "NVIDIA GeForce GTX 1060 Notebook", False),
        ("GTX TITAN", "NVIDIA GeForce GTX TITAN Black", False),
    ],
)
def test_words_are_cards_and_not_spellings(expected, name, fits):
    assert matches(expected, name) is fits


def test_the_driver_is_asked_by_uuid_before_by_name():
    """Two cards of one name: the second one is torch's, and its memory is the one that counts."""
    ours = Gpu(0, ADA, memory_bytes=24 * GB, uuid=GPU_B)
    cards = (Gpu(0, ADA, memory_bytes=48 * GB, uuid=GPU_A), Gpu(1, ADA, memory_bytes=24 * GB, uuid=GPU_B))
    assert seen(ours, *cards) == ()
    assert seen(dataclasses.replace(ours, uuid=GPU_A), *cards) != ()
