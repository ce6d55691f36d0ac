"""Small tools, one for each place where the kit touches the world: nvidia-smi, NVML, torch, recorded facts."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import kit
from kit.errors import KitError
from kit.gpu.facts import MachineFacts
from kit.records import Check, Outcome, Verdict, from_json, loads

HERE = Path(__file__).resolve().parent
ROOT = Path(kit.__file__).resolve().parents[1]
DATA = Path(__file__).resolve().parents[2] / "data"


@dataclasses.dataclass(frozen=True)
class Said:
    """What the product said: its verdict, and each check by its id."""

    outcome: Outcome
    checks: dict[str, Check]

    @classmethod
    def of(cls, verdict: Verdict):
        return cls(verdict.outcome, {check.id: check for check in verdict.checks})

    @property
    def red(self):
        """Required checks that are neither PASS nor REHEARSAL."""
        good = (Outcome.PASS, Outcome.REHEARSAL)
        return [check for check in self.checks.values() if check.required and check.outcome not in good]


def refused(work):
    """What `work()` says; an error of the kit is a FAIL under the name of its class."""
    try:
        return work()
    except KitError as error:
        outcome = {1: Outcome.FAIL, 2: Outcome.FAIL, 4: Outcome.INVALID}.get(error.exit_code, Outcome.INVALID)
        check = Check(type(error).__name__, outcome, error.found, error.expected, error.todo)
        return Said(outcome, {check.id: check})


# --- recorded facts -----------------------------------------------------------------


def facts(**changes):
    """The recorded facts of a healthy H100; 'driver', 'torch', 'proof' and 'platform' take changes of their own."""
    found = from_json(MachineFacts, loads((DATA / "h100_smoke" / "begin.json").read_bytes()))
    for name, value in changes.items():
        if isinstance(value, dict) and name in ("driver", "torch", "proof", "platform"):
            value = dataclasses.replace(getattr(found, name), **value)
        found = dataclasses.replace(found, **{name: value})
    return found


def gpu(side="driver", **changes):
    """The recorded GPU as one witness sees it, changed."""
    return dataclasses.replace(getattr(facts(), side).gpus[0], **changes)


# --- programs and processes ---------------------------------------------------------


def fake_smi(folder, *, text="", exit_code=0, log=""):
    """A folder for the front of PATH whose nvidia-smi prints `text` and ends with `exit_code`, and whose dmesg
    prints `log`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, said, code in (("nvidia-smi", text, exit_code), ("dmesg", log or "a quiet kernel", 0)):
        (folder / f"{name}.txt").write_text(said, encoding="utf-8", newline="\n")
        program = folder / name
        program.write_text(f"#!/bin/sh\ncat '{folder}/{name}.txt'\nexit {code}\n", encoding="utf-8", newline="\n")
        program.chmod(0o755)
    return folder


def smi_text(name, *, driver="580.159.04"):
    """What the kit's own query gets for one card."""
    from kit.gpu.probe import SMI_QUERY

    fields = SMI_QUERY[0].partition("=")[2].split(",")
    known = {"index": "0", "name": name, "driver_version": driver, "compute_cap": "12.0", "memory.total": "32607 MiB"}
    return ", ".join(fields) + "\n" + ", ".join(known.get(field, "0") for field in fields) + "\n"


def child(*argv, recipe=None, nvml=None, smi=None, env=None, timeout_s=120):
    """Runs `python -m kit ARGV --json` in a process with the given seams; returns exit code and what it said.

    recipe: a name in seams/recipes. nvml: a file for the fake pynvml. smi: a folder for the front of PATH.
    """
    path = [str(ROOT)] + ([str(HERE / "nvml")] if nvml else []) + ([str(HERE / "site")] if recipe else [])
    given = {**os.environ, "PYTHONPATH": os.pathsep.join(reversed(path)), "KINETO_LOG_LEVEL": "6",
             "OMP_NUM_THREADS": "1", **(env or {})}  # fmt: skip
    if recipe:
        given["SABOTAGE_RECIPE"] = str(HERE / "recipes" / f"{recipe}.py")
    if nvml:
        given["FAKE_NVML"] = str(nvml)
    if smi:
        given["PATH"] = os.pathsep.join([str(smi), given["PATH"]])
    command = [sys.executable, "-m", "kit", *argv, "--json"]
    done = subprocess.run(command, env=given, cwd=ROOT, capture_output=True, timeout=timeout_s, check=False)
    return done.returncode, _read(done)


def _read(done):
    """The one JSON object on stdout; `kit check` tells its findings only, so the verdict itself counts as a check."""
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        text = done.stderr.decode("utf-8", "replace")[-2000:]
        return Said(Outcome.INVALID, {"crash": Check("crash", Outcome.INVALID, text, "one JSON object")})
    # A wrong argument has no verdict; it is no success either.
    outcome = Outcome(answer["verdict"] or Outcome.FAIL)
    checks = [Check("verdict", outcome, f"exit code {done.returncode}", "")]
    if "error" in answer:
        error = answer["error"]
        checks.append(Check("error", Outcome.FAIL, error["found"], error["expected"], error["todo"]))
    checks += [from_json(Check, check) for check in answer.get("checks") or answer.get("findings") or ()]
    return Said(outcome, {check.id: check for check in checks})


# --- NVML ---------------------------------------------------------------------------


def card(uuid="GPU-11111111-2222-3333-4444-555555555555", name="NVIDIA GeForce RTX 5090", **more):
    """One idle card for the fake NVML."""
    idle = {"used": 500_000_000, "power": 30, "clock": 210}
    return {
        "uuid": uuid,
        "name": name,
        "capability": [12, 0],
        "memory": 34_190_458_880,
        "idle": idle,
        "frames": [],
        **more,
    }


def working(pid, *, used=3_500_000_000, **more):
    """A reading of a card on which process `pid` trains."""
    frame = {"used": used + 500_000_000, "power": 300, "clock": 2500, "utilization": 60, "processes": [[pid, used]]}
    return {**frame, **more}


def nvml_file(path, *devices, **more):
    Path(path).write_text(json.dumps({"devices": list(devices), **more}), encoding="utf-8")
    return Path(path)


@contextlib.contextmanager
def fake_nvml(path):
    """The fake pynvml in this process. Yields the module, whose timeline runs from `play()` on."""
    spec = importlib.util.spec_from_file_location("pynvml", HERE / "nvml" / "pynvml.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with mock.patch.dict(sys.modules, {"pynvml": module}), mock.patch.dict(os.environ, {"FAKE_NVML": str(path)}):
        yield module
