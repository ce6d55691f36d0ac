"""`kit report`: the notebooks, headless, into one bundle that `kit verify` accepts.

A face: it orders the work and keeps the records. What they say is concluded from the files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kit import __version__
from kit.errors import EXIT_SIGINT, UsageError
from kit.evidence.bundle import Bundle, open_bundle
from kit.evidence.conclude import conclude
from kit.evidence.contents import COMPLETE, FAILED, INTERRUPTED, Evidence, NotebookRun, RunRecord
from kit.evidence.execute import check_parameters, execute, read_parameters
from kit.evidence.index import write_index
from kit.evidence.source import kit_sha256
from kit.gpu.check import expect, resolve_device
from kit.gpu.facts import MachineFacts
from kit.gpu.judge_machine import judge
from kit.gpu.probe import SMI_QUERY, Capture, capture, probe
from kit.gpu.remedy import remedy
from kit.process import ROOT, SHARE, child_environment, keep_bytecode
from kit.records import Outcome, Verdict, from_json, loads

NOTEBOOKS = ("01_env_check", "02_smoke_training", "03_throughput", "04_scaling")
DEFAULT_PARAMS = {"cuda": "gpu_smoke.yaml", "cpu": "cpu_rehearsal.yaml"}
# What the report itself gives to each notebook.
_OWN = ("out", "nonce", "device")


@dataclasses.dataclass(frozen=True)
class Report:
    """A finished bundle: where it is, what it says, and the exit code that follows."""

    path: Path
    evidence: Evidence
    notes: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        if self.evidence.state == INTERRUPTED:
            return EXIT_SIGINT
        return self.evidence.verdict.outcome.exit_code


def report(
    *,
    device: str | None = None,
    params: Path | None = None,
    out: Path = Path("reports"),
    expect_gpu: str | None = None,
    min_cuda: str | None = None,
    gpus: int | None = None,
    nonce: str | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Report:
    """Runs the notebooks into a new bundle below `out`.

    device: 'cuda' or 'cpu'; None takes the parameter file's, else 'cuda'. params: a YAML file of
    notebook parameters, else the one of the kit that fits the device. gpus: how many torch must see. nonce: a
    reviewer's challenge, kept in the bundle. progress: called with one line of text at a time.
    Raises UsageError before anything runs; later failures are what the bundle tells.
    """
    given = load_params(params or SHARE / "params" / DEFAULT_PARAMS[resolve_device(device or "cuda")])
    in_file = given.pop("device", "cuda")
    device = resolve_device(device or in_file)
    for name, value in (("expect_gpu", expect_gpu), ("min_cuda", min_cuda)):
        if value is not None:
            given[name] = value
    parameters = split_parameters(given)
    _check_values(parameters, device)
    # In a parameter file and a notebook an empty word accepts any; as an argument it is an unset variable.
    wanted = {"expect_gpu": given.get("expect_gpu") or expect_gpu, "min_cuda": given.get("min_cuda") or min_cuda}
    expectation = expect(device=device, gpus=gpus, **wanted)
    run_id = _run_id(device)
    with open_bundle(out, run_id) as bundle:
        record = RunRecord(
            run_id=run_id,
            nonce=secrets.token_hex(16),
            reviewer_nonce=nonce,
            kit_version=__version__,
            code=code_identity(),
            device=device,
            expectation=expectation,
            parameters=parameters,
            notebooks=(),
            state="RUNNING",
            started_utc=_now(),
            ended_utc="",
        )
        bundle.write_json("raw/run.json", record)
        record = _run(bundle, record, progress)
        done = _finish(bundle, record)
    write_index(out)
    return done


def load_params(path: Path) -> dict[str, Any]:
    """A flat YAML mapping of parameters. Raises UsageError where the file is missing or is not one."""
    import yaml

    # An installed kit has the parameter sets of the documentation too, wherever it is run.
    path = path if path.exists() or not (SHARE / path).is_file() else SHARE / path
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}", expected="a YAML file of notebook parameters", todo="see params/ for examples"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: {error}", expected="YAML in UTF-8", todo="repair the file") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise UsageError(
            f"{path} holds a {type(found).__name__}",
            expected="a mapping of parameter names to values",
            todo="see params/ for examples",
        )
    return found


def split_parameters(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each notebook's part of `given`, checked. A name that no notebook knows is a UsageError."""
    known = {name: read_parameters(SHARE / "notebooks" / f"{name}.ipynb") for name in NOTEBOOKS}
    everything = {key: value for parameters in known.values() for key, value in parameters.items() if key not in _OWN}
    checked = check_parameters(given, everything, where="parameters")
    return {name: {key: value for key, value in checked.items() if key in known[name]} for name in NOTEBOOKS}


