"""The command line: `python -m kit`. A thin face: arguments in, a function of `kit.cli`, its answer out.

The standard library is enough to start it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
import xml.etree.ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kit import __version__, show
from kit.errors import (
    EXIT_FAIL,
    EXIT_INCONCLUSIVE,
    EXIT_INTERNAL,
    EXIT_PASS,
    EXIT_SIGINT,
    EXIT_SIGTERM,
    EXIT_USAGE,
    KitError,
    UsageError,
)
from kit.process import ROOT, child_environment
from kit.records import Outcome, dumps, from_json, loads, to_json

EXIT_CODES = """exit codes:
  0  PASS, or REHEARSAL where the CPU was asked for by name
  1  FAIL          the evidence contradicts a claim, or the GPU cannot be used
  2  usage         a wrong argument, parameter or file
  3  INCONCLUSIVE  required evidence is missing or too weak
  4  INVALID       a bundle that is broken, edited or unsafe
  5  internal error
  130, 143         interrupted"""


# Commands that hand the arguments they do not know to another program.
PASS_ON = ("lab", "test")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. A person's mistake is a message, never a traceback."""
    show.prepare()
    top = parser()
    args, rest = top.parse_known_args(argv)
    if rest and args.command not in PASS_ON:
        top.error(f"unknown arguments: {' '.join(rest)}; python -m kit {args.command} --help lists what there is")
    args.rest, args.is_terminated = rest, False
    try:
        answer = args.run(args)
    except KitError as error:
        answer = Answer(str(error), _error_record(error), error.exit_code)
        if not args.json:
            print(f"kit {args.command}: {error}", file=sys.stderr)
            return error.exit_code
    except KeyboardInterrupt:
        print(f"\nkit {args.command}: interrupted", file=sys.stderr)
        return EXIT_SIGTERM if args.is_terminated else EXIT_SIGINT
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PASS
    except Exception:  # the last net: our own mistake, reported as such
        traceback.print_exc()
        print(f"kit {args.command}: an error of the kit itself; please report the lines above", file=sys.stderr)
        return EXIT_INTERNAL
    if answer.text or (args.json and answer.record is not None):
        print(dumps(answer.record) if args.json else answer.text)
    if answer.is_rank:
        # As `kit.extras.scale.worker` does: an interpreter that ends beside the threads of torch's Gloo aborts now and then.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(answer.exit_code)
    return answer.exit_code


def _error_record(error: KitError) -> dict[str, Any]:
    outcome = {1: Outcome.FAIL, 3: Outcome.INCONCLUSIVE, 4: Outcome.INVALID}.get(error.exit_code)
    return {"verdict": outcome, "error": {"found": error.found, "expected": error.expected, "todo": error.todo}}


