"""The guard: one line in any script, and a clear error that names what is elsewhere.

Each row is a training of a few steps with one thing in it, seen through `with gpu_guard(...)`. On a GPU the thing is
on the CPU; on a CPU, which stands for the GPU that is there, it is on 'meta', from where no value comes back.
"""

import collections
import copy
import dataclasses
import functools
import random
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import kit
from kit import GpuGuardCallback, gpu_guard
from kit.errors import GpuNotUsable, UsageError

ROOT = Path(kit.__file__).resolve().parents[1]
SIZE, ROWS, STEPS = 128, 64, 20


@dataclasses.dataclass
class Bench:
    """A training of STEPS steps. Whatever is None or does nothing can be replaced by a row."""

    home: str
    away: str
    steps: int = STEPS
    allow: tuple = ()
    optimizers: object = None

    def __post_init__(self):
        self.model = Model().to(self.home)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.loss = lambda output, labels: output["loss"]
        self.each = lambda number: None
        self.between = lambda output: None
        self.run = self.model
        self.update = lambda: self.optimizer.step()

    def returned(self, value, like):
        """`value`, back from elsewhere; from 'meta' there is nothing to bring, so that `like` goes on."""
        return value.to(self.home) if self.away == "cpu" else like

    def train(self):
        with gpu_guard(self.model, self.optimizers or self.optimizer, device=self.home, allow=self.allow) as self.guard:
            for number in range(1, self.steps + 1):
                self.each(number)
                ids = torch.randint(50, (ROWS,), device=self.home)
                labels = torch.zeros(ROWS, dtype=torch.long, device=self.home)
                output = self.run(ids, labels)
                loss = self.loss(output, labels)
                self.optimizer.zero_grad()
                loss.backward()
                self.update()
                self.between(output)
        return self.guard


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(50, SIZE)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(SIZE, SIZE) for _ in range(2)])
        self.norm = torch.nn.BatchNorm1d(SIZE)
        self.head = torch.nn.Linear(SIZE, 50)
        self.extra = lambda x: x
        self.criterion = F.cross_entropy
        self.wrap = lambda output: output

    def hidden(self, ids):
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = x + layer(x).relu()
        return self.norm(self.extra(x))

    def forward(self, ids, labels):
        logits = self.head(self.hidden(ids))
        return self.wrap({"loss": self.criterion(logits, labels), "logits": logits})


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of such small products wait for each other by spinning: many times slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Numpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return torch.from_numpy(x.detach().cpu().numpy() @ weight.detach().cpu().numpy()).to(x.device)

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.saved_tensors[0].T, None


class BackwardElsewhere(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, away):
        ctx.away = away
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        moved = grad.to(ctx.away)
        moved @ torch.ones(SIZE, 1024, device=moved.device)
        return grad, None


class Own(torch.optim.SGD):
    """A plain step; `before` is what a row adds to it."""

    def step(self, closure=None):
        self.before(self)
        super().step()


class Slots:
    __slots__ = ("absmax",)

    def __init__(self, tensor):
        self.absmax = tensor


@dataclasses.dataclass
class Kept:
    inner: dict


class Moves(torch.nn.Linear):
    def forward(self, x):
        return x if self.weight.device != x.device else super().forward(x)


Fields = collections.namedtuple("Fields", "keys values")


# What a row is made of: each gives a change of a bench.


def put(**given):
    """Each value is made of the bench, and put where the bench or its model has such a name."""

    def change(b):
        for name, make in given.items():
            setattr(b.model if hasattr(b.model, name) else b, name, make(b))

    return change


def own(before=lambda b: lambda self: None, **more):
    """An optimizer whose step does something more, and what is set in it."""

    def change(b):
        b.optimizer = Own(b.model.parameters(), lr=0.01)
        b.optimizer.before = before(b)
        vars(b.optimizer).update({name: make(b) for name, make in more.items()})

    return change


