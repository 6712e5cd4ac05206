"""Rollouts: the graph up to the node under training, that node's prompt, and the graph on from its completion.

Invariant: the completions of a group share one upstream. The nodes before the learnable one run once for each case;
every completion then goes on from the very same state, through the very same graph that serves users.
"""

import asyncio
import contextlib
import dataclasses
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from tqdm import tqdm

from mmedagent_graph import build_graph
from mmedagent_graph.images import ImageStore
from mmedagent_graph.nodes import Attending, Swappable, Update
from mmedagent_graph.nodes.staff import Panel
from mmedagent_graph.state import ConsultationInput
from rl.curriculum import tier_of
from rl.datasets import LabeledCase
from rl.traces import Trace

CONCURRENCY = 64


def _input(case: LabeledCase) -> ConsultationInput:
    given = case.given()  # checked, and without the answer key
    return {"question": given.question, "options": given.options, "images": given.images, "context": given.context}


def _never_called(state: Any) -> Update:
    raise RuntimeError("the node under training was called: its completions must come from the trainer")


class AttendingRollout:
    """Consultations that pause where the attending physician would speak.

    Args:
        triage: as in `build_graph`; frozen.
        specialists: as in `build_graph`; frozen.
        images: the store that the cases' images go to.
    """

    def __init__(self, triage: Swappable, specialists: Panel, images: ImageStore) -> None:
        self.images = images
        self.node = Attending(images)
        self._saver = InMemorySaver()
        self._graph = build_graph(
            triage=triage,
            specialists=specialists,
            attending=_never_called,
            images=images,
            checkpointer=self._saver,
        )

    async def upstream(self, case: LabeledCase) -> Trace:
        """Run triage and specialists for a case; their opinions say its tier."""
        async with self._thread() as config:
            await self._graph.ainvoke(_input(case), config, interrupt_before=[self.node.name])
            trace = Trace.of(case, (await self._graph.aget_state(config)).values, self.node.name)
        trace.tier = tier_of(trace.opinions, trace.answer)
        return trace

    def prompt(self, trace: Trace) -> list[BaseMessage]:
        """The prompt of the node under training: what inference would put to the model, word for word."""
        return self.node.render(trace.given())

    async def finish(self, upstream: Trace, text: str) -> Trace:
        """Go on from one completion of the node under training to the end of the graph."""
        read = self.node.read(text, upstream.given())
        async with self._thread() as config:
            # the upstream's values and the node's own, written as if that node had just run: what follows it, follows
            update = {**upstream.state(), **read}
            paused = await self._graph.aupdate_state(config, update, as_node=self.node.name)
            await self._graph.ainvoke(None, paused)
            values = (await self._graph.aget_state(config)).values
        return dataclasses.replace(upstream, text=text, decision=values["decision"], opinions=values["opinions"])

    @contextlib.asynccontextmanager
    async def _thread(self) -> AsyncIterator[RunnableConfig]:
        """A thread of the graph for one run, forgotten afterwards."""
        thread = uuid.uuid4().hex
        try:
            yield {"configurable": {"thread_id": thread}}
        finally:
            await self._saver.adelete_thread(thread)


async def roll_upstream(
    rollout: AttendingRollout, cases: Sequence[LabeledCase], done: Callable[[Trace], None], title: str = "rollout"
) -> None:
    """Run the upstream of many cases, `CONCURRENCY` at a time, and hand over each trace as it is finished."""
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one(case: LabeledCase) -> Trace:
        async with gate:
            return await rollout.upstream(case)

    for finished in tqdm(asyncio.as_completed([one(case) for case in cases]), title, len(cases), unit="case"):
        done(await finished)