def run_completion(args: argparse.Namespace) -> Answer:
    from kit.completion import script

    text = script(parser())
    return Answer(text, {"script": text})


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="kit",
        description="Proves that PyTorch trains natively on this machine's NVIDIA GPU.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"kit {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], Answer], help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=help,
            description=help,
            epilog=EXIT_CODES,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        added.set_defaults(run=run)
        return added

    report = command("report", run_report, "prove this GPU: run the notebooks into an evidence bundle")
    _add_device(report, None)
    report.add_argument("--params", type=Path, metavar="FILE", help="YAML file of notebook parameters, see params/")
    report.add_argument("--out", type=Path, default=Path("reports"), metavar="DIR", help="where bundles go (reports)")
    report.add_argument("--nonce", metavar="TEXT", help="a reviewer's challenge, kept in the bundle")
    _add_expectation(report)

    check = command("check", run_check, "say whether this GPU is natively usable, and what to install if not")
    _add_device(check, "cuda")
    _add_expectation(check)
    check.add_argument("--facts", type=Path, metavar="FILE", help="judge recorded facts instead of this machine")
    check.add_argument("--save", type=Path, metavar="FILE", help="save the facts of this machine")
    check.add_argument(
        "--kernel", type=Path, metavar="LIB", help="a compiled library whose `int kernel(void)` has to run natively too"
    )

    check.add_argument("--wheel", type=Path, metavar="FILE", help="list the GPU code that a .whl really holds")
    check.add_argument("--installed", metavar="PACKAGE", help="list the GPU code of an installed package")
    check.add_argument("--capability", metavar="X.Y", help="the GPU to hold --wheel or --installed against")
    check.add_argument(
        "--environments",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="table of every torch below these folders, and which were swapped or mixed",
    )

    explain = command("explain", run_explain, "diagnose pasted text: collect_env, an error, nvidia-smi")
    explain.add_argument("file", nargs="?", metavar="FILE", help="a text file; - or nothing reads standard input")

    _add_train(command("train", run_train, "one training run with its witnesses, without a notebook"))
    _add_sweep(command("sweep", run_sweep, "measure a grid of shapes beside what the card can do"))

    _add_bench(command("bench", run_bench, "the short run engine by engine, from process start, beside the Trainer"))

    verify = command("verify", run_verify, "check a bundle, offline, with the standard library alone")
    verify.add_argument("bundle", type=Path, metavar="BUNDLE", help="a folder or a zip of one")
    verify.add_argument("--allowed-signers", type=Path, metavar="FILE", help="whom you trust, see man ssh-keygen")
    verify.add_argument("--identity", metavar="NAME", help="who has to have signed")
    verify.add_argument("--nonce", metavar="TEXT", help="the challenge that the report must carry")
    sign = command("sign", run_sign, "sign a bundle with an SSH key")
    sign.add_argument("bundle", type=Path, metavar="BUNDLE")
    sign.add_argument(
        "--key", type=Path, required=True, metavar="FILE", help="private key, or public key with an agent"
    )
    compare = command("compare", run_compare, "compare two sets of bundles: same, regression, improved, or neither")
    compare.add_argument("a", type=Path, metavar="A", help="a bundle, or a folder of bundles of one setup")
    compare.add_argument("b", type=Path, metavar="B", help="the other side")
    compare.add_argument("--figure", type=Path, metavar="FILE", help="draw both sides as SVG")

    command("lab", run_lab, "open the notebooks in JupyterLab, in the checked environment; more arguments go to it")
    command("completion", run_completion, 'completion for bash and zsh: eval "$(kit completion)"')
    command("test", run_test, "run the tests: pytest and nbval; more arguments go to pytest")
    return top


def _add_device(command: argparse.ArgumentParser, default: str | None) -> None:
    command.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default=default,
        help="cuda is strict; cpu is a rehearsal that claims nothing about a GPU (default: cuda)",
    )


def _add_expectation(command: argparse.ArgumentParser) -> None:
    command.add_argument("--expect-gpu", metavar="NAME", help='words of the name the GPU must have, such as "RTX 5090"')
    command.add_argument("--min-cuda", metavar="X.Y", help="lowest CUDA that torch may be built for, such as 12.8")
    command.add_argument("--gpus", type=int, metavar="N", help="how many GPUs torch must see")


def _add_train(command: argparse.ArgumentParser) -> None:
    _add_device(command, "cuda")
    command.add_argument("--out", type=Path, metavar="DIR", help="folder for steps, telemetry and the record")
    command.add_argument(
        "--gpus", type=int, metavar="N", help="start N ranks of this machine with torchrun; each is proved"
    )
    _add_parallel(command)
    for name in ("model", "weights", "dataset", "dtype"):
        command.add_argument(f"--{name}", help=f"see TrainConfig.{name}")
    for name in ("batch-size", "seq-len", "steps", "seed"):
        command.add_argument(f"--{name}", type=int, help=f"see TrainConfig.{name.replace('-', '_')}")
    for name in ("lr", "weight-decay", "max-grad-norm"):
        command.add_argument(f"--{name}", type=float, help=f"see TrainConfig.{name.replace('-', '_')}")