def in_state(make):
    """Optimizer state of the first parameter, made at the first step."""

    def before(b):
        first, tensor = b.model.embed_tokens.weight, torch.zeros(4, device=b.away)
        return lambda self: self.state[first].update(make(tensor))

    return own(before)


def at(step, change):
    """At this step of 60."""

    def each(b):
        b.steps = 60
        return lambda number: change(b) if number == step else None

    return put(each=each)


def through(make, prepare=lambda x: x, after=lambda x: x):
    """A block in a plain container, which no parameter of the model is in."""

    def extra(b):
        blocks = [make().to(b.away)]
        return lambda x: b.returned(after(blocks[0](prepare(x).to(b.away))), x)

    return put(extra=extra)


def linear():
    return torch.nn.Linear(SIZE, SIZE)


def weights_copied_for_each_forward(b):
    def extra(x):
        weight = b.model.layers[0].weight.detach().to(b.away)
        return b.returned(x.detach().to(b.away) + weight[0], x) if b.away == "cpu" else x

    b.model.extra = extra


def master_weights_elsewhere(b):
    masters = [p.detach().to(b.away).requires_grad_() for p in b.model.parameters()]
    b.optimizer = torch.optim.SGD([{"params": b.model.head.parameters()}, {"params": masters}], lr=0.1)


def weights_written_from_elsewhere(b):
    kept = b.model.head.weight.detach().to(b.away)
    b.loss = lambda out, labels: (b.model.head.weight.data.copy_(kept), out["loss"])[1]


def an_update_of_lists(b):
    kept = [torch.zeros(SIZE, device=b.away) for _ in range(3)]
    return lambda self: torch._foreach_add_(kept, 1.0)


def the_second_of_two_optimizers(b):
    first = torch.optim.SGD(b.model.layers.parameters(), lr=0.1)
    second = torch.optim.SGD(b.model.head.parameters(), lr=0.1)
    second.state[b.model.head.weight]["momentum"] = torch.ones(4, device=b.away)
    b.optimizers = {"first": first, "second": second}


def a_weight_replaced_at_step_3(b):
    b.model.layers[1] = Moves(SIZE, SIZE).to(b.home)
    b.optimizer = torch.optim.AdamW(b.model.parameters())
    weight = torch.nn.Parameter(torch.ones(SIZE, SIZE, device=b.away))
    at(3, lambda b: setattr(b.model.layers[1], "weight", weight))(b)


def a_buffer_replaced_at_step_9(b):
    b.model.norm.forward = lambda x: x
    at(9, lambda b: setattr(b.model.norm, "running_var", torch.ones(SIZE, device=b.away)))(b)


def a_part_of_the_model_that_is_called_alone(b):
    """As Lightning and many scripts do: the model itself is never called."""
    block = linear().to(b.away)

    def run(ids, labels):
        x = b.model.embed_tokens(ids)
        x = b.returned(block(x.to(b.away)), x)
        return {"loss": F.cross_entropy(b.model.head(x), labels)}

    b.run, b.steps = run, 60


def a_block_too_small_for_any_limit(b):
    b.model.extra = lambda x: (torch.ones(4, 4, device=b.away) @ torch.ones(4, 4, device=b.away), x)[1]
    b.model.layers, b.model.embed_tokens = torch.nn.ModuleList(), torch.nn.Embedding(50, 4).to(b.home)
    b.model.norm, b.model.head = torch.nn.Identity(), torch.nn.Linear(4, 2).to(b.home)
    b.optimizer = torch.optim.SGD(b.model.parameters(), lr=0.1)


def with_allow(change, *allow):
    return lambda b: (change(b), put(allow=lambda b: allow)(b))


