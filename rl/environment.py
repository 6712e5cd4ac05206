"""What a stage trains in: it gives the prompts, takes the completions through the graph, and grades whole traces.

Invariant: a prompt is what the node is given at inference, and a reward is that of a finished consultation. Where the
policy under training refers the patients itself, the attending's prompts are made anew as it changes, and kept on
disk: a resumed stage trains on the very same ones.
"""

import asyncio
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, Features, Image, List, Value
from langchain_core.messages import BaseMessage

from rl.chat import text_turns, to_chat
from rl.curriculum import TIERS, Stage
from rl.grading import Grading
from rl.rollout import CONCURRENCY, Rollout, at_once
from rl.store import Rollouts, read_traces, write_traces
from rl.traces import NodeCall, Trace

Prompt = tuple[list[dict[str, str]], list[Any]]
"""Turns of text, and the images that stand in front of the user's words."""
Complete = Callable[[Sequence[Prompt]], list[tuple[str, list[int]]]]
"""Samples one completion of the policy for each prompt: text and token ids."""


class Environment:
    """A stage's prompts in training order, and what becomes of their completions.

    Args:
        stage: the stage.
        prompts: the traces that its prompts are made of, in training order.
        rollout: what takes completions on.
        gradings: for each of the stage's nodes.
        record: where the rollouts are kept.
        folder: where re-rolled upstream traces are kept.
        reroll: optimizer steps after which the policy's own triage rolls the attending's upstream anew; 0: never.
        per_step: prompts of an optimizer step.
        stratified: how many perspectives each case is asked from, one prompt after the other, and the weight of the
            advantage across them (`rl.perspectives`).
    """

    def __init__(
        self,
        stage: Stage,
        prompts: Sequence[Trace],
        rollout: Rollout,
        gradings: Mapping[str, Grading],
        record: Rollouts,
        folder: Path,
        reroll: int = 0,
        per_step: int = 0,
        stratified: tuple[int, float] = (1, 0.0),
    ) -> None:
        self.stage, self.prompts, self.rollout, self.gradings = stage, list(prompts), rollout, gradings
        self.record, self.folder, self.reroll, self.per_step = record, folder, reroll, per_step
        self.perspectives, self.across = stratified
        self.batch: list[Trace] = []
        """The rollouts of the last generation, as they will be recorded."""
        self.ends: frozenset[int] = frozenset()
        """The tokens that end an answer, as the trainer knows them."""
        self._calls = (0, 0)
        self._unscored: set[int] = set()
        self._recorded = False
        self._rolled = -1

    def dataset(self) -> Dataset:
        """The rows that GRPO trains on: the node's whole prompt, its images, and which trace it is."""
        rows = {
            "prompt": [text_turns(self.rollout.prompt(trace)) for trace in self.prompts],
            "images": [[str(self.rollout.images.path(ref)) for ref in trace.images] for trace in self.prompts],
            "trace": list(range(len(self.prompts))),
        }
        features = Features(
            {
                "prompt": List({"role": Value("string"), "content": Value("string")}),
                "images": List(Image()),
                "trace": Value("int32"),
            }
        )
        return Dataset.from_dict(rows, features=features)

    def rows(self, rows: Sequence[dict[str, Any]], step: int, complete: Complete) -> list[dict[str, Any]]:
        """The dataset's rows as they are now.

        Args:
            rows: of the dataset, each repeated for its group.
            step: optimizer steps done.
            complete: the policy as it stands; all processes must call it together.
        """
        if self.reroll and step // self.reroll != self._rolled:
            self._rolled = step // self.reroll
            self._roll_anew(self._rolled * self.reroll, complete)
        if not self.reroll:
            return list(rows)
        turns = {i: text_turns(self.rollout.prompt(self.prompts[i])) for i in {row["trace"] for row in rows}}
        return [{**row, "prompt": turns[row["trace"]]} for row in rows]

    def _roll_anew(self, step: int, complete: Complete) -> None:
        """Roll the upstream of the attending's prompts for the next `reroll` steps with the policy's own triage."""
        block = range(step * self.per_step, min((step + self.reroll) * self.per_step, len(self.prompts)))
        places = [i for i in block if self.prompts[i].node == "attending"]
        path = self.folder / f"upstream-{step:06d}.parquet"
        if path.exists():
            fresh = dict(zip(places, read_traces(path), strict=True))
        else:
            starts = [_before_triage(self.prompts[i]) for i in places]
            said = complete([_asked(self.rollout.prompt(start)) for start in starts])
            fresh = dict(zip(places, self._referred(starts, said), strict=True))
            if self.record.rank == 0:
                write_traces(path, [fresh[i] for i in places])
        for i, trace in fresh.items():
            self.prompts[i] = trace

    def _referred(self, starts: Sequence[Trace], said: Sequence[tuple[str, list[int]]]) -> list[Trace]:
        """What triage's completions lead to, in their order; the processes share the work, and the specialists."""
        state = PartialState()
        share = range(state.process_index, len(starts), state.num_processes)
        pieces = [lambda i=i: self.rollout.refer(starts[i], said[i][0]) for i in share]
        mine: dict[int, Trace] = {}
        asyncio.run(at_once(pieces, mine.__setitem__, "referrals", quiet=True))
        found = dict(gather_object([(share[n], trace) for n, trace in mine.items()]))
        for i, trace in found.items():
            trace.calls = [_own_referral(*said[i]), *trace.calls]
        return [found[i] for i in range(len(starts))]

    async def reward(
        self,
        completions: list[Any],
        completion_ids: list[list[int]],
        trace: list[int],
        trainer_state: Any,
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float | None]:
        """TRL's reward function: each completion goes on through the graph and is graded as a whole trace."""
        began = time.perf_counter()
        keys = [(i, tuple(ids)) for i, ids in zip(trace, completion_ids, strict=True)]
        texts = dict(zip(keys, (completion[0]["content"] for completion in completions), strict=True))
        gate = asyncio.Semaphore(CONCURRENCY)
        found = await asyncio.gather(*(self._graded(*key, text, gate) for key, text in texts.items()))
        ended = dict(zip(texts, found, strict=True))  # equal completions of one prompt have one end
        step = trainer_state.global_step + 1
        version = f"{self.stage.name}@{step - 1}"
        self.flush()
        self.batch = [dataclasses.replace(ended[key], step=step, policy=version) for key in keys]
        self._unscored, self._recorded = set(range(len(self.batch))), False
        for name, value in {**_figures(self.batch), **self._cache_hits()}.items():
            log_metric(name, value)
        log_metric("seconds/grade", time.perf_counter() - began)
        return [done.reward for done in self.batch]

    async def _graded(self, place: int, completion_ids: tuple[int, ...], text: str, gate: asyncio.Semaphore) -> Trace:
        async with gate:
            done = await self.rollout.finish(self.prompts[place], text)
            done.completion_ids = list(completion_ids)
            done.finish = "stop" if completion_ids[-1:] and completion_ids[-1] in self.ends else "length"
            return await self.gradings[done.node].grade(done)

    def _cache_hits(self) -> dict[str, float]:
        """The share of the model calls since the last generation that were spared."""
        before, self._calls = self._calls, (self.rollout.asked, self.rollout.spared)
        asked, spared = (now - then for now, then in zip(self._calls, before, strict=True))
        return {"cache_hits": spared / (asked + spared)} if asked + spared else {}

    def forget_after(self, step: int) -> None:
        """Drop what lies beyond a checkpoint's step: the resumed stage rolls it again, with the same random numbers."""
        self.record.forget_after(step)
        for path in self.folder.glob("upstream-*.parquet"):
            if self.record.rank == 0 and int(path.stem.rpartition("-")[2]) >= step:
                path.unlink()

    def kinds(self) -> list[str]:
        """The kinds of prompts that figures are told apart by."""
        return [*TIERS, "triage", "specialist"]

    def gammas(self, done: float) -> list[float]:
        """The entropy weight of each of the last rollouts when a share `done` of the stage's steps is done."""
        return [self.stage.gamma(trace, done) for trace in self.batch]

    def scored(self, row: int, logprobs: Sequence[float] | None) -> None:
        """Take the log-probabilities of a rollout of the last generation; with the last of them, all are recorded.

        Args:
            row: which rollout.
            logprobs: of its tokens, and of padding; None where nobody has measured them.
        """
        trace = self.batch[row]
        if trace.logprobs is None and logprobs is not None:
            trace.logprobs = list(logprobs[: len(trace.completion_ids or [])])
        self._unscored.discard(row)
        if not self._unscored:
            self.flush()

    def flush(self) -> None:
        """Keep the last generation, once, however often it is learned from, and also where not all of it was."""
        if self.batch and not self._recorded:
            self.record.add(int(self.batch[0].step or 0), self.batch)
            self._recorded = True


