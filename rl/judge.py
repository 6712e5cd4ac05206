"""A language model as the judge of open answers: a LangGraph graph of one node, and the grader made of it.

    judge = judge_of("openai:gpt-4o", cache=SqliteCache(path="verdicts.db"))
    grading = Grading.parse(["format=0.5", "judge=1"], {"judge": judge})

Invariant: a verdict was stated by the judge. One that cannot be read, or a judge that fails, is no verdict, and the
trace cannot be graded; it is not wrong. A grader finds equal answers to a question equally good: a judge that wavered
inside a group would pay for noise.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Mapping
from typing import Annotated, Any

from langchain_core.messages import BaseMessage
from langgraph.cache.base import BaseCache, FullKey
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import RetryPolicy
from typing_extensions import TypedDict

from mmedagent_graph.answers import read_name
from mmedagent_graph.frozen import FrozenAnswers
from mmedagent_graph.nodes import Swappable, Update
from mmedagent_graph.nodes.staff import answering
from mmedagent_graph.nodes.standing import Standing
from mmedagent_graph.prompts import VERDICTS, judge_messages
from mmedagent_graph.state import NodeUsage, add_usage
from rl.grading import Grader
from rl.traces import Trace, is_right

LOG = logging.getLogger(__name__)


class JudgeInput(TypedDict):
    """What is to be judged."""

    question: str
    key: str
    answer: str
    """The candidate's."""


class JudgeOutput(TypedDict):
    """What the judge made of it."""

    correct: bool | None
    """None: the verdict could not be read."""
    usage: Annotated[dict[str, NodeUsage], add_usage]


class JudgeState(JudgeInput, JudgeOutput):
    """The whole state."""


@dataclasses.dataclass(frozen=True)
class Judge:
    """Says whether an answer means the same as the key."""

    name: str = "judge"

    def render(self, state: JudgeInput) -> list[BaseMessage]:
        """The judge's prompt."""
        return judge_messages(state["question"], state["key"], state["answer"])

    def read(self, text: str, state: JudgeInput) -> Update:
        """`{"correct": ...}`."""
        return {"correct": read_verdict(text)}

    def accept(self, output: Mapping[str, Any], state: JudgeInput) -> Update:
        """A swapped-in judge's verdict."""
        correct = output.get("correct")
        if correct is not None and not isinstance(correct, bool):
            raise ValueError(f"judge.correct: {correct!r} is no verdict; it must be True, False or None")
        return {"correct": correct}


class FrozenVerdicts(FrozenAnswers):
    """The verdicts that a LangGraph cache holds: a text that gives none is not kept, and the judge is asked again."""

    def keep(self, key: FullKey, answer: BaseMessage) -> None:
        """Keep a verdict for good."""
        if read_verdict(str(answer.text)) is not None:
            super().keep(key, answer)

    async def akeep(self, key: FullKey, answer: BaseMessage) -> None:
        """Keep a verdict for good."""
        if read_verdict(str(answer.text)) is not None:
            await super().akeep(key, answer)


Judging = CompiledStateGraph[JudgeState, Any, JudgeInput, JudgeOutput]


def build_judge(model: Swappable, cache: BaseCache[Any] | None = None) -> Judging:
    """The judge as a compiled LangGraph graph: `{"question", "key", "answer"}` in, `{"correct", "usage"}` out.

    Args:
        model: who judges: a model string, a chat model, or a callable, Runnable or graph of one's own that takes
            `JudgeInput` and returns `{"correct": ...}` or a text.
        cache: a LangGraph cache that keeps the verdicts, as in `build_graph`. Default: each is asked for anew.

    Raises:
        ValueError: if the judge can be none of these.
    """
    who = answering(Judge(), model, "judge", FrozenVerdicts(cache) if cache is not None else None)
    builder = StateGraph(JudgeState, input_schema=JudgeInput, output_schema=JudgeOutput)
    builder.add_node("judge", Standing(who, "judge", enter=_without_images), retry_policy=RetryPolicy())
    builder.add_edge(START, "judge")
    builder.add_edge("judge", END)
    return builder.compile(name="judge")


def judge_of(model: Swappable, cache: BaseCache[Any] | None = None) -> Grader:
    """A grader: 1 where the judge finds the decided answer correct, 0 where it does not.

    An unreadable answer (0) and the key itself (1) are not put to the judge, and an answer that it has judged, or is
    just judging, is not put to it again. Without a key, a decision or a verdict the trace cannot be graded; why there
    is no verdict is logged as a warning, which says nothing of the case but its id.

    Args:
        model: as in `build_judge`.
        cache: as in `build_judge`; what it keeps outlives the grader.
    """
    graph = build_judge(model, cache)
    known: dict[JudgeKey, asyncio.Future[bool | str]] = {}

    async def judge(trace: Trace) -> float | None:
        if trace.answer is None or trace.decision is None:
            return None
        if trace.decided is None or is_right(trace.decided, trace.answer):
            return float(trace.decided is not None)
        verdict = await _joined(graph, known, (trace.question, trace.answer, trace.decided))
        if isinstance(verdict, str):
            LOG.warning("judge: case %r cannot be graded: %s", trace.case, verdict)
            return None
        return float(verdict)

    return judge


JudgeKey = tuple[str, str, str]
"""Question, key and answer."""


async def _joined(graph: Judging, known: dict[JudgeKey, asyncio.Future[bool | str]], key: JudgeKey) -> bool | str:
    """As `_verdict`; whoever asks the same at the same time or later gets the same verdict."""

    def forget(done: asyncio.Future[bool | str]) -> None:
        if known.get(key) is done and (done.cancelled() or isinstance(done.result(), str)):
            del known[key]  # what is no verdict is not remembered

    found = known.get(key)
    if found is None or not (found.done() or found.get_loop() is asyncio.get_running_loop()):
        found = known[key] = asyncio.ensure_future(_verdict(graph, key))
        found.add_done_callback(forget)
    return await asyncio.shield(found)  # one that is cancelled does not take the others with it


async def _verdict(graph: Judging, key: JudgeKey) -> bool | str:
    """The verdict, or why there is none."""
    try:
        judged = await graph.ainvoke(JudgeInput(question=key[0], key=key[1], answer=key[2]))
    except Exception as error:  # after its retries; a run does not die of a judge that is down
        return _kind(error)
    correct: bool | None = judged["correct"]
    return "its verdict could not be read" if correct is None else correct


def _kind(error: Exception) -> str:
    """An error without its text: a provider's may quote the case."""
    status = getattr(error, "status_code", None)
    return f"{type(error).__name__} {status}" if isinstance(status, int) else type(error).__name__


def read_verdict(text: str) -> bool | None:
    """What a judge's text states, read as strictly as an answer; None: neither verdict."""
    index = read_name(text, VERDICTS)
    return None if index is None else VERDICTS[index] == "correct"


def _without_images(state: JudgeState) -> dict[str, Any]:
    return {**state, "images": []}
