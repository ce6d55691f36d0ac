"""Ends reports at random moments by signals, and says what is left: `python -m tools.torture 200`.

The kit runs as it is, from a copy, on a notebook that fails after a moment, so that the others are not run, and beside
a torch that only tells its version: what is tried is the report, not the training. A run may leave nothing (it had not begun), a bundle that
verifies, or a partial folder that `kit report --close` makes one.
"""

from __future__ import annotations

import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
NAMES = ("01_env_check", "02_smoke_training", "03_throughput", "04_scaling")
FACTS = ROOT / "tests" / "machines" / "no_gpu_rehearsal.json"
# A torch that only tells its version, and nothing that checks the format of addresses, whose import takes longer than a report.
_FAKES = {
    "rfc3987_syntax.py": "raise ImportError",
    "torch/__init__.py": "class version: cuda = None\nclass cuda:\n    get_arch_list = staticmethod(list)\n__version__ = '2.13.0+cpu'\n"
    "class backends:\n    class cudnn:\n        version = staticmethod(lambda: None)\n",
    "torch/utils/__init__.py": "",
    "torch/utils/collect_env.py": "print('PyTorch version: 2.13.0+cpu')",
}


def small_kit(folder: Path, cells: Mapping[str, str] = {}) -> Path:  # noqa: B006
    """A copy of the kit whose notebooks do nothing but keep facts, run a cell each, and finish. cells: their source."""
    for name in ("kit", "params"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "notebooks").mkdir()
    for name in NAMES:
        begin = f"import json, kit\nsession = kit.Session({name!r}, device=device, nonce=nonce)\n"
        if name == NAMES[0]:
            facts = json.loads(FACTS.read_text(encoding="utf-8"))["facts"]
            begin += f"session.keep_json('facts/begin.json', json.loads({json.dumps(facts)!r}))\n"
        end = "print(session.finish(kit.Outcome.REHEARSAL))"
        sources = ['device: str = "auto"\nnonce: str = ""', begin, cells.get(name, "import time; time.sleep(0.2)"), end]
        made = [
            {"cell_type": "code", "id": f"c{at}", "source": source, "metadata": {"tags": ["parameters"][at:]}}
            | {"outputs": [], "execution_count": None}
            for at, source in enumerate(sources)
        ]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
        (folder / "notebooks" / f"{name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    (folder / "params" / "none.yaml").write_text("device: cpu\n", encoding="utf-8")
    for name, text in _FAKES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def start(kit: Path, *args: str, **environment: str) -> subprocess.Popen[str]:
    """`python -m kit` from a copy."""
    own = {"PYTHONPATH": str(kit), "PYTHONDONTWRITEBYTECODE": "", "COLUMNS": "200", **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "kit", *args],
        cwd=kit,
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def report(kit: Path, out: Path, *args: str, **environment: str) -> subprocess.Popen[str]:
    arguments = ("report", "--device", "cpu", "--params", str(kit / "params" / "none.yaml"), "--out", str(out))
    return start(kit, *arguments, *args, **environment)


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and all that it printed."""
    told = process.communicate(timeout=300)
    return process.returncode, told[0] + told[1]


def ended(kit: Path, out: Path) -> str:
    """What stands in `out`: the state of a bundle that verifies, after `--close` where that was needed, or a fault."""
    partial = [path for path in out.glob(".*.partial") if (path / "raw" / "run.json").exists()] if out.exists() else []
    for path in partial:
        code, told = finished(start(kit, "report", "--close", str(path)))
        # 1 is of a report that was through, and failed, before a second signal ended its closing.
        if code not in (1, 130):
            return f"fault: closing gave {code}: {told[-1500:]}"
    bundles = [path.parent for path in out.glob("[!.]*/manifest.json")]
    if not bundles:
        return "nothing"
    code, told = finished(start(kit, "verify", str(bundles[0])))
    state = json.loads((bundles[0] / "evidence.json").read_text(encoding="utf-8"))["state"]
    if code == 4:
        return f"fault: {told[-1500:]}"
    return f"{state}, closed" if partial else state


def torture(count: int, *, seed: int = 0) -> dict[str, list[str]]:
    """What `count` reports left that a signal, or two, ended at a random moment: by outcome, which signals and when."""
    draw, outcomes = random.Random(seed), collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        kit = small_kit(Path(folder) / "kit", {NAMES[0]: "import time; time.sleep(0.5); raise SystemError('enough')"})
        whole_s = 0.0
        # The first compiles every module; the second takes as long as those that are ended.
        for name in ("cold", "warm"):
            began = time.monotonic()
            code, told = finished(report(kit, Path(folder) / name))
            whole_s = time.monotonic() - began
            if (left := ended(kit, Path(folder) / name)) != "FAILED":
                raise SystemExit(f"a report that no signal ends leaves {left} and exit code {code}:\n{told[-1500:]}")
        for number in range(count):
            out = Path(folder) / str(number)
            process, numbers = report(kit, out), draw.choices(SIGNALS, k=draw.choice((1, 1, 2)))
            # Half of them where it closes, which is short.
            after_s = draw.uniform(*draw.choice(((0.1, 1.0), (0.85, 1.05)))) * whole_s
            time.sleep(after_s)
            # How long one takes changes with what else the machine does.
            whole_s *= 1.02 if process.poll() is None else 0.9
            for signal_number in numbers:
                process.send_signal(signal_number)
                time.sleep(draw.uniform(0, 0.5))
            finished(process)
            words = (
                f"{'+'.join(n.name for n in numbers)} at {after_s:.1f} of {whole_s:.1f} s, exit {process.returncode}"
            )
            outcomes[ended(kit, out)].append(words)
    return dict(outcomes)


if __name__ == "__main__":
    for ignored in (number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN):
        # As under nohup; the reports would begin with it.
        signal.signal(ignored, signal.SIG_DFL)
    found = torture(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
    for outcome, runs in sorted(found.items()):
        print(f"{len(runs):4}  {outcome}")
    print(textwrap.indent("\n".join(run for o, runs in found.items() if o.startswith("fault") for run in runs), "  "))
    sys.exit(any(outcome.startswith("fault") for outcome in found))
