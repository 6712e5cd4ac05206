"""A human in the loop: what a reviewer is shown before a decision is released, and what may be made of it.

The graph interrupts with a `ReviewRequest`. Resume with LangGraph's `Command(resume=verdict)`, where the verdict is

    {"action": "approve"}                                  # or True
    {"action": "change", "answer": "cyst", "reasoning": "..."}
    {"action": "hear", "specialty": "Oncologist"}          # one more specialist, then the attending decides again

A verdict that cannot be used is told so (`error`), and the reviewer is asked again: nothing is lost.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from langgraph.types import interrupt
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from mmedagent_graph.nodes.base import checked_answer
from mmedagent_graph.state import CaseFields, ConsultationState, Decision, Opinion, Referral
from mmedagent_graph.votes import agreement


class ReviewRequest(TypedDict):
    """What the interrupt shows."""

    case: CaseFields
    referral: Referral | None
    opinions: list[Opinion]
    decision: Decision
    actions: list[str]
    """`approve`, `change`, `hear`."""
    specialties: list[str]
    """Those that can be heard."""
    error: str | None
    """Why the verdict before this one could not be used, or None."""


class _Verdict(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Approve(_Verdict):
    """Release the decision as it is."""

    action: Literal["approve"]


class Change(_Verdict):
    """Release another answer."""

    action: Literal["change"]
    answer: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    """One of the options; free text where there are none."""
    reasoning: str = ""


class Hear(_Verdict):
    """Hear one more specialist first."""

    action: Literal["hear"]
    specialty: str


Verdict = Approve | Change | Hear
_VERDICT: TypeAdapter[Verdict] = TypeAdapter(Annotated[Verdict, Field(discriminator="action")])


def ask_reviewer(state: ConsultationState, specialties: Sequence[str]) -> Verdict:
    """Interrupt the run until a human has said something that can be used."""
    assert state["decision"] is not None
    request = ReviewRequest(
        case=state["case"],
        referral=state["referral"],
        opinions=state["opinions"],
        decision=state["decision"],
        actions=["approve", "change", "hear"],
        specialties=list(specialties),
        error=None,
    )
    while True:
        try:
            return read_verdict(interrupt(request), state["case"]["options"], specialties)
        except ValueError as error:
            request = {**request, "error": str(error)}


def read_verdict(given: Any, options: list[str], specialties: Sequence[str]) -> Verdict:
    """The verdict in what the run was resumed with.

    Raises:
        ValueError: naming the field and the valid choices.
    """
    if given is True:
        return Approve(action="approve")
    try:
        verdict = _VERDICT.validate_python(given)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'verdict'}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{problems}. Give an action: approve, change (answer), hear (specialty)") from None
    if isinstance(verdict, Change):
        checked_answer({"answer": verdict.answer}, options, "verdict")
    if isinstance(verdict, Hear) and verdict.specialty not in specialties:
        known = ", ".join(specialties)
        raise ValueError(f"verdict.specialty: {verdict.specialty!r} is unknown; specialties are {known}")
    return verdict


def changed(decision: Decision, verdict: Change, options: list[str], opinions: Sequence[Opinion]) -> Decision:
    """The decision with the reviewer's answer; votes, tally and confidence still tell what the attending's were."""
    answer, index = checked_answer({"answer": verdict.answer}, options, "verdict")
    return {
        **decision,
        "answer": answer,
        "index": index,
        "reasoning": verdict.reasoning,
        "agreement": agreement(answer, opinions),
        "abstained": False,
        "review": "changed",
    }
