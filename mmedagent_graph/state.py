"""What flows through the consultation: plain values only, so that every checkpointer can keep them.

Invariant: nothing in the state is an image or a Pydantic object of ours. Images are references into an `ImageStore`.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired

from langchain_core.messages import AnyMessage, BaseMessage
from langgraph.graph import add_messages
from pydantic import ConfigDict, WithJsonSchema, with_config
from typing_extensions import TypedDict

described = with_config(ConfigDict(use_attribute_docstrings=True))
"""Gives the fields of a TypedDict their docstrings as descriptions, in the schemas that a server publishes."""


@described
class Referral(TypedDict):
    """Whom triage sends the case to."""

    specialty: str | None
    """One of the graph's specialties, or None where the triage doctor's answer could not be read."""
    reasoning: str


@described
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


class Vote(TypedDict):
    """One sample of the attending physician."""

    vote: int
    """1-based number of the vote."""
    answer: str | None
    """The option's text (free text where there are no options), or None: unparsed, failed, or a referral."""
    index: int | None
    reasoning: str
    refer: str | None
    """The further specialty that it asks for instead of answering, or None."""
    error: str | None
    """Why there is no vote (the exception's type and text), or None."""


@described
class VoteCount(TypedDict):
    """How often one answer was given."""

    answer: str
    index: int | None
    votes: int


@described
class Decision(TypedDict):
    """What the attending physician decided."""

    answer: str | None
    """The option's text (free text where there are no options); None where it was unreadable, or `abstained`."""
    index: int | None
    """0-based index into the options; None where there are none, or no answer."""
    reasoning: str
    agreement: float | None
    """Share of the readable opinions that gave the decided answer, 0 to 1; None where there is no answer or no such
    opinion."""
    entropy: float | None
    """Entropy of the readable opinions' answers, in bits: 0 is a consensus; None where none was readable."""
    opinions: int
    """How many readable opinions the attending had."""
    votes: int
    """How often the attending was asked."""
    tally: list[VoteCount]
    """Every readable answer with its votes, the winner first."""
    confidence: float | None
    """The winner's share of the votes, 0 to 1; None where the attending was asked once."""
    abstained: bool
    """The majority was too weak (`abstain_below`): a human must decide. `tally` tells what it was."""
    review: Literal["approved", "changed"] | None
    """What a human made of it, where the graph was built with `review`."""


@described
class NodeUsage(TypedDict):
    """What one node's model calls cost."""

    calls: int
    """Calls of a model; an answer out of the cache is none."""
    cached: int
    """Answers out of the cache."""
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
    doctors: int
    """How many are heard, this one and those with lower numbers among them: `doctor` of `doctors`."""


class AttendingInput(CaseFields):
    """What the attending is given."""

    referral: Referral
    opinions: list[Opinion]


class Ballot(AttendingInput):
    """What the attending is given where it votes, or may refer."""

    vote: int
    """1-based number of the vote."""
    may_refer: list[str]
    """The further specialties that it may ask for instead of answering; empty: it must answer."""


def add_opinions(heard: Sequence[Opinion], new: Sequence[Opinion] | None) -> list[Opinion]:
    """Reducer: opinions in the order of the doctors; a doctor heard again replaces the earlier opinion.

    As in every reducer here None begins anew: a thread may be used again, and nothing of an earlier consultation may
    be seen in a later one.
    """
    by_doctor = {opinion["doctor"]: opinion for opinion in [*heard, *new]} if new is not None else {}
    return [by_doctor[doctor] for doctor in sorted(by_doctor)]


def add_votes(cast: Sequence[Vote], new: Sequence[Vote] | None) -> list[Vote]:
    """Reducer: votes in the order of their numbers; None begins anew."""
    by_number = {vote["vote"]: vote for vote in [*cast, *new]} if new is not None else {}
    return [by_number[number] for number in sorted(by_number)]