def _add_parallel(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--parallel",
        choices=("ddp", "fsdp"),
        default="ddp",
        help="of several ranks: a copy of the model on each (ddp), or a part of it (fsdp); default ddp",
    )


def _counts(text: str) -> tuple[int, ...]:
    """argparse turns the ValueError of a word that is no number into a usage error."""
    return tuple(int(word) for word in text.split(","))


def _add_sweep(command: argparse.ArgumentParser) -> None:
    _add_device(command, "cuda")
    command.add_argument("--out", type=Path, metavar="DIR", help="folder for sweep.csv and sweep.json")
    command.add_argument("--model", help="gpt2 or tiny")
    command.add_argument("--batch-sizes", type=int, nargs="+", metavar="B", help="samples a step")
    command.add_argument("--seq-lens", type=int, nargs="+", metavar="T", help="tokens a sample")
    command.add_argument("--dtypes", nargs="+", metavar="DTYPE", help="float32, tf32, bfloat16")
    command.add_argument("--engines", nargs="+", metavar="ENGINE", help="trainer, eager, compiled, captured, graphed")
    command.add_argument("--blocks", type=int, help="timed blocks a point")
    command.add_argument(
        "--gpus", type=_counts, metavar="1,2,4", help="measure one step on these numbers of GPUs instead"
    )
    _add_parallel(command)


def _add_bench(command: argparse.ArgumentParser) -> None:
    _add_device(command, "cuda")
    command.add_argument("--out", type=Path, metavar="DIR", help="folder for bench.json")
    command.add_argument("--engines", nargs="+", metavar="ENGINE", help="trainer, eager, compiled, captured, graphed")
    for name in ("model", "dtype"):
        command.add_argument(f"--{name}", help=f"see TrainConfig.{name}")
    for name in ("batch-size", "seq-len", "steps", "seed"):
        command.add_argument(f"--{name}", type=int, help=f"see TrainConfig.{name.replace('-', '_')}")


# What each command does, as a function of its arguments. `kit.cli` holds the parser and the exit codes.
#
# Each imports what it needs when it runs, so that verify, compare, explain and check --facts work on
# a bare Python.


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a command says: as text for a person, as one JSON object, as an exit code. is_rank: this process is one
    rank of several, which somebody else started."""

    text: str
    record: Any
    exit_code: int = EXIT_PASS
    is_rank: bool = False


def run_check(args: argparse.Namespace) -> Answer:
    if args.wheel or args.installed:
        return _look_inside(args)
    if args.environments:
        return _environments(args.environments)
    from kit.gpu.check import check
    from kit.gpu.facts import MachineFacts

    facts = from_json(MachineFacts, _read_json(args.facts)) if args.facts else None
    if args.kernel and not args.kernel.is_file():
        raise UsageError(
            f"--kernel {args.kernel}", expected="a shared library", todo="compile one, see docs/witnesses.md"
        )
    result = check(
        device=args.device,
        expect_gpu=args.expect_gpu,
        min_cuda=args.min_cuda,
        gpus=args.gpus,
        facts=facts,
        kernel=args.kernel and args.kernel.resolve(),
    )
    if args.save:
        _write(args.save, dumps(result.facts) + "\n")
    record = {
        "verdict": result.verdict.outcome,
        "diagnosis": result.verdict.diagnosis,
        "findings": result.verdict.findings,
        "remedy": result.remedy,
        "facts": result.facts,
    }
    return Answer(_check_screen(result), record, result.verdict.outcome.exit_code)


def _check_screen(result) -> str:
    from kit.show import screen

    is_fine = result.verdict.outcome in (Outcome.PASS, Outcome.REHEARSAL)
    advice = () if is_fine else (result.remedy.summary, *(f"    {command}" for command in result.remedy.commands))
    width, height = show.size()
    return screen(
        result.verdict, title="GPU check", advice=advice, width=width, height=height, is_coloured=show.is_coloured()
    )


def _look_inside(args: argparse.Namespace) -> Answer:
    """Which GPU code a wheel or an installed package really holds, against this machine's GPU or a named one."""
    from kit.extras.wheelcode.scan import check, scan_installed, scan_wheel
    from kit.gpu import nvml
    from kit.show import Table, check_lines

    found = scan_wheel(args.wheel) if args.wheel else scan_installed(args.installed)
    capability = _capability(args.capability)
    if capability is None:
        gpus = nvml.read_driver().gpus
        capability = gpus[0].compute_capability if gpus else None
    answer = check(found, capability)
    rows = tuple((library.name, " ".join(library.counts)) for library in found.libraries)
    text = [f"{found.name}: {' '.join(found.arch_list) or 'no GPU code'} in {found.files_read} libraries"]
    text += ["", str(Table(("library", "code"), rows))] if rows else []
    text += ["", *check_lines([answer])]
    return Answer(
        "\n".join(text), {"verdict": answer.outcome, "check": answer, "scan": found}, answer.outcome.exit_code
    )


