"""What the guard adds to a training step at the smoke's size: blocks of steps without and with it, in turn.

    python -m tests.benchmarks.guard_overhead [--device cuda]

The guard works on the host between launches: after each forward pass it looks at what came out,
after each optimizer step at every parameter and buffer, and at the first step of each hundred at
everything. So what it costs is a share of the step only where the host is the slower side, as at
4 × 64 on a fast card.

Three arms, in one process, on one model: the kit's eager step alone; the same inside
`with gpu_guard(model, optimizer):`, a new guard for each block, whose making stands before the
clock; and with `GpuGuardCallback`, whose methods are called as the Trainer calls them. A round is
A B C C B A, so that a drift of clocks or heat meets every arm alike; the overhead is a ratio of
blocks within one round. The device is waited for after every step, as `kit train` does. In a
block of 20 steps one is looked at in full, five times as often as in a long run.

The last line is one JSON object. The ratio carries the noise of the steps; the guard's own time
in a step, by its own clock, stands beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from kit import GpuGuardCallback, gpu_guard
from kit.show import Table
from kit.train.config import MODELS, TrainConfig
from kit.train.loop import eager_step, synchronize
from kit.train.model import build_model, build_optimizer
from kit.units import Spread, seconds, spread

# Of a step: what the guard may cost.
LIMIT = 0.01
ARMS = ("without", "gpu_guard", "callback")
# Blocks without the guard before anything is kept: caches, allocator, clocks.
WARM_UP_BLOCKS = 2


class Job:
    """One model with its optimizer and one batch on the device, stepped again and again."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.model = build_model(config)[0].to(config.device)
        self.optimizer = build_optimizer(self.model, config)
        shape, generator = (config.batch_size, config.seq_len), torch.Generator().manual_seed(config.seed)
        self.ids = torch.randint(config.shape.vocab_size, shape, generator=generator).to(config.device)

    def step(self) -> None:
        eager_step(self.model, self.optimizer, self.ids, self.ids, self.config)
        synchronize(self.config.device)


@contextlib.contextmanager
def _without(job: Job) -> Iterator[Callable[[], None]]:
    yield job.step


@contextlib.contextmanager
def _guarded(job: Job) -> Iterator[Callable[[], None]]:
    with gpu_guard(job.model, job.optimizer, device=job.config.device):
        yield job.step


@contextlib.contextmanager
def _called_back(job: Job) -> Iterator[Callable[[], None]]:
    """The callback's methods around the same step, in the Trainer's order; the Trainer itself is not measured."""
    callback = GpuGuardCallback(device=job.config.device)

    def step() -> None:
        callback.on_step_begin(None, None, None)
        job.step()
        callback.on_optimizer_step(None, None, None, optimizer=job.optimizer)
        callback.on_step_end(None, None, None)

    callback.on_train_begin(None, None, None, model=job.model)
    yield step
    callback.on_train_end(None, None, None)


_MAKE = dict(zip(ARMS, (_without, _guarded, _called_back)))


def block(job: Job, arm: str, steps: int) -> float:
    """Seconds a step, over a block of steps, from a device that has nothing to do to one that has nothing left."""
    with _MAKE[arm](job) as step:
        synchronize(job.config.device)
        began = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - began) / steps


class _Timed(gpu_guard):
    """The guard with a clock around what it does in a step."""

    def __enter__(self) -> gpu_guard:
        self.spent_s = []
        return super().__enter__()

    def after_step(self) -> None:
        began = time.perf_counter()
        super().after_step()
        self.spent_s[-1] += time.perf_counter() - began

    def _after_forward(self, *args) -> None:
        began = time.perf_counter()
        super()._after_forward(*args)
        self.spent_s.append(time.perf_counter() - began)


def own_times(job: Job, steps: int) -> dict[str, float | None]:
    """Seconds that the guard itself spends in its first step, where it looks at everything, and in the others."""
    with _Timed(job.model, job.optimizer, device=job.config.device) as guard:
        for _ in range(steps):
            job.step()
    first, *others = guard.spent_s
    return {"first_step_s": first, "other_steps_s": statistics.median(others) if others else None}


def measure(config: TrainConfig, *, rounds: int, steps: int) -> dict:
    """What the last line says. rounds: each has two blocks of every arm."""
    job = Job(config)
    for _ in range(WARM_UP_BLOCKS):
        block(job, ARMS[0], steps)
    blocks: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(rounds):
        for arm in (*ARMS, *reversed(ARMS)):
            blocks[arm].append(block(job, arm, steps))
    own = own_times(job, steps)
    return {
        "benchmark": "guard_overhead", "device": config.device, "device_name": _device_name(config.device),
        "torch": torch.__version__, "python": platform.python_version(), "model": config.model,
        "parameters": sum(1 for _ in job.model.parameters()), "batch_size": config.batch_size,
        "seq_len": config.seq_len, "dtype": config.dtype, "rounds": rounds, "steps_a_block": steps, "limit": LIMIT,
        "step_s": {arm: _figures(spread(values)) for arm, values in blocks.items()},
        "overhead": {arm: _figures(spread(_overheads(blocks[ARMS[0]], blocks[arm]))) for arm in ARMS[1:]},
        "own": own, "blocks_s": blocks,
    }  # fmt: skip


def _overheads(without: Sequence[float], within: Sequence[float]) -> list[float]:
    """One for each round, from its two blocks of each arm: 0.01 is one percent longer."""
    pairs = zip(without[::2], without[1::2], within[::2], within[1::2])
    return [(first + second) / (begin + end) - 1 for begin, end, first, second in pairs]


def _figures(found: Spread) -> dict[str, float | int]:
    return {"n": found.n, "median": found.median, "q1": found.q1, "q3": found.q3, "iqr": found.iqr}


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"


def text(found: dict) -> str:
    rows = []
    for arm in ARMS:
        times, over = found["step_s"][arm], found["overhead"].get(arm)
        rows.append((
            arm, str(times["n"]), seconds(times["median"], 4), seconds(times["iqr"], 2),
            f"{over['median']:+.2%} ({over['q1']:+.2%} to {over['q3']:+.2%})" if over else "–",
        ))  # fmt: skip
    own, plain = found["own"], found["step_s"][ARMS[0]]["median"]
    others = own["other_steps_s"]
    said = (
        f"{found['model']} at {found['batch_size']} × {found['seq_len']} in {found['dtype']} on {found['device_name']}, "
        f"torch {found['torch']}: {found['parameters']} parameters, {found['rounds']} rounds A B C C B A of "
        f"{found['steps_a_block']} steps a block"
    )
    spent = f"the guard's own time: {seconds(own['first_step_s'])} in the first step"
    if others is not None:
        spent += f", {seconds(others)} in each of the others ({others / plain:.3%} of a step)"
    table = Table(
        ("arm", "blocks", "step, median", "IQR", f"overhead, median and quartiles (limit {LIMIT:.0%})"), tuple(rows)
    )
    return f"{said}\n\n{table}\n\n{spent}"


def main(arguments: Sequence[str] | None = None) -> None:
    is_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.guard_overhead", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if is_gpu else "cpu")
    parser.add_argument("--model", choices=tuple(MODELS), help="gpt2 on a GPU, tiny on a CPU, where no other is given")
    parser.add_argument("--rounds", type=int, default=10, help="each has two blocks of every arm")
    parser.add_argument("--steps", type=int, default=20, help="steps a block")
    args = parser.parse_args(arguments)
    config = TrainConfig(model=args.model or ("gpt2" if args.device == "cuda" else "tiny"), device=args.device)
    found = measure(config, rounds=args.rounds, steps=args.steps)
    print(text(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
