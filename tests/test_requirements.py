"""One description of the environment: requirements-gpu.txt, which the other files only repeat or point to."""

import re
import tomllib
from pathlib import Path

import pytest

from kit.setup.plan import NEEDS

ROOT = Path(__file__).resolve().parents[1]


def lines(name):
    """requirement -> its reason, in the order of the file."""
    found = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            requirement, _, reason = line.partition("#")
            found[requirement.strip()] = reason.strip()
    return found


def names(requirements):
    return {re.split(r"[=<>~!;\[ ]", text)[0].lower().replace("_", "-") for text in requirements}


@pytest.mark.parametrize("name", ["requirements-gpu.txt", "requirements-test.txt"])
def test_everything_but_torch_is_pinned_and_has_its_reason(name):
    for requirement, reason in lines(name).items():
        assert reason, f"{requirement} has no reason"
        assert requirement == "torch>=2.9,<2.16" or re.fullmatch(r"[\w.-]+==[\w.]+", requirement), requirement


def test_no_requirement_stands_twice():
    both = [*lines("requirements-gpu.txt"), *lines("requirements-test.txt")]
    assert len(names(both)) == len(both)


def test_conda_file_pins_nothing_of_its_own_but_python():
    """Read as text, since the order and the indentation are ours: `- word` under dependencies and pip."""
    text = (ROOT / "environment-gpu.yml").read_text(encoding="utf-8")
    entries = [line.strip()[2:] for line in text.splitlines() if line.strip().startswith("- ")]
    assert entries == ["conda-forge", "python>=3.11,<3.15", "pip", "pip:", "-r requirements-gpu.txt", "-e ."]


def test_package_metadata_takes_its_dependencies_from_the_same_files():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    dynamic = project["tool"]["setuptools"]["dynamic"]
    assert not {"dependencies", "optional-dependencies", "version"} & set(project["project"])
    assert dynamic["dependencies"] == {"file": "requirements-gpu.txt"}
    assert dynamic["optional-dependencies"] == {"test": {"file": "requirements-test.txt"}}


def test_what_the_commands_need_is_what_gets_installed():
    gpu, test = names(lines("requirements-gpu.txt")), names(lines("requirements-test.txt"))
    for command in NEEDS:
        needed = {need.distribution.lower() for need in NEEDS[command][0]}
        assert needed <= (gpu | test if command == "test" else gpu), command


def test_the_pins_are_not_older_than_what_the_commands_demand():
    pins = dict(
        text.split("==") for name in ("gpu", "test") for text in lines(f"requirements-{name}.txt") if "==" in text
    )
    for need in NEEDS["test"][0]:
        if need.minimum and need.distribution in pins:
            assert tuple(map(int, pins[need.distribution].split(".")))[: len(need.minimum)] >= need.minimum, need


def test_ci_runs_the_test_command_of_the_readme_and_nothing_else():
    commands = [
        line for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    assert commands == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "python3 -m kit test"]
