"""The command line, `python -m kit`: arguments in, a function of the kit, its answer out.

The standard library is enough to start it; what a command needs beyond that is set up first. Each command imports
its part of the kit when it is asked for, and a wing of `kit.extras` only by its name in `WINGS`.
"""

import argparse
import contextlib
import dataclasses
import importlib
import os
import re
import signal
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kit import __version__, show
from kit.errors import (
    EXIT_FAIL,
    EXIT_INCONCLUSIVE,
    EXIT_INTERNAL,
    EXIT_PASS,
    EXIT_SIGINT,
    EXIT_USAGE,
    KitError,
    UsageError,
    is_unwritable,
    unwritable,
)
from kit.process import IS_CHECKOUT, ROOT, SHARE, as_typed, child_environment, progress
from kit.records import Outcome, dumps, fields_of, from_json, loads, to_json

EXIT_CODES = """exit codes:
  0  PASS, or REHEARSAL where the CPU was asked for by name
  1  FAIL          the evidence contradicts a claim, or the GPU cannot be used
  2  usage         a wrong argument, parameter or file, or a disk that is full or read-only
  3  INCONCLUSIVE  required evidence is missing or too weak
  4  INVALID       a bundle that is broken, edited or unsafe
  5  internal error
  129, 130, 143    interrupted"""

