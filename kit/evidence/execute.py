"""Runs one notebook with papermill and says truthfully whether it ran.

papermill accepts unknown parameters with a warning, checks no types, and calls cells complete
that never ran. Here parameters are checked first against the notebook's own parameters cell,
and a run counts only by what the cells themselves recorded.
"""

import ast
import contextlib
import difflib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from kit.errors import UsageError
from kit.evidence.contents import NotebookRun
from kit.evidence.notebook import problems, source_sha256, text

# notebook, cell (from 1), cells, seconds since its start
Progress = Callable[[str, int, int, float], None]
_KERNEL_START_S = 120
_CELL_S = 1800
# A cell may take minutes: who watches a log is told that often that it still runs.
_TELL_S = 20.0


def read_parameters(path: Path) -> dict[str, tuple[str, Any]]:
    """Type as written and default of each parameter of a notebook: its parameters cell, parsed and never run."""
    found = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        is_theirs = "parameters" in cell.get("metadata", {}).get("tags", ())
        for node in ast.parse(text(cell["source"])).body if is_theirs else ():
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                found[node.target.id] = ast.unparse(node.annotation), ast.literal_eval(node.value)
    return found


def check_parameters(given: Mapping[str, Any], known: Mapping[str, tuple[str, Any]], *, where: str) -> dict[str, Any]:
    """`given` with the types that `known` asks for. Raises UsageError that names every problem at once."""
    problems_found, expected, checked = [], [], {}
    for name, value in given.items():
        kind, default = known.get(name, ("", None))
        checked[name] = _as_kind(value, kind, default)
        if not kind:
            close = difflib.get_close_matches(name, known, n=1)
            problems_found.append(f"unknown parameter {name!r}" + (f", did you mean {close[0]!r}?" if close else ""))
            expected.append("one of " + ", ".join(sorted(known)))
        elif checked[name] is None:
            problems_found.append(f"{name}={value!r} is a {type(value).__name__}")
            expected.append(f"{name}: {kind}, for example {default!r}")
    if problems_found:
        found, wanted = "; ".join(problems_found), "; ".join(dict.fromkeys(expected))
        raise UsageError(f"{where}: {found}", expected=wanted, todo="correct it and run again; nothing was run")
    return checked


def _as_kind(value: Any, kind: str, default: Any) -> Any:
    """`value` where its type fits, an int as a float where one is asked for, else None."""
    if kind == "float" and type(value) is int:
        return float(value)
    wanted: Any = {"str": str, "int": int, "float": float, "bool": bool, "list": list}.get(kind, type(default))
    if wanted is not type(value):
        return None
    odd = {type(item) for item in value} - {type(default[0])} if wanted is list and default else set()
    return None if odd else value


def execute(
    path: Path,
    executed: Path,
    *,
    parameters: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
    progress: Progress = lambda *at: None,
) -> NotebookRun:
    """Runs the notebook at `path` into `executed`, in a kernel of this very Python whatever kernels are installed.

    environment: of the kernel; None is this process's. progress: called before each cell and while one runs. An error in a cell and an
    interrupt are states, not exceptions.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    template = json.loads(path.read_text(encoding="utf-8"))
    name, start, caught, state = path.stem, time.monotonic(), None, "ok"
    with tempfile.TemporaryFile() as log:
        _use_engine(name, start, progress, {"stderr": log, "env": dict(environment or os.environ)})
        try:
            papermill.execute_notebook(
                str(path),
                str(executed),
                parameters=dict(parameters),
                engine_name="kit",
                kernel_name="python3",
                progress_bar=False,
                log_output=False,
                cwd=str(path.parent),
                execution_timeout=_CELL_S,
            )
        except PapermillExecutionError as error:
            state, caught = "failed", f"{error.ename}: {error.evalue}"
        except KeyboardInterrupt:
            state, caught = "interrupted", "interrupted"
        except Exception as error:  # a dead kernel, a timeout, a lost connection: each library has its own class
            state, caught = "failed", f"{type(error).__name__}: {error}{_last_words(log)}"
    return _outcome(name, template, executed, state, caught, time.monotonic() - start)


def _outcome(name, template, executed: Path, state: str, caught: str | None, seconds: float) -> NotebookRun:
    """Believes the executed notebook's cells, not the engine."""
    done: dict[str, Any] = {"cells": []}
    with contextlib.suppress(OSError, ValueError):
        done = json.loads(executed.read_text(encoding="utf-8"))
    code = [cell for cell in done["cells"] if cell["cell_type"] == "code" and text(cell["source"]).strip()]
    red = [any(one.get("output_type") == "error" for one in cell.get("outputs", ())) for cell in done["cells"]]
    found = list(problems(done))
    if source_sha256(done) != source_sha256(template):
        found.append("the executed cells are not those of the template")
    if state == "ok" and found:
        state, caught = "failed", found[0]
    return NotebookRun(
        name=name,
        state=state,
        seconds=seconds,
        cells=len(code),
        cells_run=sum(cell.get("execution_count") is not None for cell in code),
        failing_cell=red.index(True) if any(red) else None,
        error=caught and caught.strip()[:2000],
        template_sha256=source_sha256(template),
    )


def _last_words(log: IO[bytes]) -> str:
    """What a kernel that died wrote to its stderr, which no cell shows."""
    log.seek(0)
    lines = log.read().decode("utf-8", errors="replace").splitlines()
    kept = [line for line in lines if line.strip() and "[IPKernelApp]" not in line][-5:]
    return "".join(f"\n{line}" for line in kept)


def _use_engine(name: str, start: float, progress: Progress, kernel: Mapping[str, Any]) -> None:
    """Registers papermill's own engine with a line of progress for each cell. kernel: how its process is started."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import Engine, papermill_engines

    class KitEngine(Engine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, *, execution_timeout, cwd=None, **_):
            begin, at, is_over = nb_man.cell_start, 1, threading.Event()

            def tell() -> None:
                progress(name, at, len(nb_man.nb.cells), time.monotonic() - start)

            def cell_start(cell, cell_index=None, **more):
                nonlocal at
                at = (cell_index or 0) + 1
                tell()
                return begin(cell, cell_index, **more)

            def tell_again() -> None:
                while not is_over.wait(_TELL_S):
                    tell()

            nb_man.cell_start = cell_start
            threading.Thread(target=tell_again, daemon=True).start()
            # Without folders to look in, "python3" is the kernel of the Python that runs here.
            specs = KernelSpecManager(kernel_dirs=[])
            client = PapermillNotebookClient(
                nb_man,
                km=AsyncKernelManager(kernel_name=kernel_name, kernel_spec_manager=specs),
                timeout=execution_timeout,
                startup_timeout=_KERNEL_START_S,
                resources={"metadata": {"path": cwd}},
            )
            try:
                return client.execute(cleanup_kc=True, **kernel)
            finally:
                is_over.set()

    papermill_engines.register("kit", KitEngine)