STATE = "Own.state['embed_tokens.weight']"
COPIED = "bytes of what the loss is made of are copied to be on AWAY"
TABLE = torch.nn.Embedding(50, SIZE)
GPU_ONLY = {"a_custom_function_in_numpy", "an_embedding_in_a_plain_list", "weights_written_from_elsewhere"}
# name: what is changed, and the words that are said.
# fmt: off
RED = {
    "a_layer_elsewhere": (lambda b: b.model.layers[0].to(b.away), "parameter layers.0.weight is on"),
    "a_buffer_elsewhere": (lambda b: setattr(b.model.norm, "running_mean", b.model.norm.running_mean.to(b.away)), "buffer norm.running_mean is on"),
    "a_block_in_a_plain_list": (through(linear, prepare=torch.Tensor.detach), "are computed on AWAY (aten.addmm.default) in the model itself (Linear, which is not registered in it) at step 1"),
    "a_convolution_in_a_list": (through(lambda: torch.nn.Conv1d(SIZE, SIZE, 1), lambda x: x.detach()[:, :, None], lambda x: x[:, :, 0]), "in the model itself (Conv1d"),
    "a_custom_function_in_numpy": (put(extra=lambda b: lambda x: Numpy.apply(x, torch.eye(SIZE, device=b.home))), "in the model itself"),
    "a_backward_pass_elsewhere": (put(extra=lambda b: lambda x: BackwardElsewhere.apply(x, b.away)), "in the backward pass at step 1"),
    "weights_copied_for_each_forward": (weights_copied_for_each_forward, "weight layers.0.weight is copied to be on AWAY"),
    "the_loss_inside_the_model": (put(criterion=lambda b: lambda logits, labels: b.returned(F.cross_entropy(logits.to(b.away), labels.to(b.away)), F.cross_entropy(logits, labels))), COPIED),
    "a_loss_that_stays_elsewhere": (put(wrap=lambda b: lambda out: {**out, "loss": torch.ones((), device=b.away, requires_grad=True)}), "the model's output['loss'] is on"),
    "an_auxiliary_loss_elsewhere": (put(wrap=lambda b: lambda out: {**out, "aux": (None, torch.ones(3, device=b.away, requires_grad=True))}), "the model's output['aux'][1] is on"),
    "the_loss_outside_the_model": (put(loss=lambda b: lambda out, labels: b.returned(F.cross_entropy(out["logits"].to(b.away), labels.to(b.away)), out["logits"].mean())), COPIED),
    "an_embedding_in_a_plain_list": (put(extra=lambda b: lambda x: x + TABLE(torch.zeros(ROWS).long()).to(x.device)), "what the loss is made of was computed on cpu"),
    "an_optimizer_of_a_copy": (put(optimizer=lambda b: torch.optim.AdamW(copy.deepcopy(b.model).parameters())), "AdamW holds none of the model's parameters"),
    "master_weights_elsewhere": (master_weights_elsewhere, "SGD.param_groups[1]['params']['0, outside the model'] is on"),
    "an_update_on_copies_elsewhere": (own(lambda b: lambda self: b.model.head.weight.detach().to(b.away).mul_(0.9)), "weight head.weight is copied to be on AWAY (aten._to_copy.default) in the optimizer's step"),
    "an_update_of_lists_elsewhere": (own(an_update_of_lists), "weights or states are updated on AWAY (aten._foreach_add_.Scalar) in the optimizer's step"),
    "master_weights_in_an_attribute": (own(masters=lambda b: [torch.zeros(SIZE, device=b.away)]), "Own.masters[0] is on"),
    "weights_written_from_elsewhere": (weights_written_from_elsewhere, "the new weight head.weight was computed on"),
    "state_elsewhere": (in_state(lambda t: {"momentum": t}), f"{STATE}['momentum'] is on"),
    "history_elsewhere": (in_state(lambda t: {"old": [(0, t)]}), f"{STATE}['old'][0][1] is on"),
    "slots_elsewhere": (in_state(lambda t: {"q": Slots(t)}), f"{STATE}['q'].absmax is on"),
    "dataclass_elsewhere": (in_state(lambda t: {"d": Kept({"x": t})}), f"{STATE}['d'].inner['x'] is on"),
    "namespace_elsewhere": (in_state(lambda t: {"n": types.SimpleNamespace(a=[t])}), f"{STATE}['n'].a[0] is on"),
    "named_fields_elsewhere": (in_state(lambda t: {"f": Fields(t, 1)}), f"{STATE}['f'].keys is on"),
    "deque_elsewhere": (in_state(lambda t: {"h": collections.deque([t])}), f"{STATE}['h'][0] is on"),
    "a_tensor_in_a_group": (lambda b: (own()(b), b.optimizer.param_groups[0].update(scales=torch.ones(4, device=b.away))), "Own.param_groups[0]['scales'] is on"),
    "quantisation_state_elsewhere": (lambda b: setattr(b.model.head.weight, "quant_state", Slots(torch.ones(4, device=b.away))), "state of head.weight['quant_state'].absmax is on"),
    "the_second_of_two_optimizers": (the_second_of_two_optimizers, "SGD.state['head.weight']['momentum'] is on"),
    "a_weight_replaced_at_step_3": (a_weight_replaced_at_step_3, "parameter layers.1.weight is on"),
    "a_buffer_replaced_at_step_9": (a_buffer_replaced_at_step_9, "buffer norm.running_var is on"),
    "a_block_that_leaves_at_step_9": (at(9, through(linear)), f"{COPIED} (aten._to_copy.default) in the model itself"),
    "a_layer_added_at_step_5": (at(5, lambda b: b.model.add_module("late", torch.nn.Linear(2, 2, device=b.away))), "late.weight is on"),
    "a_part_of_the_model_that_is_called_alone": (a_part_of_the_model_that_is_called_alone, "outside the model at step"),
    "a_block_too_small_for_any_limit": (a_block_too_small_for_any_limit, "products are computed elsewhere"),
    "what_is_not_named_in_allow": (with_allow(through(linear, prepare=torch.Tensor.detach), "embed_tokens"), "MFLOP of products are computed on"),
}
# fmt: on