# The wings: what each is for, and the module that is imported when a command first needs it.
WINGS = {
    "compare": "kit.extras.compare",
    "explain": "kit.extras.explain",
    "ranks": "kit.extras.scale.ranks",
    "scale": "kit.extras.scale.scale",
    "wheel": "kit.extras.wheelcode",
    "worker": "kit.extras.scale.worker",
}
# Every rule that a verdict can rest on, flow by flow.
RULES = {
    "the machine": "kit.gpu.judge_machine:MACHINE",
    "a training run": "kit.train.judge_training:TRAINING",
    "a report": "kit.evidence.conclude:RUN",
    "the negative control": "kit.evidence.conclude:CONTROL",
    "a bundle": "kit.evidence.verify:BUNDLE",
    "several ranks": "kit.extras.scale.judge_ranks:RANKS",
}
# Commands that hand the arguments they do not know to another program, and those for which a bare Python will do.
PASS_ON = ("lab", "test")
BARE = ("compare", "explain", "sign", "verify", "wheel")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a command says: a text for a person, one JSON object, an exit code. error: goes to stderr."""

    text: str
    record: Any
    exit_code: int = EXIT_PASS
    error: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. A person's mistake is a message, never a traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in argv
    show.prepare(as_json=as_json)
    caught: list[int] = []
    try:
        with _signals(caught):
            args = _parse(argv)
            if args.command not in BARE:
                part("kit.setup.enter:ensure")(argv, args)
            answer = COMMANDS[args.command].run(args)
    except (KitError, OSError) as found:
        error: Exception = found
        if isinstance(found, OSError) and is_unwritable(found):
            error = unwritable(found.filename or "the disk", found)
        answer = Answer("", error.record, error.exit_code, str(error)) if isinstance(error, KitError) else _bug()
    except KeyboardInterrupt:
        answer = Answer("", None, EXIT_SIGINT, "interrupted; what was half done is made anew by the next run")
    except SystemExit as done:
        # --help and --version of argparse.
        answer = Answer("", None, int(done.code or 0))
    except Exception:
        answer = _bug()
    code = _print(answer, as_json)
    if "RANK" in os.environ:
        # A rank that torchrun started. An interpreter that ends beside the threads of torch's Gloo aborts now and then.
        os._exit(code)
    return 128 + caught[-1] if caught and code == EXIT_SIGINT else code


def _bug() -> Answer:
    import traceback

    return Answer("", None, EXIT_INTERNAL, f"{traceback.format_exc()}an error of the kit; please report these lines")


def _print(answer: Answer, as_json: bool) -> int:
    """Prints the answer and returns its exit code, whoever stopped reading: what was found stays found."""
    if as_json:
        text = "" if answer.record is None else show.in_json(dumps(answer.record))
    else:
        text = show.coloured(show.plain(as_typed(answer.text)))
    code, error = answer.exit_code, answer.error
    for stream in (sys.stdout, sys.stderr):
        said = text if stream is sys.stdout else error and f"kit: {show.plain(as_typed(error))}"
        try:
            print(said, end="\n" if said else "", file=stream, flush=True)
        except OSError as problem:
            # A reader that went away, as `| head` does, is no problem; the interpreter must not try again at its end.
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if is_unwritable(problem):
                code, error = EXIT_USAGE, str(unwritable("standard output", problem))
    return code


@contextlib.contextmanager
def _signals(caught: list[int]) -> Iterator[None]:
    """A scheduler's SIGTERM, a dropped terminal and Windows' Ctrl-Break end a command as Ctrl-C does, so that a
    report closes its bundle. torchrun ends its ranks in its own way."""

    def interrupt(number: int, frame: object) -> None:
        caught.append(signal.SIGINT if number == getattr(signal, "SIGBREAK", None) else number)
        raise KeyboardInterrupt

    names = () if "RANK" in os.environ else ("SIGTERM", "SIGHUP", "SIGBREAK")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    # nohup has SIGHUP ignored already.
    before = {n: signal.signal(n, interrupt) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# The parser: made of COMMANDS, the table at the end of this file.

Option = tuple[tuple[str, ...], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Command:
    """One row of the table: what runs, what it is for, its options, and the plan whose fields are options too, but for
    those of `without`."""

    run: Callable[[argparse.Namespace], Answer]
    help: str
    options: tuple[Option, ...] = ()
    plan: str = ""
    without: tuple[str, ...] = ()


def option(*names: str, **how: Any) -> Option:
    """An argument of argparse, kept until the parser is made."""
    return names, how


def fields(command: Command) -> Iterator[Option]:
    """An option for each field of its plan, with type, choices, meaning and default as the field says them."""
    kind = part(command.plan)
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name not in command.without:
            one, *several = typing.get_args(hints[field.name]) or (hints[field.name],)
            meaning, choices = field.metadata["help"], field.metadata["choices"]
            unsaid = ", ".join(word for word in choices if word not in meaning)
            default: Any = field.default
            shown = " ".join(map(str, default)) if several else default
            flag, word = "--" + field.name.replace("_", "-"), field.name.upper()
            help = f"{meaning}{unsaid and '; one of ' + unsaid} (default: {shown})".replace("%", "%%")
            how = {"nargs": "+", "metavar": word.removesuffix("S")} if several else {"metavar": word}
            yield option(flag, type=one, help=help, **how)


class _Parser(argparse.ArgumentParser):
    """One whose complaints are errors of the kit, with the three parts."""

    def __init__(self, **options: Any) -> None:
        style = argparse.RawDescriptionHelpFormatter
        super().__init__(epilog=EXIT_CODES, allow_abbrev=False, formatter_class=style, **options)

    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(message, expected=self.format_usage().strip(), todo=f"see `{self.prog} --help`")


def _version() -> str:
    from kit.report import code_identity

    commit = code_identity()["commit"]
    return f"kit {__version__}" + (f" (commit {commit})" if commit else "")


def parser(asked: str | None = None) -> tuple[_Parser, dict[str, _Parser]]:
    """The parser, and that of each command; where one is asked for, the others come without their options."""
    top = _Parser(prog="kit", description="Proves that PyTorch trains natively on this machine's NVIDIA GPU.")
    version = _version() if asked == "--version" else ""
    top.add_argument("--version", action="version", version=version, help="the version, and in a checkout the commit")
    rows = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        is_asked = asked in (None, name)
        row = rows.add_parser(name, help=command.help, description=command.help, add_help=is_asked)
        options = (_JSON, *command.options, *(fields(command) if command.plan else ())) if is_asked else ()
        for names, how in options:
            row.add_argument(*names, **how)
    return top, rows.choices


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    top, commands = parser(next((word for word in argv if word == "--version" or word in COMMANDS), ""))
    if argv and argv[0][:1] not in ("-", "") and argv[0] not in commands:
        top.error(f"there is no command {argv[0]!r}{_nearest(argv[0], commands)}")
    args, rest = top.parse_known_args(argv)
    args.rest = rest
    if rest and args.command not in PASS_ON:
        word, known = rest[0], commands[args.command]._option_string_actions
        commands[args.command].error(f"{args.command} knows no {word!r}{_nearest(word.partition('=')[0], known)}")
    return args


def _nearest(word: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def part(place: str) -> Any:
    """What stands at `module` or `module:name`, or the wing of that name, imported now that a command needs it."""
    module, _, name = WINGS.get(place, place).partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"this kit comes without {module} ({error})", expected="the whole package", todo="install it again"
        ) from error
    return getattr(found, name) if name else found


def _plan(args: argparse.Namespace) -> Any:
    """The plan of a command, made of its options."""
    kind = part(COMMANDS[args.command].plan)
    return kind(**fields_of(kind, vars(args)))


# What each command does.


def run_check(args: argparse.Namespace) -> Answer:
    if args.list:
        from kit.rules import named

        rows = [
            {"flow": flow, "id": rule.id, "expected": named(rule.expected), "todo": named(rule.todo or rule.settle)}
            for flow, rules in every_rule().items()
            for rule in rules
        ]
        return Answer(str(show.Table(("id", "expected"), tuple((row["id"], row["expected"]) for row in rows))), rows)
    from kit.gpu.check import check
    from kit.gpu.facts import MachineFacts

    facts = from_json(MachineFacts, _read(args.facts, loads)) if args.facts else None
    if args.kernel and not args.kernel.is_file():
        raise UsageError(
            f"--kernel {args.kernel}", expected="a shared library", todo="compile one, see docs/witnesses.md"
        )
    asked = {name: getattr(args, name) for name in ("device", "expect_gpu", "min_cuda", "gpus")}
    result = check(**asked, facts=facts, kernel=args.kernel and args.kernel.resolve())
    if args.save:
        from kit.evidence.write import write_atomic

        write_atomic(args.save, dumps(result.facts) + "\n")
    outcome = result.verdict.outcome
    record = {
        "verdict": outcome,
        "diagnosis": result.verdict.diagnosis,
        "findings": result.verdict.findings,
        "remedy": result.remedy,
        "facts": result.facts,
    }
    is_fine = outcome in (Outcome.PASS, Outcome.REHEARSAL)
    advice = () if is_fine else (result.remedy.summary, *(f"    {command}" for command in result.remedy.commands))
    width, height = show.size()
    text = show.screen(result.verdict, title="GPU check", advice=advice, width=width, height=height)
    return Answer(text, record, outcome.exit_code)


def every_rule() -> dict[str, Any]:
    """The rules of each flow of `RULES`."""
    return {flow: part(place) for flow, place in RULES.items()}


def run_wheel(args: argparse.Namespace) -> Answer:
    """Which GPU code it holds, against this machine's GPU or a named one."""
    from kit.gpu import nvml
    from kit.units import pair

    wing = part("wheel")
    is_file = args.name.endswith(".whl") or Path(args.name).is_file()
    found = wing.scan_wheel(Path(args.name)) if is_file else wing.scan_installed(args.name)
    named = pair(args.capability)
    if args.capability and named is None:
        raise UsageError(f"--capability {args.capability}", expected="such as 12.0", todo="correct it")
    gpus = () if named else nvml.read_driver().gpus
    answer = wing.check(found, gpus[0].compute_capability if gpus else named)
    rows = tuple((library.name, " ".join(library.counts)) for library in found.libraries)
    text = [f"{found.name}: {' '.join(found.arch_list) or 'no GPU code'} in {found.files_read} libraries"]
    text += ["", str(show.Table(("library", "code"), rows))] if rows else []
    text += ["", *show.check_lines([answer])]
    record = {"verdict": answer.outcome, "check": answer, "scan": found}
    return Answer("\n".join(text), record, answer.outcome.exit_code)