def add_referrals(made: Sequence[Referral], new: Sequence[Referral] | None) -> list[Referral]:
    """Reducer: referrals in the order in which they were made; None begins anew."""
    return [*made, *new] if new is not None else []


def add_replies(said: list[AnyMessage], new: list[AnyMessage] | AnyMessage | None) -> list[BaseMessage]:
    """Reducer: LangGraph's `add_messages`; None begins anew."""
    return list(add_messages(said, new)) if new is not None else []  # type: ignore[arg-type]


def add_usage(spent: Mapping[str, NodeUsage], new: Mapping[str, NodeUsage] | None) -> dict[str, NodeUsage]:
    """Reducer: the sums by node; None begins anew.

    Associative and commutative, so that parallel specialists may report in any order.
    """
    if new is None:
        return {}
    zero = NodeUsage(calls=0, cached=0, input_tokens=0, output_tokens=0)
    pairs = {node: (spent.get(node, zero), new.get(node, zero)) for node in sorted({*spent, *new})}
    return {
        node: NodeUsage(
            calls=a["calls"] + b["calls"],
            cached=a["cached"] + b["cached"],
            input_tokens=a["input_tokens"] + b["input_tokens"],
            output_tokens=a["output_tokens"] + b["output_tokens"],
        )
        for node, (a, b) in pairs.items()
    }


IMAGES_SCHEMA = {
    "type": "array",
    "items": {
        "anyOf": [
            {"type": "string"},
            {
                "type": "object",
                "properties": {"image": {"type": "string"}, "frame": {"type": "integer", "minimum": 0}},
                "required": ["image"],
            },
        ]
    },
}


@described
class ConsultationInput(TypedDict, total=False):
    """What `graph.invoke` takes: a case by its fields, or as chat messages. See `mmedagent_graph.Case` for the limits.

    Either `question` or `messages` must be there; a field that is given stands before what the messages say.
    """

    question: str
    """What is asked."""
    options: list[str]
    """The answers to choose from, two or more and different. Default: none; the answer is then free text."""
    images: Annotated[list[Any], WithJsonSchema(IMAGES_SCHEMA)]
    """Data URLs (`data:image/png;base64,...`) or references into the graph's store; in Python also paths, bytes and PIL
    images. Of a file with several frames: `{"image": ..., "frame": 0}`. Default: none."""
    context: str | None
    """Anything known beside the images: history, an abstract. Default: nothing."""
    messages: list[AnyMessage]
    """A chat: the last human message is the question, with image blocks; closing lines `A. ...`, `B. ...` are its
    options."""


class ConsultationState(TypedDict):
    """The whole state, while a consultation runs."""

    case: CaseFields
    referral: Referral | None
    opinions: Annotated[list[Opinion], add_opinions]
    decision: Decision | None
    usage: Annotated[dict[str, NodeUsage], add_usage]
    messages: NotRequired[Annotated[list[AnyMessage], add_replies]]
    """The chat as a user may see it: without the images, and never shown to a model."""


class DeliberationState(ConsultationState):
    """The state where the attending casts several votes, may refer again, or is reviewed."""

    votes: Annotated[list[Vote], add_votes]
    """Since the last opinion was heard."""
    further: Annotated[list[Referral], add_referrals]
    """Whom the attending asked for after triage."""
    kept: dict[str, Any] | None
    """The run's context, where it is a `Context`; a resume goes on with it."""


@described
class ConsultationOutput(TypedDict):
    """What `graph.invoke` returns."""

    referral: Referral | None
    """Whom triage sent the case to; None where the consultation has not come so far (it was interrupted), or has no
    triage."""
    opinions: list[Opinion]
    """What the specialists said, in the order of the doctors."""
    decision: Decision | None
    """What the attending decided; None only where the consultation has not come so far. While it waits for a review,
    what has not been released yet (`review` is None)."""
    usage: dict[str, NodeUsage]
    """What each node's model calls cost."""
    messages: list[AnyMessage]
    """The decision as a chat message, after those that the chat had."""
