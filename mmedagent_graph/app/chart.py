"""The chart: what has happened in a consultation so far, folded from what its graph streams.

Invariant: the same stream makes the same chart. Nothing here draws, asks or waits.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mmedagent_graph.review import ReviewRequest
from mmedagent_graph.state import Decision, Opinion, Vote

STREAM = ["custom", "tasks"]
"""The stream modes of LangGraph that a chart is made of: what nodes say, and which of them are at work."""


@dataclasses.dataclass
class Hearing:
    """One referral, and whom it led to."""

    by: str
    """Who referred: triage, attending or review."""
    specialty: str | None
    """None: the referral could not be read, and nobody is heard."""
    reasoning: str
    doctors: dict[int, Opinion | None] = dataclasses.field(default_factory=dict)
    """By number; None while the doctor is at work."""


@dataclasses.dataclass
class Chart:
    """A consultation so far."""

    options: list[str] = dataclasses.field(default_factory=list)
    """What may be answered; empty for free text."""
    hearings: list[Hearing] = dataclasses.field(default_factory=list)
    votes: dict[int, Vote] = dataclasses.field(default_factory=dict)
    """By number, since the last specialist was heard."""
    budget: int = 1
    """At most so many votes are cast, as far as is known."""
    decision: Decision | None = None
    request: ReviewRequest | None = None
    """What a reviewer is asked now."""
    failure: str | None = None
    """Why the consultation did not go on."""
    tasks: dict[str, str] = dataclasses.field(default_factory=dict)
    """The nodes that are at work, by the ids of their tasks."""
    done: set[str] = dataclasses.field(default_factory=set)
    """The nodes that have been at work."""

    @property
    def at_work(self) -> Counter[str]:
        """How many tasks each node is at."""
        return Counter(self.tasks.values())

    def add(self, mode: str, part: Any) -> None:
        """Add a part of the stream; what is not the consultation's (a node of one's own may say anything) is left."""
        if not isinstance(part, Mapping):
            return
        if mode == "tasks":
            self._task(part)
        elif "event" in part:
            self._event(part)

    def begin(self) -> None:
        """The run begins, or goes on."""
        self.failure = self.request = None
        self.tasks.clear()

    def end(self, request: ReviewRequest | None) -> None:
        """The run has ended, or waits for a reviewer."""
        self.request = request
        if request is None:
            self.tasks.clear()

    def fail(self, why: str) -> None:
        """The run has failed; who was at work is not any more."""
        self.failure = why
        self.tasks.clear()
        for hearing in self.hearings:
            hearing.doctors = {doctor: opinion for doctor, opinion in hearing.doctors.items() if opinion}

    def _task(self, task: Mapping[str, Any]) -> None:
        if "triggers" in task:
            self.tasks[task["id"]] = task["name"]
            if task["name"] == "specialist" and self.hearings:
                self.hearings[-1].doctors.setdefault(task["input"]["doctor"], None)
            self.budget = max(self.budget, len(self.votes) + self.at_work["vote"])
        elif not task.get("interrupts"):  # an interrupted task still waits
            self.tasks.pop(task["id"], None)
            self.done.add(task["name"])

    def _event(self, said: Mapping[str, Any]) -> None:
        match said["event"]:
            case "referral":
                referral = said["referral"]
                self.hearings.append(Hearing(said["by"], referral["specialty"], referral["reasoning"]))
                self.votes, self.budget, self.decision = {}, 1, None
            case "opinion":
                if not self.hearings:
                    self.hearings.append(Hearing("triage", said["opinion"]["specialty"], ""))
                hearing = next((h for h in self.hearings if said["doctor"] in h.doctors), self.hearings[-1])
                hearing.doctors[said["doctor"]] = said["opinion"]
            case "vote":
                self.votes[said["vote"]["vote"]] = said["vote"]
            case "votes":
                self.budget = said["budget"]
            case "decision":
                self.decision = said["decision"]
