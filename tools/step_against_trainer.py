"""How long a step of `kit train` takes beside the same step of Hugging Face's Trainer, in turns in one process.

The judged loop waits for the device before and after each step, samples the driver in a thread and looks into
the steps; the Trainer does none of it. What the kit's own parts cost shows in the arms between: the loop bare, with
the watch, with the sampling thread, and as `kit train` runs it. Each arm starts from the same weights on the same
batches. A step's time is the host's clock from one wait for the device to the next, on both sides; the first half of
the steps is warm-up, figures are medians of the second. Steps that were drawn for a closer look are none of them.

    python -m tools.step_against_trainer                 # GPT-2 124M, 4 × 64, float32: under two minutes on an H100
    python -m tools.step_against_trainer --device cpu --model tiny --steps 10

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

from kit.process import begin_proof
from kit.train import train
from kit.train.config import TrainConfig
from kit.train.telemetry import Recorder

# arm: whether it has the watch, and whether it has the sampling thread
ARMS = {"bare": (False, False), "watched": (True, False), "sampled": (False, True), "judged": (True, True)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.step_against_trainer", description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    args = vars(parser.parse_args())
    rounds = args.pop("rounds")
    config = TrainConfig(**args)
    begin_proof()
    torch = train.require_device(config.device)
    batches, _ = train._batches(config)
    state = train._build(config, None, batches)
    found: dict[str, list[float]] = {}
    for number in range(1, rounds + 1):
        for arm in ("trainer", *ARMS):
            step_s, between_s = trained_by(arm, state, batches, config)
            found.setdefault(arm, []).append(statistics.median(step_s))
            print(
                f"round {number}  {arm:8}  {1e3 * found[arm][-1]:7.2f} ms a step, n = {len(step_s)}, "
                f"{1e3 * between_s:6.2f} ms between two steps",
                flush=True,
            )
    median_s = {arm: statistics.median(times) for arm, times in found.items()}
    name = torch.cuda.get_device_name() if config.device == "cuda" else "CPU"
    ratios = {arm: median_s[arm] / median_s["trainer"] for arm in ARMS}
    told = ", ".join(f"{arm} {ratio:.2f}" for arm, ratio in ratios.items())
    print(f"{name}, torch {torch.__version__}: time of a step, the Trainer's = 1: {told}")
    print(json.dumps({"device": name, "torch": torch.__version__, "median_s": median_s, "of_the_trainer": ratios}))
    return 0


def trained_by(arm: str, state, batches, config: TrainConfig) -> tuple[list[float], float]:
    """Step times of the second half, and the median time between two of them."""
    from kit.train.engines import run_trainer
    from kit.train.model import precision
    from kit.train.witness import Watch, restart

    restart(state, config)
    half = config.steps // 2
    if arm == "trainer":
        with precision(config):
            tensors = [(batch.input_ids, batch.labels) for batch in batches]
            return list(run_trainer(state.model, config, tensors).step_s[half:]), 0.0
    is_watched, is_sampled = ARMS[arm]
    watch = Watch(state.model, state.optimizer, config, str(time.time())) if is_watched else None
    recorder = Recorder() if is_sampled and config.device == "cuda" else None
    records = []
    try:
        train._timed(state, batches, config, watch, recorder, records.append)
    finally:
        if recorder:
            recorder.stop()
    ends = [record.started_s + record.step_time_s for record in records]
    between = [record.started_s - end for record, end in zip(records[half:], ends[half - 1 :])]
    return [record.step_time_s for record in records[half:] if not record.is_watched], statistics.median(between)


if __name__ == "__main__":
    sys.exit(main())