# --- healthy, however odd -----------------------------------------------------------


def paged_states(b):
    paged = torch.zeros(SIZE, device=b.away)
    paged.is_paged = True
    first = b.model.embed_tokens.weight
    own(lambda b: lambda self: (self.state[first].update(state1=paged), paged.add_(1.0)))(b)


def an_object_that_refers_to_itself(b):
    holder = types.SimpleNamespace()
    holder.me = holder
    b.model.wrap = lambda out: {**out, "holder": holder}


def an_embedding_on_the_host_on_purpose(b):
    b.allow = ("embed_tokens",)
    if b.away == "cpu":
        table = b.model.embed_tokens.to("cpu")
        table.register_forward_pre_hook(lambda module, args: tuple(a.cpu() for a in args))
        table.register_forward_hook(lambda module, args, out: out.cuda())
        b.optimizer = torch.optim.AdamW(b.model.parameters(), foreach=False)


def inputs_moved_inside_the_model(b):
    run = b.model
    b.run = lambda ids, labels: run(ids.cpu(), labels.cpu())
    b.model.register_forward_pre_hook(lambda module, args: tuple(a.to(b.home) for a in args))


def metrics_and_checkpoints_on_the_host(b):
    def between(output):
        output["logits"].detach().to(b.away)
        {k: v.to(b.away) for k, v in b.model.state_dict().items()}
        output["loss"].item()

    b.between = between
    b.loss = lambda out, labels: (out["logits"].detach().to(b.away), out["loss"])[1]


def evaluation_elsewhere_without_gradients(b):
    other, rows = copy.deepcopy(b.model).to(b.away), torch.zeros(ROWS, dtype=torch.long, device=b.away)
    b.each = torch.no_grad()(lambda number: other(rows, rows))


def several_optimizers(b):
    halves = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (b.model.layers, b.model.head)]
    b.optimizers, b.update = halves, lambda: [half.step() for half in halves]


