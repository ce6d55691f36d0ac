"""Which of the driver's cards a device of torch is, and where two witnesses contradict each other."""

import dataclasses

import pytest
from machine_sample import GPU_A, GPU_B, card, disagreements, h100, machine

from kit.gpu.facts import Driver, Gpu, MachineFacts, Torch
from kit.gpu.judge_machine import is_slice, matches, partner

ADA, PASCAL, H100 = "NVIDIA GeForce RTX 4090", "NVIDIA GeForce GTX 1060 6GB", "NVIDIA H100 80GB HBM3"
PCIE = "NVIDIA H100 PCIe"
GB = 10**9
FIRST, SECOND = Gpu(0, ADA, uuid="GPU-AAAA"), Gpu(1, ADA, uuid="GPU-BBBB")
ONLY = Gpu(0, ADA, uuid="GPU-aa")
NAMELESS = Gpu(0, ADA)
MIXED = (Gpu(0), Gpu(1, PASCAL), Gpu(2, ADA), Gpu(3, ADA))


def seen(torch_gpu, *driver_gpus, **facts):
    """What the two witnesses say differently."""
    here = {
        "source": "recorded",
        "driver": Driver("580.1", gpus=driver_gpus),
        "torch": Torch("2.13", gpus=(torch_gpu,)),
    }
    return disagreements(MachineFacts(**{**here, **facts}))


@pytest.mark.parametrize(
    ("gpu", "cards", "place"),
    [
        # by its UUID, in any spelling
        *((Gpu(0, ADA, uuid=uuid), (FIRST, SECOND), 1) for uuid in ("GPU-BBBB", "GPU-bbbb", "BBBB", "bbbb")),
        (Gpu(0, PASCAL, uuid="GPU-BBBB"), (FIRST, SECOND), 1),
        # one that no card has is no card of the driver
        (Gpu(0, ADA, uuid="GPU-cc"), (ONLY,), None),
        (Gpu(0, ADA, uuid="GPU-cc"), (ONLY, SECOND), None),
        # the only card is meant where a UUID says nothing
        (Gpu(0, "another name"), (ONLY,), 0),
        (Gpu(0, ADA, uuid="MIG-cc"), (ONLY,), 0),
        (Gpu(0, f"{ADA} MIG 1g.10gb", uuid="GPU-cc"), (ONLY,), 0),
        (Gpu(0, ADA, uuid="cc"), (ONLY,), 0),
        (Gpu(0, ADA, uuid="GPU-cc"), (NAMELESS,), 0),
        # among several without one the name decides
        (Gpu(0, ADA), MIXED, 2),
        (Gpu(0, "GeForce RTX 4090"), MIXED, 2),
        (Gpu(0, f"{ADA} MIG 1g.10gb"), MIXED, 2),
        (Gpu(0, "NVIDIA H200"), MIXED, None),
        (Gpu(0), MIXED, None),
        (Gpu(0, ADA), (), None),
    ],
)
def test_a_device_of_torch_is_one_card_of_the_driver(gpu, cards, place):
    assert partner(gpu, cards) is (None if place is None else cards[place])


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

