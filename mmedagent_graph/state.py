"""What flows through the consultation: plain values only, so that every checkpointer can keep them.

Invariant: nothing in the state is an image or a Pydantic object. Images are references into an `ImageStore`.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NotRequired

from langgraph.channels import EphemeralValue
from typing_extensions import TypedDict


class Referral(TypedDict):
    """Whom triage sends the case to."""

    specialty: str | None
    """One of the graph's specialties, or None where the triage doctor's answer could not be read."""
    reasoning: str


class Opinion(TypedDict):
    """What one specialist said."""

    specialty: str
    doctor: int
    """1-based number of the doctor; opinions stand in this order."""
    answer: str | None
    """The option's text (free text where there are no options), or None: unparsed or failed."""
    index: int | None
    """0-based index into the options; None where there are none, or nothing was read."""
    reasoning: str
    error: str | None
    """Why there is no opinion (the exception's type and text), or None."""


class Decision(TypedDict):
    """What the attending physician decided."""

    answer: str | None
    index: int | None
    reasoning: str
    agreement: float | None
    """Share of the readable opinions that gave the decided answer, 0 to 1; None where none was readable."""
    opinions: int
    """How many readable opinions the attending had."""


class NodeUsage(TypedDict):
    """What one node's model calls cost."""

    calls: int
    input_tokens: int
    output_tokens: int


class CaseFields(TypedDict):
    """The case as every node sees it."""

    question: str
    options: list[str]
    images: list[str]
    """References into the image store: `sha256:<hex>`."""
    context: str | None


class TriageInput(CaseFields):
    """What the triage node is given."""


class SpecialistInput(CaseFields):
    """What one specialist is given: the case, its specialty and its number. Never another opinion."""

    specialty: str
    doctor: int


class AttendingInput(CaseFields):
    """What the attending is given."""

    referral: Referral
    opinions: list[Opinion]


def add_opinions(heard: Sequence[Opinion], new: Sequence[Opinion]) -> list[Opinion]:
    """Reducer: opinions in the order of the doctors; a doctor heard again replaces the earlier opinion."""
    by_doctor = {opinion["doctor"]: opinion for opinion in [*heard, *new]}
    return [by_doctor[doctor] for doctor in sorted(by_doctor)]


def add_usage(spent: Mapping[str, NodeUsage], new: Mapping[str, NodeUsage]) -> dict[str, NodeUsage]:
    """Reducer: the sums by node. Associative and commutative, so that parallel specialists may report in any order."""
    zero = NodeUsage(calls=0, input_tokens=0, output_tokens=0)
    pairs = {node: (spent.get(node, zero), new.get(node, zero)) for node in sorted({*spent, *new})}
    return {
        node: NodeUsage(
            calls=a["calls"] + b["calls"],
            input_tokens=a["input_tokens"] + b["input_tokens"],
            output_tokens=a["output_tokens"] + b["output_tokens"],
        )
        for node, (a, b) in pairs.items()
    }


class ConsultationInput(TypedDict):
    """What `graph.invoke` takes. See `mmedagent_graph.Case` for the limits.

    Ephemeral: what one consultation was given is gone when it has been checked, so that a thread used again cannot show
    one patient the images of another.
    """

    question: Annotated[str, EphemeralValue]
    options: NotRequired[Annotated[list[str], EphemeralValue]]
    images: NotRequired[Annotated[list[Any], EphemeralValue]]
    """Paths, bytes, PIL images, data URLs or references into the store."""
    context: NotRequired[Annotated[str | None, EphemeralValue]]


class ConsultationState(TypedDict):
    """The whole state, while a consultation runs."""

    case: CaseFields
    referral: Referral | None
    opinions: Annotated[list[Opinion], add_opinions]
    decision: Decision | None
    usage: Annotated[dict[str, NodeUsage], add_usage]


class ConsultationOutput(TypedDict):
    """What `graph.invoke` returns."""

    referral: Referral | None
    """None only where the consultation has not come so far (it was interrupted)."""
    opinions: list[Opinion]
    decision: Decision | None
    usage: dict[str, NodeUsage]
