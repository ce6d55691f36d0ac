"""The short run that people report, engine by engine: 14 steps with their start, from the start of the process.

Each run is a fresh process, so that imports, CUDA's start, compiling and capturing are inside. It
is measured twice: the first run finds the caches as they are, the second finds them filled.
Beside it stands what makes the comparison fair: the first losses of every engine against the
plain loop's in float32, from the same weights, on the same batches.
"""

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
from kit.process import child_environment, keep_bytecode
from kit.records import dumps, from_json, to_json
from kit.sweep.sweep import write_records
from kit.sweep.table import BenchResult, ShortRun
from kit.train.config import TrainConfig
from kit.train.train import require_device, start_device

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
    told = (done.stderr.strip().splitlines() or ["no message"])[-1]
    todo = "python -m kit check tells whether this GPU and this torch fit"
    answer = {"found": f"it ended with {done.returncode}: {told}", "todo": todo}
    if done.returncode == 0:
        answer = json.loads(done.stdout.splitlines()[-1])
    if "found" in answer:
        raise TrainingFailed(
            f"the {config.engine} engine's process: {answer['found']}",
            expected=f"{config.steps} steps",
            todo=answer["todo"],
        )
    return answer["missing"] if "missing" in answer else from_json(ShortRun, answer)


def short_run(config: TrainConfig, *, is_first: bool, began: float) -> ShortRun | str:
    """In a fresh process: import, build, train. began: `time.time()` when the process was started."""
    bytecode = keep_bytecode()
    start = time.perf_counter()
    require_device(config.device)
    has_kernels = config.engine in ("captured", "graphed") and importlib.util.find_spec("triton") is not None
    thread = start_device(config.device, config.dtype, has_kernels=has_kernels)
    # What the run will need, here, so that it counts as import time and not as training.
    from transformers.models.gpt2 import modeling_gpt2  # noqa: F401

    from kit.sweep import trial

    if config.engine == "trainer":
        from transformers import Trainer  # noqa: F401
    if has_kernels:
        importlib.import_module("kit.extras.graphed.captured")
    imported = time.perf_counter()
    batches = trial.text_batches(config, config.steps)
    loaded = time.perf_counter()
    model = trial.build_model(config)[0].to(config.device)
    if thread:
        thread.join()
    built = time.perf_counter()
    with trial.precision(config):
        engine = trial.engine_of(model, config)
        if engine.is_fallback:
            return engine.reason
        if config.engine == "trainer":
            run = trial.run_trainer(model, config, batches)
            losses, steps_s, training_s = run.losses, sum(run.step_s), run.runtime_s
            engine_s = time.perf_counter() - built - steps_s
        else:
            trial.synchronize(config.device)
            ready = time.perf_counter()
            losses = tuple(engine.step(*batch)[0] for batch in batches)
            trial.synchronize(config.device)
            training_s, engine_s = time.perf_counter() - built, ready - built
            steps_s = training_s - engine_s
    return ShortRun(
        config.engine, config.dtype, is_first, engine.note, process_s=time.time() - began, import_s=imported - start,
        data_s=loaded - imported, model_s=built - loaded, engine_s=engine_s, steps_s=steps_s, training_s=training_s,
        samples=sum(len(ids) for ids, _ in batches), losses=tuple(map(float, losses)), bytecode=bytecode,
    )  # fmt: skip


def main(request: str) -> int:
    """The child process: one request as JSON in, one line of JSON out."""
    asked = json.loads(request)
    try:
        answer = short_run(from_json(TrainConfig, asked.pop("config")), **asked)
        print(json.dumps({"missing": answer} if isinstance(answer, str) else to_json(answer)))
    except KitError as error:
        print(json.dumps({"found": error.found, "todo": error.todo}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
