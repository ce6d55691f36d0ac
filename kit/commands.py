"""What each command does, as a function of its arguments. `kit.cli` holds the parser and the exit codes.

Each imports what it needs when it runs, so that verify, compare, explain and check --facts work on
a bare Python.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kit import terminal
from kit.errors import EXIT_PASS, EXIT_SIGTERM, UsageError
from kit.records import Outcome, dumps, from_json, loads, to_json


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
    result = check(device=args.device, expect_gpu=args.expect_gpu, min_cuda=args.min_cuda, facts=facts)
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
    width, height = terminal.size()
    return screen(
        result.verdict, title="GPU check", advice=advice, width=width, height=height, is_coloured=terminal.is_coloured()
    )


def _look_inside(args: argparse.Namespace) -> Answer:
    """Which GPU code a wheel or an installed package really holds, against this machine's GPU or a named one."""
    from kit.gpu import driver
    from kit.gpu.scan import check, scan_installed, scan_wheel
    from kit.show import Table, check_lines

    found = scan_wheel(args.wheel) if args.wheel else scan_installed(args.installed)
    capability = _capability(args.capability)
    if capability is None:
        gpus = driver.read_driver().gpus
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
    from kit.gpu.explain import as_json, as_text, exit_code, explain

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
    from kit.scale.place import is_rank
    from kit.train.config import TrainConfig

    names = {field.name for field in dataclasses.fields(TrainConfig)}
    given = {name: value for name, value in vars(args).items() if name in names and value is not None}
    config = TrainConfig(**given)
    if args.gpus is not None or is_rank(os.environ):
        return _train_ranks(config, args)
    from kit.train.run import train

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
    from kit.scale.run import conclude_here, train_ranks

    if args.gpus is not None:
        result = train_ranks(config, args.gpus, parallel=args.parallel, out=args.out, on_progress=_print_ranks())
    else:
        from kit.scale.rank import train_rank

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
    from kit.sweep.plan import SweepPlan
    from kit.sweep.run import sweep
    from kit.sweep.table import progress_text

    names = {field.name for field in dataclasses.fields(SweepPlan)}
    given = {name: value for name, value in vars(args).items() if name in names and value is not None}
    plan = SweepPlan(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
    # In a terminal the bar stays in the last line, under the points; in a log each point is a line.
    is_terminal, width = sys.stderr.isatty(), terminal.size()[0] - 1

    def show(row) -> None:
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

    result = sweep(plan, out=args.out, on_row=show, on_progress=bar)
    record = {"sentence": result.sentence, "ceilings": result.ceilings, "rows": result.rows}
    outcome = Outcome.PASS if any(row.outcome == "ok" for row in result.rows) else Outcome.INCONCLUSIVE
    return Answer(f"{result.table}\n\n{result.not_here}\n\n{result.sentence}", record, outcome.exit_code)


def _scaling(args: argparse.Namespace) -> Answer:
    """The speed of one step on growing numbers of GPUs."""
    from kit.scale.run import scale
    from kit.scale.table import ScalePlan, scaled_step
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
    from kit.bench import ENGINES, bench
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

    from kit.evidence.bundle import running_state
    from kit.evidence.sign import checker
    from kit.evidence.verification import text
    from kit.evidence.verify import verify

    found = verify(
        args.bundle,
        check_signature=checker(args.allowed_signers, args.identity),
        is_running=lambda path: running_state(path) == "RUNNING",
        now=datetime.datetime.now(datetime.UTC),
        reviewer_nonce=args.nonce,
    )
    record = {
        "verdict": found.outcome,
        "integrity": found.integrity,
        "reported": found.reported,
        "worth": found.worth,
        "run_id": found.run_id,
        "checks": [{**to_json(step.check), "state": step.state} for step in found.steps],
    }
    return Answer(text(found), record, found.exit_code)


def run_sign(args: argparse.Namespace) -> Answer:
    from kit.evidence.sign import sign

    path = sign(args.bundle, args.key)
    return Answer(f"signed: {path}", {"signature": str(path)})


def run_compare(args: argparse.Namespace) -> Answer:
    from kit.evidence.compare import compare, figure, read_side, text
    from kit.evidence.verify import load

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

    from kit.report import PROJECT

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    # The kernel of this environment, not one of the same name that somebody installed for another.
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    ours = [f"--ServerApp.root_dir={PROJECT}", "--LabApp.default_url=/lab/tree/notebooks/01_env_check.ipynb"]
    given = {word.partition("=")[0] for word in args.rest}
    LabApp.launch_instance(argv=[*(word for word in ours if word.partition("=")[0] not in given), *args.rest])
    return Answer("", None)


def run_test(args: argparse.Namespace) -> Answer:
    from kit.testing import run_tests

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
