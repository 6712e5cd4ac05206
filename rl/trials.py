"""A trial: one system on many cases, a line of JSON for each case as it ends.

Invariant: what is finished is on disk, and all of a trial was made by the same settings. Whatever stops a trial, the
same command goes on from there: it skips the cases that have a trace, tries those again that failed, and a case that
was under way finds the answers of its finished calls in the cache. Shards, in one process each on whatever machine,
write files of their own, and any number of them is read as one.
"""

import asyncio
import contextlib
import dataclasses
import functools
import json
import os
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tqdm import tqdm

from mmedagent_graph.consultation import Consultation
from mmedagent_graph.images import ImageStore
from mmedagent_graph.many import Line, Results, work_off
from rl.curriculum import tier_of
from rl.datasets import LabeledCase
from rl.prices import Budget
from rl.statistics import digest
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
        return int.from_bytes(digest(case)[:8]) % self.of == self.index

    def __str__(self) -> str:
        """As a part of a file's name."""
        return f".{self.index}-of-{self.of}" if self.of > 1 else ""


class Trial:
    """One system on some cases.

    Args:
        folder: of the trial; its traces are `traces.jsonl` there, or `traces.0-of-2.jsonl` and so on, and all of them
            are made by the same settings, which `settings.json` says.
        shard: which cases this process works off.
    """

    def __init__(self, folder: Path, shard: Shard = Shard()) -> None:
        self.folder, self.shard = folder, shard

    @property
    def settings(self) -> dict[str, Any] | None:
        """What made its traces; None before the first one."""
        path = self.folder / "settings.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Say what makes its traces, before any is made.

        Raises:
            ValueError: naming what differs, if those that are there were made by something else.
        """
        path, settings = self.folder / "settings.json", json.loads(json.dumps(settings))
        if self.settings != settings and next(self.traces(), None) is None:
            path.unlink(missing_ok=True)  # nothing was made by them
        path.parent.mkdir(parents=True, exist_ok=True)
        written = self.folder / f"settings{self.shard}.part"
        written.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        with contextlib.suppress(FileExistsError):  # of several shards that begin at once, one says it
            os.link(written, path)
        written.unlink()
        known = self.settings or {}
        if differ := [name for name in {**known, **settings} if known.get(name) != settings.get(name)]:
            raise ValueError(
                f"out: {self.folder} was made with another {', '.join(differ)}; remove it, or give another --out"
            )

    def check(self, cases: Sequence[LabeledCase]) -> None:
        """See that the traces are of these cases as they are now.

        Raises:
            ValueError: naming one that was another when it was asked.
        """
        now = {case.id: _asked(case) for case in cases}
        for trace in self.traces():
            then = [trace.question, trace.options, trace.context, trace.answer, len(trace.images)]
            if then != now.get(trace.case, then):
                raise ValueError(
                    f"cases: {trace.case!r} was another when {self.folder} was made; remove it, or give another --out"
                )

    async def run(
        self,
        graph: Consultation,
        cases: Sequence[LabeledCase],
        images: ImageStore,
        concurrency: int,
        budget: Budget,
        title: str = "",
    ) -> dict[str, int]:
        """Consult on every case of the shard that has no trace yet, in whatever shard's file.

        Returns:
            How many of the shard's cases are `done`, `failed`, and `left` because the budget is gone.

        Raises:
            ValueError: if another process writes to the same file, or what a call costs cannot be known.
        """
        mine = {case.id: case for case in cases if self.shard.holds(case.id)}
        done = {case for case, error in self.outcomes().items() if error is None} & mine.keys()
        counts = {"done": len(done), "failed": 0}
        bar = tqdm(total=len(mine), initial=counts["done"], desc=title, unit="case", dynamic_ncols=True)
        with contextlib.closing(Results(self.folder / f"traces{self.shard}.jsonl", mine)) as results, bar:

            def keep(line: Line) -> None:
                results.keep(line)
                counts["failed" if "error" in line else "done"] += 1
                bar.set_postfix(failed=counts["failed"], refresh=False)
                bar.update()
                budget.check()

            await work_off(
                functools.partial(_line, graph, images, budget), self._waiting(mine, done, budget), keep, concurrency
            )
        return {**counts, "left": len(mine) - counts["done"] - counts["failed"]}

    @staticmethod
    def _waiting(mine: Mapping[str, LabeledCase], done: Container[str], budget: Budget) -> Iterator[LabeledCase]:
        for name, case in mine.items():
            if budget.gone:
                return
            if name not in done:
                yield case

    def traces(self) -> Iterator[Trace]:
        """The traces of all shards, one for each case, in no particular order.

        A line that is still being written is no trace.
        """
        seen = set()
        for line in self._lines():
            if "error" not in line and line["id"] not in seen:
                seen.add(line["id"])
                yield trace_of(line)

    def outcomes(self) -> dict[str, str | None]:
        """Why each case failed, by their ids; None of one that has a trace."""
        outcomes: dict[str, str | None] = {}
        for line in self._lines():
            if outcomes.get(line["id"], "") is not None:
                outcomes[line["id"]] = line.get("error")
        return outcomes

    def _lines(self) -> Iterator[Line]:
        return (line for path in sorted(self.folder.glob(LINES)) for line in read_lines(path))


async def _line(graph: Consultation, images: ImageStore, budget: Budget, case: LabeledCase) -> Line:
    """The line of one case.

    A graph in use goes on without a specialist, an expert or a vote that failed. In an evaluation that would be another
    system's result: the case has failed, and what the others said is in the cache when it is tried again.
    """
    recorder = CallRecorder(budget.add)
    try:
        trace = await consult(graph, case, images, recorder)
    except Exception as error:
        return {"id": case.id, "error": f"{type(error).__name__}: {error}"}
    failed = {f"specialist {one['doctor']}: {one['error']}" for one in trace.opinions if one["error"]}
    if failed := failed or set(recorder.failed):
        return {"id": case.id, "error": f"failed: {'; '.join(sorted(failed))}"}
    return {"id": case.id, **row_of(trace)}


def _asked(case: LabeledCase) -> list[Any]:
    """What a trace has of its case."""
    given = case.given()
    return [given.question, given.options, given.context, case.answer, len(case.images)]


async def consult(
    graph: Consultation, case: LabeledCase, images: ImageStore, recorder: CallRecorder | None = None
) -> Trace:
    """The whole consultation of a case, with all that its models said."""
    recorder = recorder or CallRecorder()
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
