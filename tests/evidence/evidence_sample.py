"""A whole bundle made without torch or Jupyter from the recorded runs of an H100 and of a rehearsal."""

import base64
import dataclasses
import importlib
import json
import struct
import sys
import zlib
from pathlib import Path

from kit import __version__ as VERSION
from kit.evidence.bundle import open_bundle
from kit.evidence.conclude import conclude
from kit.evidence.contents import Evidence, NotebookRun, run_nonce
from kit.evidence.manifest import EVIDENCE, MANIFEST, SUMS, Entry, build, is_derived, sums
from kit.evidence.notebook import source_sha256
from kit.evidence.redact import Secrets
from kit.evidence.render import derived, ro_crate
from kit.records import dumps, from_json, loads, to_json
from kit.train.steps import audited_steps

for folder in ("train", "gpu"):
    sys.path.append(str(Path(__file__).resolve().parents[1] / folder))
machine_sample, verdict_sample = map(importlib.import_module, ("machine_sample", "verdict_sample"))

RUN_ID = "20261101T120000Z-cuda-ab12"
NONCE = run_nonce("9f" * 10, None)
NO_SECRETS = Secrets(salt=b"test")
CAPTURES = ("env_info.txt", "torch_version.txt", "cuda_check.txt", "nvidia_smi.txt")
SOURCES = ("a = 1", "b = 2")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width=4, extra=b""):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * (width + 1)))
    return b"\x89PNG\r\n\x1a\n" + head + extra + pixels + chunk(b"IEND", b"")


def text_chunk(text):
    return chunk(b"tEXt", b"Comment\0" + text.encode())


def _cell(kind, name, source, tags=(), **more):
    return {"cell_type": kind, "id": name, "metadata": {"tags": [*tags]} if tags else {}, "source": source, **more}


