"""Starts writers of bundles and kills them at random moments; prints what is left as one JSON object.

A program of its own, since it forks: `python kill_writers.py FOLDER KILLS`.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import evidence_sample as sample

from kit.evidence.bundle import open_bundle
from kit.evidence.verify import verify


def write_bundles(folder):
    for number in range(10**6):
        bundle = open_bundle(folder, f"run-{os.getpid()}-{number}", secrets=sample.NO_SECRETS)
        sample.fill(bundle)
        bundle.finish(sample.conclude(bundle.settle()))


def main(folder, kills):
    draw, states, short, torn = random.Random(3), {"finished": 0, "half-written": 0}, [], []
    for kill in range(kills):
        place = folder / str(kill)
        child = os.fork()
        if child == 0:
            try:
                write_bundles(place)
            finally:
                os._exit(1)
        time.sleep(draw.uniform(0.002, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for path in place.iterdir() if place.exists() else ():
            if not path.is_dir():
                continue
            found = verify(path)
            is_final = not path.name.startswith(".")
            states["finished" if is_final else "half-written"] += 1
            # Under its final name a bundle is whole. Under the other it is no report, unless only the rename was missing.
            if (
                found.integrity.value == "PASS"
                and not (path / "manifest.json").exists()
                or is_final
                and found.integrity.value != "PASS"
            ):
                short.append(f"{path.name}: {found.outcome}")
            for name in ("raw/run.json", "facts/begin.json", "evidence.json"):
                if (path / name).exists():
                    try:
                        json.loads((path / name).read_bytes())
                    except ValueError:
                        torn.append(f"{path.name}/{name}")
        # The next run starts clean, at the same place.
        bundle = open_bundle(place, "after", secrets=sample.NO_SECRETS)
        sample.fill(bundle)
        final = bundle.finish(sample.conclude(bundle.settle()))
        if verify(final).integrity.value != "PASS":
            short.append("the run after the kill")
    print(json.dumps({"kills": kills, **states, "short": short, "torn": torn}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
