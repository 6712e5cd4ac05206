"""A language model as the judge of open answers: a LangGraph graph of one node, and the grader made of it.

    judge = judge_of("openai:gpt-4o", cache=SqliteCache(path="verdicts.db"))
    grading = Grading.parse(["format=0.5", "judge=1"], {"judge": judge})

Invariant: a verdict was stated by the judge. One that cannot be read, or a judge that fails, is no verdict, and the
trace cannot be graded; it is not wrong.
"""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Annotated, Any

from langchain_core.messages import BaseMessage
from langgraph.cache.base import BaseCache
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
        index = read_name(text, VERDICTS)
        return {"correct": None if index is None else VERDICTS[index] == "correct"}

    def accept(self, output: Mapping[str, Any], state: JudgeInput) -> Update:
        """A swapped-in judge's verdict."""
        correct = output.get("correct")
        if correct is not None and not isinstance(correct, bool):
            raise ValueError(f"judge.correct: {correct!r} is no verdict; it must be True, False or None")
        return {"correct": correct}


def build_judge(
    model: Swappable, cache: BaseCache[Any] | None = None
) -> CompiledStateGraph[JudgeState, Any, JudgeInput, JudgeOutput]:
    """The judge as a compiled LangGraph graph: `{"question", "key", "answer"}` in, `{"correct", "usage"}` out.

    Args:
        model: who judges: a model string, a chat model, or a callable, Runnable or graph of one's own that takes
            `JudgeInput` and returns `{"correct": ...}` or a text.
        cache: a LangGraph cache that keeps the verdicts, as in `build_graph`. Default: each is asked for anew.

    Raises:
        ValueError: if the judge can be none of these.
    """
    who = answering(Judge(), model, "judge", FrozenAnswers(cache) if cache is not None else None)
    builder = StateGraph(JudgeState, input_schema=JudgeInput, output_schema=JudgeOutput)
    builder.add_node("judge", Standing(who, "judge", enter=_without_images), retry_policy=RetryPolicy())
    builder.add_edge(START, "judge")
    builder.add_edge("judge", END)
    return builder.compile(name="judge")


def judge_of(model: Swappable, cache: BaseCache[Any] | None = None) -> Grader:
    """A grader: 1 where the judge finds the decided answer correct, 0 where it does not.

    An unreadable answer (0) and the key itself (1) are not put to the judge. Without a key, a decision or a verdict
    the trace cannot be graded; why a judge failed is logged as a warning.

    Args:
        model: as in `build_judge`.
        cache: as in `build_judge`.
    """
    graph = build_judge(model, cache)

    async def judge(trace: Trace) -> float | None:
        if trace.answer is None or trace.decision is None:
            return None
        if trace.decided is None or is_right(trace.decided, trace.answer):
            return float(trace.decided is not None)
        asked = JudgeInput(question=trace.question, key=trace.answer, answer=trace.decided)
        try:
            correct = (await graph.ainvoke(asked))["correct"]
        except Exception as error:  # after its retries; a run does not die of a judge that is down
            LOG.warning("judge: case %r cannot be graded: %s: %s", trace.case, type(error).__name__, error)
            return None
        if correct is None:
            LOG.warning("judge: case %r cannot be graded: its verdict could not be read", trace.case)
        return None if correct is None else float(correct)

    return judge


def _without_images(state: JudgeState) -> dict[str, Any]:
    return {**state, "images": []}
