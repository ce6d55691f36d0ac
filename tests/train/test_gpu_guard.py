"""The guard: one line in any script, and a clear error that names what is elsewhere.

Each row is a training of a few steps with one thing in it, seen through `with gpu_guard(...)`. On a GPU the thing is
on the CPU; on a CPU, which stands for the GPU that is there, it is on 'meta', from where no value comes back.
"""

import collections
import copy
import dataclasses
import random
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

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


RED, GREEN, GPU_ONLY = {}, {}, set()


def red(words, *, gpu_only=False):
    def keep(change):
        RED[change.__name__] = change, words
        GPU_ONLY.update([change.__name__] if gpu_only else [])
        return change

    return keep


def green(change):
    GREEN[change.__name__] = change
    return change


@red("parameter layers.0.weight is on")
def a_layer_elsewhere(b):
    b.model.layers[0].to(b.away)


@red("buffer norm.running_mean is on")
def a_buffer_elsewhere(b):
    b.model.norm.running_mean = b.model.norm.running_mean.to(b.away)


@red("are computed on AWAY (aten.addmm.default) in the model itself (Linear, which is not registered in it) at step 1")
def a_block_in_a_plain_list(b):
    blocks = [torch.nn.Linear(SIZE, SIZE).to(b.away)]
    b.model.extra = lambda x: b.returned(blocks[0](x.detach().to(b.away)), x)


@red("in the model itself (Conv1d")
def a_convolution_in_a_dict(b):
    blocks = {"c": torch.nn.Conv1d(SIZE, SIZE, 1).to(b.away)}
    b.model.extra = lambda x: b.returned(blocks["c"](x.detach()[:, :, None].to(b.away))[:, :, 0], x)


class Numpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return torch.from_numpy(x.detach().cpu().numpy() @ weight.detach().cpu().numpy()).to(x.device)

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.saved_tensors[0].T, None


@red("in the model itself", gpu_only=True)
def a_custom_function_in_numpy(b):
    b.model.extra = lambda x: Numpy.apply(x, torch.eye(SIZE, device=b.home))


class BackwardElsewhere(torch.autograd.Function):
    away = "meta"

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        moved = grad.to(BackwardElsewhere.away)
        moved @ torch.ones(SIZE, 1024, device=moved.device)
        return grad


@red("in the backward pass at step 1")
def a_backward_pass_elsewhere(b):
    BackwardElsewhere.away = b.away
    b.model.extra = BackwardElsewhere.apply


@red("weight layers.0.weight is copied to be on AWAY")
def weights_copied_for_each_forward(b):
    def extra(x):
        weight = b.model.layers[0].weight.detach().to(b.away)
        return b.returned(x.detach().to(b.away) + weight[0], x) if b.away == "cpu" else x

    b.model.extra = extra


@red("bytes of what the loss is made of are copied to be on AWAY")
def the_loss_inside_the_model(b):
    def criterion(logits, labels):
        return b.returned(F.cross_entropy(logits.to(b.away), labels.to(b.away)), F.cross_entropy(logits, labels))

    b.model.criterion = criterion


@red("the model's output['loss'] is on")
def a_loss_that_stays_elsewhere(b):
    b.model.wrap = lambda out: {"loss": torch.ones((), device=b.away, requires_grad=True), "logits": out["logits"]}


@red("the model's output['aux'][1] is on")
def an_auxiliary_loss_elsewhere(b):
    b.model.wrap = lambda out: {**out, "aux": (None, torch.ones(3, device=b.away, requires_grad=True))}


@red("bytes of what the loss is made of are copied to be on AWAY")
def the_loss_outside_the_model(b):
    b.loss = lambda out, labels: b.returned(
        F.cross_entropy(out["logits"].to(b.away), labels.to(b.away)), out["logits"].mean()
    )


@red("what the loss is made of was computed on cpu", gpu_only=True)
def an_embedding_in_a_plain_list(b):
    tables = [torch.nn.Embedding(50, SIZE)]
    b.model.extra = lambda x: x + tables[0](torch.zeros(ROWS, dtype=torch.long)).to(x.device)


@red("AdamW holds none of the model's parameters")
def an_optimizer_of_a_copy(b):
    b.optimizer = torch.optim.AdamW(copy.deepcopy(b.model).parameters())


