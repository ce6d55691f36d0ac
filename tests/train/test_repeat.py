"""The same steps again: bit for bit, deterministically where the kernels vary, and on the CPU."""

import dataclasses
import types

import pytest
import torch
from test_witnesses import TINY, Small, batch

from kit.train import witness
from kit.train.loop import training_steps
from kit.train.model import build_optimizer
from kit.train.steps import REPLAY_STEPS


@pytest.fixture
def state():
    torch.manual_seed(0)
    model = Small()
    initial = {name: p.detach().clone() for name, p in model.named_parameters()}
    return types.SimpleNamespace(model=model, optimizer=build_optimizer(model, TINY), initial=initial)


@pytest.fixture
def batches():
    return [batch(number) for number in range(4)]


def losses(state, batches):
    return tuple(s.loss for s in training_steps(state.model, state.optimizer, batches, TINY, began_s=0.0))


def test_a_long_run_repeats_its_first_steps_only(state):
    many = [batch(number) for number in range(REPLAY_STEPS + 5)]
    timed = losses(state, many)
    assert witness.replay(state, many, TINY, timed)[0].losses == timed[:REPLAY_STEPS]


def test_a_run_repeats_bit_for_bit_from_its_start(state, batches):
    timed = losses(state, batches)
    found, before = witness.replay(state, batches, TINY, timed)
    assert found.losses == timed and found.matmul_is_equal and found.deterministic_is_equal is None
    fresh = Small()
    fresh.load_state_dict({**state.initial, "mask": torch.ones(8)})
    assert before == pytest.approx(fresh(batches[0].input_ids, batches[0].labels).loss.item())


def test_losses_that_differ_are_tried_again_deterministically(state, batches):
    timed = tuple(loss + 1e-6 for loss in losses(state, batches))
    found, _ = witness.replay(state, batches, TINY, timed)
    assert found.losses != timed and found.deterministic_is_equal is True
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_fault_differs_deterministically_too(state, batches, monkeypatch):
    timed, calls, real = losses(state, batches), [], torch.nn.functional.linear

    def faulty(*args):
        calls.append(1)
        return real(*args) * (1.01 if len(calls) % 7 == 0 else 1)

    monkeypatch.setattr(torch.nn.functional, "linear", faulty)
    assert witness.replay(state, batches, TINY, timed)[0].deterministic_is_equal is False


def test_a_loss_that_is_not_finite_is_no_repeated_loss(state, batches):
    state.initial["embedding.weight"].fill_(float("inf"))
    found, before = witness.replay(state, batches[:2], TINY, (None, None))
    assert found.losses == () and before is None and found.deterministic_is_equal is None


def test_the_cpu_runs_the_first_steps_in_float32(state, batches):
    config = dataclasses.replace(TINY, dtype="bfloat16", steps=4)
    found = witness.cpu_reference(state, batches, config)
    assert found.steps == 3 and found.skipped is None and found.seconds > 0
    witness.restart(state, TINY)
    assert found.losses == losses(state, batches[:3])
    assert witness.cpu_reference(state, batches, dataclasses.replace(config, steps=2)).steps == 2


def test_a_float32_run_on_the_cpu_is_its_own_reference(state, batches):
    assert witness.cpu_reference(state, batches, TINY).skipped == "the run itself is float32 on the CPU"


def test_a_restart_brings_weights_and_optimizer_back(state, batches):
    losses(state, batches)
    old = state.optimizer
    witness.restart(state, TINY)
    assert all(torch.equal(p, state.initial[name]) and p.grad is None for name, p in state.model.named_parameters())
    assert state.optimizer is not old and not state.optimizer.state