def _capability(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    major, _, minor = text.partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise UsageError(f"--capability {text}", expected="a compute capability such as 12.0", todo="correct it")
    return int(major), int(minor)


def _environments(roots: Sequence[Path]) -> Answer:
    from kit.gpu.installs import environments, installs, table

    found = installs(environments(roots))
    is_clean = bool(found) and not any(install.findings for install in found)
    outcome = Outcome.PASS if is_clean else Outcome.FAIL if found else Outcome.INCONCLUSIVE
    text = table(found) or "no torch was found below " + ", ".join(map(str, roots))
    return Answer(text, {"verdict": outcome, "installs": found}, outcome.exit_code)


def run_explain(args: argparse.Namespace) -> Answer:
    from kit.extras.explain.explain import as_json, as_text, exit_code, explain

    if args.file in (None, "-"):
        data = sys.stdin.buffer.read()
    else:
        try:
            data = Path(args.file).read_bytes()
        except OSError as error:
            raise UsageError(
                f"{args.file}: {error.strerror}",
                expected="a text file, or - for standard input",
                todo="correct the path",
            ) from error
    explanation = explain(data)
    return Answer(as_text(explanation), as_json(explanation), exit_code(explanation))


def run_train(args: argparse.Namespace) -> Answer:
    from kit.extras.scale.group import is_rank
    from kit.train.config import TrainConfig

    names = {field.name for field in dataclasses.fields(TrainConfig)}
    given = {name: value for name, value in vars(args).items() if name in names and value is not None}
    config = TrainConfig(**given)
    if args.gpus is not None or is_rank(os.environ):
        return _train_ranks(config, args)
    from kit.train.train import train

    result = train(config, out=args.out, on_step=_print_step)
    record = {
        "verdict": result.verdict.outcome,
        "throughput": result.throughput,
        "checks": result.verdict.checks,
        "run": result.run,
    }
    return Answer(f"{result.sentence}\n\n{result.table}\n\n{result.verdict}", record, result.verdict.outcome.exit_code)


def _train_ranks(config, args: argparse.Namespace) -> Answer:
    """On several GPUs: torchrun is started, or this process is one rank that torchrun started already."""
    from kit.extras.scale.scale import conclude_here, train_ranks

    if args.gpus is not None:
        result = train_ranks(config, args.gpus, parallel=args.parallel, out=args.out, on_progress=_print_ranks())
    else:
        from kit.extras.scale.worker import train_rank

        group, rank = train_rank(config, parallel=args.parallel, out=args.out, on_step=_print_step)
        result = conclude_here(group, rank, config, args.parallel, args.out)
        group.leave()
        if result is None:
            return Answer("", None, is_rank=True)
    record = {
        "verdict": result.verdict.outcome,
        "run": result.run,
        "checks": result.verdict.checks,
        "ranks": [rank.record for _, rank in sorted(result.ranks.items())],
    }
    return Answer(str(result), record, result.verdict.outcome.exit_code, is_rank=not args.gpus)


def _print_ranks() -> Callable[[dict[int, int]], None]:
    shown = [0]

    def show(steps: dict[int, int]) -> None:
        if min(steps.values()) > shown[0]:
            shown[0] = min(steps.values())
            print(f"step {shown[0]}: finished by {len(steps)} ranks", file=sys.stderr)

    return show


def _print_step(step) -> None:
    loss = "not finite" if step.loss is None else f"{step.loss:.4f}"
    print(f"step {step.step}: loss {loss}, {step.step_time_s * 1e3:.1f} ms", file=sys.stderr)


def run_sweep(args: argparse.Namespace) -> Answer:
    if args.gpus:
        return _scaling(args)
    from kit.sweep.sweep import sweep
    from kit.sweep.table import SweepPlan, progress_text

    names = {field.name for field in dataclasses.fields(SweepPlan)}
    given = {name: value for name, value in vars(args).items() if name in names and value is not None}
    plan = SweepPlan(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
    # In a terminal the bar stays in the last line, under the points; in a log each point is a line.
    is_terminal, width = sys.stderr.isatty(), show.size()[0] - 1

    def point(row) -> None:
        figure = f"{row.step_time_s * 1e3:.1f} ms" if row.step_time_s else row.outcome
        line = f"{row.engine} {row.batch_size} × {row.seq_len} {row.dtype}: {figure}"
        print(f"\r{line:<{width}}" if is_terminal else line, file=sys.stderr)

    def bar(done: int, total: int, left_s: float) -> None:
        end = "" if is_terminal and done < total else "\n"
        print(
            f"{progress_text(done, total, left_s)[:width]:<{width if is_terminal else 0}}",
            end=end,
            file=sys.stderr,
            flush=True,
        )

    result = sweep(plan, out=args.out, on_row=point, on_progress=bar)
    record = {"sentence": result.sentence, "ceilings": result.ceilings, "rows": result.rows}
    outcome = Outcome.PASS if any(row.outcome == "ok" for row in result.rows) else Outcome.INCONCLUSIVE
    return Answer(f"{result.table}\n\n{result.not_here}\n\n{result.sentence}", record, outcome.exit_code)


def _scaling(args: argparse.Namespace) -> Answer:
    """The speed of one step on growing numbers of GPUs."""
    from kit.extras.scale.ranks import ScalePlan, scaled_step
    from kit.extras.scale.scale import scale
    from kit.session import DEFAULT_MODELS

    shape = {"batch_sizes": args.batch_sizes, "seq_lens": args.seq_lens, "dtypes": args.dtypes}
    several = [name for name, values in shape.items() if values and len(values) > 1]
    if several or args.engines:
        raise UsageError(
            f"--gpus with several {', '.join(several) or '--engines'}",
            expected="one batch size, one length, one precision, by the eager engine",
            todo="run the command once for each",
        )
    first = {name.removesuffix("s"): values[0] for name, values in shape.items() if values}
    step = scaled_step(args.device, args.model or DEFAULT_MODELS[args.device], **first)
    plan = ScalePlan(args.gpus, step, parallel=args.parallel, **({"blocks": args.blocks} if args.blocks else {}))
    result = scale(
        plan,
        out=args.out,
        on_progress=lambda index, count: print(f"[{index}/{count}] {plan.gpus[index - 1]} GPUs", file=sys.stderr),
    )
    outcome = Outcome.PASS if all(row.outcome == "ok" for row in result.scaling.rows) else Outcome.INCONCLUSIVE
    return Answer(str(result), {"sentence": result.scaling.sentence, "scaling": result}, outcome.exit_code)


def run_bench(args: argparse.Namespace) -> Answer:
    from kit.sweep.bench import ENGINES, bench
    from kit.train.config import TrainConfig

    names = {field.name for field in dataclasses.fields(TrainConfig)}
    given = {name: value for name, value in vars(args).items() if name in names and value is not None}

    def show(run) -> None:
        print(
            f"{run.engine} {run.dtype}: {run.training_s:.2f} s, {run.process_s:.1f} s from process start",
            file=sys.stderr,
        )

    result = bench(TrainConfig(**given), engines=tuple(args.engines or ENGINES), out=args.out, on_run=show)
    outcome = Outcome.INCONCLUSIVE if not result.runs else Outcome.PASS if result.losses.is_same else Outcome.FAIL
    return Answer(str(result), {"sentence": result.sentence, "bench": result}, outcome.exit_code)


def run_report(args: argparse.Namespace) -> Answer:
    from kit.report import progress_line, report

    # A scheduler stops a job with SIGTERM; like Ctrl-C it ends in a bundle that says INTERRUPTED.
    def stop(*_: object) -> None:
        args.is_terminated = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    done = report(
        device=args.device,
        params=args.params,
        out=args.out,
        expect_gpu=args.expect_gpu,
        min_cuda=args.min_cuda,
        gpus=args.gpus,
        nonce=args.nonce,
        progress=progress_line(),
    )
    evidence = done.evidence
    record = {
        "verdict": evidence.verdict.outcome,
        "diagnosis": evidence.verdict.diagnosis,
        "state": evidence.state,
        "bundle": str(done.path),
        "headline": evidence.headline,
        "notes": done.notes,
    }
    lines = [f"{evidence.verdict.outcome}: {evidence.headline}", *done.notes, f"report: {done.path / 'index.html'}"]
    return Answer("\n".join(lines), record, EXIT_SIGTERM if args.is_terminated else done.exit_code)


def run_verify(args: argparse.Namespace) -> Answer:
    import datetime

    from kit.evidence.sign import checker
    from kit.evidence.verify import text, verify

    found = verify(
        args.bundle,
        check_signature=checker(args.allowed_signers, args.identity),
        now=datetime.datetime.now(datetime.UTC),
        reviewer_nonce=args.nonce,
    )
    record = {
        "verdict": found.outcome,
        "integrity": found.integrity,
        "reported": found.reported,
        "worth": found.worth,
        "run_id": found.run_id,
        "checks": to_json(found.checks),
    }
    return Answer(text(found), record, found.exit_code)


def run_sign(args: argparse.Namespace) -> Answer:
    from kit.evidence.sign import sign

    path = sign(args.bundle, args.key)
    return Answer(f"signed: {path}", {"signature": str(path)})


def run_compare(args: argparse.Namespace) -> Answer:
    from kit.evidence.verify import load
    from kit.extras.compare.compare import compare, figure, read_side, text

    sides = [read_side([load(path) for path in _bundles(side)]) for side in (args.a, args.b)]
    found = compare(*sides)
    if args.figure and found.ratio is not None:
        _write(args.figure, figure(*sides, found))
    return Answer(text(found), to_json(found), found.exit_code)


def _bundles(path: Path) -> list[Path]:
    """The bundle itself, or the bundles in a folder of bundles."""
    if path.is_file() or (path / "manifest.json").is_file():
        return [path]
    found = sorted(child.parent for child in path.glob("*/manifest.json")) + sorted(path.glob("*.zip"))
    if not found:
        raise UsageError(
            f"{path} holds no bundle", expected="a bundle, or a folder of bundles", todo="correct the path"
        )
    return found


def run_lab(args: argparse.Namespace) -> Answer:
    from jupyterlab.labapp import LabApp

    os.environ.update(child_environment())
    ours = [f"--ServerApp.root_dir={ROOT}", "--LabApp.default_url=/lab/tree/notebooks/01_env_check.ipynb"]
    given = {word.partition("=")[0] for word in args.rest}
    LabApp.launch_instance(argv=[*(word for word in ours if word.partition("=")[0] not in given), *args.rest])
    return Answer("", None)


def run_test(args: argparse.Namespace) -> Answer:

    run = run_tests(args.rest, as_json=args.json)
    return Answer("", run.record, run.exit_code)


def _read_json(path: Path) -> Any:
    try:
        return loads(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}", expected="a file of facts, as check --save writes it", todo="correct the path"
        ) from error
    except (ValueError, json.JSONDecodeError) as error:
        raise UsageError(
            f"{path}: {error}", expected="JSON, as check --save writes it", todo="write it again with check --save"
        ) from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}", expected="a path you may write to", todo="name another file"
        ) from error