@red("SGD.param_groups[1]['params']['0, outside the model'] is on")
def master_weights_elsewhere(b):
    masters = [p.detach().to(b.away).requires_grad_() for p in b.model.parameters()]
    b.optimizer = torch.optim.SGD([{"params": b.model.head.parameters()}, {"params": masters}], lr=0.1)


class Own(torch.optim.SGD):
    """A plain step; `before` is what a row adds to it."""

    def step(self, closure=None):
        self.before(self)
        super().step()


def own(b, before):
    b.optimizer = Own(b.model.parameters(), lr=0.01)
    b.optimizer.before = before


@red("weight head.weight is copied to be on AWAY (aten._to_copy.default) in the optimizer's step")
def an_update_on_copies_elsewhere(b):
    own(b, lambda self: b.model.head.weight.detach().to(b.away).mul_(0.9))


@red("weights or states are updated on AWAY (aten._foreach_add_.Scalar) in the optimizer's step")
def an_update_of_lists_elsewhere(b):
    kept = [torch.zeros(SIZE, device=b.away) for _ in range(3)]
    own(b, lambda self: torch._foreach_add_(kept, 1.0))


@red("Own.masters[0] is on")
def master_weights_in_an_attribute(b):
    own(b, lambda self: None)
    b.optimizer.masters = [torch.zeros(SIZE, device=b.away)]


@red("the new weight head.weight was computed on", gpu_only=True)
def weights_written_from_elsewhere(b):
    kept = b.model.head.weight.detach().to(b.away)
    b.loss = lambda out, labels: (b.model.head.weight.data.copy_(kept), out["loss"])[1]


def in_state(words, make):
    """Optimizer state of the first parameter, made at the first step."""

    def change(b):
        first = b.model.embed_tokens.weight
        own(b, lambda self: self.state[first].update(make(torch.zeros(4, device=b.away))))

    return change, words


class Slots:
    __slots__ = ("absmax",)

    def __init__(self, tensor):
        self.absmax = tensor


@dataclasses.dataclass
class Kept:
    inner: dict


Fields = collections.namedtuple("Fields", "keys values")
STATE = "Own.state['embed_tokens.weight']"
RED |= {
    "state_elsewhere": in_state(f"{STATE}['momentum'] is on", lambda t: {"momentum": t}),
    "history_elsewhere": in_state(f"{STATE}['old'][0][1] is on", lambda t: {"old": [(0, t)]}),
    "slots_elsewhere": in_state(f"{STATE}['q'].absmax is on", lambda t: {"q": Slots(t)}),
    "dataclass_elsewhere": in_state(f"{STATE}['d'].inner['x'] is on", lambda t: {"d": Kept({"x": t})}),
    "namespace_elsewhere": in_state(f"{STATE}['n'].a[0] is on", lambda t: {"n": types.SimpleNamespace(a=[t])}),
    "named_fields_elsewhere": in_state(f"{STATE}['f'].keys is on", lambda t: {"f": Fields(t, 1)}),
    "deque_elsewhere": in_state(f"{STATE}['h'][0] is on", lambda t: {"h": collections.deque([t])}),
}


@red("Own.param_groups[0]['scales'] is on")
def a_tensor_in_a_group(b):
    own(b, lambda self: None)
    b.optimizer.param_groups[0]["scales"] = torch.ones(4, device=b.away)


@red("state of head.weight['quant_state'].absmax is on")
def quantisation_state_elsewhere(b):
    b.model.head.weight.quant_state = Slots(torch.ones(4, device=b.away))


@red("SGD.state['head.weight']['momentum'] is on")
def the_second_of_two_optimizers(b):
    first = torch.optim.SGD(b.model.layers.parameters(), lr=0.1)
    second = torch.optim.SGD(b.model.head.parameters(), lr=0.1)
    second.state[b.model.head.weight]["momentum"] = torch.ones(4, device=b.away)
    b.optimizers = {"first": first, "second": second}


def at(step, change):
    def each(number):
        if number == step:
            change()

    return each


@red("parameter layers.1.weight is on")
def a_weight_replaced_at_step_3(b):
    class Moves(torch.nn.Linear):
        def forward(self, x):
            return x if self.weight.device != x.device else super().forward(x)

    b.model.layers[1] = Moves(SIZE, SIZE).to(b.home)
    b.optimizer = torch.optim.AdamW(b.model.parameters())

    def change():
        b.model.layers[1].weight = torch.nn.Parameter(torch.ones(SIZE, SIZE, device=b.away))

    b.each = at(3, change)


