"""Measures one point of a sweep: builds its engine, warms it up until it is steady, times blocks of steps."""

from __future__ import annotations

import gc
import time

from kit.sweep.plan import SweepPlan
from kit.sweep.table import Row, row_of
from kit.train.config import TrainConfig

# Warm when a round of steps takes within 3 % of the one before it; what never settles is measured all the same.
_STEADY = 0.03
_ROUND_S = 0.1
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 15
# A block lasts `block_s` and at least this many steps.
_LEAST_STEPS = 2
_TRAINER_STEPS_A_BLOCK = 5


class Bench:
    """The model, built once, and its measured step; everything else is made anew for each point."""

    def __init__(self, plan: SweepPlan) -> None:
        from kit.train.model import build_model

        self._plan = plan
        model = build_model(plan.configs()[0])[0]
        # On the CPU, so that the copy does not count as memory of the step.
        self._initial = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self._model = model.to(plan.device)

    def __call__(self, config: TrainConfig) -> Row:
        import torch

        from kit.train.engines import random_batch
        from kit.train.model import precision

        is_cuda = config.device == "cuda"
        self._restart()
        gc.collect()
        if is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        batch = random_batch(self._model, config)
        with precision(config):
            figures = (self._trainer if config.engine == "trainer" else self._engine)(batch, config)
        peak = torch.cuda.max_memory_allocated() if is_cuda and figures["outcome"] == "ok" else None
        return row_of(config, figures.pop("outcome"), peak_memory_bytes=peak, **figures)

    def _restart(self) -> None:
        """The same weights for every point: a model that has learnt the batch by heart rounds differently."""
        import torch

        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(self._initial[name])
        self._model.zero_grad(set_to_none=True)

    def _engine(self, batch, config: TrainConfig) -> dict:
        """A graph's memory counts while it is built: later, torch does not see what the graph holds."""
        from kit.train.engines import build_engine

        engine = build_engine(config.engine, self._model, config)
        if engine.is_fallback:
            return {"outcome": "missing", "reason": engine.reason}
        blocks, steps, loss = self._blocks(engine, batch, config)
        if loss != loss or abs(loss) == float("inf"):
            return {"outcome": "error", "reason": f"the loss is {loss} after {steps} steps"}
        return {"outcome": "ok", "block_step_s": blocks, "steps": steps, "note": engine.note}

    def _blocks(self, engine, batch, config: TrainConfig) -> tuple[tuple[float, ...], int, float]:
        """Mean step time of each block, the steps in all, the last loss. Waits at the ends of blocks only."""
        from kit.train.loop import synchronize

        loss = None

        def run(steps: int) -> float:
            nonlocal loss
            start = time.perf_counter()
            for _ in range(steps):
                loss, _ = engine.step(*batch)
            synchronize(config.device)
            return (time.perf_counter() - start) / steps

        run(1)
        before = run(1)
        for done in range(1, _MOST_ROUNDS + 1):
            step_s = run(max(1, round(_ROUND_S / before)))
            if done >= _LEAST_ROUNDS and abs(step_s - before) <= _STEADY * before:
                break
            before = step_s
        steps = max(_LEAST_STEPS, round(self._plan.block_s / step_s))
        blocks = tuple(run(steps) for _ in range(self._plan.blocks))
        return blocks, steps * self._plan.blocks, float(loss)

    def _trainer(self, batch, config: TrainConfig) -> dict:
        from kit.train.metrics import STEADY_FROM
        from kit.train.trainer import NOTE, missing_trainer, run_trainer

        if reason := missing_trainer():
            return {"outcome": "missing", "reason": reason}
        warm_up, size = STEADY_FROM - 1, _TRAINER_STEPS_A_BLOCK
        run = run_trainer(self._model, config, [batch] * (warm_up + self._plan.blocks * size))
        steady = run.step_s[warm_up:]
        blocks = tuple(sum(steady[i : i + size]) / size for i in range(0, len(steady), size))
        if not all(loss == loss and abs(loss) != float("inf") for loss in run.losses):
            return {"outcome": "error", "reason": "a loss of the Trainer is not finite"}
        return {"outcome": "ok", "block_step_s": blocks, "steps": len(steady), "note": NOTE}
