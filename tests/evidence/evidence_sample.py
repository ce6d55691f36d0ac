"""A small whole bundle made without torch or Jupyter, and the arithmetic that concludes from it."""

import json
import struct
import zlib
from pathlib import Path

from kit import __version__ as VERSION
from kit.evidence.bundle import open_bundle
from kit.evidence.contents import Evidence, NotebookRun, Number, Promise
from kit.evidence.manifest import MANIFEST, SUMS, Entry, build, sums
from kit.evidence.notebook import source_sha256
from kit.evidence.redact import Secrets
from kit.evidence.render import ro_crate
from kit.records import Check, Outcome, Verdict, dumps, from_json, loads

RUN_ID = "20261101T120000Z-cuda-ab12"
NONCE = "9f" * 16
NO_SECRETS = Secrets(salt=b"test")
CAPTURES = ("env_info.txt", "torch_version.txt", "cuda_check.txt", "nvidia_smi.txt", "training_log.txt")


def png(width=4, extra=b""):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, 1, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + extra
        + chunk(b"IDAT", zlib.compress(b"\0" * (width + 1)))
        + chunk(b"IEND", b"")
    )


def text_chunk(text):
    data = b"Comment\0" + text.encode()
    return struct.pack(">I", len(data)) + b"tEXt" + data + struct.pack(">I", zlib.crc32(b"tEXt" + data))


