"""One notebook at work: which device it uses, where its records go, and its final record.

A face: it joins the flows for a notebook and holds no rule of its own. Nothing is kept where
no folder is named, so a notebook opened in JupyterLab leaves nothing behind.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import importlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kit.errors import UsageError
from kit.evidence.bundle import gather, this_python
from kit.evidence.execute import check_parameters, read_parameters
from kit.evidence.redact import redact_value
from kit.evidence.write import write_atomic
from kit.gpu.check import check, resolve_device
from kit.gpu.facts import MachineFacts
from kit.process import SHARE, begin_proof
from kit.records import Outcome, dumps, fields_of, from_json, loads, to_json
from kit.show import Table, card, escape
from kit.sweep.table import progress_text

# Model of a notebook's parameter `model="auto"`, by device.
DEFAULT_MODELS = {"cuda": "gpt2", "cpu": "tiny"}
# The folder of the bundle that a report writes, in the environment of its kernels: a path in a notebook would tell
# whose machine it was.
BUNDLE_VARIABLE = "KIT_BUNDLE"


def _refuse_unknown_parameters() -> None:
    """papermill only warns of a parameter that a notebook does not have, and runs it with the default. A name that
    another notebook has is fine: one parameter file may serve them all. Raises UsageError."""
    ipython = sys.modules.get("IPython")
    kernel = ipython and ipython.get_ipython()
    cells = kernel.user_ns.get("In", ()) if kernel else ()
    injected = ast.parse(next((cell for cell in cells if cell.startswith("# Parameters\n")), ""))
    given = {
        ast.unparse(target): None for node in injected.body if isinstance(node, ast.Assign) for target in node.targets
    }
    known: dict[str, Any] = {}
    for path in sorted((SHARE / "notebooks").glob("*.ipynb")):
        known |= read_parameters(path)
    check_parameters({name: None for name in given if name not in known}, known, where="papermill")


class Session:
    """What a notebook needs from its surroundings. Shows itself as one line, or as a banner for a rehearsal.

    device: 'cuda' or 'cpu', decided. raw: folder for raw records, None where nothing is kept.
    """

    def __init__(self, name: str, *, device: str = "auto", out: str = "", nonce: str = "") -> None:
        begin_proof()
        _refuse_unknown_parameters()
        self.name, self.nonce = name, nonce
        if nonce:
            # The steps that are watched are drawn from it, in this process and in those that it starts.
            os.environ["KIT_NONCE"] = nonce
        self.device = resolve_device(device)
        out = out or os.environ.get(BUNDLE_VARIABLE, "")
        self.out = Path(out) if out else None
        self.raw = self.out / "raw" if self.out else None
        self._thread_errors: list[str] = []
        threading.excepthook = self._note_thread_error
        if self.out and not self.out.is_dir():
            raise UsageError(
                f"out={out!r} is not a folder",
                expected="an existing folder, or empty to keep nothing",
                todo="create it or leave it empty",
            )

    def config(self, kind: type, given: Mapping[str, Any]) -> Any:
        """The plan `kind` of a notebook: its parameters as they stand in `given`, on this session's device."""
        return kind(**{**fields_of(kind, given), "device": self.device, "model": self.model(given["model"])})

    def model(self, name: str) -> str:
        """The model's name; 'auto' is GPT-2 on a GPU and a tiny model in a rehearsal."""
        return DEFAULT_MODELS[self.device] if name == "auto" else name

    def gpus(self, asked: list[int]) -> tuple[int, ...]:
        """Numbers of GPUs to compare: as asked for, or 1, 2, 4 … and all that are there; two ranks in a rehearsal."""
        if asked:
            return tuple(asked)
        import torch

        count = torch.cuda.device_count() if self.device == "cuda" else 2
        return tuple(sorted({2**power for power in range(count.bit_length())} | {count}))

    def keep_json(self, name: str, value: Any) -> None:
        """Writes a value below `out`, without what must not leave the machine."""
        if self.out:
            write_atomic(self.out / name, dumps(redact_value(to_json(value), gather())) + "\n")

    def picture(self, figure, name: str, *, alt: str) -> Picture:
        """Keeps a figure as PNG and SVG, which names the run, and returns it as something a cell can show."""
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", metadata={"Software": None})
        told = {"Date": None, "Creator": None, "Description": alt, "Identifier": self.nonce or None}
        figure.savefig(svg, format="svg", metadata=told)
        if self.out:
            write_atomic(self.out / "figures" / f"{name}.png", png.getvalue())
            write_atomic(self.out / "figures" / f"{name}.svg", svg.getvalue())
        return Picture(png.getvalue(), alt)

    def live(self, steps: int) -> Callable[[Any], None] | None:
        """What `train(on_step=...)` calls to draw the run between its timed steps, in a fifth of the time at most."""
        place, records, due = self._one_place("The first step is being trained."), [], 0.0
        if place is None:
            return None

        def draw(record: Any) -> None:
            nonlocal due
            records.append(record)
            began = time.monotonic()
            if began >= due:
                from kit import plots

                png, caption = io.BytesIO(), f"step {record.step} of {steps}"
                figure = plots.training(records, (), caption=caption)
                for axis in figure.axes[:2]:
                    axis.set_xlim(0, steps + 1)
                figure.savefig(png, format="png", dpi=80)
                place(Picture(png.getvalue(), f"Loss and memory up to {caption}."))
                due = time.monotonic() + 4 * (time.monotonic() - began)

        return draw

    def progress(self) -> Callable[..., None] | None:
        """What `sweep(on_progress=...)` calls: one line in one place."""
        place = self._one_place("The first point is being measured.")
        return place and (lambda *count: place(progress_text(*count)))

    def _one_place(self, first: str) -> Callable[..., None] | None:
        """Shows one text or picture after another in the same place of a notebook; None where records are kept, since a
        headless run has nobody who watches, and outside a kernel."""
        ipython = sys.modules.get("IPython")
        if self.out or ipython is None or not hasattr(ipython.get_ipython(), "kernel"):
            return None
        from IPython.display import Pretty, display

        place = display(Pretty(first), display_id=True)
        return lambda value: place.update(Pretty(value) if isinstance(value, str) else value)

    def finish(self, outcome: Outcome) -> str:
        """Writes the final record; a notebook without one has not ended. Returns the closing sentence."""
        if self.out:
            with contextlib.suppress(Exception):
                # Of several ranks this kernel is none, so it may not have needed torch.
                importlib.import_module("torch")
            self.keep_json(
                f"raw/records/{self.name}.json",
                {
                    "notebook": self.name,
                    "nonce": self.nonce,
                    "outcome": outcome,
                    "device": self.device,
                    "python": this_python(),
                    "torch": getattr(sys.modules.get("torch"), "__version__", None),
                    "is_optimized": bool(sys.flags.optimize),
                    "thread_errors": self._thread_errors,
                },
            )
        return f"{self.name}: {outcome} on {self.device}" + ("" if self.out else " (nothing kept: no folder named)")

    def _note_thread_error(self, args: Any) -> None:
        self._thread_errors.append(f"{args.exc_type.__name__}: {args.exc_value}")
        sys.__excepthook__(args.exc_type, args.exc_value, args.exc_traceback)

    def __repr__(self) -> str:
        if self.device == "cuda":
            return f"{self.name}: on the GPU"
        return f"{self.name}: REHEARSAL on the CPU. Nothing here says anything about a GPU."

    def _repr_html_(self) -> str:
        return (
            f"<p>{escape(repr(self))}</p>"
            if self.device == "cuda"
            else card(
                "<b>REHEARSAL on the CPU</b>",
                "<p>This machine shows no NVIDIA device, or the CPU was asked for by name. Everything but the GPU "
                "is exercised; nothing below says anything about a GPU.</p>",
                Outcome.REHEARSAL,
            )
        )


def recorded_machines(*names: str) -> Table:
    """What the judge says of recorded machines, one a row; `names` are files of tests/machines."""
    rows = []
    for name in names:
        path = SHARE / "tests" / "machines" / f"{name}.json"
        if not path.is_file():
            raise UsageError(f"{path} is no file", expected="a recorded machine", todo="correct the name")
        facts = from_json(MachineFacts, loads(path.read_bytes())["facts"])
        result = check(device="cuda", facts=facts)
        variants = () if result.verdict.outcome is Outcome.PASS else result.remedy.torch_variants
        rows.append((name, result.verdict.outcome, result.verdict.diagnosis, ", ".join(variants) or "–"))
    return Table(("machine", "verdict", "diagnosis", "torch builds that would serve"), tuple(rows))


class Picture:
    """A PNG with its alternative text."""

    def __init__(self, png: bytes, alt: str) -> None:
        self.png, self.alt = png, alt

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = {"image/png": base64.b64encode(self.png).decode(), "text/plain": repr(self)}
        return data, {"image/png": {"alt": self.alt}}