def _check_values(parameters: Mapping[str, Mapping[str, Any]], device: str) -> None:
    """Raises UsageError for values that the notebooks would refuse, and for data that cannot be read."""
    from kit.extras.scale.ranks import ScalePlan, scaled_step
    from kit.session import DEFAULT_MODELS
    from kit.sweep.table import SweepPlan
    from kit.train.config import TrainConfig
    from kit.train.data import load_texts

    def values(name: str, kind: type) -> dict[str, Any]:
        fields = {field.name for field in dataclasses.fields(kind)}
        found = {key: value for key, value in parameters[name].items() if key in fields}
        if found.get("model", "auto") == "auto":
            found["model"] = DEFAULT_MODELS[device]
        return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}

    config = TrainConfig(**values("02_smoke_training", TrainConfig), device=device)
    SweepPlan(**values("03_throughput", SweepPlan), device=device)
    for engine in parameters["03_throughput"].get("short_runs", ()):
        dataclasses.replace(config, engine=engine)
    scaled = parameters["04_scaling"]
    step = {name: scaled[f"scale_{name}"] for name in ("batch_size", "seq_len", "dtype") if f"scale_{name}" in scaled}
    ScalePlan(
        tuple(scaled.get("gpus") or (1,)),
        scaled_step(device, config.model, **step),
        **{name: scaled[name] for name in ("parallel", "blocks") if name in scaled},
    )
    load_texts(config.dataset)


# --- running ------------------------------------------------------------------------


def _run(bundle: Bundle, record: RunRecord, progress: Callable[[str], None]) -> RunRecord:
    """Runs the notebooks in order; the first that fails, or an unusable GPU, ends the row."""
    os.environ.update(child_environment())
    if keep_bytecode():
        # The kernels are processes of their own; what the first compiles, the others find.
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix or ""
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    runs: list[NotebookRun] = []
    reason = None
    with Captures(bundle, record.device) as captures:
        for name in NOTEBOOKS:
            if reason:
                runs.append(_not_run(name, reason))
                continue
            if name == "04_scaling" and _is_alone(bundle, record):
                progress(f"{name}: left out, one GPU has nothing to be compared with\n")
                continue
            captures.is_training = name == "02_smoke_training"
            runs.append(_run_one(bundle, record, name, progress))
            captures.is_training = False
            if runs[-1].state != "ok":
                reason = f"{name} {runs[-1].state}: {runs[-1].error}"
            elif name == NOTEBOOKS[0]:
                reason = _unusable(bundle, record)
    state = COMPLETE if all(run.state == "ok" for run in runs) else FAILED
    if any(run.state == "interrupted" for run in runs):
        state = INTERRUPTED
    end = probe(with_torch=False)
    bundle.write_json("facts/end.json", end)
    return dataclasses.replace(record, notebooks=tuple(runs), state=state, ended_utc=_now(), reason=reason)


def _run_one(bundle: Bundle, record: RunRecord, name: str, progress: Callable[[str], None]) -> NotebookRun:
    folder = bundle.path / "notebooks"
    folder.mkdir(exist_ok=True)
    given = {"out": str(bundle.path.resolve()), "nonce": record.nonce, "device": record.device}
    run = execute(
        SHARE / "notebooks" / f"{name}.ipynb",
        folder / f"{name}.ipynb",
        parameters={**record.parameters[name], **given},
        progress=lambda notebook, cell, cells, s: progress(f"{notebook}: cell {cell} of {cells}, {s:.0f} s"),
    )
    progress(f"{name}: {run.state}, {run.seconds:.0f} s\n")
    return run


