"""Where the tensors are and which kernels ran; each sabotage beside its healthy twin."""

import dataclasses

import pytest
from verdict_sample import healthy, recorded, rehearsed

from kit.records import Outcome
from kit.train.config import weight_flop

PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE
REHEARSAL = Outcome.REHEARSAL


def placement(sample):
    return sample.checks()["native.placement"]


def kernels(sample):
    return sample.checks()["native.kernels"]


# --- placement ----------------------------------------------------------------------


def test_one_stray_tensor_at_one_step_fails_and_is_named():
    """B02, B03, B06: a block, a buffer or an optimizer state left on the CPU."""
    for step in (1, 7, 14):
        for stray in ("parameter h.5.mlp.c_fc.weight on cpu", "buffer rope on cpu", "optimizer exp_avg of wte on cpu"):
            check = placement(healthy().with_audits(step, strays=(stray,)))
            assert check.outcome is FAIL
            assert check.found == f"1 tensors elsewhere, first: {stray}"
            assert ".to('cuda')" in check.todo and check.values["strays"] == 1


def test_strays_of_several_steps_are_counted_once_each():
    sample = healthy().with_audits(strays=("b on cpu",)).with_audits(7, strays=("a on cpu", "b on cpu"))
    assert placement(sample).found == "2 tensors elsewhere, first: b on cpu"


def test_nothing_on_the_device_fails():
    for counted in ({}, {"cpu": 593}, {"cuda": 0}):
        check = placement(healthy().with_audits(7, counted=counted))
        assert check.outcome is FAIL and "0 tensors on cuda" in check.found


def test_an_audit_against_another_device_fails():
    check = placement(healthy().with_audits(14, expected_device="cpu"))
    assert check.outcome is FAIL and "audited against cpu" in check.found


def test_first_middle_and_last_step_have_to_be_audited():
    sample = healthy()
    for missing in (1, 7, 14):
        kept = tuple(audit for audit in sample.run.audits if audit.step != missing)
        check = placement(sample.with_run(audits=kept))
        assert check.outcome is INCONCLUSIVE and "python -m kit" in check.todo
    assert "593 tensors on cuda at steps 1, 7, 14" in placement(sample).found
    assert placement(sample).values["steps"] == [1, 7, 14]


def test_no_audit_at_all_is_inconclusive():
    assert placement(healthy().with_run(audits=())).outcome is INCONCLUSIVE
    assert placement(dataclasses.replace(healthy().with_run(audits=()), steps=())).outcome is INCONCLUSIVE


def test_one_step_needs_one_audit():
    sample = healthy().with_run(audits=healthy().run.audits[:1])
    assert placement(dataclasses.replace(sample, steps=sample.steps[:1])).outcome is PASS
    assert placement(dataclasses.replace(sample, steps=sample.steps[:2])).outcome is INCONCLUSIVE


@pytest.mark.parametrize("kind", ["parameter", "gradient", "optimizer", "batch"])
def test_an_audit_that_saw_none_of_a_kind_is_inconclusive(kind):
    seen = {"parameter": 148, "gradient": 148, "optimizer": 296, "batch": 2}
    for kinds in ({**seen, kind: 0}, {name: n for name, n in seen.items() if name != kind}):
        check = placement(healthy().with_audits(7, kinds=kinds))
        assert check.outcome is INCONCLUSIVE and f"no {kind} seen" in check.found
    assert placement(healthy().with_audits(kinds={})).outcome is PASS


# --- kernels ------------------------------------------------------------------------


def test_the_recorded_kernels_pass_by_their_names_alone():
    assert recorded().run.profile.products == {}
    assert kernels(recorded()).outcome is PASS
    assert "13 % of the profiled step, 184 matrix kernels" in kernels(recorded()).found


def test_a_run_without_any_kernel_fails():
    """B08: a dummy tensor makes memory look used, and no kernel runs."""
    for change in ({"device_time_s": 0.0}, {"kernels": 0}, {"kernels": None}):
        check = kernels(healthy().with_part("profile", **change))
        assert check.outcome is FAIL and check.found.startswith("no kernel ran")
        assert check.todo


def test_products_on_the_cpu_fail_by_either_count():
    """B01, B02: torch's dispatcher sees them, and the trace has no kernel for them."""
    dispatched = healthy().with_part("profile", products={"cuda": 147, "cpu": 12})
    traced = healthy().with_part("profile", cpu_operators={"aten::mm": 8, "aten::addmm": 4})
    for sample in (dispatched, traced):
        check = kernels(sample)
        assert check.outcome is FAIL and check.found.startswith("12 matrix products on the CPU")
        assert check.values["cpu_products"] == 12
    assert "(aten::mm, aten::addmm)" in kernels(traced).found
    assert kernels(healthy()).values["cpu_products"] == 0
    assert kernels(recorded().with_part("profile", cpu_operators={"aten::mm": 1})).outcome is FAIL


def test_kernels_that_are_no_products_are_no_training():
    """C13: a spinning kernel fills the device; the products ran elsewhere."""
    spinning = healthy().with_part(
        "profile", device_time_s=0.08, kernels=5000, matmul_kernels=0, products={"cpu": 147}, product_flop={"cpu": 1e11}
    )
    assert kernels(spinning).outcome is FAIL
    assert kernels(recorded().with_part("profile", matmul_kernels=0)).outcome is FAIL


def test_dummy_products_beside_training_on_the_cpu_fail():
    """Products launched from another thread are not those that this step dispatched."""
    dummy = healthy().with_part("profile", products={"cpu": 147}, product_flop={"cpu": 1.9e11}, matmul_kernels=400)
    assert kernels(dummy).outcome is FAIL


