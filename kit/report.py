"""`kit report`: the notebooks, headless, into one bundle that `kit verify` accepts.

A face: it orders the work and keeps the records. What they say is concluded from the files.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kit import __version__
from kit.errors import BundleInvalid, KitError, UsageError
from kit.evidence.bundle import Bundle, open_bundle, reopen, this_python
from kit.evidence.conclude import conclude
from kit.evidence.contents import COMPLETE, FAILED, INTERRUPTED, Evidence, NotebookRun, RunRecord, run_nonce
from kit.evidence.execute import check_parameters, execute, read_parameters
from kit.evidence.index import write_index
from kit.evidence.notebook import source_sha256
from kit.evidence.source import kit_sha256
from kit.evidence.verify import verify
from kit.gpu.check import expect, resolve_device
from kit.gpu.facts import MachineFacts
from kit.gpu.judge_machine import judge
from kit.gpu.probe import SMI_QUERY, Capture, capture, probe
from kit.gpu.remedy import remedy
from kit.process import ROOT, SHARE, child_environment, keep_bytecode
from kit.records import Outcome, Verdict, fields_of, from_json, loads, worst
from kit.session import BUNDLE_VARIABLE, DEFAULT_MODELS
from kit.show import RED

NOTEBOOKS = ("01_env_check", "02_smoke_training", "03_throughput", "04_scaling")
DEFAULT_PARAMS = {"cuda": "gpu_smoke.yaml", "cpu": "cpu_rehearsal.yaml"}
BEGIN = "facts/begin.json"
# What the report itself gives to each notebook, and what it leaves to the kernel's environment.
_OWN = ("out", "nonce", "device")
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
# A clock that is disciplined moves by less during a run.
_CLOCK_STEP_S = 5.0
_CAPTURE_S = 120.0
_TORCH_VERSION = (
    "import torch; print('torch', torch.__version__); print('built for CUDA', torch.version.cuda); "
    "print('cuDNN', torch.backends.cudnn.version()); print('code for', *torch.cuda.get_arch_list())"
)


@dataclasses.dataclass(frozen=True)
class Report:
    """A finished bundle: where it is, what it says, what else to tell, and the exit code that follows."""

    path: Path
    evidence: Evidence
    notes: tuple[str, ...]
    exit_code: int


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
    given |= {name: told for name, told in (("expect_gpu", expect_gpu), ("min_cuda", min_cuda)) if told is not None}
    parameters = split_parameters(given)
    _check_values(parameters, device)
    # In a parameter file and a notebook an empty word accepts any; as an argument it is an unset variable.
    wanted = {"expect_gpu": given.get("expect_gpu") or expect_gpu, "min_cuda": given.get("min_cuda") or min_cuda}
    now = datetime.datetime.now(datetime.UTC)
    record = RunRecord(
        run_id=f"{now:%Y%m%dT%H%M%SZ}-{device}-{secrets.token_hex(2)}",
        # As long as a commit's hash, so that nothing takes it for a secret or a UUID.
        nonce=run_nonce(secrets.token_hex(10), nonce),
        reviewer_nonce=nonce,
        kit_version=__version__,
        code=code_identity(),
        device=device,
        expectation=expect(device=device, gpus=gpus, **wanted),
        parameters=parameters,
        notebooks=(),
        # True at every moment: what this process does not live to change was interrupted.
        state=INTERRUPTED,
        started_utc=now.isoformat(timespec="milliseconds"),
        ended_utc=now.isoformat(timespec="milliseconds"),
        reason="the run was stopped before its end",
    )
    with _signals() as signals:
        bundle = open_bundle(out, record.run_id, ours=(nonce,) if nonce else ())
        run = _Run(bundle, record, progress)
        try:
            signals.is_running = True
            if signals.number:
                raise KeyboardInterrupt
            run.everything()
            signals.is_running = False
        except KeyboardInterrupt:
            signals.is_running = False
            run.note(state=INTERRUPTED, reason=f"interrupted by {signal.Signals(signals.number or signal.SIGINT).name}")
        except Exception as error:  # an error of ours must not cost what was measured
            signals.is_running = False
            run.note(state=FAILED, reason=f"{type(error).__name__}: {error}")
        return _closed(bundle, signals.number)


def close(path: Path) -> Report:
    """Finishes the partial folder of a run that was stopped, with what it measured."""
    return _closed(reopen(path), None)


def load_params(path: Path) -> dict[str, Any]:
    """A flat YAML mapping of parameters. Raises UsageError where the file is missing or is not one."""
    import yaml

    # An installed kit has the parameter sets of the documentation too, wherever it is run.
    path = path if path.exists() or not (SHARE / path).is_file() else SHARE / path
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        is_mapping = isinstance(found, dict) and all(isinstance(key, str) for key in found)
        problem = "" if is_mapping else f"it holds a {type(found).__name__}"
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        problem = str(error)
    if problem:
        expected = "a YAML file in UTF-8: a mapping of parameter names to values"
        raise UsageError(f"{path}: {problem}", expected=expected, todo="see params/ for examples")
    # The notebooks run in a folder of their own.
    for folder in (path.parent, Path()):
        if (folder / str(found.get("dataset", ""))).is_file():
            found["dataset"] = str((folder / found["dataset"]).resolve())
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
    from kit.sweep.table import SweepPlan
    from kit.train.config import TrainConfig
    from kit.train.data import load_texts

    def plan(name: str, kind: type) -> Any:
        given = {"model": "auto", **parameters[name]}
        model = DEFAULT_MODELS[device] if given["model"] == "auto" else given["model"]
        return kind(**{**fields_of(kind, given), "device": device, "model": model})

    config, scaled = plan("02_smoke_training", TrainConfig), parameters["04_scaling"]
    plan("03_throughput", SweepPlan)
    for engine in parameters["03_throughput"].get("short_runs", ()):
        dataclasses.replace(config, engine=engine)
    step = {name: scaled[f"scale_{name}"] for name in ("batch_size", "seq_len", "dtype") if f"scale_{name}" in scaled}
    how = {name: scaled[name] for name in ("parallel", "blocks") if name in scaled}
    ScalePlan(tuple(scaled.get("gpus") or (1,)), scaled_step(device, config.model, **step), **how)
    load_texts(config.dataset)


# --- running ------------------------------------------------------------------------


@contextlib.contextmanager
def _signals() -> Iterator[types.SimpleNamespace]:
    """INT, TERM and HUP: the first ends the run, which then closes; the second ends the process at once.

    What it gives: the number of the first, or None; and is_running, without which that changes nothing more, since
    the report has not begun or is about to end.
    """
    told = types.SimpleNamespace(number=None, is_running=False)

    def first(number: int, frame: object) -> None:
        told.number = number
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        if told.is_running:
            raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, first) for number in _SIGNALS} if is_main else {}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Run:
    """The notebooks at work. record: what raw/run.json says of them at this moment."""

    def __init__(self, bundle: Bundle, record: RunRecord, progress: Callable[[str], None]) -> None:
        self.bundle, self.record, self.progress = bundle, record, progress
        self._began_s, self._clock_s = time.monotonic(), time.time()
        self._smi: list[Capture] = []
        self.note()

    def note(self, **changes: Any) -> None:
        """Keeps the record. The time of the end is counted from the start, whatever became of the machine's clock."""
        now_s = self._clock_s + time.monotonic() - self._began_s
        moved_s, notes = time.time() - now_s, changes.pop("notes", self.record.notes)
        if abs(moved_s) > _CLOCK_STEP_S:
            told = f"The machine's clock was moved by {moved_s:+.0f} s during the run"
            others = (note for note in notes if not note.startswith("The machine's clock"))
            notes = (*others, f"{told}; the durations do not depend on it.")
        ended = datetime.datetime.fromtimestamp(now_s, datetime.UTC).isoformat(timespec="milliseconds")
        self.record = dataclasses.replace(self.record, ended_utc=ended, notes=notes, **changes)
        self.bundle.write_json("raw/run.json", self.record)

    def everything(self) -> None:
        """Runs the notebooks in order; the first that fails, or an unusable GPU, ends the row."""
        os.environ.update(child_environment())
        if keep_bytecode():
            # The kernels are processes of their own; what the first compiles, the others find.
            os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix or ""
            os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        # Other programs look at the machine before and after what is timed, never beside it.
        self.progress("captures: what other programs say of this machine")
        self._capture("torch_version.txt", sys.executable, "-c", _TORCH_VERSION)
        self._capture("env_info.txt", sys.executable, "-m", "torch.utils.collect_env")
        self._look()
        reason = None
        for name in NOTEBOOKS:
            if reason:
                template = json.loads((SHARE / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
                run = NotebookRun(name, "not_run", None, 0, 0, None, reason, source_sha256(template))
            elif name == "04_scaling" and self._is_alone():
                self.progress(f"{name}: left out, one GPU has nothing to be compared with\n")
                continue
            else:
                run = self._one(name)
                reason = None if run.state == "ok" else f"{name} {run.state}: {run.error}"
                if name == NOTEBOOKS[0]:
                    reason = reason or self._unusable()
                elif name == NOTEBOOKS[1] and not reason:
                    self.progress(f"{self._proof()}\n")
            self.note(notebooks=(*self.record.notebooks, run))
            if run.state == "interrupted":
                raise KeyboardInterrupt
        self._look()
        told = {
            "before the notebooks": self._smi[0],
            "between two cells of the training notebook, or after all": max(self._smi[1:], key=_memory_used),
            "how the GPUs are joined": capture("nvidia-smi", "topo", "-m"),
        }
        self.bundle.write("nvidia_smi.txt", "\n".join(f"# {when}\n{found}" for when, found in told.items()))
        again = ("kit", "check", "--facts", str(self.bundle.path / BEGIN), "--device", self.record.device)
        self._capture("cuda_check.txt", sys.executable, "-m", *again)
        self.bundle.write_json("facts/end.json", probe(with_torch=False))
        # Read again: each notebook imported what stood there when its kernel began.
        code = {**self.record.code, "source_sha256_at_end": kit_sha256.__wrapped__()}
        self.note(state=FAILED if reason else COMPLETE, reason=reason, code=code)

    def _one(self, name: str) -> NotebookRun:
        begun = set()

        def at(notebook: str, cell: int, cells: int, seconds: float) -> None:
            self.progress(f"{notebook}: cell {cell} of {cells}, {seconds:.0f} s")
            if name == "02_smoke_training" and self.record.device == "cuda" and cell not in begun:
                begun.add(cell)
                self._look()

        folder = self.bundle.path / "notebooks"
        folder.mkdir(exist_ok=True)
        run = execute(
            SHARE / "notebooks" / f"{name}.ipynb",
            folder / f"{name}.ipynb",
            parameters={**self.record.parameters[name], "nonce": self.record.nonce, "device": self.record.device},
            environment={
                **os.environ,
                BUNDLE_VARIABLE: str(self.bundle.path.resolve()),
                # Of tqdm, which transformers brings: no progress bar of its own is missed here.
                "PYTHONWARNINGS": "ignore:IProgress not found",
            },
            progress=at,
        )
        self.progress(f"{name}: {run.state}, {run.seconds:.0f} s\n")
        return run

    def _capture(self, name: str, *argv: str) -> None:
        """Keeps what a program printed. One that fails or takes too long is told as such, and ends nothing."""
        found = capture(*argv, timeout_s=_CAPTURE_S)
        self.bundle.write(name, str(found))
        if found.exit_code is None:
            self.note(notes=(*self.record.notes, f"{name} holds no capture: {found.text}."))

    def _look(self) -> None:
        self._smi.append(capture("nvidia-smi", *SMI_QUERY))

    def _unusable(self) -> str | None:
        """Why training must not start: the environment's verdict is red. No step runs on the CPU instead."""
        files = {name: self.bundle.path / name for name in ("raw/run.json", BEGIN)}
        if not files[BEGIN].is_file():
            return f"{NOTEBOOKS[0]} left no {BEGIN}"
        checks = conclude({name: path.read_bytes() for name, path in files.items()}).verdict.checks
        claims = [check for check in checks if check.claim in ("environment", "native")]
        red = Verdict.of(check for check in claims if check.id != "environment.still_there")
        return None if red.outcome is not Outcome.FAIL else f"the GPU is not usable: {red.findings[0].found}"

    def _proof(self) -> str:
        """What the promises say before the sweep begins, all but the fifth, which asks for the whole report."""
        names = [name for name in self.bundle.names() if name.startswith(("facts/", "raw/"))]
        try:
            told = conclude({name: (self.bundle.path / name).read_bytes() for name in names})
        except KitError as error:  # the end of the report says what it could not use
            return f"the proof is not told yet: {error.found}"
        promises = [promise for promise in told.promises if promise.number != 5]
        outcome = worst(promise.outcome for promise in promises)
        red = [f"{promise.text}: {promise.sentence}" for promise in promises if promise.outcome in RED]
        took_s = time.monotonic() - self._began_s
        return "; ".join([f"the proof, {took_s:.0f} s after the start: {outcome}", *red])

    def _is_alone(self) -> bool:
        """Whether torch saw one GPU only: then no bundle claims anything about several."""
        facts = from_json(MachineFacts, loads((self.bundle.path / BEGIN).read_bytes()))
        return self.record.device == "cuda" and (facts.torch is None or len(facts.torch.gpus) < 2)


# --- the one place where a report ends ----------------------------------------------


def _closed(bundle: Bundle, number: int | None) -> Report:
    """Settles, concludes, writes and publishes, verifies the result, and lists it; in this order for every state.

    number: of the signal that ended the run. The exit code is the verifier's, so that `kit verify` cannot disagree.
    """
    try:
        path, evidence, files = _published(bundle)
    except KitError as error:
        todo = f"{error.todo}; then: python -m kit report --close {bundle.path}"
        raise type(error)(error.found, expected=error.expected, todo=todo) from error
    found, notes = verify(path), [*_remedy(evidence, files), *bundle.notes]
    if found.integrity is not Outcome.PASS:
        notes.append(f"This report does not verify: python -m kit verify {path}")
    try:
        write_index(path.parent)
    except Exception as error:  # the neighbours are not ours, and this report is whole
        notes.append(f"The list of reports was not written: {error}")
    code = 128 + (number or signal.SIGINT) if evidence.state == INTERRUPTED else found.exit_code
    return Report(path, evidence, tuple(notes), code)


def _published(bundle: Bundle) -> tuple[Path, Evidence, Mapping[str, bytes]]:
    """Raw files from which nothing can be concluded are left out, and what is not whole is not called COMPLETE. Where
    no report can be made of a run that is not, as when a word of it is private, nothing but that is told."""
    while True:
        files = bundle.settle()
        record = from_json(RunRecord, loads(files["raw/run.json"]))
        out: list[str] = []
        try:
            evidence = conclude(files)
        except Exception as error:  # whatever a notebook wrote
            told = str(getattr(error, "found", error))
            raw = [name for name in files if name != "raw/run.json"]
            out = [name for name in raw if told.startswith(name)] or raw
            if not out:
                raise
        else:
            try:
                return bundle.finish(evidence), evidence, files
            except BundleInvalid as error:
                told = error.found
                if record.state != COMPLETE:
                    out = [name for name in bundle.names() if name != "raw/run.json"]
                    if not (out or record.notebooks):
                        raise
                    record = dataclasses.replace(record, state=FAILED, notebooks=(), notes=(), reason=told)
        for name in out:
            bundle.leave_out(name)
        state = FAILED if record.state == COMPLETE else record.state
        bundle.write_json("raw/run.json", dataclasses.replace(record, state=state, reason=record.reason or told))


def _remedy(evidence: Evidence, files: Mapping[str, bytes]) -> tuple[str, ...]:
    """What to do about a machine that cannot train, in lines."""
    if evidence.device == "cpu" or BEGIN not in files:
        return ()
    facts = from_json(MachineFacts, loads(files[BEGIN]))
    found = judge(facts, from_json(RunRecord, loads(files["raw/run.json"])).expectation)
    cure = remedy(found, facts)
    return (cure.summary, *(f"    {command}" for command in cure.commands)) if found.outcome is not Outcome.PASS else ()


def code_identity() -> dict[str, Any]:
    """Which code ran: a hash over the package's sources, and the commit where git tells it."""
    # Unpacked inside somebody's repository it has no commit of its own.
    is_tracked = _git("ls-files", "--error-unmatch", "kit/__init__.py") is not None
    ours = ("--", ".", ":(exclude)reports")
    changed = is_tracked and _git("status", "--porcelain", "--untracked-files=no", *ours)
    added = is_tracked and _git("status", "--porcelain", "--untracked-files=all", "--", "kit")
    diff = _git("diff", "HEAD", *ours) if changed else None
    return {
        "source_sha256": kit_sha256(),
        "python": this_python(),
        "commit": _git("rev-parse", "HEAD") if is_tracked else None,
        "is_dirty": bool(changed or added) if is_tracked else None,
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
    }


def _git(*args: str) -> str | None:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, timeout=10, check=False)
        if done.returncode == 0:
            return done.stdout.decode("utf-8", errors="replace").strip()
    return None


def _memory_used(found: Capture) -> int:
    """MiB in use over all cards, from the column memory.used of nvidia-smi's CSV; 0 where it printed none."""
    return sum(int(mib) for mib in re.findall(r"MiB, (\d+) MiB", found.text))
