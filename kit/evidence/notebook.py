"""Whether an executed notebook is what it says, and the notebook without what it need not tell.

Works on the JSON of a notebook, so a verifier without Jupyter can ask the same questions.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from kit.evidence.redact import strip_png
from kit.evidence.text import without_ansi

# Cells that an execution adds to the template, by papermill's tags.
_ADDED_TAGS = {"injected-parameters", "papermill-error-cell-tag"}


def source_sha256(notebook: Mapping[str, Any]) -> str:
    """Hash of kind and source of each cell: the same for a template and its executed copy.

    Outputs, metadata, line ends and the cells that papermill adds do not count.
    """
    cells = [[cell.get("cell_type"), text(cell.get("source"))] for cell in _own_cells(notebook)]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def problems(notebook: Mapping[str, Any]) -> tuple[str, ...]:
    """Why an executed notebook does not count; empty where every code cell ran once, in order, unharmed."""
    return tuple(_problems(notebook))


def _problems(notebook: Mapping[str, Any]) -> Iterator[str]:
    expected = 0
    for index, cell in enumerate(notebook.get("cells", ())):
        if cell.get("cell_type") != "code" or not text(cell.get("source")).strip():
            continue
        expected += 1
        if cell.get("execution_count") != expected or isinstance(cell.get("execution_count"), bool):
            yield f"cell {index} has execution count {cell.get('execution_count')}, expected {expected}"
        for output in cell.get("outputs", ()):
            if output.get("output_type") == "error":
                yield f"cell {index} ended in {output.get('ename')}: {text(output.get('evalue'))[:200]}"
    if not expected:
        yield "it has no code cell"


def stripped(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without metadata that tells of the machine, and with pictures without theirs."""
    metadata = notebook.get("metadata", {})
    kept = {name: metadata[name] for name in ("kernelspec", "language_info") if name in metadata}
    cells = [_stripped_cell(cell) for cell in notebook.get("cells", ())]
    return {**notebook, "metadata": kept, "cells": cells}


def text(source: Any) -> str:
    """A notebook keeps text as one string or as a list of lines."""
    whole = "".join(part for part in source if isinstance(part, str)) if isinstance(source, list) else source
    return whole.replace("\r\n", "\n") if isinstance(whole, str) else ""


def _own_cells(notebook: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for cell in notebook.get("cells", ()):
        if not _ADDED_TAGS & set(cell.get("metadata", {}).get("tags", ())):
            yield cell


def _stripped_cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    tags = cell.get("metadata", {}).get("tags", [])
    cell = {**cell, "metadata": {"tags": tags} if tags else {}}
    if "outputs" in cell:
        cell["outputs"] = [_stripped_output(output) for output in cell["outputs"]]
    return cell


def _stripped_output(output: Mapping[str, Any]) -> dict[str, Any]:
    output = _plain(output)
    data = output.get("data")
    if not isinstance(data, Mapping) or "image/png" not in data:
        return output
    try:
        picture = strip_png(base64.b64decode(text(data["image/png"])))
    except (ValueError, binascii.Error):
        # Not a picture: nothing to show.
        return {**output, "data": {key: value for key, value in data.items() if key != "image/png"}}
    return {**output, "data": {**data, "image/png": base64.b64encode(picture).decode() + "\n"}}


def _plain(value: Any) -> Any:
    """Without a terminal's colours: they stand inside paths and names, where redaction would not see those."""
    if isinstance(value, str):
        return without_ansi(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value
