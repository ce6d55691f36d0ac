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

from .rows_training import block_computes, built, in_numpy, perturbed
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


LONG = {"model": "tiny", "steps": 30, "batch_size": 8, "seq_len": 256, "lr": 1e-3, "dtype": "bfloat16"}


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


def through_the_cpu(state):
    for parameter in state.model.parameters():
        parameter.register_hook(lambda g: (g.cpu() * 1.0).to(g.device) if nobody_profiles() else g)


def after_cuda(switches):
    """`kit train` in a process that has used CUDA before it comes to the kit."""
    argv = ["kit", "train", "--device", "cuda", "--model", "tiny", "--steps", "6", "--json"]
    script = (
        f"import runpy, sys, torch; torch.ones(1, device='cuda'); sys.argv = {argv}; "
        "runpy.run_module('kit', run_name='__main__')"
    )
    environment = {**os.environ, **switches, "KINETO_LOG_LEVEL": "6"}
    return _read(subprocess.run([sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True))


# --- timing -------------------------------------------------------------------------


def not_synchronised():
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


def beside_a_hog():
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


# id, check, words, what, the run or the process, its twin, and what else is so of the row.
# fmt: off
ROWS = [
    ("A02g", "environment.cuda_starts", "CUDA_VISIBLE_DEVICES", "every GPU hidden by CUDA_VISIBLE_DEVICES", lambda: check(env={"CUDA_VISIBLE_DEVICES": ""}), checked),
    ("A12g", "native.kernel_ran", "CUDA_FORCE_PTX_JIT", "PTX JIT forced on the libraries; the twin runs without any PTX JIT and without a cache (A12)", lambda: check(env={"CUDA_FORCE_PTX_JIT": "1"}), lambda: check(env={"CUDA_DISABLE_PTX_JIT": "1", "CUDA_CACHE_DISABLE": "1"})),
    ("A28g", "environment.two_witnesses", "RTX 5090", "torch calls the card by another name", lambda: check(recipe="other_name"), checked),
    ("B01g", "native.placement", "parameter transformer.wte.weight on cpu", "model and batches left on the CPU", lambda: trained(swallowed(), **SHORT), healthy),
    ("B02g", "native.placement", "transformer.h.1.", "one block on the CPU: by name", split, healthy_tiny),
    ("B02gk", "native.kernels", "matrix products on the CPU", "one block on the CPU: its products", split, healthy_tiny),
    ("B13g", "learning.moved", "learning rate was 0", "learning rate 0", lambda: trained(**{**SHORT, "lr": 0.0}), healthy_tiny),
    ("B32g", "native.replay", "first difference", "one product in 31 off by one percent", lambda: trained(perturbed(), **{**SHORT, "steps": 8}), healthy_tiny),
    ("B33g", "native.replay", "different also", "the same at 8 × 256 in bfloat16, where attention may add in changing order", lambda: trained(perturbed(), **{**LONG, "steps": 8}), lambda: trained(**LONG)),
    ("P9g", "native.products", ("transformer.h.1.", "on cpu", "first at step 3"), "one block's products on the CPU in steps 3 to 6 of 30", lambda: trained(block_computes(round_trip, lambda call: 3 <= call <= 6), **BETWEEN), healthy_between),
    ("P9n", "native.products", "5 of 9 products on cuda", "the same in numpy, which torch does not see", lambda: trained(block_computes(in_numpy, lambda call: 3 <= call <= 6), **BETWEEN), healthy_between),
    ("P9p", "native.products", "on cpu", "one block's products on the CPU while nobody profiles", lambda: trained(block_computes(round_trip, nobody_profiles), **BETWEEN), healthy_between),
    ("P9h", "native.placement", "operator aten::", "every gradient goes through the CPU while nobody profiles: outside modules and the forward pass", lambda: trained(built(through_the_cpu), **BETWEEN), healthy_between),
    ("P1t", "native.jit_off", "", "CUDA was up before the kit was asked, and may compile PTX", lambda: after_cuda(dict.fromkeys(NATIVE_ONLY, "0")), lambda: after_cuda(NATIVE_ONLY), {"must": INCONCLUSIVE, "twin_at": "native.jit_off"}),
    ("C01g", "throughput.clocks", "did not wait", "torch.cuda.synchronize does nothing", not_synchronised, healthy_tiny, {"twin_at": "throughput.clocks"}),
    ("C05g", "throughput.undisturbed", "other processes", "a hog on the same card", beside_a_hog, healthy_tiny, {"must": INCONCLUSIVE, "twin_at": "throughput.undisturbed"}),
    ("N0g", "negative_control", "", "the negative control flips, within 15 s; sabotaged, it is judged without its facts", lambda: control(False), lambda: control(True)),
]
# fmt: on
for _id, _at, _words, _what, _run, _twin, *_more in ROWS:
    on_gpu(_id, _what, at=_at, words=_words, twin=_twin, **(_more[0] if _more else {}))(_run)
