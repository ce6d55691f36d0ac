"""Dated facts with sources, as JSON: wheels, drivers, GPUs. Read once, at first use."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any


@functools.cache
def load(name: str) -> Any:
    """The contents of `name`.json beside this file. Treat it as read-only: it is shared."""
    return json.loads((Path(__file__).parent / f"{name}.json").read_text(encoding="utf-8"))