# `kit test`: pytest over the tests and nbval over the notebooks, as one run with one closing line.
#
# It adds nothing to what pytest says, except that a run without any test is no success.

CELL_TIMEOUT_S = 600
# What may differ between two runs in a compared output, each rule with its reason.
SANITIZE = ROOT / "tests" / "notebooks" / "sanitize.cfg"
# pytest's own exit codes, https://docs.pytest.org/en/stable/reference/exit-codes.html
_EXIT_CODES = {
    0: EXIT_PASS,
    1: EXIT_FAIL,
    2: EXIT_SIGINT,
    3: EXIT_INTERNAL,
    4: EXIT_USAGE,
    5: EXIT_INCONCLUSIVE,
}


@dataclasses.dataclass(frozen=True)
class TestRun:
    """What `kit test` answers. record: the verdict and, for --json, the counts; they are absent where pytest
    ended too early."""

    __test__ = False  # a name with Test in front, but not a test

    exit_code: int
    record: dict[str, Any]


def run_tests(arguments: Sequence[str] = (), *, as_json: bool = False, root: Path = ROOT) -> TestRun:
    """Runs everything, or what `arguments` (pytest's own) select.

    The notebooks run in this very environment, with the parameters that stand in them:
    on a machine without a GPU that is the rehearsal. as_json: pytest's screen goes to
    stderr, because stdout belongs to the record.
    """
    if not (root / "tests").is_dir():
        raise UsageError(f"{root} has no tests.", expected="a checkout of the project.", todo="run it in a checkout.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", *_options(arguments), *arguments]
        if as_json:
            command.append(f"--junitxml={file}")
        out = sys.stderr if as_json else None
        code = subprocess.run(command, cwd=root, env=child_environment(HF_HUB_OFFLINE="1"), stdout=out).returncode
        # A negative code is a signal that ended pytest; the shell's convention is 128 + its number.
        code = _EXIT_CODES.get(code, EXIT_INTERNAL) if code >= 0 else 128 - code
        return TestRun(code, {"verdict": _verdict(code), **counts(file)})