def _not_run(name: str, reason: str) -> NotebookRun:
    from kit.evidence.notebook import source_sha256

    template = json.loads((SHARE / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    return NotebookRun(name, "not_run", None, 0, 0, None, reason, source_sha256(template))


def _unusable(bundle: Bundle, record: RunRecord) -> str | None:
    """Why training must not start: the environment's verdict is red. No step runs on the CPU instead."""
    files = {name: (bundle.path / name).read_bytes() for name in ("raw/run.json", "facts/begin.json")}
    checks = conclude(files).verdict.checks
    red = Verdict.of(c for c in checks if c.claim in ("environment", "native") and c.id != "environment.still_there")
    if red.outcome is not Outcome.FAIL:
        return None
    return f"the GPU is not usable: {red.findings[0].found}"


def _is_alone(bundle: Bundle, record: RunRecord) -> bool:
    """Whether torch saw one GPU only: then no bundle claims anything about several."""
    facts = from_json(MachineFacts, loads((bundle.path / "facts" / "begin.json").read_bytes()))
    return record.device == "cuda" and (facts.torch is None or len(facts.torch.gpus) < 2)


# --- finishing ----------------------------------------------------------------------


def _finish(bundle: Bundle, record: RunRecord) -> Report:
    bundle.write_json("raw/run.json", record)
    files = bundle.settle()
    evidence = conclude(files)
    return Report(bundle.finish(evidence), evidence, (*_remedy(files, record), *bundle.notes))


def _remedy(files: Mapping[str, bytes], record: RunRecord) -> tuple[str, ...]:
    """What to do about a machine that cannot train, in lines."""
    if "facts/begin.json" not in files or record.device == "cpu":
        return ()
    facts = from_json(MachineFacts, loads(files["facts/begin.json"]))
    found = judge(facts, record.expectation)
    if found.outcome is Outcome.PASS:
        return ()
    cure = remedy(found, facts)
    return (cure.summary, *(f"    {command}" for command in cure.commands))


def code_identity() -> dict[str, Any]:
    """Which code ran: a hash over the package's sources, and the commit where git tells it."""
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--untracked-files=no")
    diff = _git("diff", "HEAD") if status else None
    return {
        "source_sha256": kit_sha256(),
        "commit": commit,
        "is_dirty": None if status is None else bool(status),
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
    }


def _git(*args: str) -> str | None:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, timeout=10, check=False)
        if done.returncode == 0:
            return done.stdout.decode("utf-8", errors="replace").strip()
    return None


def _run_id(device: str) -> str:
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    return re.sub(r"[^A-Za-z0-9-]", "-", f"{stamp}-{device}-{secrets.token_hex(2)}")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


# The captures of a bundle: what other programs print of this machine while the notebooks run.

_SMI_EVERY_S = 2.0
_TORCH_VERSION = (
    "import torch; print('torch', torch.__version__); print('built for CUDA', torch.version.cuda); "
    "print('cuDNN', torch.backends.cudnn.version()); print('code for', *torch.cuda.get_arch_list())"
)


class Captures:
    """What other programs print of this machine, taken beside the notebooks.

    nvidia-smi is asked every two seconds while the training notebook runs, from this process,
    which does not train: of those the one with the most memory in use is kept.
    """

    def __init__(self, bundle: Bundle, device: str) -> None:
        self._bundle, self._device = bundle, device
        self.is_training = False
        self._stop = threading.Event()
        self._smi: list[tuple[str, Capture]] = []
        self._texts: dict[str, Capture] = {}

    def __enter__(self) -> Captures:
        self._threads = [threading.Thread(target=self._programs, daemon=True)]
        if self._device == "cuda":
            self._threads.append(threading.Thread(target=self._watch, daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=120)
        facts = self._bundle.path / "facts" / "begin.json"
        if facts.exists():
            argv = ("-m", "kit", "check", "--facts", str(facts), "--device", self._device)
            self._texts["cuda_check.txt"] = capture(sys.executable, *argv)
        for name, found in self._texts.items():
            self._bundle.write(name, str(found))
        smi = self._smi or [("before the notebooks", capture("nvidia-smi", *SMI_QUERY))]
        busiest = [max(smi[1:], key=lambda pair: _memory_used(pair[1]))] if len(smi) > 1 else []
        self._bundle.write("nvidia_smi.txt", "\n".join(f"# {when}\n{found}" for when, found in [smi[0], *busiest]))

    def _programs(self) -> None:
        self._texts["torch_version.txt"] = capture(sys.executable, "-c", _TORCH_VERSION, timeout_s=120)
        self._texts["env_info.txt"] = capture(sys.executable, "-m", "torch.utils.collect_env", timeout_s=120)

    def _watch(self) -> None:
        self._smi.append(("before the notebooks", capture("nvidia-smi", *SMI_QUERY)))
        while not self._stop.wait(_SMI_EVERY_S):
            if self.is_training:
                self._smi.append(("while the training notebook ran", capture("nvidia-smi", *SMI_QUERY)))


def _memory_used(found: Capture) -> int:
    """MiB in use over all cards, from the column memory.used of nvidia-smi's CSV; 0 where it printed none."""
    return sum(int(mib) for mib in re.findall(r"MiB, (\d+) MiB", found.text))
