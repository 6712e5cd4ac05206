"""The attending physician: weighs the opinions against what it sees, and decides."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from langchain_core.messages import BaseMessage

from mmedagent_graph.answers import same_text, split_reasoning
from mmedagent_graph.images import ImageStore
from mmedagent_graph.nodes.base import Update, checked_answer, stated
from mmedagent_graph.prompts import attending_messages
from mmedagent_graph.state import AttendingInput, ConsultationState, Decision, Referral


@dataclasses.dataclass(frozen=True)
class Attending:
    """Decides with however many opinions there are, even with none."""

    store: ImageStore
    name: str = "attending"

    def render(self, state: AttendingInput) -> list[BaseMessage]:
        """The attending's prompt."""
        return attending_messages(state, self.store)

    def read(self, text: str, state: AttendingInput) -> Update:
        """`{"decision": ...}`."""
        return _decided(state, *stated(text, state["options"]), split_reasoning(text))

    def accept(self, output: Mapping[str, Any], state: AttendingInput) -> Update:
        """A swapped-in attending's decision."""
        output = output.get("decision", output)
        answer, index = checked_answer(output, state["options"], "decision")
        return _decided(state, answer, index, str(output.get("reasoning", "")))


def attending_input(state: ConsultationState) -> AttendingInput:
    """What the attending is given where a consultation stands: the same in the graph and in training."""
    referral = state["referral"] or Referral(specialty=None, reasoning="")
    return AttendingInput(**state["case"], referral=referral, opinions=state["opinions"])


def _decided(state: AttendingInput, answer: str | None, index: int | None, reasoning: str) -> Update:
    readable = [opinion["answer"] for opinion in state["opinions"] if opinion["answer"] is not None]
    agreeing = sum(answer is not None and same_text(opinion, answer) for opinion in readable)
    decision = Decision(
        answer=answer,
        index=index,
        reasoning=reasoning,
        agreement=agreeing / len(readable) if readable else None,
        opinions=len(readable),
    )
    return {"decision": decision}