def _asked(messages: Sequence[BaseMessage]) -> Prompt:
    return text_turns(messages), to_chat(messages)[1]


def _own_referral(text: str, completion_ids: list[int]) -> NodeCall:
    """What the policy under training said as triage."""
    return NodeCall(
        node="triage",
        specialty=None,
        doctor=None,
        vote=None,
        model=None,
        text=text,
        prompt_ids=None,
        completion_ids=completion_ids,
        logprobs=None,
        finish=None,
    )


def _before_triage(trace: Trace) -> Trace:
    """The case as it came: nothing referred, nothing said."""
    return dataclasses.replace(
        trace, node="triage", referral=None, opinions=[], decision=None, calls=[], usage={}, tier=None
    )


def _figures(batch: Sequence[Trace]) -> dict[str, float]:
    """What is worth watching of a generation; shares of 1, over the rollouts that each concerns."""
    figures: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    for trace in batch:
        for grader, value in trace.rewards.items():
            if value is not None:
                note(f"rewards/{grader}", value)
                if grader == "accuracy" and trace.tier:
                    note(f"accuracy/{trace.tier}", value)
        note("ungraded", float(trace.reward is None))
        if trace.node == "triage":
            note("unparsed/triage", float(trace.referral is None or trace.referral["specialty"] is None))
        else:
            note("unparsed", float(trace.decision is None or trace.decision["answer"] is None))
    return {name: math.fsum(values) / len(values) for name, values in figures.items()}