def test_fewer_products_than_the_model_needs_fail():
    assert kernels(healthy().with_part("profile", products={"cuda": 147})).outcome is PASS
    for counted in ({"cuda": 146}, {"cuda": 0}, {"xpu": 147}):
        check = kernels(healthy().with_part("profile", products=counted))
        assert check.outcome is FAIL and "where the model needs 147" in check.found
    assert kernels(recorded().with_part("profile", matmul_kernels=147)).outcome is PASS
    check = kernels(recorded().with_part("profile", matmul_kernels=146))
    assert check.outcome is FAIL and "146 matrix kernels where the model needs 147" in check.found


def test_less_arithmetic_than_the_model_needs_fails():
    """Products of another, smaller model."""
    needed = weight_flop(healthy().run.config.shape, 256)
    assert kernels(healthy().with_part("profile", product_flop={"cuda": needed * 0.995})).outcome is PASS
    for flop in ({"cuda": needed * 0.985}, {"cpu": float(needed)}, {}):
        check = kernels(healthy().with_part("profile", product_flop=flop))
        assert check.outcome is FAIL and "FLOP of products on the device where the model needs 190 GFLOP" in check.found


def test_kernels_of_unknown_names_pass_where_torch_counted_its_products():
    """A library of tomorrow may call its kernels otherwise."""
    assert kernels(healthy().with_part("profile", matmul_kernels=12)).outcome is PASS
    assert kernels(healthy().with_part("profile", matmul_kernels=11)).outcome is FAIL
    assert kernels(healthy().with_part("profile", matmul_kernels=None)).outcome is FAIL
    assert kernels(healthy().with_part("profile", matmul_kernels=12, kernels=147)).outcome is PASS
    assert kernels(healthy().with_part("profile", matmul_kernels=12, kernels=146)).outcome is FAIL
    assert kernels(recorded().with_part("profile", matmul_kernels=12)).outcome is FAIL


def test_copies_over_the_budget_fail():
    """B02, B03: activations or a buffer cross the bus in every step."""
    allowed = 1_000_000 + 16 * 256
    assert kernels(healthy().with_part("profile", copied_bytes=allowed)).outcome is PASS
    assert kernels(healthy().with_part("profile", copied_bytes=None)).outcome is PASS
    check = kernels(healthy().with_part("profile", copied_bytes=allowed + 1))
    assert check.outcome is FAIL and "copied between host and device" in check.found
    assert check.values["copied_bytes"] == allowed + 1


def test_a_large_batch_has_a_larger_budget():
    """Its own two tensors cross the bus: 64 × 1024 tokens are over a megabyte."""
    sample = healthy().with_config(batch_size=64, seq_len=1024)
    flop = {"cuda": float(weight_flop(sample.run.config.shape, 65536))}
    sample = sample.with_part("profile", copied_bytes=1_048_576, positions=65536, product_flop=flop)
    assert kernels(sample).outcome is PASS
    profiled = healthy().with_part("profile", positions=65536, product_flop=flop)
    assert kernels(profiled.with_part("profile", copied_bytes=2_000_000)).outcome is PASS
    assert (
        kernels(profiled.with_part("profile", copied_bytes=2_100_000)).found
        == "2.00 MiB copied between host and device"
    )
    without = sample.with_part("profile", positions=None)
    assert kernels(without).outcome is PASS
    assert kernels(without.with_part("profile", copied_bytes=2_100_000)).outcome is FAIL


def test_a_device_that_mostly_waits_is_inconclusive_and_not_failed():
    """A slow host beside a fast card: all products ran on the device, in a small share of the step."""
    slow = healthy().with_part("profile", step_time_s=1.0)
    check = kernels(slow)
    assert check.outcome is INCONCLUSIVE and "--batch-size 32" in check.todo
    assert 0.01 < check.values["kernel_share"] < 0.05
    edge = healthy().run.profile.device_time_s
    assert kernels(healthy().with_part("profile", step_time_s=edge / 0.05)).outcome is PASS
    assert kernels(healthy().with_part("profile", step_time_s=edge / 0.0499)).outcome is INCONCLUSIVE
    assert kernels(slow.with_part("profile", products={"cuda": 147, "cpu": 1})).outcome is FAIL


def test_a_profile_that_is_missing_is_inconclusive_and_says_why():
    assert "no profiled step" in kernels(healthy().with_run(profile=None)).found
    broken = kernels(healthy().with_part("profile", error="CUPTI is in use"))
    assert broken.outcome is INCONCLUSIVE and broken.found == "CUPTI is in use" and "python -m kit" in broken.todo
    for change in ({"step_time_s": None}, {"step_time_s": 0.0}, {"device_time_s": None}):
        assert kernels(healthy().with_part("profile", **change)).outcome is INCONCLUSIVE


def test_a_rehearsal_says_that_the_cpu_did_the_work():
    check = kernels(rehearsed())
    assert check.outcome is REHEARSAL and "as asked for" in check.found
    assert kernels(rehearsed().with_run(profile=None)).outcome is REHEARSAL


def test_at_most_two_contradictions_are_told():
    nothing = healthy().with_part(
        "profile",
        device_time_s=0.0,
        kernels=0,
        matmul_kernels=0,
        products={"cpu": 147},
        product_flop={"cpu": 1e11},
        copied_bytes=10**9,
    )
    assert kernels(nothing).found.count(";") == 1
