"""The rows that need a real GPU: whole runs and processes on it, sabotaged from outside."""

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from unittest import mock

from kit.process import NATIVE_ONLY, child_environment
from kit.records import Verdict
from kit.train import train
from kit.train.config import TrainConfig

from .rows_training import block_computes, built, in_numpy
from .seams import ROOT, Said, _read, child
from .table import FAIL, INCONCLUSIVE, row

KERNEL = Path(__file__).parents[1] / "gpu" / "kernel.cu"
# Long enough for the driver to be asked often, short enough for a table of many rows.
TINY = {"model": "tiny", "batch_size": 16, "steps": 60, "lr": 1e-3}
SHORT = {"model": "tiny", "steps": 5, "batch_size": 2, "seq_len": 32, "lr": 1e-3}


def trained(*patches, **config):
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        result = train.train(TrainConfig(**config))
    return Said.of(result.verdict)


@functools.cache
def healthy():
    """The smoke itself: GPT-2 124M."""
    return trained()


@functools.cache
def healthy_tiny():
    return trained(**TINY)


def check(*argv, **more):
    return child("check", "--device", "cuda", *argv, **more)[1]


@functools.cache
def checked():
    return check()


on_gpu = functools.partial(row, seam="GPU", must=FAIL, twin=healthy, is_gpu=True)


# --- environment --------------------------------------------------------------------


@on_gpu(
    "A02g",
    "every GPU hidden by CUDA_VISIBLE_DEVICES",
    at="environment.cuda_starts",
    words="CUDA_VISIBLE_DEVICES",
    twin=checked,
)
def a02():
    return check(env={"CUDA_VISIBLE_DEVICES": ""})


@on_gpu(
    "A12g",
    "PTX JIT forced on the libraries; the twin runs without any PTX JIT and without a cache (A12)",
    at="native.kernel_ran",
    words="CUDA_FORCE_PTX_JIT",
    twin=lambda: check(env={"CUDA_DISABLE_PTX_JIT": "1", "CUDA_CACHE_DISABLE": "1"}),
)
def a12():
    return check(env={"CUDA_FORCE_PTX_JIT": "1"})