@red("buffer norm.running_var is on")
def a_buffer_replaced_at_step_9(b):
    b.each = at(9, lambda: setattr(b.model.norm, "running_var", torch.ones(SIZE, device=b.away)))
    b.model.norm.forward = lambda x: x


@red("bytes of what the loss is made of are copied to be on AWAY (aten._to_copy.default) in the model itself")
def a_block_that_leaves_at_step_9(b):
    b.steps = 60
    block = torch.nn.Linear(SIZE, SIZE).to(b.away)
    b.each = at(9, lambda: setattr(b.model, "extra", lambda x: b.returned(block(x.to(b.away)), x)))


@red("late.weight is on")
def a_layer_added_at_step_5(b):
    b.steps = 60
    b.each = at(5, lambda: b.model.add_module("late", torch.nn.Linear(2, 2, device=b.away)))


@red("outside the model at step")
def a_part_of_the_model_that_is_called_alone(b):
    """As Lightning and many scripts do: the model itself is never called."""
    block = torch.nn.Linear(SIZE, SIZE).to(b.away)

    def run(ids, labels):
        x = b.model.embed_tokens(ids)
        x = b.returned(block(x.to(b.away)), x)
        return {"loss": F.cross_entropy(b.model.head(x), labels)}

    b.run, b.steps = run, 60


@red("products are computed elsewhere")
def a_block_too_small_for_any_limit(b):
    b.model.extra = lambda x: (torch.ones(4, 4, device=b.away) @ torch.ones(4, 4, device=b.away), x)[1]
    b.model.layers, b.model.embed_tokens = torch.nn.ModuleList(), torch.nn.Embedding(50, 4).to(b.home)
    b.model.norm, b.model.head = torch.nn.Identity(), torch.nn.Linear(4, 2).to(b.home)
    b.optimizer = torch.optim.SGD(b.model.parameters(), lr=0.1)


@red("MFLOP of products are computed on")
def what_is_not_named_in_allow(b):
    b.allow = ("embed_tokens",)
    a_block_in_a_plain_list(b)


# --- healthy, however odd -----------------------------------------------------------


@green
def nothing_odd(b):
    b.steps = 60


@green
def counters_on_the_host(b):
    first = b.model.embed_tokens.weight
    own(b, lambda self: self.state[first].update(step=torch.zeros((), device=b.away), n=torch.ones(1, device=b.away)))


@green
def paged_states(b):
    paged = torch.zeros(SIZE, device=b.away)
    paged.is_paged = True
    first = b.model.embed_tokens.weight
    own(b, lambda self: (self.state[first].update(state1=paged), paged.add_(1.0)))


@green
def a_named_tuple_with_a_field_keys(b):
    b.model.wrap = lambda out: Fields(out["loss"], out["logits"])
    b.loss = lambda out, labels: out.keys


@green
def an_object_that_refers_to_itself(b):
    holder = types.SimpleNamespace()
    holder.me = holder
    b.model.wrap = lambda out: {**out, "holder": holder}


@green
def an_embedding_on_the_host_on_purpose(b):
    b.allow = ("embed_tokens",)
    if b.away == "cpu":
        table = b.model.embed_tokens.to("cpu")
        table.register_forward_pre_hook(lambda module, args: tuple(a.cpu() for a in args))
        table.register_forward_hook(lambda module, args, out: out.cuda())
        b.optimizer = torch.optim.AdamW(b.model.parameters(), foreach=False)


@green
def a_state_on_the_host_on_purpose(b):
    b.allow = ("momentum",)
    in_state("", lambda t: {"momentum": t})[0](b)


@green
def inputs_moved_inside_the_model(b):
    run = b.model
    b.run = lambda ids, labels: run(ids.cpu(), labels.cpu())
    b.model.register_forward_pre_hook(lambda module, args: tuple(a.to(b.home) for a in args))


@green
def metrics_and_checkpoints_on_the_host(b):
    def between(output):
        output["logits"].detach().to(b.away)
        {k: v.to(b.away) for k, v in b.model.state_dict().items()}
        output["loss"].item()

    b.between = between
    b.loss = lambda out, labels: (out["logits"].detach().to(b.away), out["loss"])[1]


@green
def rows_that_are_computed_on_the_host(b):
    b.each = lambda number: torch.ones(256, 256, device=b.away) @ torch.ones(256, 256, device=b.away)


