"""A teacher: one model that answers each case several times, from each of some reasoning perspectives.

Invariant: it is asked by the specialist's own prompt and read by the strict reader. The guideline stands at the end of
the system turn, so that what it says can be left out again; the right answer is never told.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Unpack

from langchain_core.messages import BaseMessage
from langgraph.graph import END, START
from langgraph.types import Send

from mmedagent_graph.baselines.wiring import Common, Role, Wiring
from mmedagent_graph.consultation import Consultation
from mmedagent_graph.images import ImageStore
from mmedagent_graph.models import ChatModel, sampled
from mmedagent_graph.nodes import Specialist
from mmedagent_graph.nodes.base import ByModel
from mmedagent_graph.nodes.specialist import failed
from mmedagent_graph.nodes.standing import says_so
from mmedagent_graph.prompts import specialist_messages
from mmedagent_graph.state import ConsultationState, SpecialistInput, TriageInput
from rl.guidelines import PERSPECTIVES, Guideline, Name, guided


def teacher(
    model: ChatModel,
    guideline: Guideline,
    perspectives: Sequence[Name],
    samples: int,
    triage: Callable[[TriageInput], dict[str, Any]],
    **common: Unpack[Common],
) -> Consultation:
    """The teacher as a graph: `opinions` holds every answer, and `perspective_of` tells from where it was reasoned.

    Args:
        model: who answers. Where it is asked several times and its temperature is 0, at temperature 1.
        guideline: what it is told.
        perspectives: from where it is to reason.
        samples: how often from each.
        triage: tells the specialty of a case, as in `build_graph`.
        common: as in `build_graph`.
    """
    wiring = Wiring(ConsultationState, common, "teacher")

    def words(state: SpecialistInput, store: ImageStore) -> list[BaseMessage]:
        text = guideline.text(perspective_of(state["doctor"]), state["specialty"])
        return guided(specialist_messages(state, store), text)

    def ask(state: ConsultationState) -> list[Send]:
        specialty = triage(TriageInput(**state["case"]))["specialty"]
        numbers = list(_numbers(perspectives, samples))
        return [
            Send("teacher", SpecialistInput(**state["case"], specialty=specialty, doctor=number, doctors=len(numbers)))
            for number in numbers
        ]

    role = Role("teacher", wiring.images, words, Specialist(wiring.images).read)
    asked = sampled(model) if samples > 1 else model
    wiring.add(
        "teacher",
        ByModel(role, asked, wiring.frozen),
        input_schema=SpecialistInput,
        error_handler=says_so(failed, goto=END),  # the other answers go into the cache
    )
    wiring.builder.add_conditional_edges(START, ask, ["teacher"])
    wiring.builder.add_edge("teacher", END)
    return wiring.compile()


def _numbers(perspectives: Sequence[Name], samples: int) -> Iterator[int]:
    """The number of each answer: as many perspectives or samples as there are, an answer keeps its own in the cache."""
    for sample in range(samples):
        for perspective in perspectives:
            yield sample * len(PERSPECTIVES) + PERSPECTIVES.index(perspective) + 1


def perspective_of(number: int) -> Name:
    """From where the answer of this number (an opinion's `doctor`) was reasoned."""
    return PERSPECTIVES[(number - 1) % len(PERSPECTIVES)]
