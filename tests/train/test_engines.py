"""Engines: the same losses from each, and a named reason from one that cannot run."""

import dataclasses
import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kit.errors import UsageError
from kit.extras.graphed import captured as step_module
from kit.extras.graphed.captured import (
    CHUNK,
    CapturedEngine,
    FlatAdamW,
    FlatStep,
    FlatWeights,
    Unsuitable,
    compute_dtype,
    linear_cross_entropy,
    own_loss,
    shifted,
)
from kit.train.config import TrainConfig
from kit.train.engines import build_engine, random_batch, run_trainer
from kit.train.model import NAME, build_model, causal_attention, precision, use_causal_attention

ROOT = Path(__file__).resolve().parents[2]
TINY = TrainConfig(model="tiny", device="cpu", batch_size=2, seq_len=16, lr=1e-3)


def llama(**changes):
    """A small Llama: another architecture, untied head, fewer key heads than query heads, a vocabulary to fill up."""
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 301,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    return LlamaForCausalLM(LlamaConfig(**{**sizes, "bos_token_id": 1, "eos_token_id": 2, **changes})).train()


def gpt2(**changes):
    from transformers.models.gpt2.configuration_gpt2 import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 301,
        "n_layer": 2,
        "n_head": 4,
        "n_embd": 32,
        "n_positions": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }
    model = GPT2LMHeadModel(GPT2Config(**{**sizes, **changes}))
    model.loss_type = "ForCausalLM"
    return model.train()


def batches(model, count, config=TINY):
    """Batches whose first row ends in padding."""
    for seed in range(count):
        ids, labels = random_batch(model, dataclasses.replace(config, seed=seed))
        labels[0, -5:] = -100
        yield ids, labels


def losses(engine, model, count=4):
    return [float(engine.step(*batch)[0]) for batch in batches(model, count)]


def torch_row_loss_(logits, labels, supervised, vocab_size: int) -> torch.Tensor:
    """What the kernel does, in plain torch."""
    real = logits[:, :vocab_size].float()
    log_sum = real.logsumexp(dim=1)
    label = labels.clamp(min=0)[:, None]
    is_supervised = labels >= 0
    scale = torch.where(is_supervised, 1 / supervised, 0.0)
    loss = (log_sum - real.gather(1, label)[:, 0]) * scale
    gradient = (real - log_sum[:, None]).exp_()
    gradient.scatter_add_(1, label, -torch.ones_like(label, dtype=gradient.dtype))
    logits[:, :vocab_size] = gradient * scale[:, None]
    logits[:, vocab_size:] = 0
    return loss


@pytest.fixture
def plain_loss(monkeypatch):
    """The kernel's work in plain torch, where there is no GPU."""
    monkeypatch.setattr(step_module, "triton_row_loss_", torch_row_loss_)


# --- what a step computes -----------------------------------------------------------


@pytest.mark.parametrize("make", [gpt2, llama])
def test_the_step_in_parts_gives_the_models_own_loss_and_gradients(make, plain_loss):
    model, reference = make(), make()
    step = FlatStep(model, TINY, is_compiled=False)
    ((ids, labels),) = batches(model, 1)
    loss, gradients = step.backward(ids, labels)
    expected = reference(input_ids=ids, labels=labels).loss
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-6)
    assert gradients.keys() == dict(reference.named_parameters()).keys()
    for name, parameter in reference.named_parameters():
        got = gradients[name]
        torch.testing.assert_close(got[: parameter.shape[0]], parameter.grad, rtol=1e-4, atol=1e-6)
        assert not got[parameter.shape[0] :].any()


def test_gpt2s_gelu_is_one_operator_in_a_captured_step(plain_loss):
    from torch.autograd.profiler import profile

    model = gpt2()
    step = FlatStep(model, TINY, is_compiled=False)
    with profile(use_kineto=True) as recorded:
        step.backward(*next(batches(model, 1)))
    names = [event.name for event in recorded.function_events]
    assert (names.count("aten::gelu"), names.count("aten::gelu_backward"), names.count("aten::tanh")) == (2, 2, 0)
    assert not any(isinstance(module, torch.nn.GELU) for module in model.modules())


def test_bfloat16_copies_compute_what_autocast_does(plain_loss):
    config = dataclasses.replace(TINY, dtype="bfloat16")
    model, reference = gpt2(), gpt2()
    step = FlatStep(model, config, is_compiled=False)
    ((ids, labels),) = batches(model, 1)
    loss, gradients = step.backward(ids, labels)
    assert {gradient.dtype for gradient in gradients.values()} == {torch.bfloat16}
    assert abs(float(loss) - own_loss(reference, ids, labels, config)) < 1e-2


def test_the_loss_in_chunks_is_the_mean_over_supervised_rows(plain_loss, monkeypatch):
    monkeypatch.setattr(step_module, "ROWS", 10)
    torch.manual_seed(0)
    hidden, weight = torch.randn(37, 16), torch.randn(320, 16)
    weight[301:] = 0
    labels = torch.randint(301, (37,))
    labels[[3, 36]] = -100
    left, right = hidden.clone().requires_grad_(), weight[:301].clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(left @ right.T, labels)
    expected.backward()
    loss, hidden_grad, weight_grad = linear_cross_entropy(hidden, weight, labels, vocab_size=301)
    assert float(loss) == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(hidden_grad, left.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weight_grad[:301], right.grad, rtol=1e-4, atol=1e-6)
    assert not weight_grad[301:].any()