def _options(arguments: Sequence[str]) -> list[str]:
    """nbval's, and the folders unless the caller names some.

    Lax: an error in any cell fails, and the cells tagged nbval-check-output must print what is stored.
    """
    options = [
        "--nbval-lax",
        "--nbval-current-env",
        f"--nbval-sanitize-with={SANITIZE}",
        f"--nbval-cell-timeout={CELL_TIMEOUT_S}",
        "-rs",
    ]
    return (
        options
        if any(word.startswith(("tests", "notebooks")) for word in arguments)
        else [*options, "tests", "notebooks"]
    )


def _verdict(code: int) -> str:
    known = {EXIT_PASS: Outcome.PASS, EXIT_INCONCLUSIVE: Outcome.INCONCLUSIVE}
    return str(known.get(code, Outcome.FAIL))


def counts(record: Path) -> dict[str, float]:
    """Totals of a junit file of pytest; empty where pytest ended before writing it."""
    try:
        suites = list(xml.etree.ElementTree.parse(record).getroot().iter("testsuite"))
    except (OSError, xml.etree.ElementTree.ParseError):
        return {}
    total = {
        name: sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    }
    bad = total["failures"] + total["errors"] + total["skipped"]
    seconds = sum(float(suite.get("time", 0)) for suite in suites)
    return {"passed": total["tests"] - bad, **total, "seconds": seconds}


__all__ = ["TestRun", "counts", "run_tests"]
