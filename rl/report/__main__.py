"""A report of what was measured, as one self-contained page.

    python -m rl.report runs/evaluation                                    # the table, plots, and a browser for traces
    python -m rl.report runs/eval-seed0 runs/eval-seed1 runs/eval-seed2    # the same systems: means over the seeds
    python -m rl.report runs/evaluation runs/latest --out report.html      # and the curves of a training run

A RUN is a folder of `rl.evaluate --out`, or of a training run. The table goes beside the page as CSV and LaTeX. The
page works offline and holds the questions and images of the traces that it shows: think of whose they are before it is
given away, or leave them out with `--traces 0`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rl.report import Written, read_runs, studies_of, write_report

TRACES = 1000


def parser() -> argparse.ArgumentParser:
    """The flags."""
    whole = argparse.ArgumentParser(
        prog="python -m rl.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whole.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of an evaluation or a training run")
    whole.add_argument("--out", type=Path, help="the page (report.html in the first RUN)")
    whole.add_argument(
        "--traces",
        type=int,
        default=TRACES,
        help=f"at most so many, drawn evenly over systems, cases and seeds; 0: none ({TRACES})",
    )
    return whole


def main(arguments: Sequence[str] | None = None) -> Written:
    """The command line."""
    commands = parser()
    given = commands.parse_args(arguments)
    out = given.out or given.runs[0] / "report.html"
    try:
        if given.traces < 0:
            raise ValueError(f"traces: {given.traces} is no number of traces; give 0 for none, or more")
        if out.suffix != ".html":
            raise ValueError(f"out: {str(out)!r} is no page; give a name that ends in .html")
        evaluations, trainings = read_runs(given.runs)
        written = write_report(studies_of(evaluations), trainings, out, given.traces)
    except ValueError as error:
        commands.error(str(error))
    print(f"report: {written.html}")
    if written.csv:
        print(f"table: {written.csv}   {written.latex}")
    return written


if __name__ == "__main__":
    main()
