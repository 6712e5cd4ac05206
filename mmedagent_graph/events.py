"""What a consultation says while it runs, in `stream_mode="custom"`: one small event as each thing happens.

    async for event in graph.astream(case, stream_mode="custom"): ...

Every event is a plain dict whose `event` tells its kind. Outside `custom` nothing is made of them.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from langgraph.config import get_stream_writer
from typing_extensions import TypedDict

from mmedagent_graph.state import Decision, Opinion, Referral, Vote, VoteCount


class Referred(TypedDict):
    """Triage, the attending or a reviewer has sent the case to a specialty."""

    event: Literal["referral"]
    by: Literal["triage", "attending", "review"]
    referral: Referral


class Heard(TypedDict):
    """A specialist has answered, or failed (`opinion["error"]`): it is the `doctor`-th of `doctors`."""

    event: Literal["opinion"]
    doctor: int
    doctors: int
    opinion: Opinion


class Voted(TypedDict):
    """The attending has cast a vote."""

    event: Literal["vote"]
    vote: Vote


class Tallied(TypedDict):
    """The votes so far: `cast` of at most `budget`; the leading answer first."""

    event: Literal["votes"]
    cast: int
    budget: int
    tally: list[VoteCount]


class Decided(TypedDict):
    """The attending has decided; where the graph has a review, `decision["review"]` tells whether it is released."""

    event: Literal["decision"]
    decision: Decision


Event = Referred | Heard | Voted | Tallied | Decided


def announce(event: Event) -> None:
    """Say it to whoever listens to the run."""
    get_stream_writer()(event)


def events(update: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[Event]:
    """What a node's update amounts to, for the node that was given `given`."""
    if "referral" in update:
        yield Referred(event="referral", by="triage", referral=update["referral"])
    for opinion in update.get("opinions", ()):
        yield Heard(event="opinion", doctor=opinion["doctor"], doctors=given["doctors"], opinion=opinion)
    for vote in update.get("votes", ()):
        yield Voted(event="vote", vote=vote)
    if "decision" in update:
        yield Decided(event="decision", decision=update["decision"])
