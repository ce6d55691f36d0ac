"""Runs the rows and prints the table: `python -m tests.sabotage`, with `--gpu` those that need a real GPU."""

import argparse
import datetime
import platform
import sys

from kit.process import begin_proof

from . import rows_environment, rows_gpu, rows_recorded, rows_timing, rows_training, table  # noqa: F401


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.sabotage", description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="the rows that need a real GPU, instead of the others")
    parser.add_argument("--only", metavar="TEXT", default="", help="rows whose id begins so")
    args = parser.parse_args()
    # Before a row touches CUDA: what trains in this process has to be native code alone.
    begin_proof()
    rows = [row for row in table.ROWS if row.is_gpu is args.gpu and row.id.startswith(args.only)]
    twins, tried = {}, []
    for row in rows:
        tried.append(table.attempt(row, twins=twins))
        print(f"{row.id}: {'right' if not tried[-1].problems else 'WRONG'}, {tried[-1].seconds:.1f} s", file=sys.stderr)
    wrong = sum(bool(one.problems) for one in tried)
    print(
        f"{datetime.date.today()}, {where(args.gpu)}: {len(tried)} sabotages with their healthy twins, {wrong} wrong, "
        f"{sum(one.seconds for one in tried):.0f} s.\n"
    )
    print(table.markdown(tried))
    return 1 if wrong or not tried else 0


def where(is_gpu):
    import torch

    device = torch.cuda.get_device_name() if is_gpu else f"{platform.machine()} CPU"
    return f"{device}, torch {torch.__version__}, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
