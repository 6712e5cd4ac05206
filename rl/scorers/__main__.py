"""Where published scorers and the strict reader disagree on the same outputs.

    python -m rl.scorers                             # on one output of each typical kind
    python -m rl.scorers runs/latest                 # on the stored outputs of a run or an evaluation, a table a file
    python -m rl.scorers runs/latest --list 20       # and up to 20 outputs of each file on which they disagree
    python -m rl.scorers runs/latest --judge openai:gpt-4o                   # who also judges answers to open questions

Tables are Markdown. Answers to open questions, where there are any, have a table of figures.
"""

import argparse
import asyncio
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from rl.grading import Grader, Grading
from rl.judge import judge_of
from rl.scorers.table import closed_outputs, disagreement_table, open_decisions, open_table, output_table, verdicts
from rl.scorers.typical import TYPICAL
from rl.store import read_traces, trace_files

KINDS = """One output of each kind; the options are nodule, cyst, scar, normal, or yes, no.
`lmms_eval_mmmu` draws where it reads nothing. A "-" is no verdict: the toolkit's rule for the benchmark is not
reproduced, or it has none."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rl.scorers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", nargs="*", type=Path, help="files of traces, or folders: all below them are read")
    parser.add_argument(
        "--list", type=int, default=0, metavar="N", help="show up to N outputs; they are texts of cases. Default: none"
    )
    parser.add_argument("--judge", metavar="MODEL", help="model string of a judge of open answers; default: none")
    given = parser.parse_args(arguments)
    if not given.traces:
        print(KINDS, output_table(TYPICAL), disagreement_table(TYPICAL), sep="\n\n")
        return
    try:
        judge = judge_of(given.judge) if given.judge else None
        files = [file for path in given.traces for file in trace_files(path)]
        tables = [table for file in files for table in _tables(file, given.list, judge)]
    except ValueError as error:
        parser.error(str(error))
    if not tables:
        parser.error("traces: none is the attending's answer to a question with a key; give rollouts, or decided cases")
    print(*tables, sep="\n\n")


def _tables(file: Path, most: int, judge: Grader | None) -> list[str]:
    traces = list(read_traces(file))
    closed, opened = closed_outputs(traces), open_decisions(traces)
    tables = [disagreement_table(closed)] if closed else []
    divided = (output for output in closed if len({*verdicts(output).values()} - {None}) > 1)
    if listed := list(islice(divided, most)):
        tables.append(output_table(listed))
    if opened:
        graded = asyncio.run(Grading({"judge": judge}, {"judge": 1.0}).grade_all(opened)) if judge else []
        tables.append(open_table(opened, [trace.reward for trace in graded]))
    return [f"{file}:", *tables] if tables else []


if __name__ == "__main__":
    main()
