"""Stands in for uv, and as `pip-of PYTHON` for pip: makes folders and modules, notes each call. Run as a program."""

import json
import os
import pathlib
import sys

here = pathlib.Path(__file__)
words = sys.argv[1:]
with here.with_name("calls").open("a") as file:
    file.write(json.dumps([words, sorted(os.environ)]) + "\n")
settings = json.loads(here.with_name("settings").read_text())
is_pip = words[0] == "pip-of"
if settings["fail"] and settings["fail"] in " ".join(words) and not (is_pip and settings["pip"]):
    sys.exit("error: No solution found when resolving dependencies")
if words[0] == "venv":
    python = pathlib.Path(words[-1]) / "bin" / "python"
    python.parent.mkdir(exist_ok=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{here}" pip-of "$0" "$@"\n')
    python.chmod(0o700)
    (python.parents[1] / "lib" / "python3.12" / "site-packages").mkdir(parents=True, exist_ok=True)
else:
    python = pathlib.Path(words[1] if is_pip else words[words.index("--python") + 1])
    site = python.parents[1] / "lib" / "python3.12" / "site-packages"
    for module in settings["modules"] if "-r" in words else ["torch"]:
        (site / module).mkdir(exist_ok=True)
        (site / module / "__init__.py").touch()
    if "-r" not in words:
        (site / "torch" / "version.py").write_text("cuda: Optional[str] = " + repr(settings["cuda"]))