@functools.cache
def kernel(*code, is_cached=False):
    """`kit check --kernel` with tests/gpu/kernel.cu built so; is_cached: after the driver compiled and kept it."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libkernel.so"
        subprocess.run([nvcc, "-shared", "-Xcompiler", "-fPIC", *code, str(KERNEL), "-o", str(library)], check=True)
        if is_cached:
            allowed = child_environment(CUDA_DISABLE_PTX_JIT=None, CUDA_CACHE_DISABLE=None)
            call = f"import ctypes; raise SystemExit(ctypes.CDLL({str(library)!r}).kernel())"
            subprocess.run([sys.executable, "-c", call], env=allowed, check=True)
        return check("--kernel", str(library))


PTX_ALONE = ("-gencode", "arch=compute_80,code=compute_80")
native = functools.partial(kernel, "-arch=native")
for _id, _what, _cached in (
    ("A12k", "a kernel that nvcc built as PTX alone; the twin is the same source in the card's own code", False),
    ("A12l", "the same after the driver compiled it once and keeps it in its cache", True),
):
    on_gpu(_id, _what, at="native.without_ptx_jit", words="PTX", twin=native)(
        functools.partial(kernel, *PTX_ALONE, is_cached=_cached)
    )


@on_gpu("A28g", "torch calls the card by another name", at="environment.two_witnesses", words="RTX 5090", twin=checked)
def a28():
    return check(recipe="other_name")


@on_gpu("A28t", "the same inside a training run", at="native.driver_view", words="torch names", twin=healthy_tiny)
def a28t():
    import torch

    return trained(mock.patch.object(torch.cuda, "get_device_name", lambda *a: "NVIDIA GeForce RTX 5090"), **TINY)


# --- training -----------------------------------------------------------------------


def swallowed():
    """`.to('cuda')` does nothing: what is trained stays on the CPU, and the configuration says cuda."""
    import torch

    def deaf(real):
        def moved(self, *args, **kwargs):
            kept = [arg for arg in args if not str(arg).startswith("cuda")]
            return real(self, *kept) if kept else self

        return moved

    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(torch.Tensor, "to", deaf(torch.Tensor.to)))
    stack.enter_context(mock.patch.object(torch.nn.Module, "to", deaf(torch.nn.Module.to)))
    return stack


@on_gpu(
    "B01g", "model and batches left on the CPU", at="native.placement", words="parameter transformer.wte.weight on cpu"
)
def b01():
    return trained(swallowed(), **SHORT)


def one_block_left(state):
    """The second block stays on the CPU; a wrapper carries what flows through it there and back."""
    import torch
    from torch.utils._pytree import tree_map

    block, home = state.model.transformer.h[1].to("cpu"), state.model.transformer.wte.weight

    def move(values, device):
        return tree_map(lambda value: value.to(device) if torch.is_tensor(value) else value, values)

    block.register_forward_pre_hook(lambda m, args, kwargs: (move(args, "cpu"), move(kwargs, "cpu")), with_kwargs=True)
    block.register_forward_hook(lambda m, args, output: move(output, home.device))


@functools.cache
def split():
    return trained(built(one_block_left), **SHORT)


@on_gpu("B02g", "one block on the CPU: by name", at="native.placement", words="transformer.h.1.", twin=healthy_tiny)
def b02():
    return split()


@on_gpu(
    "B02gk",
    "one block on the CPU: its products",
    at="native.kernels",
    words="matrix products on the CPU",
    twin=healthy_tiny,
)
def b02k():
    return split()


@on_gpu(
    "B08g", "a dummy tensor makes memory look used, training is on the CPU", at="native.kernels", words="on the CPU"
)
def b08():
    import torch

    dummy = torch.ones(3 * 1024**3 // 4, device="cuda")
    try:
        return trained(swallowed(), **SHORT)
    finally:
        del dummy


@on_gpu("B13g", "learning rate 0", at="learning.moved", words="learning rate was 0", twin=healthy_tiny)
def b13():
    return trained(**{**SHORT, "lr": 0.0})


def perturbed():
    import torch

    real, calls = torch.addmm, []

    def addmm(*args, **kwargs):
        calls.append(1)
        product = real(*args, **kwargs)
        return product * 1.01 if len(calls) % 31 == 0 else product

    return mock.patch.object(torch, "addmm", addmm)


@on_gpu("B32g", "one product in 31 off by one percent", at="native.replay", words="first difference", twin=healthy_tiny)
def b32():
    return trained(perturbed(), **{**SHORT, "steps": 8})


LONG = {"model": "tiny", "steps": 30, "batch_size": 8, "seq_len": 256, "lr": 1e-3, "dtype": "bfloat16"}


@on_gpu(
    "B33g",
    "the same at 8 × 256 in bfloat16, where attention may add in changing order",
    at="native.replay",
    words="different also",
    twin=lambda: trained(**LONG),
)
def b33():
    return trained(perturbed(), **{**LONG, "steps": 8})


# --- every step, not only those that are looked into --------------------------------

# Large enough that a healthy step keeps the card busy for more than a twentieth of it.
BETWEEN = {"model": "tiny", "batch_size": 8, "seq_len": 256, "steps": 30, "lr": 1e-3}


def round_trip(layer):
    """The layer's product on the CPU; what it puts out is on the GPU as ever."""
    import torch

    def forward(x):
        product = torch.addmm(layer.bias.cpu(), x.cpu().flatten(0, -2), layer.weight.cpu())
        return product.view(*x.shape[:-1], -1).to(x.device)

    return forward


def nobody_profiles(*_):
    import torch

    return not torch.autograd._profiler_enabled()


@functools.cache
def healthy_between():
    return trained(**BETWEEN)


between = functools.partial(on_gpu, at="native.products", twin=healthy_between)


@between(
    "P9g",
    "one block's products on the CPU in steps 3 to 6 of 30",
    words=("transformer.h.1.", "on cpu", "first at step 3"),
)
def p9():
    return trained(block_computes(round_trip, lambda call: 3 <= call <= 6), **BETWEEN)


@between("P9n", "the same in numpy, which torch does not see", words="5 of 9 products on cuda")
def p9n():
    return trained(block_computes(in_numpy, lambda call: 3 <= call <= 6), **BETWEEN)


