"""Stores the outputs that nbval compares, after a change that is meant: run this file.

Runs each notebook on the CPU with its own parameters and keeps the outputs of the tagged cells only;
all others stay empty. Look at the diff before you commit it.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
TAG = "nbval-check-output"


def store(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    ran = nbformat.read(path, as_version=4)
    for cell in ran.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source = cell.source.replace('device: str = "auto"', 'device: str = "cpu"')
    NotebookClient(
        ran, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    for cell, done in zip(notebook.cells, ran.cells):
        if cell.cell_type == "code":
            is_compared = TAG in cell.metadata.get("tags", ())
            cell.outputs = done.outputs if is_compared else []
            # nbval compares a cell only where its execution count says that it was run.
            cell.execution_count = done.execution_count if is_compared else None
            cell.metadata.pop("execution", None)
    path.write_text(nbformat.writes(notebook, indent=1) + "\n", encoding="utf-8", newline="\n")
    print(f"stored: {path.name}")


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    for name in sys.argv[1:] or sorted((ROOT / "notebooks").glob("*.ipynb")):
        store(Path(name))