@green
def indices_that_are_read_on_the_host(b):
    """A router's counts, a matcher's choice."""
    b.model.extra = lambda x: (x.argmax(1).to(b.away), x.sum().to(b.away), x)[2]


@green
def evaluation_elsewhere_without_gradients(b):
    other = copy.deepcopy(b.model).to(b.away)

    def each(number):
        with torch.no_grad():
            other(
                torch.zeros(ROWS, dtype=torch.long, device=b.away), torch.zeros(ROWS, dtype=torch.long, device=b.away)
            )

    b.each = each


@green
def gradient_checkpointing(b):
    from torch.utils.checkpoint import checkpoint

    block = torch.nn.Linear(SIZE, SIZE).to(b.home)
    b.model.extra = lambda x: checkpoint(block, x, use_reentrant=False)


@green
def two_forward_passes_a_step(b):
    run = b.model
    b.run = lambda ids, labels: (run(ids, labels)["loss"].backward(), run(ids, labels))[1]


@green
def several_optimizers(b):
    halves = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (b.model.layers, b.model.head)]
    b.optimizers, b.update = halves, lambda: [half.step() for half in halves]


@green
def a_counter_of_flop_in_between(b):
    from torch.utils.flop_counter import FlopCounterMode

    def run(ids, labels):
        with FlopCounterMode(display=False):
            return b.model(ids, labels)

    b.run = run


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


def test_nothing_to_look_at_is_no_success():
    assert "no parameter" in refusal(torch.nn.ReLU(), device="cpu").found


def test_another_device_is_a_mistake_of_the_caller():
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
print("Device: cuda")
with gpu_guard(model, optimizer, device=sys.argv[1]):
    for step in range(14):
        loss = model(torch.randn(4, 8, device=device)).square().mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
print("final loss", loss.item())
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="the fallback needs a machine without a GPU")
def test_a_script_that_says_cuda_and_trains_on_the_cpu_is_stopped():
    def run(expected):
        command = [sys.executable, "-c", SCRIPT, expected]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")

    fallen, rehearsed = run("cuda"), run("cpu")
    assert fallen.returncode == 1 and "final loss" not in fallen.stdout
    assert "GpuNotUsable: parameter weight is on cpu" in fallen.stderr and "To do:" in fallen.stderr
    assert rehearsed.returncode == 0 and "final loss" in rehearsed.stdout


def test_the_guard_needs_torch_alone():
    program = "import kit.train.guard, sys; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_unknown_name_is_an_attribute_error():
    import kit.train.guard

    with pytest.raises(AttributeError, match="no attribute 'GpuGaurd'"):
        kit.train.guard.GpuGaurd  # noqa: B018


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


def test_the_count_is_true_where_the_trainers_is_nominal(quiet, tmp_path):
    """max_steps × batch size is 5 × 4 = 20; the third batch of each pass has two rows."""
    callback = GpuGuardCallback(device="cpu")
    found = trainer(tmp_path, callback, max_steps=5).train()
    nominal = found.metrics["train_samples_per_second"] * found.metrics["train_runtime"]
    assert callback.samples == 4 + 4 + 2 + 4 + 4 and nominal == pytest.approx(20, rel=0.05)


def test_a_training_that_raised_is_not_counted_into_the_next(quiet, tmp_path):
    callback = GpuGuardCallback(device="cpu")
    run = trainer(tmp_path, callback, num_train_epochs=2)
    run.model.fails_at = (4,)
    with pytest.raises(RuntimeError, match="out of memory"):
        run.train()
    assert callback.samples == 4 + 4 + 2 and callback.samples_per_s > 0
    run.train()
    assert callback.samples == 20 and len(run.model._forward_hooks) == 0


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


def test_a_loss_elsewhere_is_seen_in_the_trainer(quiet, tmp_path):
    run = trainer(tmp_path, GpuGuardCallback(device="cpu"), max_steps=1)
    run.model.loss_device = "meta"
    with pytest.raises(GpuNotUsable, match=r"the model's output\['aux'\] is on meta"):
        run.train()


def test_optimizer_state_is_looked_at_inside_the_trainer(quiet, tmp_path):
    run = trainer(tmp_path, GpuGuardCallback(device="cpu"), max_steps=1)
    run.optimizer = Own(run.model.parameters(), lr=0.1)
    run.optimizer.before = lambda self: self.state[run.model.layer.weight].update(m=torch.empty(9, device="meta"))
    with pytest.raises(GpuNotUsable, match=r"updated on meta|\['m'\] is on meta"):
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