def a_counter_of_flop_in_between(b):
    from torch.utils.flop_counter import FlopCounterMode

    def counted(ids, labels):
        with FlopCounterMode(display=False):
            return b.model(ids, labels)

    b.run = counted


# fmt: off
GREEN = {
    "nothing_odd": put(steps=lambda b: 60),
    "counters_on_the_host": in_state(lambda t: {"step": t.new_zeros(()), "n": t.new_ones(1)}),
    "paged_states": paged_states,
    "a_named_tuple_with_a_field_keys": put(wrap=lambda b: lambda out: Fields(out["loss"], out["logits"]), loss=lambda b: lambda out, labels: out.keys),
    "an_object_that_refers_to_itself": an_object_that_refers_to_itself,
    "an_embedding_on_the_host_on_purpose": an_embedding_on_the_host_on_purpose,
    "a_state_on_the_host_on_purpose": with_allow(in_state(lambda t: {"momentum": t}), "momentum"),
    "inputs_moved_inside_the_model": inputs_moved_inside_the_model,
    "metrics_and_checkpoints_on_the_host": metrics_and_checkpoints_on_the_host,
    "rows_that_are_computed_on_the_host": put(each=lambda b: lambda number: torch.ones(256, 256, device=b.away) @ torch.ones(256, 256, device=b.away)),
    "indices_that_are_read_on_the_host": put(extra=lambda b: lambda x: (x.argmax(1).to(b.away), x.sum().to(b.away), x)[2]),
    "evaluation_elsewhere_without_gradients": evaluation_elsewhere_without_gradients,
    "gradient_checkpointing": put(extra=lambda b: functools.partial(checkpoint, linear().to(b.home), use_reentrant=False)),
    "two_forward_passes_a_step": put(run=lambda b: lambda ids, labels: (b.model(ids, labels)["loss"].backward(), b.model(ids, labels))[1]),
    "several_optimizers": several_optimizers,
    "a_counter_of_flop_in_between": a_counter_of_flop_in_between,
}
# fmt: on


ON_CPU = [name for name in RED if name not in GPU_ONLY]


def refused(name, home, away):
    change, words = RED[name]
    b = Bench(home, away)
    with pytest.raises(GpuNotUsable) as caught:
        change(b)
        b.train()
    assert words.replace("AWAY", away) in caught.value.found
    assert away in caught.value.found or "holds none" in words
    assert not b.model._forward_hooks and not b.model._forward_pre_hooks


def passed(name, home, away):
    b = Bench(home, away)
    GREEN[name](b)
    assert b.train().steps == b.steps


@pytest.mark.parametrize("name", ON_CPU)
def test_what_is_elsewhere_is_refused(name):
    refused(name, "cpu", "meta")
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


@pytest.mark.parametrize("name", GREEN)
def test_healthy_oddities_pass(name):
    passed(name, "cpu", "meta")
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


