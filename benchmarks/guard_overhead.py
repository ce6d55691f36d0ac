"""What gpu_guard costs, as a share of the training step it watches.

    python benchmarks/guard_overhead.py [--device cuda] [--model gpt2] [--blocks 10] [--steps 20]

The guard does its work on the host between launches: after each forward pass it looks at the
outputs, after each optimizer step at every parameter and buffer. So its cost is measured
twice. Directly: the time spent in those two calls, per step, over the median step without
it. And as what a user sees: blocks of steps with and without it, alternating, so that heat
and other users of the machine meet both. The direct figure is the one to quote; the other
has the noise of the steps themselves and is there to contradict it.

The smoke's size is GPT-2 124M at 4 × 64. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from kit import gpu_guard
from kit.train.config import MODELS, TrainConfig
from kit.train.loop import eager_step, synchronize
from kit.train.model import build_model, build_optimizer


class Timed(gpu_guard):
    """The guard with a clock around what it does in a step."""

    spent_s = 0.0

    def after_step(self) -> None:
        began = time.perf_counter()
        super().after_step()
        self.spent_s += time.perf_counter() - began

    def _after_forward(self, model, args, output) -> None:
        began = time.perf_counter()
        super()._after_forward(model, args, output)
        self.spent_s += time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", choices=tuple(MODELS), default="gpt2")
    parser.add_argument("--blocks", type=int, default=10, help="blocks with and as many without the guard")
    parser.add_argument("--steps", type=int, default=20, help="steps a block")
    args = parser.parse_args()
    config = TrainConfig(model=args.model, device=args.device)
    model = build_model(config)[0].to(args.device)
    optimizer = build_optimizer(model, config)
    shape = (config.batch_size, config.seq_len)
    ids = torch.randint(config.shape.vocab_size, shape, generator=torch.Generator().manual_seed(0)).to(args.device)

    def block() -> float:
        """Seconds a step."""
        synchronize(args.device)
        began = time.perf_counter()
        for _ in range(args.steps):
            eager_step(model, optimizer, ids, ids, config)
        synchronize(args.device)
        return (time.perf_counter() - began) / args.steps

    for _ in range(3):
        block()
    guard = Timed(model, optimizer, device=args.device)
    without, within, spent = [], [], []
    for _ in range(args.blocks):
        without.append(block())
        before = guard.spent_s
        with guard:
            within.append(block())
        spent.append((guard.spent_s - before) / args.steps)
    plain, guarded, own = map(statistics.median, (without, within, spent))
    tensors = sum(1 for _ in model.parameters())
    print(f"{args.model} at {shape[0]} × {shape[1]} on {args.device}, {tensors} parameters, n = {args.blocks} blocks of {args.steps} steps")
    print(f"step without guard       {plain * 1e3:9.3f} ms   (median of blocks)")
    print(f"guard's own time a step  {own * 1e6:9.1f} µs   {own / plain:.3%} of the step")
    print(f"step with guard          {guarded * 1e3:9.3f} ms   {guarded / plain - 1:+.2%}, blocks spread {spread(without):.1%}")
    print(json.dumps({"device": args.device, "model": args.model, "parameters": tensors, "blocks": args.blocks,
                      "steps": args.steps, "step_s": plain, "guard_s": own, "guard_share": own / plain,
                      "guarded_step_s": guarded, "torch": torch.__version__}))  # fmt: skip


def spread(values: list[float]) -> float:
    return (max(values) - min(values)) / statistics.median(values)


if __name__ == "__main__":
    main()
