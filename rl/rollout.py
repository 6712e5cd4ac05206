"""Rollouts: the graph up to the node under training, that node's prompt, and the graph on from its completion.

Invariant: the completions of a group share one upstream. The nodes before the learnable one run once for each case;
every completion then goes on from the very same state, through the very same graph that serves users. What lies
behind a referral is asked once for each case and specialty, however many completions lead there.
"""

import asyncio
import contextlib
import copy
import dataclasses
import functools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.cache.base import BaseCache
from langgraph.checkpoint.memory import InMemorySaver
from tqdm import tqdm

from mmedagent_graph import build_graph
from mmedagent_graph.images import ImageStore
from mmedagent_graph.nodes import Attending, Node, Specialist, Swappable, Triage, Update
from mmedagent_graph.nodes.staff import Panel
from mmedagent_graph.prompts import SPECIALTIES
from mmedagent_graph.state import Referral, SpecialistInput, TriageInput
from rl.curriculum import tier_of
from rl.datasets import LabeledCase
from rl.guidelines import Guideline, Name, guided
from rl.traces import CallRecorder, Trace

CONCURRENCY = 64
NODES = ("triage", "attending", "specialist")
"""The nodes that can learn."""


def _never_called(state: Any) -> Update:
    raise RuntimeError(
        "a node was called that nobody answers for: if it is under training, its completions must come from the trainer"
    )


