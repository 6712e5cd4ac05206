"""A specialist: answers the question alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from langchain_core.messages import BaseMessage

from mmedagent_graph.answers import split_reasoning
from mmedagent_graph.images import ImageStore
from mmedagent_graph.nodes.base import Update, checked_answer, stated
from mmedagent_graph.prompts import specialist_messages
from mmedagent_graph.state import Opinion, SpecialistInput


@dataclasses.dataclass(frozen=True)
class Specialist:
    """One doctor of the chosen specialty, who sees the case and no other opinion."""

    store: ImageStore
    name: str = "specialist"

    def render(self, state: SpecialistInput) -> list[BaseMessage]:
        """The specialist's prompt."""
        return specialist_messages(state, self.store)

    def read(self, text: str, state: SpecialistInput) -> Update:
        """`{"opinions": [one opinion]}`."""
        return said(state, *stated(text, state["options"]), split_reasoning(text))

    def accept(self, output: Mapping[str, Any], state: SpecialistInput) -> Update:
        """A swapped-in specialist's opinion."""
        if "decision" in output:  # a whole consultation in a specialist's place
            output = output["decision"] or {}
        elif "opinions" in output:
            output = output["opinions"][-1]
        answer, index = checked_answer(output, state["options"], "opinion")
        return said(state, answer, index, str(output.get("reasoning", "")))


def failed(state: SpecialistInput, error: BaseException) -> Update:
    """The opinion of a specialist that raised: it says so, and the attending goes on with the others."""
    update = said(state, None, None, "")
    update["opinions"][0]["error"] = f"{type(error).__name__}: {error}"
    return update


def said(state: SpecialistInput, answer: str | None, index: int | None, reasoning: str) -> Update:
    """One opinion, by whoever the state says."""
    opinion = Opinion(
        specialty=state["specialty"],
        doctor=state["doctor"],
        answer=answer,
        index=index,
        reasoning=reasoning,
        error=None,
    )
    return {"opinions": [opinion]}
