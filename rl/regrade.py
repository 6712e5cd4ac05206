"""Grade stored traces again, without generating again.

    python -m rl.grading regrade runs/latest                                    # with the paper's graders
    python -m rl.grading regrade runs/latest --graders format=0.5 judge --judge openai:gpt-4o --out judged.parquet

A run has several files of traces: the held-out cases `before` and `after`, the rollouts of each stage. Each has a table
of its own, for a mean over all of them says nothing. Traces with neither a text nor a decision, such as the upstream
that prompts are made of, have nothing that could be graded, and are left out.

What the learnable node wrote is read again, by the reader as it is now. A triage doctor's text may then name another
specialty than the one that was heard: what followed does not follow from it any more, and is dropped.

Invariant: no node is asked, and what is read is never written over.
"""

import argparse
import asyncio
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.table import Table

from mmedagent_graph.images import default_store
from mmedagent_graph.nodes import Attending, Triage
from mmedagent_graph.prompts import SPECIALTIES
from rl.grading import NEEDS, PAPER, Grader, Grading, overlong_of
from rl.printed import show
from rl.store import SUFFIX, read_traces, trace_files, write_traces
from rl.traces import Trace


async def regrade(
    traces: Iterable[Trace], gradings: Mapping[str, Grading], specialties: Sequence[str] = tuple(SPECIALTIES)
) -> list[Trace]:
    """Copies of the traces, read and graded again.

    Args:
        traces: of any nodes.
        gradings: for each node that they were made for.
        specialties: what triage could choose from, as in `build_graph`.

    Raises:
        ValueError: naming the case, if it was referred to a specialty that is not among them.
    """
    by_node: dict[str, list[tuple[int, Trace]]] = {node: [] for node in gradings}
    for place, trace in enumerate(traces):
        by_node[trace.node].append((place, reread(trace, specialties)))
    done: dict[int, Trace] = {}
    for node, placed in by_node.items():
        graded = await gradings[node].grade_all(trace for _, trace in placed)
        done.update(zip((place for place, _ in placed), graded, strict=True))
    return [done[place] for place in sorted(done)]


def reread(trace: Trace, specialties: Sequence[str]) -> Trace:
    """A copy, with what the node's text amounts to; see `regrade`. Without a text it is as it was."""
    if trace.text is not None and trace.node in ("attending", "specialist"):  # who is alone decides
        decision = Attending(default_store()).read(trace.text, trace.given())["decision"]
        return dataclasses.replace(trace, decision=decision)
    if trace.text is not None and trace.node == "triage":
        return _referred_again(trace, trace.text, specialties)
    return dataclasses.replace(trace)


def _referred_again(trace: Trace, text: str, specialties: Sequence[str]) -> Trace:
    heard = trace.referral["specialty"] if trace.referral else None
    if heard is not None and heard not in specialties:
        known = ", ".join(specialties)
        raise ValueError(f"specialties: case {trace.case!r} was referred to {heard!r}; it must be among them: {known}")
    referral = Triage(specialties, default_store()).read(text, trace.fields())["referral"]
    if referral["specialty"] == heard:
        return dataclasses.replace(trace, referral=referral)
    return dataclasses.replace(trace, referral=referral, opinions=[], decision=None, tier=None)


def print_report(file: str, before: Sequence[Trace], after: Sequence[Trace], gradings: Mapping[str, Grading]) -> None:
    """A file's table, with a row for each node and grader: the mean before and after, and what could not be graded."""
    table = Table(title=f"{file}: {len(after)} traces")
    for column in ("node", "grader", "weight", "before", "after", "not graded"):
        table.add_column(column, justify="left" if column in ("node", "grader") else "right")
    for node, grading in gradings.items():
        pairs = [(old, new) for old, new in zip(before, after, strict=True) if new.node == node]
        if not pairs:
            continue
        for name, weight in grading.weights.items():
            olds, news = ([trace.rewards.get(name) for trace in side] for side in zip(*pairs, strict=True))
            missing = _missing(news, NEEDS.get(name))
            table.add_row(node, name, f"{weight:g}", _mean(olds), _mean(news), missing)
        olds, news = ([trace.reward for trace in side] for side in zip(*pairs, strict=True))
        table.add_row(node, "reward", "", _mean(olds), _mean(news), _missing(news, None), end_section=True)
    show(table)