def run_explain(args: argparse.Namespace) -> Answer:
    wing = part("explain")
    found = wing.explain(sys.stdin.buffer.read() if args.file in (None, "-") else _read(Path(args.file)))
    return Answer(wing.as_text(found), wing.as_json(found), wing.exit_code(found))


def run_train(args: argparse.Namespace) -> Answer:
    config = _plan(args)
    # torchrun starts this command once for each rank.
    if args.gpus is not None or "RANK" in os.environ:
        return _train_ranks(config, args)
    from kit.train.train import train

    result = train(config, out=args.out, on_step=_say_step)
    record = {
        "verdict": result.verdict.outcome,
        "throughput": result.throughput,
        "checks": result.verdict.checks,
        "run": result.run,
    }
    return Answer(f"{result.sentence}\n\n{result.table}\n\n{result.verdict}", record, result.verdict.outcome.exit_code)


def _say_step(step: Any) -> None:
    loss = "not finite" if step.loss is None else f"{step.loss:.4f}"
    progress()(f"step {step.step}: loss {loss}, {step.step_time_s * 1e3:.1f} ms\n")


def _train_ranks(config: Any, args: argparse.Namespace) -> Answer:
    """On several GPUs: torchrun is started, or this process is one rank that torchrun started already."""
    scale, say = part("scale"), progress()
    if args.gpus is not None:

        def line(steps: dict[int, int]) -> None:
            say(f"step {min(steps.values())}: finished by {len(steps)} ranks")

        result = scale.train_ranks(config, args.gpus, parallel=args.parallel, out=args.out, on_progress=line)
    else:
        group, rank = part("worker").train_rank(config, parallel=args.parallel, out=args.out, on_step=_say_step)
        result = scale.conclude_here(group, rank, config, args.parallel, args.out)
        group.leave()
        if result is None:
            return Answer("", None)
    record = {
        "verdict": result.verdict.outcome,
        "run": result.run,
        "checks": result.verdict.checks,
        "ranks": [rank.record for _, rank in sorted(result.ranks.items())],
    }
    return Answer(str(result), record, result.verdict.outcome.exit_code)


