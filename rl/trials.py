"""A trial: one system on many cases, a line of JSON for each case as it ends.

Invariant: what is finished is on disk. Whatever stops a trial, the same command goes on from there: it skips the cases
that have a line, tries those again that failed, and a case that was under way finds the answers of its finished calls
in the cache. Shards, in one process each on whatever machine, write files of their own, and any number of them is read
as one.
"""

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from tqdm import tqdm

from mmedagent_graph.consultation import Consultation
from mmedagent_graph.images import ImageStore
from mmedagent_graph.many import Line, Results, work_off
from rl.curriculum import tier_of
from rl.datasets import LabeledCase
from rl.figures import Prices, dollars_of
from rl.store import LINES, read_lines, row_of, trace_of
from rl.traces import CallRecorder, NodeCall, Trace

SHARD = re.compile(r"(\d+)/(\d+)")


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of the cases, by their ids: whoever asks, a case is in the same one."""

    index: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """`0/4` is the first of four.

        Raises:
            ValueError: if it is not of that form, or beyond its number.
        """
        match = SHARD.fullmatch(text)
        if match is None or not int(match[1]) < int(match[2]):
            raise ValueError(f"shard: {text!r} is none; give such as 0/4, 1/4, 2/4 and 3/4 to four processes")
        return cls(int(match[1]), int(match[2]))

    def holds(self, case: str) -> bool:
        """Whether a case is in it."""
        return int.from_bytes(hashlib.sha256(case.encode()).digest()[:8]) % self.of == self.index

    def __str__(self) -> str:
        """As a part of a file's name."""
        return f".{self.index}-of-{self.of}" if self.of > 1 else ""


@dataclasses.dataclass
class Budget:
    """What may be spent, over all trials of a run."""

    ceiling: float | None = None
    """Dollars; None: whatever it costs."""
    prices: Prices = dataclasses.field(default_factory=dict)
    spent: float = 0.0

    def add(self, trace: Trace) -> None:
        """What a consultation has cost, less what came out of a cache.

        Raises:
            ValueError: if there is a ceiling, and a model's price is not known.
        """
        asked = [call for call in trace.calls if not call.cached]
        dollars = dollars_of(asked, self.prices)
        if dollars is None and self.ceiling is not None:
            unknown = sorted({str(call.model) for call in asked if call.model not in self.prices})
            raise ValueError(f"max_dollars: the price of {', '.join(unknown)} is not in --prices")
        self.spent += dollars or 0.0

    @property
    def gone(self) -> bool:
        """Whether no further case may begin."""
        return self.ceiling is not None and self.spent >= self.ceiling


class Trial:
    """One system on some cases.

    Args:
        folder: of the trial; its traces are `traces.jsonl` there, or `traces.0-of-2.jsonl` and so on.
        shard: which cases this process works off.
    """

    def __init__(self, folder: Path, shard: Shard = Shard()) -> None:
        self.folder, self.shard = folder, shard

    async def run(
        self,
        graph: Consultation,
        cases: Sequence[LabeledCase],
        images: ImageStore,
        concurrency: int,
        budget: Budget,
        title: str = "",
    ) -> dict[str, int]:
        """Consult on every case of the shard that has no trace yet.

        Returns:
            How many cases are `done`, `failed`, and `left` because the budget is gone.

        Raises:
            ValueError: if another process writes to the same file, or a price is not known.
        """
        mine = {case.id: case for case in cases if self.shard.holds(case.id)}
        with contextlib.closing(Results(self.folder / f"traces{self.shard}.jsonl", mine)) as results:
            counts = {"done": len(results.done), "failed": 0}
            bar = tqdm(total=len(mine), initial=counts["done"], desc=title, unit="case", dynamic_ncols=True)

            def keep(line: Line) -> None:
                results.keep(line)
                counts["failed" if "error" in line else "done"] += 1
                bar.set_postfix(failed=counts["failed"], refresh=False)
                bar.update()

            waiting = self._waiting(mine, results.done, budget)
            with bar:
                await work_off(functools.partial(_line, graph, images, budget), waiting, keep, concurrency)
        return {**counts, "left": len(mine) - counts["done"] - counts["failed"]}

    @staticmethod
    def _waiting(mine: dict[str, LabeledCase], done: set[str], budget: Budget) -> Iterator[LabeledCase]:
        for name, case in mine.items():
            if budget.gone:
                return
            if name not in done:
                yield case

    def traces(self) -> Iterator[Trace]:
        """The traces of all shards, in no particular order; a line that is still being written is no trace."""
        return (trace_of(line) for line in self._lines() if "error" not in line)

    def failed(self) -> dict[str, str]:
        """Why cases failed, by their ids."""
        return {line["id"]: line["error"] for line in self._lines() if "error" in line}

    def _lines(self) -> Iterator[Line]:
        return (line for path in sorted(self.folder.glob(LINES)) for line in read_lines(path))


async def _line(graph: Consultation, images: ImageStore, budget: Budget, case: LabeledCase) -> Line:
    """The line of one case."""
    try:
        trace = await consult(graph, case, images)
    except Exception as error:
        return {"id": case.id, "error": f"{type(error).__name__}: {error}"}
    budget.add(trace)
    return {"id": case.id, **row_of(trace)}


async def consult(graph: Consultation, case: LabeledCase, images: ImageStore) -> Trace:
    """The whole consultation of a case, with all that its models said."""
    recorder = CallRecorder()
    given = await asyncio.to_thread(case.given().fields, images)
    ended = await graph.ainvoke(cast(Any, given), {"callbacks": [recorder]})
    trace = Trace.of(case, {"case": given, **ended}, *_last(recorder.calls), calls=recorder.calls)
    if trace.answer is not None and trace.opinions:
        trace.tier = tier_of(trace.opinions, trace.answer)
    return trace


def _last(calls: Sequence[NodeCall]) -> tuple[str, str | None]:
    """The node that decided, and what it said, for other ways to count; several votes or doctors said no one text."""
    deciding = [call for call in calls if call.node == calls[-1].node]
    return deciding[-1].node if deciding else "", deciding[0].text if len(deciding) == 1 else None