class Rollout:
    """Consultations that pause where a learnable node would speak.

    Args:
        triage: as in `build_graph`; frozen. Default: it is under training, and never called.
        specialists: as in `build_graph`; frozen. Default: none is ever called, as where prompts are only rendered.
        attending: as in `build_graph`; frozen. Default: it is under training, and never called; a consultation then
            does not go on from a referral to its end.
        images: the store that the cases' images go to.
        guideline: what a prompt with a perspective is told beside the case. Default: there are no such prompts.
        answers: a LangGraph cache that keeps what the frozen models answer. Default: nothing is kept.
    """

    def __init__(
        self,
        *,
        images: ImageStore,
        specialists: Panel | Mapping[str, Panel] | None = None,
        triage: Swappable | None = None,
        attending: Swappable | None = None,
        guideline: Guideline | None = None,
        answers: BaseCache[Any] | None = None,
    ) -> None:
        self.images, self.guideline = images, guideline
        self.nodes: dict[str, Node] = {
            "triage": Triage(tuple(SPECIALTIES), images),
            "specialist": Specialist(images),
            "attending": Attending(images),
        }
        self.whole = attending is not None
        """Whether a referral is followed to the end of the consultation."""
        self.spared, self.asked = 0, 0
        """Model calls that a cache or an earlier consultation has spared, and those that were made."""
        self._known: dict[tuple[str, str | None, bool], asyncio.Future[Trace]] = {}
        self._saver = InMemorySaver()
        self._graph = build_graph(
            triage=triage or _never_called,
            specialists=specialists or _never_called,
            attending=attending or _never_called,
            images=images,
            cache=answers,
            checkpointer=self._saver,
        )

    async def upstream(self, case: LabeledCase, node: str = "attending") -> Trace:
        """The consultation up to a node; before the attending, the opinions say the case's tier.

        A specialist is asked as if triage had referred to the case's own specialty.

        Raises:
            ValueError: if a specialist is to be asked, and the case has no specialty.
        """
        given = case.given()  # checked, and without the answer key
        if node != "attending":  # nobody is asked before
            state: dict[str, Any] = {"case": await asyncio.to_thread(given.fields, self.images)}
            if node == "specialist":
                if case.specialty is None:
                    raise ValueError(f"cases: {case.id!r} has no specialty, as which its specialist would be asked")
                state["referral"] = Referral(specialty=case.specialty, reasoning="")
            return Trace.of(case, state, node)
        async with self._thread() as (config, calls):
            await self._graph.ainvoke(cast(Any, given), config, interrupt_before=[node])
            trace = Trace.of(case, (await self._graph.aget_state(config)).values, node)
        return self._heard(trace, calls)

    def prompt(self, trace: Trace) -> list[BaseMessage]:
        """The prompt of the node where a trace pauses: what inference would put to the model, word for word.

        One with a perspective has the guideline's words besides.
        """
        messages = self.nodes[trace.node].render(_given(trace))
        if trace.perspective is None or self.guideline is None:
            return messages
        return guided(messages, self.guideline.text(cast(Name, trace.perspective), str(trace.specialty)))

    async def refer(self, trace: Trace, text: str) -> Trace:
        """From triage's completion on to the attending: the upstream of the attending's prompt."""
        return await self._referred(trace, self.nodes["triage"].read(text, _given(trace)), to_end=False)

    async def finish(self, trace: Trace, text: str) -> Trace:
        """The trace of one completion of the node under training, to the end of the graph.

        Where that node is triage and the attending is not frozen, or there is nobody to hear, the trace ends with the
        referral. A specialist under training is alone: what it says is the decision.
        """
        if trace.node == "specialist":
            alone = self.nodes["attending"].read(text, trace.given())
            return dataclasses.replace(trace, text=text, decision=alone["decision"])
        read = self.nodes[trace.node].read(text, _given(trace))
        if trace.node == "triage":
            if not self.whole:
                return dataclasses.replace(trace, text=text, **read)
            ended = await self._referred(trace, read, to_end=True)
            return dataclasses.replace(ended, node="triage", text=text, **read)
        async with self._thread() as (config, _):
            values = await self._go_on(config, {**trace.state(), **read}, trace.node)
        return dataclasses.replace(trace, text=text, decision=values["decision"], opinions=values["opinions"])

    async def _referred(self, trace: Trace, read: Update, *, to_end: bool) -> Trace:
        """What follows a referral, which is rolled once for each case and specialty."""
        key = (trace.case, read["referral"]["specialty"], to_end)
        shared = self._known.get(key)
        known = shared or self._known.setdefault(key, asyncio.ensure_future(self._follow(trace, read, to_end)))
        try:
            found = await known
        except BaseException:
            self._known.pop(key, None)  # a failure is not remembered
            raise
        if shared:
            self.spared += sum(spent["calls"] + spent["cached"] for spent in found.usage.values())
        return dataclasses.replace(copy.deepcopy(found), **read)

    async def _follow(self, trace: Trace, read: Update, to_end: bool) -> Trace:
        async with self._thread() as (config, calls):
            before = [] if to_end else ["attending"]
            values = await self._go_on(config, {**trace.state(), **read}, "triage", before)
        reached = dataclasses.replace(
            trace,
            node="attending",
            referral=values["referral"],
            opinions=list(values.get("opinions", [])),
            decision=values.get("decision"),
            usage=dict(values.get("usage", {})),
        )
        return self._heard(reached, calls)

    async def _go_on(
        self, config: RunnableConfig, update: dict[str, Any], node: str, before: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Go on as if a node had just written this into the state: what follows it, follows."""
        written = await self._graph.aupdate_state(config, update, as_node=node)
        paused = cast(RunnableConfig, {**config, **written})
        state = await self._graph.aget_state(paused)
        if set(state.next) - set(before):  # it would not pause where it already stands
            await self._graph.ainvoke(None, paused, interrupt_before=list(before))
            state = await self._graph.aget_state(config)
        values: dict[str, Any] = state.values
        return values

    def _heard(self, trace: Trace, calls: CallRecorder) -> Trace:
        """The trace with what was said on the way, and its tier."""
        trace.calls = calls.calls
        trace.tier = None if trace.answer is None else tier_of(trace.opinions, trace.answer)
        self.asked += sum(spent["calls"] for spent in trace.usage.values())
        self.spared += sum(spent["cached"] for spent in trace.usage.values())
        return trace

    @contextlib.asynccontextmanager
    async def _thread(self) -> AsyncIterator[tuple[RunnableConfig, CallRecorder]]:
        """A thread of the graph for one run, forgotten afterwards, and what its models say."""
        thread, calls = uuid.uuid4().hex, CallRecorder()
        try:
            yield {"configurable": {"thread_id": thread}, "callbacks": [calls]}, calls
        finally:
            await self._saver.adelete_thread(thread)


def _given(trace: Trace) -> Any:
    """What the node where a trace pauses is given."""
    if trace.node == "triage":
        return TriageInput(**trace.fields())
    if trace.node == "specialist" and trace.referral:
        return SpecialistInput(**trace.fields(), specialty=str(trace.referral["specialty"]), doctor=1, doctors=1)
    return trace.given()


async def at_once(
    work: Sequence[Callable[[], Awaitable[Trace]]], done: Callable[[int, Trace], None], title: str, quiet: bool = False
) -> None:
    """Do many pieces of work, `CONCURRENCY` at a time, and hand over each trace, with its place, as it is finished."""
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one(i: int) -> tuple[int, Trace]:
        async with gate:
            return i, await work[i]()

    running = [asyncio.ensure_future(one(i)) for i in range(len(work))]
    for finished in tqdm(asyncio.as_completed(running), title, len(running), unit="case", disable=quiet):
        done(*await finished)


async def in_order(work: Sequence[Callable[[], Awaitable[Trace]]], title: str, quiet: bool = False) -> list[Trace]:
    """Do many pieces of work, `CONCURRENCY` at a time; their traces in the order of the pieces."""
    traces: dict[int, Trace] = {}
    await at_once(work, traces.__setitem__, title, quiet)
    return [traces[i] for i in range(len(work))]


async def roll_upstream(
    rollout: Rollout, cases: Sequence[LabeledCase], title: str = "rollout", node: str = "attending", quiet: bool = False
) -> list[Trace]:
    """The upstream of many cases, in their order."""
    return await in_order([functools.partial(rollout.upstream, case, node) for case in cases], title, quiet)