def notebook(*sources, executed=True, nonce=NONCE, pictures=None):
    """An article of one idea and `sources`, one a cell; executed, with the parameters that papermill gives."""
    cells = [_cell("markdown", "m", "# A notebook\n\nOne `idea` a **cell**.")]
    given = ("p", f'# Parameters\nnonce = "{nonce}"\n', ["injected-parameters"])
    code = [given] if executed and nonce else []
    code += [(f"c{count}", source, []) for count, source in enumerate(sources, 1)]
    for count, cell in enumerate(code, 1):
        outputs = [{"output_type": "stream", "name": "stdout", "text": f"ran {count}\n"}] if executed else []
        cells.append(_cell("code", *cell, execution_count=count if executed else None, outputs=outputs))
    for picture in ((png(),) if pictures is None else pictures) if executed else ():
        shown = {"image/png": base64.b64encode(picture).decode() + "\n", "text/plain": "a figure"}
        cells[-1]["outputs"].append({"output_type": "display_data", "data": shown, "metadata": {}})
    kernel = {"name": "python3", "display_name": "P", "language": "python"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def run_record(state="COMPLETE", device="cuda", run_id=RUN_ID, **more):
    failed, sha256 = state != "COMPLETE", source_sha256(notebook(*SOURCES))
    how = ("failed", 1.5, 2, 1, 2, "ZeroDivisionError: division by zero") if failed else ("ok", 1.5, 2, 2, None, None)
    return {
        "run_id": run_id,
        "nonce": run_nonce("9f" * 10, more.get("reviewer_nonce")),
        "reviewer_nonce": None,
        "kit_version": VERSION,
        "code": {"commit": "ab" * 20, "is_dirty": False},
        "device": device,
        "expectation": {"gpu_name": None, "min_cuda": None, "device": device},
        "parameters": {},
        "notebooks": [to_json(NotebookRun("01_smoke", *how, sha256))],
        "state": state,
        "started_utc": "2026-11-01T12:00:00.000+00:00",
        "ended_utc": "2026-11-01T12:01:00.000+00:00",
        "reason": "01_smoke failed" if failed else None,
        **more,
    }


def recorded(device, speed=1.0, nonce=NONCE):
    """The run and the machine that it was on; speed: how many times as long each step takes."""
    made = verdict_sample.healthy() if device == "cuda" else verdict_sample.rehearsed()
    if device == "cuda":
        facts = machine_sample.h100()
        made = made.with_part("telemetry", device_uuid=facts.driver.gpus[0].uuid)
    else:
        facts = json.loads((machine_sample.MACHINES / "no_gpu_rehearsal.json").read_text(encoding="utf-8"))["facts"]
        facts["torch"]["version"] = made.run.versions["torch"]
    stretch = {
        name: (lambda s, name=name: getattr(s, name) and getattr(s, name) * speed)
        for name in ("started_s", "step_time_s", "device_time_s", "wait_s")
    }
    made = made.with_steps(**stretch).with_samples(at_s=lambda s: s.at_s * speed)
    windows = {name: getattr(made.run, name) for name in ("device_window_s", "wall_window_s")}
    # The steps that are looked at follow from the nonce.
    audits = [dataclasses.replace(made.run.audits[0], step=step) for step in sorted(audited_steps(nonce, 14))]
    return facts, made.with_run(
        nonce=nonce, audits=tuple(audits), **{name: value and value * speed for name, value in windows.items()}
    )


def fill(bundle, record=None, speed=1.0):
    """Writes what a run writes, in its order."""
    record = record or run_record(run_id=bundle.run_id)
    facts, made = recorded(record["device"], speed, record["nonce"])
    bundle.write_json("raw/run.json", {**record, "state": "RUNNING"})
    bundle.write_json("facts/begin.json", facts)
    bundle.write_json("raw/training.json", made.run)
    for name, rows in (("steps", made.steps), ("telemetry", made.samples)):
        bundle.write(f"raw/{name}.jsonl", "".join(dumps(row, indent=None) + "\n" for row in rows))
    control = verdict_sample.DATA / "h100_smoke" / "negative_control.json"
    bundle.write_json(
        "raw/negative_control.json", json.loads(control.read_text(encoding="utf-8")) | {"visible_devices": 0}
    )
    for run in record["notebooks"]:
        name = run["name"]
        bundle.write(f"notebooks/{name}.ipynb", json.dumps(notebook(*SOURCES, nonce=record["nonce"]), indent=1))
        bundle.write_json(f"raw/records/{name}.json", {"notebook": name, "nonce": record["nonce"], "outcome": "PASS"})
    bundle.write("figures/steps.png", png())
    for name, text in captures(loads((bundle.path / "facts/begin.json").read_bytes())).items():
        bundle.write(name, text)
    bundle.write_json("facts/end.json", facts)
    bundle.write_json("raw/run.json", record)


def captures(facts):
    said = {"torch_version.txt": f"torch {facts['torch']['version']}\n"}
    for gpu in (facts["driver"] or {}).get("gpus", ()):
        said["nvidia_smi.txt"] = f"{gpu['index']}, {gpu['name']}, {facts['driver']['version']}, 9.0, 81559 MiB\n"
    return {name: f"$ {name}\nexit code: 0\n{said.get(name, '')}" for name in CAPTURES}


def make(folder, *, run_id=RUN_ID, secrets=NO_SECRETS, speed=1.0, **more) -> Path:
    """A finished bundle below `folder`; more: of its record."""
    bundle = open_bundle(folder, run_id, secrets=secrets)
    fill(bundle, run_record(run_id=run_id, **more), speed)
    return bundle.finish(conclude(bundle.settle()))


def files_of(path):
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def rehash(path):
    """Makes RO-Crate, SHA256SUMS and manifest true again after an edit: a forger who leaves evidence.json alone."""
    evidence = from_json(Evidence, loads((path / "evidence.json").read_bytes()))
    last = ("ro-crate-metadata.json", SUMS, MANIFEST)
    entries = [Entry.of(name, data) for name, data in files_of(path).items() if name not in last]
    for name, make in zip(
        last, (lambda: ro_crate(entries, evidence), lambda: sums(entries, evidence), lambda: build(entries, evidence))
    ):
        (path / name).write_bytes(make())
        entries.append(Entry.of(name, (path / name).read_bytes()))


def forge(path, **changes):
    """Concludes again and makes every page again: a forger who knows the kit. changes: of the evidence itself."""
    files = {name: data for name, data in files_of(path).items() if not is_derived(name)}
    evidence = dataclasses.replace(conclude(files), **changes)
    files[EVIDENCE] = (dumps(evidence) + "\n").encode()
    for name, data in {EVIDENCE: files[EVIDENCE], **derived(evidence, files)}.items():
        (path / name).write_bytes(data)