def test_nan_in_the_hidden_states_is_nan_in_the_loss(plain_loss):
    hidden = torch.zeros(4, 8)
    hidden[1, 1] = float("nan")
    loss, _, _ = linear_cross_entropy(hidden, torch.ones(64, 8), torch.tensor([1, 2, 3, 4]), vocab_size=60)
    assert loss.isnan()


def test_labels_are_those_of_the_next_position():
    assert shifted(torch.tensor([[1, 2, 3], [4, 5, -100]])).tolist() == [2, 3, -100, 5, -100, -100]


# --- flat weights -------------------------------------------------------------------


def test_flat_weights_hold_the_models_weights_and_leave_them_as_they_are():
    model, reference = gpt2(), gpt2()
    flat = FlatWeights(model, torch.bfloat16, padded=("transformer.wte.weight",))
    for (name, parameter), before in zip(model.named_parameters(), reference.parameters()):
        assert torch.equal(parameter, before)
        assert parameter.untyped_storage().data_ptr() == flat.master.untyped_storage().data_ptr(), name
    assert model.lm_head.weight is model.transformer.wte.weight
    assert flat.view(flat.master, "transformer.wte.weight", filled=True).shape == (320, 32)
    assert flat.master.numel() % CHUNK == 0
    optimizer = FlatAdamW(flat, TINY)
    assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in model.parameters())


def test_weights_that_somebody_set_reach_the_copies_at_a_restart():
    model = gpt2()
    flat = FlatWeights(model, torch.bfloat16, padded=())
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(3.0)
    assert not flat.view(flat.shadow, "transformer.ln_f.bias").any()
    flat.restart()
    assert (flat.view(flat.shadow, "transformer.ln_f.bias") == 3).all()


