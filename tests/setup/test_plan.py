"""What a command needs, and which torch build is picked for which machine. Nothing here installs or imports."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kit.cli import BARE, COMMANDS, PASS_ON, main, parser
from kit.errors import GpuNotUsable, UsageError
from kit.gpu.facts import Driver, Gpu
from kit.setup.plan import NEEDS, Machine, Need, missing, no_gpu, pick_torch, read_request

ROOT = Path(__file__).resolve().parents[2]


def request(line):
    return read_request(parser()[0].parse_args(line.split()))


def package(folder, name, version=None, distribution=None):
    (folder / name).mkdir(parents=True)
    text = "raise RuntimeError('it was imported')\n"
    (folder / name / "__init__.py").write_text(text)
    if version:
        info = folder / f"{(distribution or name).replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution or name}\nVersion: {version}\n")
        (info / "RECORD").write_text(f"{name}/__init__.py,sha256=x,{len(text)}\n{name}/gone/deep.py,,9\n")


def test_every_command_says_what_it_needs():
    """`bench` was once missing here and ended in a traceback on a bare Python."""
    assert {*NEEDS, *BARE} == set(COMMANDS) and not set(NEEDS) & set(BARE)


def test_every_command_line_of_the_documents_is_one_the_parser_knows():
    wrong, known = [], parser()[1]
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        lines = re.findall(r"(?:python3? -m kit|`kit|exec kit) ([a-z][^`\n|#>]*)", path.read_text(encoding="utf-8"))
        for command, *words in map(str.split, lines):
            options = [word.strip("[]()").partition("=")[0] for word in words if word.strip("[(").startswith("--")]
            if command not in known:
                wrong.append(f"{path.name}: {command}")
            elif command not in PASS_ON:
                wrong += [
                    f"{path.name}: {command} {o}" for o in options if o not in known[command]._option_string_actions
                ]
    assert not wrong


@pytest.mark.parametrize(
    "line", ["verify no-such", "explain no-such", "compare no such", "check --facts no-such", "wheel no-such", "sign b --key k"]
)  # fmt: skip
def test_commands_without_packages_never_set_anything_up(line, monkeypatch, capsys):
    monkeypatch.setattr("kit.setup.enter.look", lambda: pytest.fail("it was set up"))
    assert main(line.split()) in (2, 4)


@pytest.mark.parametrize(
    ("line", "device"),
    [
        ("report", "cuda"),
        ("report --json --device=cpu", "cpu"),
        ("report --device cpu --device cuda", "cuda"),
        ("check --expect-gpu 5090", "cuda"),
        ("train", "cuda"),
        ("bench", "cuda"),
        ("sweep --device cpu", "cpu"),
        ("test", "auto"),
        ("lab", "auto"),
    ],
)
def test_device_is_cuda_unless_the_cpu_is_asked_for_by_name(line, device):
    assert request(line)[0] == device


def test_a_parameter_file_may_ask_for_the_cpu_by_name(tmp_path):
    file = tmp_path / "rehearsal.yaml"
    file.write_text("# a comment\r\nbatch_size: 2\r\ndevice: cpu  # by name\r\n", newline="")
    assert request(f"report --params {file}")[0] == "cpu"
    assert request(f"report --params {file} --device cuda")[0] == "cuda"
    assert request(f"report --params {tmp_path / 'absent.yaml'}")[0] == "cuda"


def test_each_command_needs_no_more_than_it_uses():
    cuda, cpu = ({need.module for need in request(line)[1]} for line in ("report", "report --device cpu"))
    assert cuda - cpu == {"pynvml"} and not cuda & {"jupyterlab", "nbval", "pytest", "importlinter"}


TORCH = Need("torch", "torch", (2, 9))


@pytest.mark.parametrize(
    ("made", "need", "words"),
    [
        (("torch", "2.13.0+cpu"), TORCH, ()),
        (("torch", None), TORCH, ()),
        (("torch", "1.13.1"), Need("torch", "torch"), ()),
        (("torch", "2.7.1+cu128"), TORCH, ("torch 2.9 or newer (found 2.7.1+cu128)",)),
        (None, Need("yaml", "PyYAML"), ("PyYAML",)),
    ],
    ids=["found without being imported", "a build without metadata", "any version", "too old", "absent, as pip names it"],
)  # fmt: skip
def test_what_is_missing_is_named(tmp_path, made, need, words):
    if made:
        package(tmp_path, *made)
    assert missing((need,), tmp_path) == words


@pytest.mark.parametrize("damage", ["emptied", "removed"])
def test_a_damaged_package_is_not_taken_for_whole(tmp_path, damage):
    package(tmp_path, "torch", "2.13.0")
    file = tmp_path / "torch" / "__init__.py"
    file.write_text("") if damage == "emptied" else file.unlink()
    (problem,) = missing((TORCH,), tmp_path)
    assert problem in ("torch", "torch whole (torch/__init__.py is not as it was installed)")


def test_looking_for_all_packages_imports_none_of_them():
    program = (
        "import sys; from kit.cli import parser; from kit.setup.plan import missing, read_request\n"
        "missing(read_request(parser()[0].parse_args(['test']))[1])\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'papermill', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def machine(capability=None, driver=None, *, platform="linux_x86_64", python=(3, 12), name="A GPU", **more):
    gpus = (Gpu(0, name, capability),) if driver else ()
    facts = Driver(driver, gpus=gpus, nvml_error=None if driver else more.pop("said", "nvidia-smi is not in PATH"))
    return Machine(facts, more.pop("has_hardware", bool(driver)), platform, python, **more)


H100, RTX_5090 = machine((9, 0), "580.159.04", name="NVIDIA H100 80GB HBM3"), machine((12, 0), "576.88")
TWO = Machine(Driver("580.159.04", gpus=2 * H100.driver.gpus), True, "linux_x86_64", (3, 12))
CPU_BUILD = ("cpu", None, "==2.13.0", "https://download.pytorch.org/whl/cpu")


@pytest.mark.parametrize(
    ("device", "facts", "kind", "cuda", "requirement", "index"),
    [
        # `torch==2.15.0` would also accept a '2.15.0+cpu' wheel from a folder; '===' does not.
        ("cuda", H100, "gpu", (13, 2), "===2.15.0", None),
        ("cuda", RTX_5090, "gpu", (12, 8), "+cu128", "https://download.pytorch.org/whl/cu128"),
        ("cuda", dataclasses.replace(RTX_5090, platform="windows_x86_64"), "gpu", (12, 8), "+cu128",
         "https://download.pytorch.org/whl/cu128"),
        ("cuda", machine((6, 1), "580.65.06"), "gpu", (12, 6), "+cu126", "https://download.pytorch.org/whl/cu126"),
        ("auto", H100, "gpu", (13, 2), "===2.15.0", None),
        ("cpu", H100, *CPU_BUILD), ("cpu", machine(), *CPU_BUILD), ("auto", machine(), *CPU_BUILD),
    ],
    ids=["H100", "RTX 5090", "on Windows", "an old GPU", "auto", "the CPU by name", "a rehearsal", "auto without a GPU"],
)  # fmt: skip
def test_a_device_and_a_machine_pick_the_build(device, facts, kind, cuda, requirement, index):
    pick = pick_torch(device, facts)
    assert (pick.kind, pick.cuda, pick.index_url) == (kind, cuda, index) and pick.requirement.endswith(requirement)


@pytest.mark.parametrize(("facts", "names"), [(H100, "NVIDIA H100 80GB HBM3"), (TWO, "2 x NVIDIA H100 80GB HBM3")])
def test_the_reason_names_the_cards_and_the_driver(facts, names):
    assert pick_torch("cuda", facts).reason.startswith(f"{names}, driver 580.159.04: ")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (machine(), "no_driver_or_no_gpu"),
        (machine((8, 9), "470.82.01"), "install driver 5"),
        (machine((3, 5), "470.82.01"), "no torch build serves"),
        (machine(None, "470.82.01"), "not its compute capability"),
    ],
    ids=["no GPU", "driver too old", "GPU too old", "a capability is never guessed"],
)
def test_a_gpu_that_cannot_be_served_is_refused_before_anything_is_installed(facts, words):
    with pytest.raises(GpuNotUsable, match=words) as caught:
        pick_torch("cuda", facts)
    assert "--device cpu" in str(caught.value) or "update the NVIDIA driver" in str(caught.value)


@pytest.mark.parametrize(
    ("more", "advice"),
    [
        ({}, "install the NVIDIA driver"),
        ({"is_container": True}, "--gpus all"),
        ({"said": "Failed to initialize NVML: Driver/library version mismatch"}, "restart the machine"),
    ],
)
def test_hardware_without_a_driver_is_no_cpu_machine(more, advice):
    error = no_gpu(machine(has_hardware=True, **more))
    assert "an NVIDIA GPU is there" in error.found and advice in error.todo


def test_a_python_newer_than_the_pins_is_told_which_to_use():
    with pytest.raises(UsageError, match="Python 3.15") as caught:
        pick_torch("cpu", machine(python=(3, 15)))
    assert "3.11 to 3.14" in caught.value.expected