@between("P9p", "one block's products on the CPU while nobody profiles", words="on cpu")
def p9p():
    return trained(block_computes(round_trip, nobody_profiles), **BETWEEN)


@on_gpu(
    "P9h",
    "every gradient goes through the CPU while nobody profiles: outside modules and the forward pass",
    at="native.placement",
    words="operator aten::",
    twin=healthy_between,
)
def p9h():
    def change(state):
        for parameter in state.model.parameters():
            parameter.register_hook(lambda g: (g.cpu() * 1.0).to(g.device) if nobody_profiles() else g)

    return trained(built(change), **BETWEEN)


def after_cuda(switches):
    """`kit train` in a process that has used CUDA before it comes to the kit."""
    argv = ["kit", "train", "--device", "cuda", "--model", "tiny", "--steps", "6", "--json"]
    script = (
        f"import runpy, sys, torch; torch.ones(1, device='cuda'); sys.argv = {argv}; "
        "runpy.run_module('kit', run_name='__main__')"
    )
    environment = {**os.environ, **switches, "KINETO_LOG_LEVEL": "6"}
    return _read(subprocess.run([sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True))


@on_gpu(
    "P1t",
    "CUDA was up before the kit was asked, and may compile PTX",
    must=INCONCLUSIVE,
    at="native.jit_off",
    twin=lambda: after_cuda(NATIVE_ONLY),
    twin_at="native.jit_off",
)
def p1t():
    return after_cuda(dict.fromkeys(NATIVE_ONLY, "0"))


# --- timing -------------------------------------------------------------------------


@on_gpu(
    "C01g",
    "torch.cuda.synchronize does nothing",
    at="throughput.clocks",
    words="did not wait",
    twin=healthy_tiny,
    twin_at="throughput.clocks",
)
def c01():
    import torch

    deaf = mock.patch.object(torch.cuda, "synchronize", lambda *a: None)
    return trained(deaf, **{**TINY, "batch_size": 64, "seq_len": 256, "steps": 30})


HOG = """
import torch
left = torch.randn(8192, 8192, device="cuda")
right = left @ left
torch.cuda.synchronize()
print("ready", flush=True)
while True:
    torch.mm(left, left, out=right)
    torch.cuda.synchronize()
"""


@on_gpu(
    "C05g",
    "a hog on the same card",
    must=INCONCLUSIVE,
    at="throughput.undisturbed",
    words="other processes",
    twin=healthy_tiny,
    twin_at="throughput.undisturbed",
)
def c05():
    hog = subprocess.Popen([sys.executable, "-c", HOG], stdout=subprocess.PIPE)
    try:
        if hog.stdout.readline().strip() != b"ready":
            raise RuntimeError("the hog did not start")
        return trained(**TINY)
    finally:
        hog.kill()
        hog.communicate()


@on_gpu("C13g", "a spinning kernel fills the card, training is on the CPU", at="native.kernels", words="on the CPU")
def c13():
    import torch

    stop = threading.Event()

    def spin():
        value, stream = torch.ones(1, device="cuda"), torch.cuda.Stream()
        with torch.cuda.stream(stream):
            while not stop.is_set():
                for _ in range(100):
                    value.add_(1)
                stream.synchronize()

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        return trained(swallowed(), **SHORT)
    finally:
        stop.set()
        thread.join()


# --- the detector itself ------------------------------------------------------------


@on_gpu(
    "N0g",
    "the negative control flips, within 15 s; sabotaged, it is judged without its facts",
    at="negative_control",
    twin=lambda: control(True),
)
def n0():
    return control(False)


@functools.cache
def _control():
    from kit.train.control import run_control

    return run_control()


def control(is_whole):
    """PASS where the control turned red in time."""
    import dataclasses

    from kit.evidence.conclude import control_check
    from kit.records import Outcome

    record = _control()
    found = control_check(record if is_whole else dataclasses.replace(record, steps=()))
    is_good = found.outcome is Outcome.PASS and record.seconds <= 15
    found = dataclasses.replace(
        found, id="negative_control", outcome=Outcome.PASS if is_good else Outcome.FAIL,
        found=f"{found.found}; {record.seconds:.1f} s",
    )  # fmt: skip
    return Said.of(Verdict.of([found]))