def notebook(*sources, executed=True):
    cells = [
        {
            "cell_type": "markdown",
            "id": "m",
            "metadata": {},
            "source": "# A notebook\n\nOne `idea` a **cell**.",
        }
    ]
    for count, source in enumerate(sources, 1):
        outputs = [{"output_type": "stream", "name": "stdout", "text": f"ran {count}\n"}] if executed else []
        cells.append(
            {
                "cell_type": "code",
                "id": f"c{count}",
                "metadata": {},
                "source": source,
                "execution_count": count if executed else None,
                "outputs": outputs,
            }
        )
    return {
        "cells": cells,
        "metadata": {"kernelspec": {"name": "python3", "display_name": "P", "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def conclude(files):
    """Verdict and numbers from raw/run.json, raw/steps.jsonl and raw/negative_control.json."""
    run = loads(files["raw/run.json"])
    steps = [loads(line) for line in files.get("raw/steps.jsonl", b"").splitlines()]
    red = loads(files["raw/negative_control.json"])["outcome"] if "raw/negative_control.json" in files else None
    good = {"cuda": Outcome.PASS, "cpu": Outcome.REHEARSAL}[run["device"]]
    checks = [
        Check("native.kernel_ran", good if steps else Outcome.INCONCLUSIVE, f"{len(steps)} steps", "steps"),
        Check(
            "integrity.negative_control",
            {"FAIL": Outcome.PASS, None: Outcome.INCONCLUSIVE}.get(red, Outcome.INVALID),
            f"{red}",
            "FAIL",
        ),
        Check(
            "integrity.notebooks",
            good if run["state"] == "COMPLETE" else Outcome.FAIL,
            run["state"],
            "COMPLETE",
            "" if run["state"] == "COMPLETE" else "repair the cell",
        ),
    ]
    verdict = Verdict.of(checks)
    times = [step["step_time_s"] for step in steps]
    numbers = [
        Number(
            "steady_samples_per_s",
            sum(s["samples"] for s in steps) / sum(times) if steps else None,
            "samples/s",
            "samples over time",
            n=len(steps),
            reason=None if steps else "no step",
        ),
        Number(
            "last_loss",
            steps[-1]["loss"] if steps else None,
            "nats/token",
            "last step",
            n=1,
            reason=None if steps else "no step",
        ),
        Number("parameters", 124_439_808, "1", "counted"),
        Number("max_power_w", None, "W", "highest reading", reason="not available here"),
    ]
    return Evidence(
        schema_version="2.0",
        run_id=run["run_id"],
        nonce=run["nonce"],
        reviewer_nonce=run.get("reviewer_nonce"),
        kit_version=run["kit_version"],
        code={"commit": "ab" * 20, "is_dirty": False},
        device=run["device"],
        state=run["state"],
        started_utc=run["started_utc"],
        ended_utc=run["ended_utc"],
        verdict=verdict,
        claims={"native": str(verdict.claim("native"))},
        promises=(Promise(1, "a kernel really ran", checks[0].outcome, (checks[0].id,), checks[0].found),),
        numbers=tuple(numbers),
        notebooks=from_json(tuple[NotebookRun, ...], run["notebooks"]),
        headline=run.get("headline", f"PyTorch trains natively on the {run['gpu']}."),
        limits=("One process.",),
    )


def run_record(state="COMPLETE", device="cuda", run_id=RUN_ID, **more):
    failed = state != "COMPLETE"
    run = NotebookRun(
        "01_smoke",
        "failed" if failed else "ok",
        1.5,
        2,
        1 if failed else 2,
        2 if failed else None,
        "ZeroDivisionError: division by zero" if failed else None,
        source_sha256(notebook("a = 1", "b = 2")),
    )
    return {
        "run_id": run_id,
        "nonce": NONCE,
        "reviewer_nonce": None,
        "kit_version": VERSION,
        "device": device,
        "state": state,
        "started_utc": "2026-11-01T12:00:00.000+00:00",
        "ended_utc": "2026-11-01T12:01:00.000+00:00",
        "gpu": "NVIDIA H100 80GB HBM3",
        "notebooks": [json.loads(dumps(run))],
        **more,
    }


def fill(bundle, record=None, steps=14, step_time=0.1, loss=4.0):
    """Writes what a run writes, in its order."""
    record = record or run_record(run_id=bundle.run_id)
    bundle.write_json("raw/run.json", {**record, "state": "RUNNING"})
    bundle.write_json("facts/begin.json", {"source": "live", "driver": {"version": "580.159.04"}})
    for step in range(steps):
        bundle.append_line(
            "raw/steps.jsonl",
            {
                "step": step + 1,
                "step_time_s": step_time + 0.001 * (step % 3),
                "samples": 4,
                "loss": loss - step * 0.01,
            },
        )
    bundle.append_line("raw/telemetry.jsonl", {"time_s": 0.5, "power_w": 300.0})
    bundle.write_json("raw/training.json", {"config": {"model": "gpt2"}})
    bundle.write_json("raw/negative_control.json", {"outcome": "FAIL"})
    for run in record["notebooks"]:
        name = run["name"]
        bundle.write(f"notebooks/{name}.ipynb", json.dumps(notebook("a = 1", "b = 2"), indent=1))
        bundle.write_json(f"raw/records/{name}.json", {"notebook": name, "nonce": record["nonce"], "outcome": "PASS"})
    bundle.write("figures/steps.png", png())
    for name in CAPTURES:
        bundle.write(name, f"$ {name}\nexit code 0\n")
    bundle.write_json("facts/end.json", {"source": "live", "driver": {"version": "580.159.04"}})
    bundle.write_json("raw/run.json", record)


def make(folder, *, run_id=RUN_ID, secrets=NO_SECRETS, **more) -> Path:
    """A finished bundle below `folder`."""
    record = run_record(
        run_id=run_id,
        **{
            k: more.pop(k)
            for k in list(more)
            if k
            in (
                "state",
                "device",
                "gpu",
                "headline",
                "reviewer_nonce",
                "started_utc",
                "ended_utc",
                "notebooks",
            )
        },
    )
    with open_bundle(folder, run_id, secrets=secrets) as bundle:
        fill(bundle, record, **more)
        return bundle.finish(conclude(bundle.settle()))


def rehash(path):
    """Makes RO-Crate, SHA256SUMS and manifest true again after an edit, as a forger would who leaves evidence.json alone."""
    evidence = from_json(Evidence, loads((path / "evidence.json").read_bytes()))
    last = ("ro-crate-metadata.json", SUMS, MANIFEST)
    files = {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    entries = [Entry.of(name, data) for name, data in files.items() if name not in last]
    for name, make in zip(
        last, (lambda: ro_crate(evidence, entries), lambda: sums(entries), lambda: build(entries, evidence))
    ):
        (path / name).write_bytes(make())
        entries.append(Entry.of(name, (path / name).read_bytes()))