def run_sweep(args: argparse.Namespace) -> Answer:
    if args.gpus:
        return _scaling(args)
    from kit.sweep.sweep import sweep
    from kit.sweep.table import progress_text

    say = progress()

    def point(row: Any) -> None:
        figure = f"{row.step_time_s * 1e3:.1f} ms" if row.step_time_s else row.outcome
        say(f"{row.engine} {row.batch_size} × {row.seq_len} {row.dtype}: {figure}\n")

    result = sweep(_plan(args), out=args.out, on_row=point, on_progress=lambda *count: say(progress_text(*count)))
    record = {"sentence": result.sentence, "ceilings": result.ceilings, "rows": result.rows}
    outcome = Outcome.PASS if any(row.outcome == "ok" for row in result.rows) else Outcome.INCONCLUSIVE
    return Answer(f"{result.table}\n\n{result.not_here}\n\n{result.sentence}", record, outcome.exit_code)


def _scaling(args: argparse.Namespace) -> Answer:
    """The speed of one step on growing numbers of GPUs."""
    from kit.session import DEFAULT_MODELS

    ranks, say = part("ranks"), progress()
    shape = {"batch_sizes": args.batch_sizes, "seq_lens": args.seq_lens, "dtypes": args.dtypes}
    several = [name for name, values in shape.items() if values and len(values) > 1]
    if several or args.engines:
        raise UsageError(
            f"--gpus with several {', '.join(several) or '--engines'}",
            expected="one batch size, one length, one precision, by the eager engine",
            todo="run the command once for each",
        )
    first = {name.removesuffix("s"): values[0] for name, values in shape.items() if values}
    step = ranks.scaled_step(args.device, args.model or DEFAULT_MODELS[args.device], **first)
    given = fields_of(ranks.ScalePlan, {"blocks": args.blocks, "parallel": args.parallel})
    plan = ranks.ScalePlan(args.gpus, step, **given)
    result = part("scale").scale(
        plan, out=args.out, on_progress=lambda i, count: say(f"[{i}/{count}] {plan.gpus[i - 1]} GPUs\n")
    )
    outcome = Outcome.PASS if all(row.outcome == "ok" for row in result.scaling.rows) else Outcome.INCONCLUSIVE
    return Answer(str(result), {"sentence": result.scaling.sentence, "scaling": result}, outcome.exit_code)


