"""Section B: training. Whole small runs on the CPU as a rehearsal, sabotaged from outside, and a process whose torch
lies about its GPU. What is said of a changed record stands in `rows_recorded`."""

import contextlib
import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from unittest import mock

from kit.records import Verdict
from kit.train import train
from kit.train.config import TrainConfig

from .recorded import healthy, judged
from .seams import Said, card, child, nvml_file, working
from .table import FAIL, INVALID, row

TINY = {"model": "tiny", "device": "cpu", "batch_size": 2, "seq_len": 16, "steps": 6, "lr": 1e-3}


# --- a whole run, rehearsed on the CPU ----------------------------------------------

_loaded = functools.cache(train._batches)


@contextlib.contextmanager
def one_thread():
    """Threads of these small products wait for each other by spinning: many times slower on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _copied(config):
    """The same texts would be made and tokenised anew for every run."""
    batches, text_set = _loaded(dataclasses.replace(config, lr=1.0, dtype="float32"))
    return [dataclasses.replace(b, input_ids=b.input_ids.clone(), labels=b.labels.clone()) for b in batches], text_set


def trained(*patches, **config):
    """The kit's own run from data to verdict."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_thread())
        stack.enter_context(mock.patch.object(train, "_batches", _copied))
        for patch in patches:
            stack.enter_context(patch)
        result = train.train(TrainConfig(**{**TINY, **config}))
    return Said.of(result.verdict)


@functools.cache
def rehearsal():
    return trained()


@functools.cache
def rehearsal_in_bfloat16():
    return trained(dtype="bfloat16")


def built(change):
    """A run whose model is changed after it was built."""
    real = train._build

    def build(*args):
        state = real(*args)
        change(state)
        return state

    return mock.patch.object(train, "_build", build)


def fed(change):
    """A run whose batches are changed."""

    def batches(config):
        found, text_set = _copied(config)
        return change(found), text_set

    return mock.patch.object(train, "_batches", batches)


def broken_loss(at):
    from kit.train import loop

    real, seen = loop.eager_step, []

    def step(*args):
        loss, norm = real(*args)
        seen.append(1)
        return (loss * float("nan"), norm) if len(seen) in at else (loss, norm)

    return trained(mock.patch.object(loop, "eager_step", step))


@functools.cache
def still():
    return trained(lr=0.0)


LAYERS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def in_numpy(layer):
    """The same by numpy, which torch does not see."""
    import torch

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, bias):
            ctx.save_for_backward(x, weight)
            out = x.detach().cpu().numpy() @ weight.detach().cpu().numpy() + bias.detach().cpu().numpy()
            return torch.from_numpy(out).to(x.device)

        @staticmethod
        def backward(ctx, gradient):
            x, weight = (saved.detach().cpu().numpy() for saved in ctx.saved_tensors)
            given = gradient.cpu().numpy()
            rows = given.reshape(-1, given.shape[-1])
            parts = given @ weight.T, x.reshape(len(rows), -1).T @ rows, rows.sum(axis=0)
            return tuple(torch.from_numpy(part).to(gradient.device) for part in parts)

    return lambda x: Product.apply(x, layer.weight, layer.bias)


def block_computes(how, when):
    """The second block's four products by `how` in the calls for which `when` holds; nothing else is changed."""

    def change(state):
        for name in LAYERS:
            layer = state.model.transformer.h[1].get_submodule(name)
            layer.forward = switched(layer.forward, how(layer), when)

    return built(change)


def switched(plain, other, when):
    calls = []

    def forward(x):
        calls.append(1)
        return (other if when(len(calls)) else plain)(x)

    return forward


def weaken(state):
    real = state.optimizer.step

    def step(closure=None):
        for group in state.optimizer.param_groups:
            group["lr"] *= 1e-4
        real()
        for group in state.optimizer.param_groups:
            group["lr"] /= 1e-4

    state.optimizer.step = step


def masked(**more):
    return fed(lambda batches: [dataclasses.replace(b, labels=b.labels.fill_(-100), **more) for b in batches])