@pytest.mark.gpu
@pytest.mark.parametrize("name", RED)
def test_on_a_gpu_what_is_on_the_host_is_refused(name):
    refused(name, "cuda", "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("name", GREEN)
def test_on_a_gpu_healthy_oddities_pass(name):
    passed(name, "cuda", "cpu")


# --- as one check, and what it says -------------------------------------------------


def refusal(*args, **more):
    with pytest.raises(GpuNotUsable) as caught:
        gpu_guard(*args, **more)
    return caught.value


def test_a_model_on_the_cpu_is_refused_by_the_name_of_its_first_parameter():
    """B01, B10."""
    error = refusal(torch.nn.Linear(2, 2))
    assert error.found == "parameter weight is on cpu" and error.expected == "all of the training on cuda"
    if not torch.cuda.is_available():
        assert "has no usable CUDA device here: python -m kit check" in error.todo


def test_a_meta_tensor_gets_advice_that_works():
    model = torch.nn.Linear(2, 2, device="meta")
    assert "model.to_empty(device='cpu'), then load its weights" in refusal(model, device="cpu").todo
    model.to_empty(device="cpu")
    gpu_guard(model, device="cpu")


def test_what_is_allowed_stands_in_the_message():
    error = refusal(torch.nn.Linear(2, 2, device="meta"), device="cpu", allow=("embed_tokens", "head"))
    assert error.expected == "all of the training on cpu but what allow names: embed_tokens, head"
    gpu_guard(torch.nn.Linear(2, 2, device="meta"), device="cpu", allow=["weight", "bias"])
    assert "bias" in refusal(torch.nn.Linear(2, 2, device="meta"), device="cpu", allow="weight").found


@pytest.mark.parametrize(
    "batch, name",
    [
        ([torch.empty(1, device="meta")], "batch[0]"),
        ({"ids": [1, (torch.empty(2, device="meta"),)]}, "batch['ids'][1][0]"),
        (collections.UserDict(ids=torch.empty(1, device="meta")), "batch['ids']"),
        (Fields(torch.empty(2, device="meta"), 1), "batch.keys"),
        (Kept({"a": Slots(torch.empty(2, device="meta"))}), "batch.inner['a'].absmax"),
    ],
)
def test_a_batch_is_looked_into_whatever_it_is(batch, name):
    assert refusal(torch.nn.Linear(2, 2), None, batch, device="cpu").found == f"{name} is on meta"


def test_nothing_to_look_at_is_no_success_and_another_device_a_mistake_of_the_caller():
    assert "no parameter" in refusal(torch.nn.ReLU(), device="cpu").found
    with pytest.raises(UsageError, match="device='gpu'"):
        gpu_guard(torch.nn.Linear(2, 2), device="gpu")


# --- what it does to the program ----------------------------------------------------


def watched_steps():
    """Of 500 steps: which were watched, and whether to the end."""
    seen, model = [], torch.nn.Linear(4, 4)
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.1), torch.ones(2, 4)
    model.register_forward_pre_hook(lambda *_: guard._watch and seen.append((guard.steps + 1, guard._watch.is_whole)))
    with gpu_guard(model, optimizer, device="cpu") as guard:
        # Behind the guard's own.
        model._forward_pre_hooks.move_to_end(next(iter(model._forward_pre_hooks)))
        for _ in range(500):
            model(x).sum().backward()
            optimizer.step()
    return seen


def test_watched_steps_grow_rare_and_cannot_be_foreseen():
    random.seed(0)
    first = watched_steps()
    random.seed(0)
    assert first != (second := watched_steps())
    for seen in (first, second):
        steps = [step for step, _ in seen]
        assert steps[:2] == [1, 2] and 5 <= len(steps) <= 9
        assert [is_whole for _, is_whole in seen[:5]] == [True, False, False, False, False]
        assert all(after <= 6 * before for before, after in zip(steps, steps[1:]))


@pytest.mark.parametrize("how", ["forward", "wrapper", "in place"])
@pytest.mark.parametrize("is_whole_graph", [False, True])
def test_a_compiled_model_is_watched_and_still_compiled(how, is_whole_graph):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    def train(change=lambda b: None):
        torch._dynamo.reset()
        b = Bench("cpu", "meta", steps=8)
        change(b)
        more = {"backend": backend, "dynamic": False, "fullgraph": is_whole_graph}
        if how == "in place":
            b.model.compile(**more)
        else:
            b.run = torch.compile(b.model if how == "wrapper" else b.model.forward, **more)
        b.train()
        assert b.guard._watched >= 3

    train()
    assert len(compiled) == 1
    with pytest.raises(GpuNotUsable, match="is copied to be on meta|are computed on meta"):
        train(weights_copied_for_each_forward)


def test_an_error_in_the_step_leaves_nothing_behind():
    b = Bench("cpu", "meta")
    b.model.extra = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError), warnings.catch_warnings():
        warnings.simplefilter("error")
        b.train()
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None and not b.model._forward_hooks