def test_the_kernels_train_as_the_plain_loop_does():
    """In Triton's interpreter, which must be chosen before Triton is imported."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed here")
    program = "from tests.train.test_engines import compare_kernels; compare_kernels()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr[-2000:]


def compare_kernels():
    for dtype, limit in (("float32", 2e-5), ("bfloat16", 1e-2)):
        config = dataclasses.replace(TINY, dtype=dtype, lr=1e-2, weight_decay=0.1)
        model, reference = gpt2(), gpt2()
        engine = build_engine("eager", reference, dataclasses.replace(config, dtype="float32"))
        step = FlatStep(model, config, is_compiled=False)
        for ids, labels in batches(model, 6):
            expected, norm = engine.step(ids, labels)
            loss, gradients = step.backward(ids, labels)
            step.flat.point_to(gradients)
            step.flat.update(gradients, config)
            if abs(float(loss - expected)) > limit or abs(float(step.flat.norm / norm) - 1) > limit:
                raise SystemExit(f"{dtype}: loss {float(loss)} for {float(expected)}, norm {float(step.flat.norm)}")
        if int(step.flat.step) != 6:
            raise SystemExit("steps are not counted")


# --- engines ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["captured", "graphed"])
def test_an_engine_that_cannot_run_names_the_reason_and_trains_all_the_same(name):
    model, reference = gpt2(), gpt2()
    engine = build_engine(name, model, TINY)
    assert engine.is_fallback and name in engine.note and "CUDA" in engine.note
    assert losses(engine, model) == losses(build_engine("eager", reference, TINY), reference)


@pytest.mark.parametrize("name", ["trainer", "fastest"])
def test_an_engine_without_steps_is_refused(name):
    with pytest.raises(UsageError, match=name):
        build_engine(name, gpt2(), TINY)


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError, KeyError, FileNotFoundError])
def test_an_engine_that_fails_to_build_falls_back_with_the_error(monkeypatch, kind):
    from kit.train import engines

    def broken(function):
        raise kind("no C++ compiler")

    monkeypatch.setattr(engines, "compiled", broken)
    engine = build_engine("compiled", gpt2(), TINY)
    assert engine.is_fallback and engine.reason.startswith(f"{kind.__name__}: ") and "no C++ compiler" in engine.note


@pytest.mark.parametrize("on_top", [None, RuntimeError, AssertionError])
def test_out_of_memory_is_not_a_reason_to_fall_back(monkeypatch, on_top):
    from kit.train import engines

    def broken(function):
        try:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        finally:
            if on_top:
                raise on_top("a broken capture")

    monkeypatch.setattr(engines, "compiled", broken)
    with pytest.raises(on_top or torch.cuda.OutOfMemoryError):
        build_engine("compiled", gpt2(), TINY)


def test_the_compiled_engine_gives_the_plain_loops_losses(monkeypatch):
    """Without a compiler of C++ code, which takes minutes; on a GPU it is the true one."""
    from kit.train import engines

    traced = functools.partial(torch.compile, fullgraph=True, dynamic=False, backend="aot_eager")
    monkeypatch.setattr(engines, "compiled", traced)
    model, reference = llama(), llama()
    engine = build_engine("compiled", model, TINY)
    assert not engine.is_fallback, engine.note
    assert losses(engine, model) == pytest.approx(losses(build_engine("eager", reference, TINY), reference), abs=1e-4)
    engine.restart()
    assert not engine.optimizer.state


def test_the_trainer_gives_the_plain_loops_losses_and_counts_its_samples():
    model, reference = gpt2(), gpt2()
    given = list(batches(model, 5))
    run = run_trainer(model, TINY, given)
    assert run.losses == pytest.approx(losses(build_engine("eager", reference, TINY), reference, 5), abs=1e-4)
    assert run.samples == 10 and len(run.step_s) == 5 and min(run.step_s) > 0
    assert run.runtime_s >= 0.9 * sum(run.step_s[1:])


def test_the_trainer_leaves_the_model_without_its_autocast():
    model = gpt2()
    before, batch = set(vars(model)), next(batches(model, 1))
    own = own_loss(model, *batch, TINY)
    run = run_trainer(model, dataclasses.replace(TINY, dtype="bfloat16", lr=0.0, weight_decay=0.0), [batch])
    assert set(vars(model)) == before
    assert own_loss(model, *batch, TINY) == own != run.losses[0]


def test_a_first_loss_that_is_not_the_models_own_is_refused(plain_loss):
    model = gpt2()
    own = type(model).forward

    def scaled(*args, **kwargs):
        out = own(model, *args, **kwargs)
        out.loss = out.loss * 1.001
        return out

    model.forward = scaled
    with pytest.raises(Unsuitable, match="the model's own"):
        CapturedEngine(model, TINY)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: gpt2(resid_pdrop=0.1), "dropout"),
        (lambda: _frozen(gpt2()), "frozen"),
        (lambda: _with_bias(llama()), "head"),
    ],
)
def test_a_model_that_the_parts_cannot_express_is_refused_by_name(make, reason):
    with pytest.raises(Unsuitable, match=reason):
        FlatStep(make(), TINY, is_compiled=False)


def _frozen(model):
    model.transformer.ln_f.weight.requires_grad_(False)
    return model


def _with_bias(model):
    model.lm_head = torch.nn.Linear(32, 301)
    return model


# --- attention ----------------------------------------------------------------------


def test_attention_stays_causal_without_a_mask():
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 8, 16), torch.randn(2, 2, 8, 16), torch.randn(2, 2, 8, 16)
    module = torch.nn.Module()
    out, _ = causal_attention(module, query, key, value, None, scaling=0.25)
    value[:, :, -1] = 100.0
    again, _ = causal_attention(module, query, key, value, None, scaling=0.25)
    assert out.shape == (2, 8, 4, 16)
    assert torch.equal(out[:, :-1], again[:, :-1]) and not torch.equal(out[:, -1], again[:, -1])


def test_attention_with_a_mask_is_refused():
    query = torch.randn(1, 1, 4, 8)
    with pytest.raises(ValueError, match="mask"):
        causal_attention(torch.nn.Module(), query, query, query, torch.ones(4, 4))


def test_a_window_of_attention_is_refused_by_name():
    model = llama()
    model.config.sliding_window = 8
    assert "8 tokens" in use_causal_attention(model)
    assert model.config._attn_implementation != NAME


# --- on a GPU -----------------------------------------------------------------------

ON_GPU = dataclasses.replace(TINY, device="cuda", seq_len=64, batch_size=4)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("name", ["compiled", "captured", "graphed"])
@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-4), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("make", [gpt2, llama])
def test_every_engine_gives_the_plain_loops_losses_on_a_gpu(name, dtype, limit, make):
    if (name, dtype, make) == ("compiled", "bfloat16", llama):
        pytest.skip("left out for time: the Llama compiles in float32, and autocast compiles with GPT-2")
    config = dataclasses.replace(ON_GPU, dtype=dtype)
    model, reference = make().cuda(), make().cuda()
    with precision(config):
        engine = build_engine(name, model, config)
        plain = build_engine("eager", reference, dataclasses.replace(config, dtype="float32"))
        assert not engine.is_fallback, engine.note
        for batch in batches(model, 10, config):
            loss, norm = engine.step(*batch)
            expected, expected_norm = plain.step(*batch)
            assert float(loss) == pytest.approx(float(expected), abs=limit)
            assert float(norm) == pytest.approx(float(expected_norm), rel=10 * limit)


@pytest.mark.gpu
def test_a_captured_engine_repeats_bit_for_bit_after_a_restart():
    model, _ = build_model(ON_GPU)
    model = model.cuda()
    initial = [parameter.detach().clone() for parameter in model.parameters()]
    engine = build_engine("captured", model, ON_GPU)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), initial))
    given, found = list(batches(model, 4, ON_GPU)), []
    for _ in range(2):
        found.append([tuple(map(float, engine.step(*batch))) for batch in given])
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), initial):
                parameter.copy_(value)
        engine.restart()
    assert found[0] == found[1]
    assert compute_dtype(ON_GPU) == torch.float32