def run_bench(args: argparse.Namespace) -> Answer:
    from kit.sweep.bench import ENGINES, bench

    say = progress()
    result = bench(
        _plan(args),
        engines=tuple(args.engines or ENGINES),
        out=args.out,
        on_run=lambda run: say(
            f"{run.engine} {run.dtype}: {run.training_s:.2f} s, {run.process_s:.1f} s from process start\n"
        ),
    )
    outcome = Outcome.INCONCLUSIVE if not result.runs else Outcome.PASS if result.losses.is_same else Outcome.FAIL
    return Answer(str(result), {"sentence": result.sentence, "bench": result}, outcome.exit_code)


def run_report(args: argparse.Namespace) -> Answer:
    from kit.report import close, report

    names = ("device", "params", "out", "expect_gpu", "min_cuda", "gpus", "nonce")
    given = {name: getattr(args, name) for name in names}
    done = close(args.close) if args.close else report(**given, progress=progress())
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
    return Answer("\n".join(lines), record, done.exit_code)


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
        "run_id": found.evidence and found.evidence.run_id,
        "checks": to_json(found.checks),
    }
    return Answer(text(found), record, found.exit_code)


def run_sign(args: argparse.Namespace) -> Answer:
    from kit.evidence.sign import sign

    path = sign(args.bundle, args.key)
    return Answer(f"signed: {path}", {"signature": str(path)})


def run_compare(args: argparse.Namespace) -> Answer:
    wing = part("compare")
    found = wing.compare_folders(args.a, args.b)
    return Answer(wing.text(found), to_json(found), found.exit_code)


def run_lab(args: argparse.Namespace) -> Answer:
    import shutil

    from jupyterlab.labapp import LabApp

    say = progress()
    args.out.mkdir(parents=True, exist_ok=True)
    for source in sorted((SHARE / "notebooks").glob("*.ipynb")):
        copy = args.out / source.name
        say(f"{copy}: {'stays as it is' if copy.exists() else 'copied'}\n")
        if not copy.exists():
            shutil.copyfile(source, copy)
    os.environ.update(child_environment())
    ours = [f"--ServerApp.root_dir={args.out.resolve()}", "--LabApp.default_url=/lab/tree/01_env_check.ipynb"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        say("JupyterLab runs as root, as this command does (--allow-root).\n")
        ours.append("--allow-root")
    given = {word.partition("=")[0] for word in args.rest}
    LabApp.launch_instance(argv=[*(word for word in ours if word.partition("=")[0] not in given), *args.rest])
    return Answer("", None)


def _read(path: Path, parse: Callable[[bytes], Any] = bytes) -> Any:
    try:
        return parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: {getattr(error, 'strerror', None) or error}",
            expected="a file that can be read; of facts the JSON that check --save writes",
            todo="correct the path, or write the file again",
        ) from error


# `kit test`: pytest over the tests and nbval over the notebooks as one run, where a run without any test is no success.

CELL_TIMEOUT_S = 600
# What may differ between two runs in a compared output, each rule with its reason.
SANITIZE = ROOT / "tests" / "notebooks" / "sanitize.cfg"
# pytest's own exit codes, https://docs.pytest.org/en/stable/reference/exit-codes.html
_PYTEST = (EXIT_PASS, EXIT_FAIL, EXIT_SIGINT, EXIT_INTERNAL, EXIT_USAGE, EXIT_INCONCLUSIVE)


