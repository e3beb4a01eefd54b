"""`python -m ehrlab.report [EXPERIMENT]`: render the finished runs, or one experiment, and print the page's path."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ehrlab.core.errors import InputError
from ehrlab.report.experiment import write_experiment
from ehrlab.report.page import write_runs
from ehrlab.report.runs import find_runs

COHORTS = Path("experiments/meddiffusion/table1.csv")


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 2 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m ehrlab.report", description=__doc__)
    parser.add_argument("experiment", nargs="?", help="for example meddiffusion/table3; without it, all finished runs")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the runs (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("reports"), help="folder of the pages (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        if arguments.experiment:
            page = write_experiment(arguments.experiment, arguments.results, arguments.out / arguments.experiment)
        else:
            runs, unfinished = find_runs(arguments.results)
            cohorts = COHORTS if COHORTS.exists() else None
            page = write_runs(runs, len(unfinished), arguments.out / "all", "All finished runs", cohorts)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Report: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
