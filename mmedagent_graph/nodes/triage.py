"""The triage doctor: chooses the specialty."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage

from mmedagent_graph.answers import read_name, split_reasoning
from mmedagent_graph.images import ImageStore
from mmedagent_graph.nodes.base import Update
from mmedagent_graph.prompts import triage_messages
from mmedagent_graph.state import Referral, TriageInput


@dataclasses.dataclass(frozen=True)
class Triage:
    """Refers a case to one of `specialties`. A referral that cannot be read names none, and nobody is then guessed."""

    specialties: Sequence[str]
    store: ImageStore
    name: str = "triage"

    def render(self, state: TriageInput) -> list[BaseMessage]:
        """The triage prompt."""
        return triage_messages(state, self.specialties, self.store)

    def read(self, text: str, state: TriageInput) -> Update:
        """`{"referral": ...}`; the specialties are read as options are, but by name only: they have no letters."""
        index = read_name(text, self.specialties)
        specialty = None if index is None else self.specialties[index]
        return {"referral": Referral(specialty=specialty, reasoning=split_reasoning(text))}

    def accept(self, output: Mapping[str, Any], state: TriageInput) -> Update:
        """A swapped-in triage's referral."""
        output = output.get("referral", output)
        specialty = output.get("specialty")
        if specialty is not None and specialty not in self.specialties:
            known = ", ".join(self.specialties)
            raise ValueError(f"referral.specialty: {specialty!r} is unknown; specialties are {known}")
        return {"referral": Referral(specialty=specialty, reasoning=str(output.get("reasoning", "")))}