def run_test(args: argparse.Namespace) -> Answer:
    """The notebooks run in this very environment, with the parameters that stand in them: without a GPU that is the
    rehearsal. With --json pytest's screen goes to stderr, because stdout belongs to the record."""
    import subprocess

    if not (ROOT / "tests").is_dir() or not IS_CHECKOUT:
        raise UsageError(f"{ROOT} has no tests", expected="a checkout of the project", todo="run it in a checkout")
    command = [sys.executable, "-m", "pytest", *pytest_options(args.rest), *args.rest]
    with subprocess.Popen(command, cwd=ROOT, env=child_environment(HF_HUB_OFFLINE="1"), stdout=args.json and subprocess.PIPE or None,
                          text=True, encoding="utf-8", errors="replace") as process:  # fmt: skip
        last = ""
        for last in process.stdout or ():
            sys.stderr.write(last)
    # A negative code is a signal that ended pytest; the shell's convention is 128 + its number.
    code = process.returncode
    code = 128 - code if code < 0 else _PYTEST[code] if code < len(_PYTEST) else EXIT_INTERNAL
    verdict = {EXIT_PASS: Outcome.PASS, EXIT_INCONCLUSIVE: Outcome.INCONCLUSIVE}.get(code, Outcome.FAIL)
    # pytest's closing line: "2 failed, 310 passed, 4 skipped in 93.10s"
    counts = {word: int(count) for count, word in re.findall(r"(\d+) ([a-z]+)", last)}
    return Answer("", {"verdict": verdict, **counts}, code)


def pytest_options(arguments: Sequence[str]) -> list[str]:
    """nbval's, and the folders unless the caller names some. Lax: an error in any cell fails, and the cells tagged
    nbval-check-output must print what is stored. Two files at a time, the notebooks first since they take longest;
    one after another where there is a GPU, which two trainings would share."""
    from kit.gpu.nvml import find_smi

    options = ["--nbval-lax", "--nbval-current-env", f"--nbval-sanitize-with={SANITIZE}",
               f"--nbval-cell-timeout={CELL_TIMEOUT_S}", "-rs"]  # fmt: skip
    options += [] if find_smi() else ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    is_named = any(word.startswith(("tests", "notebooks")) for word in arguments)
    return options if is_named else [*options, "notebooks", "tests"]


# The table of commands.


def _counts(text: str) -> tuple[int, ...]:
    """argparse turns the ValueError of a word that is no number into a usage error."""
    return tuple(int(word) for word in text.split(","))


_JSON = option("--json", action="store_true", help="print one JSON object and nothing else")
_DEVICE_HELP = "cuda is strict; cpu is a rehearsal that claims nothing about a GPU (default: cuda)"
_DEVICE = option("--device", choices=("cuda", "cpu"), default="cuda", help=_DEVICE_HELP)
_EXPECTED = (
    option("--expect-gpu", metavar="NAME", help='words of the name the GPU must have, such as "RTX 5090"'),
    option("--min-cuda", metavar="X.Y", help="lowest CUDA that torch may be built for, such as 12.8"),
    option("--gpus", type=int, metavar="N", help="how many GPUs torch must see"),
)
_PARALLEL = option(
    "--parallel", choices=("ddp", "fsdp"), default="ddp",
    help="of several ranks: a copy of the model on each (ddp), or a part of it (fsdp); default: ddp",
)  # fmt: skip


def _out(help: str, default: Path | None = None) -> Option:
    text = f"{help} (default: {default or 'nothing is kept'})"
    return option("--out", type=Path, default=default, metavar="DIR", help=text)


