"""Which command needs which packages, and how their absence is noticed without importing them."""

import subprocess
import sys
from pathlib import Path

import pytest

from kit.setup.plan import COMMANDS, Need, missing, read_request

ROOT = Path(__file__).resolve().parents[2]


def package(folder, name, version=None, distribution=None):
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text("raise RuntimeError('it was imported')\n")
    if version:
        info = folder / f"{(distribution or name).replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution or name}\nVersion: {version}\n")


@pytest.mark.parametrize(
    "line",
    ["", "--help", "--version", "verify reports/x", "explain -", "compare a b", "check --facts f.json",
     "check --facts=f.json", "report --help", "raport", "report --device gpu"],
)  # fmt: skip
def test_commands_without_packages_never_set_anything_up(line):
    assert read_request(line.split()) is None


@pytest.mark.parametrize(
    ("line", "device"),
    [
        ("report", "cuda"),
        ("report --device cpu", "cpu"),
        ("report --json --device=cpu", "cpu"),
        ("report --device cpu --device cuda", "cuda"),
        ("check --expect-gpu 5090", "cuda"),
        ("train", "cuda"),
        ("sweep --device cpu", "cpu"),
        ("test", "auto"),
        ("lab", "auto"),
    ],
)
def test_device_is_cuda_unless_the_cpu_is_asked_for_by_name(line, device):
    assert read_request(line.split()).device == device


def test_a_parameter_file_may_ask_for_the_cpu_by_name(tmp_path):
    file = tmp_path / "rehearsal.yaml"
    file.write_text("# a comment\r\nbatch_size: 2\r\ndevice: cpu  # by name\r\n", newline="")
    assert read_request(["train", "--params", str(file)]).device == "cpu"
    assert read_request(["train", "--params", str(file), "--device", "cuda"]).device == "cuda"
    assert read_request(["train", "--params", str(tmp_path / "absent.yaml")]).device == "cuda"


def test_nvml_is_needed_for_the_gpu_only():
    assert "pynvml" in [need.module for need in read_request(["report"]).needs]
    assert "pynvml" not in [need.module for need in read_request(["report", "--device", "cpu"]).needs]


def test_report_needs_neither_jupyterlab_nor_the_test_tools():
    modules = {need.module for need in COMMANDS["report"][0]}
    assert not modules & {"jupyterlab", "nbval", "pytest", "importlinter", "typer", "rich"}


def test_a_package_is_found_without_being_imported(tmp_path):
    package(tmp_path, "torch", "2.13.0+cpu")
    assert missing((Need("torch", "torch", (2, 9)),), tmp_path) == ()


def test_an_absent_package_is_named_as_pip_names_it(tmp_path):
    assert missing((Need("yaml", "PyYAML"),), tmp_path) == ("PyYAML",)


def test_a_version_that_is_too_old_counts_as_missing(tmp_path):
    package(tmp_path, "torch", "2.7.1+cu128")
    (problem,) = missing((Need("torch", "torch", (2, 9)),), tmp_path)
    assert problem == "torch 2.9 or newer (found 2.7.1+cu128)"


def test_check_judges_an_old_torch_instead_of_replacing_it(tmp_path):
    package(tmp_path, "torch", "1.13.1")
    assert missing(read_request(["check"]).needs, tmp_path) == ()


def test_a_leftover_folder_is_not_the_package(tmp_path):
    (tmp_path / "torch").mkdir()
    assert missing((Need("torch", "torch"),), tmp_path) == ("torch",)


def test_a_build_without_metadata_is_taken_as_it_is(tmp_path):
    package(tmp_path, "torch")
    assert missing((Need("torch", "torch", (2, 9)),), tmp_path) == ()


def test_looking_for_all_packages_imports_none_of_them():
    program = (
        "import sys; from kit.setup.plan import missing, read_request\n"
        "missing(read_request(['test']).needs)\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'papermill', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
