"""Grade stored traces again, without generating again.

    python -m rl.grading regrade runs/latest                                    # with the paper's graders
    python -m rl.grading regrade runs/latest --graders format=0.5 judge --judge openai:gpt-4o --out judged.parquet

What the learnable node wrote is read again, by the reader as it is now. A triage doctor's text may then name another
specialty than the one that was heard: what followed does not follow from it any more, and is dropped.

Invariant: no node is asked, and what is read is never written over.
"""

import argparse
import asyncio
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmedagent_graph.images import default_store
from mmedagent_graph.nodes import Attending, Triage
from mmedagent_graph.prompts import SPECIALTIES
from rl.grading import NEEDS, PAPER, Grader, Grading, overlong_of
from rl.store import SUFFIX, read_traces, write_traces
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
    if trace.text is not None and trace.node == "attending":
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


def print_report(before: Sequence[Trace], after: Sequence[Trace], gradings: Mapping[str, Grading]) -> None:
    """A row for each node and grader: the mean before and after, and what could not be graded."""
    table = Table(title=f"{len(after)} traces graded again")
    for column in ("node", "grader", "weight", "before", "after", "not graded"):
        table.add_column(column, justify="left" if column in ("node", "grader") else "right")
    for node, grading in gradings.items():
        pairs = [(old, new) for old, new in zip(before, after, strict=True) if new.node == node]
        for name, weight in grading.weights.items():
            olds, news = ([trace.rewards.get(name) for trace in side] for side in zip(*pairs, strict=True))
            missing = _missing(news, NEEDS.get(name))
            table.add_row(node, name, f"{weight:g}", _mean(olds), _mean(news), missing)
        olds, news = ([trace.reward for trace in side] for side in zip(*pairs, strict=True))
        table.add_row(node, "reward", "", _mean(olds), _mean(news), _missing(news, None), end_section=True)
    Console().print(table)


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
        before = list(read_traces(given.path))
        gradings = _gradings(before, given)
    except ValueError as error:
        parser.error(str(error))
    after = asyncio.run(regrade(before, gradings, given.specialties))
    if given.out:
        write_traces(given.out, after)
    print_report(before, after, gradings)


def _check_out(path: Path, out: Path | None) -> None:
    if out and path.resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(f"--out: {str(out)!r} is what is read, or inside it; give a file elsewhere")


def _gradings(traces: Sequence[Trace], given: argparse.Namespace) -> dict[str, Grading]:
    """The graders of each node that there are traces of."""
    made: dict[str, Grader] = {}
    if given.judge:
        from langgraph.cache.memory import InMemoryCache

        from rl.judge import judge_of

        made["judge"] = judge_of(given.judge, InMemoryCache())
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
