"""The attending physician: weighs the opinions against what it sees, and decides."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from langchain_core.messages import BaseMessage

from mmedagent_graph.answers import read_name, split_reasoning
from mmedagent_graph.chat import reply
from mmedagent_graph.images import ImageStore
from mmedagent_graph.nodes.base import Update, checked_answer, stated
from mmedagent_graph.prompts import attending_messages, refer_to
from mmedagent_graph.state import AttendingInput, Ballot, ConsultationState, Referral, Vote
from mmedagent_graph.votes import decide


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
        return self._update(_stated_vote(text, state), state)

    def accept(self, output: Mapping[str, Any], state: AttendingInput) -> Update:
        """A swapped-in attending's decision."""
        return self._update(_accepted_vote(output, state), state)

    def _update(self, vote: Vote, state: AttendingInput) -> Update:
        return {"decision": decide([vote], state["opinions"])}


@dataclasses.dataclass(frozen=True)
class Voter(Attending):
    """The attending where it is asked several times, or may refer: each answer is a vote, and no decision yet."""

    def _update(self, vote: Vote, state: AttendingInput) -> Update:
        return {"votes": [vote]}


def attending_input(state: ConsultationState) -> AttendingInput:
    """What the attending is given where a consultation stands: the same in the graph and in training."""
    referral = state["referral"] or Referral(specialty=None, reasoning="")
    return AttendingInput(**state["case"], referral=referral, opinions=state["opinions"])


def replied(update: Update, _: Any) -> Update:
    """What the node that decides writes: the decision, and the reply in a chat."""
    return {**update, "messages": [reply(update["decision"])]}


def _vote(
    state: Mapping[str, Any], answer: str | None, index: int | None, reasoning: str, refer: str | None = None
) -> Vote:
    number = state.get("vote", 1)
    return Vote(vote=number, answer=answer, index=index, reasoning=reasoning, refer=refer, error=None)


def _stated_vote(text: str, state: Mapping[str, Any]) -> Vote:
    reasoning = split_reasoning(text)
    if offered := state.get("may_refer"):
        asked = read_name(text, [refer_to(specialty) for specialty in offered])
        if asked is not None:
            return _vote(state, None, None, reasoning, offered[asked])
    return _vote(state, *stated(text, state["options"]), reasoning)


def _accepted_vote(output: Mapping[str, Any], state: Mapping[str, Any]) -> Vote:
    output = output.get("decision") or output
    reasoning = str(output.get("reasoning", ""))
    refer = output.get("refer")
    if refer is None:
        return _vote(state, *checked_answer(output, state["options"], "decision"), reasoning)
    offered = state.get("may_refer", [])
    if refer not in offered:
        raise ValueError(f"decision.refer: {refer!r} is not on offer; specialties on offer are {', '.join(offered)}")
    return _vote(state, None, None, reasoning, refer)


def failed_vote(state: Ballot, error: BaseException) -> Update:
    """The vote of an attending that raised: it says so, and the others are counted."""
    vote = _vote(state, None, None, "")
    vote["error"] = f"{type(error).__name__}: {error}"
    return {"votes": [vote]}
