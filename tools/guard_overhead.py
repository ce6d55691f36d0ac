"""What the guard adds to 500 training steps at the smoke's size: chunks of steps without and with it, in turn.

    python -m tools.guard_overhead [--device cuda]

The guard works on the host: after each step it looks at every parameter and buffer, and in some steps, ever more
rarely, at each operator. So what it costs is a share of the step only where the host is the slower side, as at
4 × 64 on a fast card.

Three arms in one process, on one model: the kit's eager step alone; the same under one `gpu_guard`; and under one
`GpuGuardCallback`, whose methods are called as the Trainer calls them. Chunks of 25 steps go A B C C B A, so that a
drift of clocks or heat meets every arm alike; a guard counts on from one of its chunks to the next, so that it meets
its watched steps as in one loop of 500. The device is waited for after every step, as `kit train` does.

Two figures for each arm. `total`: the sum of its steps over that of the arm without. `by_step`: the medians of the
steps that are not watched, and each watched step as it was; it leaves out the hiccups of the host, which a sum of
500 steps does not. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import time
from collections.abc import Iterator, Sequence

import torch

from kit import GpuGuardCallback, gpu_guard
from kit.show import Table
from kit.train.config import MODELS, TrainConfig
from kit.train.loop import eager_step, synchronize
from kit.train.model import build_model, build_optimizer
from kit.units import seconds, spread

# Of the steps: what the guard may cost.
LIMIT = 0.01
ARMS = ("without", "gpu_guard", "callback")
CHUNK, WARM_UP = 25, 30


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


class Arm:
    """One guard over all its chunks; between them its hooks are gone. times_s: of each step, and of those watched."""

    def __init__(self, job: Job, name: str) -> None:
        self.job, self.name, self.times_s, self.watched_s = job, name, [], []
        self.guard = self.callback = None
        if name == "gpu_guard":
            self.guard = gpu_guard(job.model, job.optimizer, device=job.config.device)
        if name == "callback":
            self.callback = GpuGuardCallback(device=job.config.device)
            self.callback.on_train_begin(None, None, None, model=job.model, optimizer=job.optimizer)
            self.guard = self.callback._guard
            self.guard.__exit__(Exception)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        if self.guard is None:
            yield
            return
        with self.guard:
            if self.callback:
                count = self.job.model.register_forward_hook(self.callback._count, with_kwargs=True)
                self.guard._hooks.append(count)
            yield

    def chunk(self, steps: int) -> None:
        with self._guarded():
            for _ in range(steps):
                is_watched = self.guard is not None and self.guard.steps >= self.guard._due
                began = time.perf_counter()
                if self.callback:
                    self.callback.on_step_begin(None, None, None)
                self.job.step()
                if self.callback:
                    self.callback.on_step_end(None, None, None)
                (self.watched_s if is_watched else self.times_s).append(time.perf_counter() - began)

    def overhead(self, without: Arm) -> dict[str, float]:
        usual, mine, n = statistics.median(without.times_s), statistics.median(self.times_s), len(self.times_s)
        extra = n * (mine - usual) + sum(one - usual for one in self.watched_s)
        total = sum(self.times_s) + sum(self.watched_s)
        return {
            "by_step": extra / (usual * (n + len(self.watched_s))),
            "total": total / sum(without.times_s) - 1,
            "watched_steps": len(self.watched_s),
            "a_watched_step": statistics.median(self.watched_s) / usual,
            "another_step": mine / usual - 1,
        }


def measure(config: TrainConfig, *, steps: int, rounds: int) -> dict:
    """What the last line says. rounds: of `steps` steps for each arm, with new guards."""
    job = Job(config)
    for _ in range(min(WARM_UP, steps)):
        job.step()
    found = []
    for _ in range(rounds):
        arms = [Arm(job, name) for name in ARMS]
        for number in range(-(-steps // CHUNK)):
            for arm in arms if number % 2 else reversed(arms):
                arm.chunk(min(CHUNK, steps))
        found.append(arms)
    return {
        "benchmark": "guard_overhead", "device": config.device, "device_name": _device_name(config.device),
        "torch": torch.__version__, "python": platform.python_version(), "model": config.model,
        "parameters": sum(1 for _ in job.model.parameters()), "batch_size": config.batch_size,
        "seq_len": config.seq_len, "dtype": config.dtype, "rounds": rounds, "steps": steps, "limit": LIMIT,
        "step_s": {arm.name: vars(spread(arm.times_s)) for arm in found[0]},
        "overhead": {ARMS[i]: [arms[i].overhead(arms[0]) for arms in found] for i in (1, 2)},
    }  # fmt: skip


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"


def text(found: dict) -> str:
    rows = [("without", seconds(found["step_s"]["without"]["median"], 4), "–", "–", "–", "–")]
    for arm in ARMS[1:]:
        for one in found["overhead"][arm]:
            figures = [f"{one[key]:+.2%}" for key in ("by_step", "total", "another_step")]
            watched = f"{one['watched_steps']}, each {one['a_watched_step']:.2f} steps long"
            rows.append((arm, seconds(found["step_s"][arm]["median"], 4), *figures, watched))
    said = (
        f"{found['model']} at {found['batch_size']} × {found['seq_len']} in {found['dtype']} on {found['device_name']}, "
        f"torch {found['torch']}: {found['parameters']} parameters, {found['rounds']} rounds of {found['steps']} steps"
    )
    head = ("arm", "step, median", f"by step (limit {LIMIT:.0%})", "total", "a step not watched", "watched steps")
    return f"{said}\n\n{Table(head, tuple(rows))}"


def main(arguments: Sequence[str] | None = None) -> None:
    is_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m tools.guard_overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if is_gpu else "cpu")
    parser.add_argument("--model", choices=tuple(MODELS), help="gpt2 on a GPU, tiny on a CPU, where no other is given")
    parser.add_argument("--rounds", type=int, default=2, help="each of so many steps for every arm, with new guards")
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args(arguments)
    config = TrainConfig(model=args.model or ("gpt2" if args.device == "cuda" else "tiny"), device=args.device)
    found = measure(config, steps=args.steps, rounds=args.rounds)
    print(text(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
