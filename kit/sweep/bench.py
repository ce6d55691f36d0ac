"""The short run that people report, engine by engine: 14 steps with their start, from the start of the process.

Each run is a fresh process, so that imports, CUDA's start, compiling and capturing are inside. It
is measured twice: the first run finds the caches as they are, the second finds them filled.
Beside it stands what makes the comparison fair: the first losses of every engine against the
plain loop's in float32, from the same weights, on the same batches.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kit.errors import KitError, TrainingFailed
from kit.process import child_environment
from kit.records import dumps, from_json, to_json
from kit.sweep.sweep import write_records
from kit.sweep.table import BenchResult, ShortRun
from kit.train.config import TrainConfig

ENGINES = ("trainer", "eager", "captured", "graphed")
_TIMEOUT_S = 600


def bench(
    config: TrainConfig,
    *,
    engines: tuple[str, ...] = ENGINES,
    out: str | Path | None = None,
    on_run: Callable[[ShortRun], None] | None = None,
) -> BenchResult:
    """Runs each engine twice in a process of its own, then compares losses in this one.

    config: of the short run; its engine is left out. out: a folder for `bench.json`. Raises
    GpuNotUsable where the device is cuda and cannot be used, TrainingFailed where a run broke.
    """
    from kit.sweep.trial import first_steps
    from kit.train.train import require_device

    configs = [dataclasses.replace(config, engine=engine) for engine in engines]
    torch = require_device(config.device)
    device_name = torch.cuda.get_device_name() if config.device == "cuda" else "CPU"
    runs, missing = [], {}
    for one in configs:
        for is_first in (True, False):
            run = _in_a_process(one, is_first)
            if isinstance(run, str):
                missing[one.engine] = run
                break
            runs.append(run)
            if on_run:
                on_run(run)
    same, _ = first_steps(configs, is_profiled=False)
    result = BenchResult(device_name, tuple(runs), same, missing)
    write_records(out, {"bench.json": dumps(result)})
    return result


def _in_a_process(config: TrainConfig, is_first: bool) -> ShortRun | str:
    """The short run of one engine in a fresh Python; its reason as a text where the engine cannot run here."""
    request = json.dumps({"config": to_json(config), "is_first": is_first, "began": time.time()})
    done = subprocess.run(
        [sys.executable, "-m", "kit.sweep.bench", request],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=_TIMEOUT_S,
        env=child_environment(),
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TrainingFailed(
            f"the {config.engine} engine's process ended with {done.returncode}: {last}",
            expected=f"{config.steps} steps",
            todo="python -m kit check tells whether this GPU and this torch fit",
        )
    answer = json.loads(lines[-1])
    if "failed" in answer:
        raise TrainingFailed(
            f"the {config.engine} engine's process: {answer['failed']}",
            expected=f"{config.steps} steps",
            todo=answer["todo"],
        )
    return answer["missing"] if "missing" in answer else from_json(ShortRun, answer)


def short_run(config: TrainConfig, *, is_first: bool, began: float) -> ShortRun | str:
    """In a fresh process: import, build, train. began: `time.time()` when the process was started."""
    from kit.process import keep_bytecode
    from kit.train.train import start_device

    bytecode = keep_bytecode()
    start = time.perf_counter()
    from kit.train.train import require_device

    require_device(config.device)
    thread = start_device(config.device, config.dtype, has_kernels=_needs_triton(config))
    _import_all(config)
    from kit.sweep.trial import text_batches

    imported = time.perf_counter()
    batches = text_batches(config, config.steps)
    loaded = time.perf_counter()
    from kit.train.model import build_model, precision

    model = build_model(config)[0].to(config.device)
    if thread:
        thread.join()
    built = time.perf_counter()
    with precision(config):
        trained = _train(model, config, batches)
    if isinstance(trained, str):
        return trained
    return ShortRun(
        engine=config.engine,
        dtype=config.dtype,
        is_first=is_first,
        process_s=time.time() - began,
        import_s=imported - start,
        data_s=loaded - imported,
        model_s=built - loaded,
        samples=sum(ids.shape[0] for ids, _ in batches),
        bytecode=bytecode,
        **trained,
    )


def _import_all(config: TrainConfig) -> None:
    """What the run will need, here, so that it counts as import time and not as training."""
    from transformers.models.gpt2 import modeling_gpt2  # noqa: F401

    from kit.train import engines  # noqa: F401

    if config.engine == "trainer":
        from transformers import Trainer  # noqa: F401
    if _needs_triton(config):
        importlib.import_module("kit.extras.graphed.captured")


def _needs_triton(config: TrainConfig) -> bool:
    return config.engine in ("captured", "graphed") and importlib.util.find_spec("triton") is not None


def _train(model, config: TrainConfig, batches) -> dict | str:
    """All steps, with what stands before the first: their times, losses and the engine's note."""
    from kit.train.engines import NOTE, build_engine, missing_trainer, run_trainer
    from kit.train.loop import synchronize

    start = time.perf_counter()
    if config.engine == "trainer":
        if reason := missing_trainer():
            return reason
        run = run_trainer(model, config, batches)
        return {
            "note": NOTE,
            "engine_s": time.perf_counter() - start - sum(run.step_s),
            "steps_s": sum(run.step_s),
            "training_s": run.runtime_s,
            "losses": run.losses,
        }
    engine = build_engine(config.engine, model, config)
    if engine.is_fallback:
        return engine.reason
    synchronize(config.device)
    ready = time.perf_counter()
    losses = [engine.step(*batch)[0] for batch in batches]
    synchronize(config.device)
    end = time.perf_counter()
    return {
        "note": engine.note,
        "engine_s": ready - start,
        "steps_s": end - ready,
        "training_s": end - start,
        "losses": tuple(float(loss) for loss in losses),
    }


def main(request: str) -> int:
    """The child process: one request as JSON in, one line of JSON out."""
    asked = json.loads(request)
    try:
        answer = short_run(from_json(TrainConfig, asked["config"]), is_first=asked["is_first"], began=asked["began"])
    except KitError as error:
        print(json.dumps({"failed": error.found, "todo": error.todo}))
        return 0
    print(json.dumps({"missing": answer} if isinstance(answer, str) else to_json(answer)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