class Wrapper:
    """As accelerate's: it holds the optimizer and passes on what it is asked for, without hooks of its own."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


def test_a_wrapped_optimizer_is_looked_into():
    b = Bench("cpu", "meta")
    b.optimizers = Wrapper(Wrapper(b.optimizer))
    assert b.train().steps == STEPS
    b.optimizer.state[b.model.head.weight]["exp_avg"] = torch.empty(2, device="meta")
    assert "exp_avg" in refusal(b.model, b.optimizers, device="cpu").found


def test_without_an_optimizer_with_hooks_forward_passes_in_training_mode_are_counted():
    class Plain:
        def __init__(self, model):
            self.param_groups, self.state = [{"params": list(model.parameters())}], {}

    model = torch.nn.Linear(4, 4)
    for optimizer in (None, Plain(model)):
        with gpu_guard(model, optimizer, device="cpu") as guard:
            model(torch.ones(2, 4)).sum().backward()
            model(torch.ones(2, 4))
            model.eval()
            model(torch.ones(2, 4))
        model.train()
        assert guard.steps == 2


def test_a_guard_that_saw_no_step_warns():
    with pytest.warns(RuntimeWarning, match="nothing was guarded"), gpu_guard(torch.nn.Linear(2, 2), device="cpu"):
        pass


# --- the day this kit came from -----------------------------------------------------

SCRIPT = """
import sys, torch
from kit import gpu_guard
device = "cuda" if torch.cuda.is_available() else "cpu"
model = torch.nn.Linear(8, 8).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
print("Device: cuda; transformers:", "transformers" in sys.modules)
with gpu_guard(model, optimizer):
    for step in range(14):
        loss = model(torch.randn(4, 8, device=device)).square().mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
print("final loss", loss.item())
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="the fallback needs a machine without a GPU")
def test_a_script_that_says_cuda_and_trains_on_the_cpu_is_stopped():
    """The guard needs torch alone."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1 and done.stdout == "Device: cuda; transformers: False\n"
    assert "GpuNotUsable: parameter weight is on cpu" in done.stderr and "To do:" in done.stderr


# --- inside transformers' Trainer ---------------------------------------------------


class Data(torch.utils.data.Dataset):
    """Ten rows: with batches of four the last one is short."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {"x": torch.full((4,), float(index)), "labels": torch.zeros(1)}


class Regression(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.loss_device, self.fails_at, self.calls = None, (), 0

    def forward(self, x, labels=None):
        self.calls += 1
        if self.calls in self.fails_at:
            raise RuntimeError("CUDA out of memory.")
        loss = (self.layer(x) - labels).square().mean()
        if self.loss_device:
            return {"loss": loss, "aux": torch.ones(2, device=self.loss_device, requires_grad=True)}
        return {"loss": loss}


def trainer(folder, callback, **more):
    from transformers import Trainer, TrainingArguments

    told = {"per_device_train_batch_size": 4, "save_strategy": "no", "logging_strategy": "no", **more}
    arguments = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True, **told)
    return Trainer(model=Regression(), args=arguments, train_dataset=Data(), eval_dataset=Data(), callbacks=[callback])