def _mean(values: Iterable[float | None]) -> str:
    graded = [value for value in values if value is not None]
    return f"{sum(graded) / len(graded):.3f}" if graded else "-"


def _missing(values: Sequence[float | None], needs: str | None) -> str:
    """How many could not be graded, and what a grader needs for it."""
    missing = sum(value is None for value in values)
    return f"{missing} (needs {needs})" if missing and needs else str(missing)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rl.grading", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["regrade"])
    parser.add_argument("path", type=Path, help="a file of traces, or a folder: all below it are read")
    parser.add_argument(
        "--graders",
        nargs="+",
        metavar="NAME=WEIGHT",
        help="format, accuracy, specialty, outcome, token_f1, overlong, judge, or module:function of your own; "
        "without a weight it is 1; default: the paper's for each node",
    )
    parser.add_argument("--judge", metavar="MODEL", help="model string of the judge, such as openai:gpt-4o")
    parser.add_argument("--max_completion_length", type=int, metavar="TOKENS", help="what overlong measures against")
    parser.add_argument(
        "--specialties",
        nargs="+",
        default=list(SPECIALTIES),
        help="what triage could choose from; default: the paper's",
    )
    parser.add_argument(
        "--out", type=Path, help=f"{SUFFIX} file for the traces as they are graded now; default: the table is all"
    )
    given = parser.parse_args(arguments)
    try:
        _check_out(given.path, given.out)
        before = read_answered(given.path)
        gradings = _gradings([trace for traces in before.values() for trace in traces], given)
    except ValueError as error:
        parser.error(str(error))
    after = asyncio.run(_regrade_files(before, gradings, given.specialties))
    if given.out:
        write_traces(given.out, (trace for traces in after.values() for trace in traces))
    for file in before:
        print_report(file, before[file], after[file], gradings)


def read_answered(path: Path) -> dict[str, list[Trace]]:
    """The traces that have something to be graded, by file: its path inside the folder that was given, or its name.

    Raises:
        ValueError: if there are none.
    """
    files = {str(file.relative_to(path) if path.is_dir() else file.name): file for file in trace_files(path)}
    found = {name: [trace for trace in read_traces(file) if _answered(trace)] for name, file in files.items()}
    if not any(found.values()):
        raise ValueError(f"traces: none at {str(path)!r} has a text or a decision; give rollouts, or decided cases")
    return {name: traces for name, traces in found.items() if traces}


def _answered(trace: Trace) -> bool:
    return trace.text is not None or trace.decision is not None


async def _regrade_files(
    before: Mapping[str, Sequence[Trace]], gradings: Mapping[str, Grading], specialties: Sequence[str]
) -> dict[str, list[Trace]]:
    return {file: await regrade(traces, gradings, specialties) for file, traces in before.items()}


def _check_out(path: Path, out: Path | None) -> None:
    if out and path.resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(f"--out: {str(out)!r} is what is read, or inside it; give a file elsewhere")


def _gradings(traces: Sequence[Trace], given: argparse.Namespace) -> dict[str, Grading]:
    """The graders of each node that there are traces of."""
    made: dict[str, Grader] = {}
    if given.judge:
        from rl.judge import judge_of

        made["judge"] = judge_of(given.judge)
    if given.max_completion_length:
        made["overlong"] = overlong_of(given.max_completion_length)
    nodes = sorted({trace.node for trace in traces})
    if not given.graders and (unknown := sorted(set(nodes) - set(PAPER))):
        raise ValueError(
            f"--graders: the paper has none for node {unknown[0]!r}, only for {', '.join(PAPER)}; name some"
        )
    gradings = {node: Grading.parse(given.graders or PAPER[node], made) for node in nodes}
    if unused := made.keys() - {name for grading in gradings.values() for name in grading.graders}:
        name = min(unused)
        raise ValueError(f"--graders: what {name!r} needs was given, but it is not among them; add {name}=1")
    return gradings
