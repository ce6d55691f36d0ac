"""The command line: `python -m kit`. A thin face: arguments in, a function of `kit.commands`, its answer out.

The standard library is enough to start it.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kit import __version__, terminal
from kit.commands import (
    Answer,
    run_bench,
    run_check,
    run_compare,
    run_explain,
    run_lab,
    run_report,
    run_sign,
    run_sweep,
    run_test,
    run_train,
    run_verify,
)
from kit.errors import EXIT_INTERNAL, EXIT_PASS, EXIT_SIGINT, EXIT_SIGTERM, KitError
from kit.records import Outcome, dumps

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
    terminal.prepare()
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
        # As `kit.scale.rank` does: an interpreter that ends beside the threads of torch's Gloo aborts now and then.
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