@pytest.fixture
def quiet():
    """transformers' and accelerate's own warnings are not ours to judge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate, which the kit does not")
        yield


@pytest.mark.skipif(torch.cuda.is_available(), reason="the fallback needs a machine without a GPU")
def test_the_trainer_on_the_cpu_is_stopped_before_its_first_step(quiet, tmp_path):
    callback = GpuGuardCallback()
    with pytest.raises(GpuNotUsable, match=r"parameter layer\.weight is on cpu"):
        trainer(tmp_path, callback, max_steps=2).train()
    assert callback.samples == 0


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_samples_are_counted_at_the_model_whatever_the_accumulation(quiet, tmp_path, accumulation):
    """B23, B26: two passes over ten rows are twenty samples; evaluation in between is not training."""
    callback = GpuGuardCallback(device="cpu")
    run = trainer(
        tmp_path, callback, num_train_epochs=2, gradient_accumulation_steps=accumulation, eval_strategy="epoch"
    )
    run.train()
    assert callback.samples == 20 and callback.seconds > 0
    assert callback.samples_per_s == pytest.approx(20 / callback.seconds)
    assert callback._guard.steps == run.state.global_step
    assert not run.model._forward_pre_hooks and not run.model._forward_hooks


def test_the_count_is_true_where_the_trainers_is_nominal_and_none_is_counted_into_the_next(quiet, tmp_path):
    """max_steps × batch size is 5 × 4 = 20; the third batch of each pass has two rows."""
    callback = GpuGuardCallback(device="cpu")
    run = trainer(tmp_path, callback, max_steps=5)
    found = run.train()
    nominal = found.metrics["train_samples_per_second"] * found.metrics["train_runtime"]
    assert callback.samples == 4 + 4 + 2 + 4 + 4 and nominal == pytest.approx(20, rel=0.05)
    run.model.fails_at = (5 + 4,)
    with pytest.raises(RuntimeError, match="out of memory"):
        run.train()
    assert callback.samples == 4 + 4 + 2 and callback.samples_per_s > 0
    run.train()
    assert callback.samples == 18 and len(run.model._forward_hooks) == 0


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_nothing_of_the_guard_outlives_a_training_that_raised(quiet, tmp_path, part):
    """The Trainer tells no callback: operators of the program's later work ran under the guard's mode."""
    run = trainer(tmp_path, GpuGuardCallback(device="cpu"), max_steps=2)
    if part == "forward":
        run.model.fails_at = (1,)
    else:
        run.model.layer.weight.register_hook(lambda gradient: 1 / 0)
    with pytest.raises((RuntimeError, ZeroDivisionError)):
        run.train()
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_a_batch_size_that_is_retried_is_counted_once(quiet, tmp_path):
    callback = GpuGuardCallback(device="cpu")
    run = trainer(tmp_path, callback, num_train_epochs=1, auto_find_batch_size=True)
    run.model.fails_at = (2,)
    run.train()
    assert callback.samples == 10 and run.model.calls > 5


@pytest.mark.parametrize("kind", ["loss", "state"])
def test_a_loss_or_an_optimizers_state_elsewhere_is_seen_in_the_trainer(quiet, tmp_path, kind):
    run = trainer(tmp_path, GpuGuardCallback(device="cpu"), max_steps=1)
    run.model.loss_device = "meta" if kind == "loss" else None
    run.optimizer = Own(run.model.parameters(), lr=0.1)
    weight = run.model.layer.weight
    run.optimizer.before = lambda self: self.state[weight].update(m=torch.empty(9, device="meta"))
    words = {"loss": r"the model's output\['aux'\] is on meta", "state": r"updated on meta|\['m'\] is on meta"}
    with pytest.raises(GpuNotUsable, match=words[kind]):
        run.train()


@pytest.mark.gpu
def test_on_a_gpu_the_rate_waits_for_the_device():
    callback, model = GpuGuardCallback(), torch.nn.Linear(4096, 4096).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    callback.on_train_begin(None, None, None, model=model, optimizer=optimizer)
    x = torch.ones(8192, 4096, device="cuda")
    callback.on_step_begin(None, None, None)
    for _ in range(3):
        model(x).sum().backward()
        for _ in range(50):
            x @ model.weight
        optimizer.step()
    callback.on_step_end(None, None, None)
    # 165 products of 2 * 8192 * 4096² FLOP in float32: no card does them at 1 PFLOP/s.
    assert callback.seconds > 165 * 2 * 8192 * 4096**2 / 1e15
    callback.on_train_end(None, None, None)
