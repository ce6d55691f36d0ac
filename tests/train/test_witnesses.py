"""The witnesses at work on small models on the CPU: what they name, count and measure."""

import dataclasses
import types

import pytest
import torch

from kit.train import witness
from kit.train.config import MODELS, TrainConfig, parameters, step_flop, weight_flop, weight_products
from kit.train.loop import applied_steps, eager_step, training_steps
from kit.train.model import build_model, build_optimizer
from kit.train.steps import audited_steps, watched_steps

TINY = TrainConfig(model="tiny", device="cpu", batch_size=2, seq_len=16, lr=1e-3)


class Small(torch.nn.Module):
    """Two blocks, a buffer, one loss."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(64, 32)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(2))
        self.register_buffer("mask", torch.ones(8))

    def forward(self, input_ids, labels):
        hidden = self.embedding(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        logits = hidden @ self.embedding.weight.T
        return types.SimpleNamespace(loss=torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))


@dataclasses.dataclass
class Batch:
    input_ids: torch.Tensor
    labels: torch.Tensor
    samples: int = 2
    tokens: int = 32
    supervised_tokens: int = 30
    sha256: str = "0" * 64


def batch(number=0, vocabulary=64, shape=(2, 16)):
    ids = torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(number))
    return Batch(ids, ids, sha256=f"{number:064d}")


@pytest.fixture
def trained():
    torch.manual_seed(0)
    model = Small()
    optimizer = build_optimizer(model, TINY)
    ids = batch().input_ids
    eager_step(model, optimizer, ids, ids, TINY)
    return model, optimizer, {"input_ids": ids, "labels": ids}


@pytest.fixture(scope="module")
def tiny():
    return build_model(TINY)[0]


# --- placement ----------------------------------------------------------------------


def test_a_model_on_the_cpu_is_home_there_and_a_stray_elsewhere(trained):
    """B01; the twin is the same model where the CPU was asked for."""
    audit = witness.audit_placement(3, *trained, "cpu")
    kinds = {"parameter": 5, "gradient": 5, "optimizer": 10, "buffer": 1, "batch": 2}
    assert (audit.strays, audit.counted, audit.kinds) == ((), {"cpu": 23}, kinds)
    assert (audit.step, audit.expected_device, audit.is_training, audit.is_profiled) == (3, "cpu", True, False)
    lie = witness.audit_placement(3, *trained, "cuda")
    assert len(lie.strays) == 23 and "parameter embedding.weight on cpu" in lie.strays and "cuda" not in lie.counted


def elsewhere(*shape):
    """'meta' stands for another device."""
    return torch.empty(shape, device="meta")


def a_parameter(model, optimizer, tensors):
    model.blocks[1].register_parameter("extra", torch.nn.Parameter(elsewhere(2)))


def a_gradient(model, optimizer, tensors):
    a_parameter(model, optimizer, tensors)
    model.blocks[1].extra.grad = elsewhere(2)


def a_state(model, optimizer, tensors):
    optimizer.state[model.blocks[1].weight] |= {"exp_avg": elsewhere(32, 32), "step": elsewhere()}


STRAYS = {
    "parameter blocks.1.extra": a_parameter,
    "gradient blocks.1.extra": a_gradient,
    "optimizer exp_avg of blocks.1.weight": a_state,
    "buffer mask": lambda model, optimizer, tensors: setattr(model, "mask", elsewhere(8)),
    "batch labels": lambda model, optimizer, tensors: tensors.update(labels=elsewhere(2, 16)),
}


@pytest.mark.parametrize("name", STRAYS)
def test_one_tensor_elsewhere_is_named_and_no_scalar_that_optimizers_keep(trained, name):
    """B02, B03, B06, B07."""
    STRAYS[name](*trained)
    strays = witness.audit_placement(1, *trained, "cpu").strays
    assert f"{name} on meta" in strays and not any("step of" in stray for stray in strays)


def test_what_the_optimizer_holds_beside_the_model_is_seen(trained):
    """An optimizer that was made for a copy of the model updates the copy."""
    model, _, tensors = trained
    stranger = torch.optim.AdamW([torch.nn.Parameter(torch.empty(4, device="meta"))])
    assert witness.audit_placement(1, model, stranger, tensors, "cpu").strays == (
        "parameter number 0 of the optimizer on meta",
    )


def test_modules_that_device_map_put_elsewhere_are_listed(trained):
    """B04, and B05: everything on the device in question is no finding."""
    model, optimizer, tensors = trained
    model.hf_device_map = {"embedding": 0, "blocks.0": "cpu", "blocks.1": "disk", "": torch.device("meta")}
    found = witness.audit_placement(1, model, optimizer, tensors, "cuda").strays
    assert "module blocks.0 on cpu (hf_device_map)" in found and "module blocks.1 on disk (hf_device_map)" in found
    assert "module model on meta (hf_device_map)" in found and not any("embedding on" in name for name in found)
    model.hf_device_map = {"": "cpu"}
    assert witness.audit_placement(1, model, optimizer, tensors, "cpu").strays == ()


def test_evaluation_mode_and_a_profiler_are_recorded(trained):
    model, optimizer, tensors = trained
    from torch.autograd.profiler import profile

    with profile(use_kineto=True):
        audit = witness.audit_placement(1, model.eval(), optimizer, tensors, "cpu")
    assert (audit.is_training, audit.is_profiled) == (False, True)


# --- every step ---------------------------------------------------------------------


def watched(model, config=TINY, count=4):
    """The steps of a small model under the watch of a run, and the watch."""
    config = dataclasses.replace(config, steps=count)
    optimizer = build_optimizer(model, config)
    watch = witness.Watch(model, optimizer, config, "nonce")
    return list(training_steps(model, optimizer, map(batch, range(count)), config, began_s=0.0, watch=watch)), watch


def small():
    torch.manual_seed(0)
    return Small()


def test_every_step_is_looked_at_and_the_drawn_ones_with_all_their_tensors():
    steps, watch = watched(small(), count=30)
    assert {step.products for step in steps} == {3} and not any(step.elsewhere for step in steps)
    assert {step.step for step in steps if step.is_watched} == watched_steps("nonce", 30)
    assert {audit.step for audit in watch.audits} == audited_steps("nonce", 30)
    assert all(audit.product_dtypes == {"float32": 3} and audit.kinds["gradient"] == 5 for audit in watch.audits)
    assert not any(audit.strays for audit in watch.audits)


def test_which_steps_are_drawn_follows_from_the_nonce_alone():
    assert watched_steps("a", 30) == watched_steps("a", 30) != watched_steps("b", 30)
    assert [len(watched_steps("a", n)) for n in (1, 2, 14, 50, 2_000_000)] == [1, 2, 2, 5, 16]
    assert all(set(watched_steps(str(n), 7)) <= set(range(1, 8)) for n in range(50))


class Leave(torch.autograd.Function):
    """To 'meta', the only other device that every machine has."""

    @staticmethod
    def forward(ctx, tensor):
        return torch.empty_like(tensor, device="meta")

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros(gradient.shape)


class Back(torch.autograd.Function):
    """What is computed elsewhere takes part, and the result is at home."""

    @staticmethod
    def forward(ctx, hidden, away):
        return hidden.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, torch.empty_like(gradient, device="meta")


def visits_meta(forward, weight):
    return lambda hidden: Back.apply(forward(hidden), Leave.apply(hidden) @ Leave.apply(weight))


def in_steps(which, model, layer, forward):
    """`layer` computes with `forward` in these steps only; nothing else about it changes."""
    plain, calls = layer.forward, []

    def call(hidden):
        calls.append(1)
        return (forward if len(calls) in which else plain)(hidden)

    layer.forward = call
    return model


def test_a_product_elsewhere_is_named_at_each_step_though_its_layer_puts_out_at_home():
    model = small()
    steps, _ = watched(
        in_steps({3, 4}, model, model.blocks[1], visits_meta(model.blocks[1].forward, model.blocks[1].weight)), count=6
    )
    assert [bool(step.elsewhere) for step in steps] == [False, False, True, True, False, False]
    assert "Mm of blocks.1.weight on meta" in steps[2].elsewhere and steps[2].products == 3


def test_large_operators_elsewhere_in_a_drawn_step_are_strays_whoever_calls_them():
    """Outside modules and outside autograd: what an optimizer does, or a hook."""
    model = small()
    model.embedding.weight.register_hook(
        lambda grad: grad if torch.zeros(64, 128, device="meta").add_(1).dim() else None
    )
    _, watch = watched(model)
    drawn = [audit for audit in watch.audits if audit.step in watched_steps("nonce", 4)]
    assert drawn and all("operator aten::add_ on meta" in audit.strays for audit in drawn)


def test_the_products_of_gpt2s_forward_pass_are_its_four_a_block_and_the_head(tiny):
    ids = batch(0, 50257).input_ids
    strays, dtypes = witness.look_back(tiny(input_ids=ids, labels=ids).loss, tiny, "cpu")
    assert 3 * dtypes["float32"] == weight_products(MODELS["tiny"]) and strays == []


def test_a_loss_without_a_graph_has_no_product():
    assert witness.look_back(torch.ones(()), small(), "cpu") == ([], {})


# --- kernels ------------------------------------------------------------------------


def test_products_are_counted_by_device_with_their_flop(tiny):
    """Forward and backward, against the formula; attention is a kernel of its own and not counted here."""
    optimizer = build_optimizer(tiny, TINY)
    profile = witness.profile_step(tiny, optimizer, batch(0, 50257), TINY)
    assert profile.products == {"cpu": weight_products(MODELS["tiny"])}
    assert profile.product_flop == {"cpu": weight_flop(MODELS["tiny"], 32)}
    assert profile.positions == 32 and profile.error is None and profile.kernels == 0
    assert sum(profile.cpu_operators.values()) >= weight_products(MODELS["tiny"])


def test_flop_of_a_step_agree_with_torchs_own_counter(tiny):
    from torch.utils.flop_counter import FlopCounterMode

    ids = batch(0, 50257, (2, 64)).input_ids
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        tiny(input_ids=ids, labels=ids).loss.backward()
    assert counter.get_total_flops() == step_flop(MODELS["tiny"], batch_size=2, seq_len=64)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_agree_with_transformers_count(name):
    from transformers.models.gpt2.configuration_gpt2 import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel

    shape = MODELS[name]
    config = GPT2Config(n_layer=shape.n_layer, n_head=shape.n_head, n_embd=shape.n_embd, n_positions=shape.n_positions)
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    assert sum(p.numel() for p in model.parameters()) == parameters(shape)
    assert name != "gpt2" or parameters(shape) == 124_439_808


def test_a_profiler_that_does_not_start_is_a_reason_and_no_crash(tiny, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("CUPTI is in use\nby another")

    monkeypatch.setattr("torch.autograd.profiler.profile", broken)
    profile = witness.profile_step(tiny, build_optimizer(tiny, TINY), batch(0, 50257), TINY)
    assert profile.error == "the profiler did not run: CUPTI is in use" and profile.step_time_s is None


# --- numbers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "spoil", "observed"),
    [
        ("float32", lambda product: product, "float32"),
        ("bfloat16", lambda product: product, "bfloat16"),
        # NVIDIA_TF32_OVERRIDE or a flag: the product is rounded to 11 bits whatever the configuration says.
        ("float32", lambda product: product * (1 + 3e-4 * torch.rand_like(product)), "tf32"),
        ("float32", lambda product: product * 1.1, "other"),
    ],
)
def test_the_precision_class_is_measured(monkeypatch, dtype, spoil, observed):
    # A CPU without units for bfloat16 takes seconds for the large one.
    monkeypatch.setattr(witness, "_PRODUCT_SIZE", 256)
    real = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: real(a, b) if a.dtype is torch.float64 else spoil(real(a, b))
    )
    found = witness.measure_precision(dataclasses.replace(TINY, dtype=dtype))
    assert (found.observed, found.output_dtype) == (observed, dtype)


def test_a_product_that_varies_does_not_repeat(monkeypatch):
    assert witness.matmul_repeats(TINY) is True
    real, calls = torch.Tensor.__matmul__, []

    def varied(left, right):
        calls.append(1)
        return real(left, right) * (1 + 1e-7 * len(calls))

    monkeypatch.setattr(torch.Tensor, "__matmul__", varied)
    assert witness.matmul_repeats(TINY) is False


# --- learning -----------------------------------------------------------------------


def test_weights_that_became_nan_did_not_move_and_a_canary_that_is_not_finite_has_no_value():
    model = Small()
    initial = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        model.blocks[0].weight.fill_(float("nan"))
    found = witness.measure_learning(model, initial, None, None)
    assert found.moved_tensors == 0 and "blocks.0.weight" in found.unmoved and found.max_change == 0
    assert witness.canary_loss(model, batch(), TINY) is None


# --- the loop -----------------------------------------------------------------------


def test_a_step_that_is_not_finite_is_recorded_with_its_reason():
    """B11, B12."""
    model = Small()
    with torch.no_grad():
        model.blocks[0].weight.fill_(float("inf"))
    (step,) = training_steps(model, build_optimizer(model, TINY), [batch()], TINY, began_s=0.0)
    assert step.loss is None and step.grad_norm is None and "loss is nan" in step.problem


def test_an_optimizer_that_holds_a_parameter_without_gradient_applied_nothing():
    model = Small()
    optimizer = build_optimizer(model, TINY)
    model.blocks[0].requires_grad_(False)
    (step,) = training_steps(model, optimizer, [batch()], TINY, began_s=0.0)
    assert step.is_applied is False
    assert applied_steps(torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])) == 0


def test_waiting_for_a_batch_is_recorded_beside_the_steps_own_time(monkeypatch):
    """C04."""
    import time

    def slow():
        for number in range(3):
            time.sleep(0.05)
            yield batch(number)

    model = Small()
    steps = list(training_steps(model, build_optimizer(model, TINY), slow(), TINY, began_s=time.perf_counter()))
    assert all(step.wait_s >= 0.045 for step in steps) and all(step.device_time_s is None for step in steps)
    for before, after in zip(steps, steps[1:]):
        assert after.started_s >= before.started_s + before.step_time_s + after.wait_s


def test_samples_and_tokens_are_those_of_the_batch():
    """B24, B26: padding and a smaller last batch."""
    model = Small()
    ragged = dataclasses.replace(batch(), samples=1, tokens=7, supervised_tokens=5)
    (step,) = training_steps(model, build_optimizer(model, TINY), [ragged], TINY, began_s=0.0)
    assert (step.samples, step.tokens, step.supervised_tokens, step.lr) == (1, 7, 5, TINY.lr)