COMMANDS = {
    "report": Command(
        run_report,
        "prove this GPU: run the notebooks into an evidence bundle",
        (
            # Without it the parameter file names the device.
            option("--device", choices=("cuda", "cpu"), help=_DEVICE_HELP),
            option("--params", type=Path, metavar="FILE", help="YAML file of notebook parameters, see params/"),
            option("--nonce", metavar="TEXT", help="a reviewer's challenge, kept in the bundle"),
            option("--close", type=Path, metavar="FOLDER", help="finish what a stopped run left: .<run-id>.partial"),
            *_EXPECTED,
            _out("folder that gets the bundle", Path("reports")),
        ),
    ),
    "check": Command(
        run_check,
        "say whether this GPU is natively usable, and what to install if not",
        (
            _DEVICE,
            *_EXPECTED,
            option("--facts", type=Path, metavar="FILE", help="judge recorded facts instead of this machine"),
            option("--save", type=Path, metavar="FILE", help="save the facts of this machine"),
            option("--list", action="store_true", help="list every rule that a verdict of the kit can rest on"),
            option(
                "--kernel",
                type=Path,
                metavar="LIB",
                help="a compiled library whose `int kernel(void)` has to run natively too",
            ),
        ),
    ),
    "explain": Command(
        run_explain,
        "diagnose pasted text: collect_env, an error, nvidia-smi",
        (option("file", nargs="?", metavar="FILE", help="a text file; - or nothing reads standard input"),),
    ),
    "wheel": Command(
        run_wheel,
        "list the GPU code that a wheel or an installed package really holds",
        (
            option("name", metavar="FILE-OR-PACKAGE", help="a .whl file, or the name of an installed package"),
            option("--capability", metavar="X.Y", help="the GPU to hold it against (default: this machine's)"),
        ),
    ),
    "train": Command(
        run_train,
        "one training run with its witnesses, without a notebook",
        (
            _DEVICE,
            _out("folder for steps, telemetry and the record"),
            option("--gpus", type=int, metavar="N", help="start N ranks of this machine with torchrun"),
            _PARALLEL,
        ),
        plan="kit.train.config:TrainConfig",
        without=("device", "engine"),
    ),
    "sweep": Command(
        run_sweep,
        "measure a grid of shapes beside what the card can do",
        (
            _DEVICE,
            _out("folder for sweep.csv and sweep.json"),
            option("--gpus", type=_counts, metavar="1,2,4", help="measure one step on so many GPUs instead"),
            _PARALLEL,
        ),
        plan="kit.sweep.table:SweepPlan",
        without=("device", "more_points"),
    ),
    "bench": Command(
        run_bench,
        "the short run engine by engine, from process start, beside the Trainer",
        (
            _DEVICE,
            _out("folder for bench.json"),
            option("--engines", nargs="+", metavar="ENGINE", help="some of them (default: all)"),
        ),
        plan="kit.train.config:TrainConfig",
        without=("weights", "dataset", "device", "lr", "weight_decay", "max_grad_norm", "engine"),
    ),
    "verify": Command(
        run_verify,
        "check a bundle, offline, with the standard library alone",
        (
            option("bundle", type=Path, metavar="BUNDLE", help="a folder or a zip of one"),
            option("--allowed-signers", type=Path, metavar="FILE", help="whom you trust, see man ssh-keygen"),
            option("--identity", metavar="NAME", help="who has to have signed"),
            option("--nonce", metavar="TEXT", help="the challenge that the report must carry"),
        ),
    ),
    "sign": Command(
        run_sign,
        "sign a bundle with an SSH key",
        (
            option("bundle", type=Path, metavar="BUNDLE", help="a folder"),
            option("--key", type=Path, required=True, metavar="FILE", help="private key, or public key with an agent"),
        ),
    ),
    "compare": Command(
        run_compare,
        "compare two sets of bundles: same, regression, improved, or neither",
        (
            option("a", type=Path, metavar="A", help="a bundle, or a folder of bundles of one setup"),
            option("b", type=Path, metavar="B", help="the other side"),
        ),
    ),
    "lab": Command(
        run_lab,
        "JupyterLab on copies of the notebooks; more arguments go to it",
        (_out("folder of the copies; a notebook that is there already stays as it is", Path("kit-notebooks")),),
    ),
    "test": Command(run_test, "run the tests: pytest and nbval; more arguments go to pytest"),
}