def freeze(state):
    state.model.requires_grad_(False)
    state.model.transformer.h[0].requires_grad_(True)


def skip(state):
    state.optimizer.step = lambda closure=None: None


def other(state):
    import copy

    from kit.train.model import build_optimizer

    state.optimizer = build_optimizer(copy.deepcopy(state.model), TrainConfig(**TINY))


def not_active():
    from kit.train import loop

    return trained(mock.patch.object(loop, "autocast", lambda config: contextlib.nullcontext()), dtype="bfloat16")


def around_the_loop():
    real = train._timed

    def timed(*args):
        import torch

        with torch.autocast("cpu", dtype=torch.bfloat16):
            return real(*args)

    return trained(mock.patch.object(train, "_timed", timed), dtype="bfloat16")


FEW_WORDS = "the same few words again and again until nobody listens any more and all of them have gone home"


def on_data(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8")
        return trained(dataset=str(path))


def perturbed():
    import torch

    real, calls = torch.addmm, []

    def addmm(*args, **kwargs):
        calls.append(1)
        product = real(*args, **kwargs)
        return product * 1.01 if len(calls) % 31 == 0 else product

    return mock.patch.object(torch, "addmm", addmm)


def differing_late():
    return on_data([f"{FEW_WORDS} for the {n}th time" for n in range(64)])


# id, check, words, what, the run, and the twin where it is another than the rehearsal.
# fmt: off
RUNS = [
    ("B11", "learning.finite", "first at step 4", "loss NaN from the fourth step on", lambda: broken_loss({4, 5, 6})),
    ("B12", "learning.finite", "1 of 6 steps, first at step 3", "one step NaN, then recovered", lambda: broken_loss({3})),
    ("B13", "learning.moved", "learning rate was 0", "learning rate 0: the losses still vary by batch", still),
    ("B13c", "learning.canary", "", "the same, by the fixed batch", still),
    ("P9", "native.products", "5 of 9 products", "one block's products in numpy in steps 3 and 4 of 6", lambda: trained(block_computes(in_numpy, lambda call: call in (3, 4)))),
    ("P8w", "learning.strength", "is due", "the learning rate × 1e-4 inside the step", lambda: trained(built(weaken))),
    ("B15", "learning.supervised_tokens", "", "all labels masked", lambda: trained(masked(supervised_tokens=0))),
    ("B15b", "learning.finite", "", "all labels masked behind the count: the loss is NaN", lambda: trained(masked())),
    ("B16", "learning.trainable", "", "all but one block frozen", lambda: trained(built(freeze))),
    ("B17", "learning.applied", "0 of 6", "a loss scaler that skips every step", lambda: trained(built(skip))),
    ("B16o", "learning.moved", "0 of 28", "the optimizer holds a copy of the model", lambda: trained(built(other))),
    ("B19", "native.precision", "put out float32", "bfloat16 autocast declared and not active", not_active, rehearsal_in_bfloat16),
    ("B19b", "native.cpu_agreement", "", "autocast around the whole loop: weights of the first step for ever", around_the_loop, rehearsal_in_bfloat16),
    ("B27", "learning.batches", "repeated in all 40 rows", "one row repeated; the twin's rows differ after what seq_len leaves of them", lambda: on_data([FEW_WORDS] * 40), differing_late),
    ("B27b", "UsageError", "", "empty dataset", lambda: on_data([])),
    ("B27c", "UsageError", "", "texts without a token to learn from", lambda: on_data(["a"] * 40)),
    ("B31", "learning.batches", "1 batches other than prescribed, first at step 4", "a loader that swallows an error and repeats a batch", lambda: trained(fed(lambda batches: [*batches[:3], batches[2], *batches[4:]]))),
    ("B32", "native.replay", "first difference", "one product in 31 off by one percent", lambda: trained(perturbed())),
]
# fmt: on
for id, at, words, what, run, *twin in RUNS:
    row(id, what, seam="whole run", must=FAIL, at=at, words=words, twin=twin[0] if twin else rehearsal)(run)
row("B29", "evaluation mode: a warning", seam="whole run", must=FAIL, at="learning.mode", twin=rehearsal,
    twin_at="learning.mode")(lambda: trained(built(lambda state: state.model.eval())))  # fmt: skip


# --- placement of a model in memory -------------------------------------------------


def audited(change=lambda model: None):
    """An audit of a small model on the CPU that is put into the recorded run; 'cpu' stands for its cuda."""
    import torch

    from kit.train.witness import audit_placement

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    change(model)
    audit = audit_placement(7, model, optimizer, {"input_ids": torch.ones(2, 4)}, "cpu")
    return judged(healthy().with_audits(7, strays=audit.strays))


on_model = functools.partial(row, seam="model in memory", must=FAIL, at="native.placement", twin=audited)


def on_disk(device):
    return audited(lambda model: setattr(model, "hf_device_map", {"0": "cpu", "1": device}))


on_model("B03m", "a buffer elsewhere", words="buffer 1.running_mean on meta")(
    lambda: audited(lambda model: setattr(model[1], "running_mean", model[1].running_mean.to("meta")))
)
on_model(
    "B04",
    "device_map offloads a module; the twin has everything on the device (B05)",
    words="module 1 on disk (hf_device_map)",
    twin=lambda: on_disk("cpu"),
)(lambda: on_disk("disk"))


# --- a process whose torch lies -----------------------------------------------------


@functools.cache
def lied():
    """`kit train --device cuda` where torch claims an RTX 5090 and swallows every move to it."""
    with tempfile.TemporaryDirectory() as folder:
        world = nvml_file(Path(folder) / "nvml.json", card(frames=[working(1)]))
        argv = ("train", "--device", "cuda", "--model", "tiny", "--batch-size", "1", "--seq-len", "16", "--steps", "5")
        return child(*argv, recipe="lie_available", nvml=world)[1]


on_lie = functools.partial(row, seam="site + nvml", must=FAIL, twin=rehearsal, is_slow=True)


for id, at, words, what in (
    ("B01", "placement", "parameter transformer.wte.weight on cpu",
     "model on the CPU, configuration says cuda: the first parameter by name"),
    ("B10", "kernels", "no kernel ran", ".to('cuda') swallowed: no kernel, products on the CPU"),
    ("B08d", "driver_view", "", "torch says that it holds memory, and the driver sees none"),
):  # fmt: skip
    on_lie(id, what, at=f"native.{at}", words=words)(lied)


@row(
    "B01s",
    "device=cuda on a machine whose torch has no usable GPU: refused before any step",
    seam="process",
    must=FAIL,
    at="error",
    words=("no usable CUDA device", "python -m kit check"),
    twin=rehearsal,
    is_slow=True,
)
def b01s():
    return child("train", "--device", "cuda", "--model", "tiny", "--steps", "2", env={"CUDA_VISIBLE_DEVICES": ""})[1]


# --- the negative control -----------------------------------------------------------


@functools.cache
def control():
    from kit.train.control import run_control

    return run_control()


def control_said(**changes):
    from kit.evidence.conclude import control_check

    record = dataclasses.replace(control(), **changes)
    return Said.of(Verdict.of([control_check(record)]))


on_control = functools.partial(
    row, seam="child process", must=INVALID, at="integrity.negative_control", twin=control_said, is_slow=True
)


def of_a_healthy_run():
    return control_said(run=healthy().run, steps=healthy().steps)


def where_the_gpu_was_visible():
    from .seams import facts

    return control_said(facts=facts())


def that_never_claimed():
    found = control().run
    return control_said(run=dataclasses.replace(found, config=dataclasses.replace(found.config, device="cpu")))


on_control("N1", "a detector that cannot see: the control comes out clean")(of_a_healthy_run)
on_control("N2", "a control that ran where the GPU was visible")(where_the_gpu_was_visible)
on_control("N2m", "a mask that hid no GPU from torch")(lambda: control_said(visible_devices=1))
on_control("N3", "a control that never claimed the GPU")(that_never_claimed)
on_control("N4", "a control that trained nothing")(lambda: control_said(steps=()))