PATCHED = "torch names NVIDIA H100 PCIe with compute capability 8.0, but that card has 9.0"
OURS = Gpu(0, ADA, memory_bytes=24 * GB, uuid=GPU_B)
BOTH = machine([card(ADA, (8, 9)), card(PASCAL, (6, 1), GPU_B, 1)], nvidia_smi_gpus=(ADA, PASCAL))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        # agreement, or one witness alone
        (disagreements(h100()), ()),
        (disagreements(MachineFacts()), ()),
        (disagreements(MachineFacts(torch=Torch("2.13", gpus=(card(PCIE, (9, 0)),)))), ()),
        (disagreements(MachineFacts(nvidia_smi_gpus=(ADA,))), ()),
        # another name or capability, where both say one
        (seen(Gpu(0, PASCAL), Gpu(0, ADA)), (f"torch says {PASCAL}, the driver says {ADA}",)),
        (seen(Gpu(0, None, (8, 6)), Gpu(0, ADA, (8, 9))), ("torch says compute capability 8.6, the driver 8.9",)),
        (seen(Gpu(0, PASCAL), Gpu(0)), ()),
        (seen(Gpu(0), Gpu(0, ADA)), ()),
        (seen(Gpu(0, None, (8, 6)), Gpu(0)), ()),
        (seen(Gpu(0), Gpu(0, None, (8, 6))), ()),
        # a card that the driver does not list, with those that it lists
        (
            seen(Gpu(0, "NVIDIA A100", uuid="GPU-cc"), ONLY, Gpu(1, PASCAL, uuid="GPU-b"), Gpu(2, uuid="GPU-d")),
            (f"torch sees NVIDIA A100, which the driver does not list (it lists ?, {PASCAL}, {ADA})",),
        ),
        (seen(Gpu(0, uuid="GPU-cc"), ONLY), (f"torch sees a GPU, which the driver does not list (it lists {ADA})",)),
        # a capability that the card cannot have
        (seen(Gpu(0, PCIE, (8, 0))), (PATCHED,)),
        (
            seen(Gpu(0, PCIE, (8, 0)), Gpu(0, PCIE, (9, 0))),
            (PATCHED, "torch says compute capability 8.0, the driver 9.0"),
        ),
        (seen(Gpu(0, PCIE, (8, 0)), torch=Torch("2.13", gpus=(Gpu(0, PCIE, (8, 0)),) * 2)), (PATCHED,)),
        (seen(Gpu(0, "a card of tomorrow", (8, 0))), ()),
        (seen(Gpu(0, PCIE)), ()),
        # two cards of one name: the UUID tells which memory counts
        (seen(OURS, dataclasses.replace(OURS, memory_bytes=48 * GB, uuid=GPU_A), OURS), ()),
        # nvidia-smi, where it ended well; every device has to be on its list
        *(
            (
                disagreements(h100(nvidia_smi_gpus=(ADA, PASCAL), nvidia_smi_exit_code=code)),
                (f"torch sees {H100}, nvidia-smi lists {ADA}, {PASCAL}",),
            )
            for code in (0, None)
        ),
        (disagreements(h100(nvidia_smi_gpus=(ADA,), nvidia_smi_exit_code=9)), ()),
        (disagreements(h100(nvidia_smi_gpus=())), ()),
        (seen(Gpu(0, None, (9, 0)), driver=None, nvidia_smi_gpus=(ADA,)), ()),
        (disagreements(BOTH), ()),
        (
            disagreements(dataclasses.replace(BOTH, nvidia_smi_gpus=(ADA,))),
            (f"torch sees {PASCAL}, nvidia-smi lists {ADA}",),
        ),
    ],
)
def test_what_two_witnesses_say_differently_is_told_with_both_and_once(said, words):
    assert said == words


def test_two_devices_are_told_by_their_uuids():
    assert seen(OURS, dataclasses.replace(OURS, uuid=GPU_A, memory_bytes=48 * GB)) != ()


@pytest.mark.parametrize(("ours", "fits"), [(85, True), (84, False), (105, True), (106, False), (200, False)])
def test_torch_may_see_85_to_105_percent_of_the_drivers_memory(ours, fits):
    said = seen(Gpu(0, ADA, memory_bytes=ours * GB), Gpu(0, ADA, memory_bytes=100 * GB))
    assert said == (() if fits else (f"torch says {ours * GB:,} bytes of memory, the driver 100,000,000,000",))


@pytest.mark.parametrize(
    ("ours", "theirs", "source", "differs"),
    [
        ({}, {}, "recorded", True),
        ({}, {"mig_profile": "enabled"}, "recorded", False),
        ({"mig_profile": "1g.10gb"}, {}, "recorded", False),
        ({"is_integrated": True}, {}, "recorded", False),
        ({"memory_bytes": None}, {}, "recorded", False),
        ({}, {"memory_bytes": None}, "recorded", False),
        ({}, {}, "text", False),
    ],
)
def test_memory_is_not_compared_where_it_may_differ(ours, theirs, source, differs):
    """A slice, an integrated GPU and a pasted text have good reasons; a missing figure has none at all."""
    little, much = (Gpu(0, ADA, memory_bytes=size * GB) for size in (10, 100))
    said = seen(dataclasses.replace(little, **ours), dataclasses.replace(much, **theirs), source=source)
    assert bool(said) is differs


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
        gpu = Gpu(0, driver_name)
        assert (seen(gpu, gpu, nvidia_smi_gpus=(smi_name,)) == ()) is same


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
        ("rtx5090", "NVIDIA GeForce RTX 5090", True),
        ("RTX 5090", "NVIDIA GeForce RTX 5090 D", False),
        ("RTX 5090", "NVIDIA GeForce RTX 5090 Laptop GPU", False),
        ("RTX 5090 D", "NVIDIA GeForce RTX 5090 D", True),
        ("5090 laptop", "NVIDIA GeForce RTX 5090 Laptop GPU", True),
        ("RTX 4070 Ti", "NVIDIA GeForce RTX 4070 Ti SUPER", False),
        ("H100", H100, True),
        ("H100 PCIe", H100, False),
        ("H100", f"{H100} MIG 1g.10gb", False),
        ("RTX 6000", "NVIDIA RTX 6000 Ada Generation", False),
        ("A100", "NVIDIA A100-SXM4-80GB", True),
        ("A10", "NVIDIA A100-SXM4-80GB", False),
        ("", "NVIDIA H100", False),
    ],
)
def test_an_expected_name_means_that_card_and_no_relative(expected, name, fits):
    assert matches(expected, name) is fits
