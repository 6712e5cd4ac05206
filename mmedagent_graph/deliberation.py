"""From opinions to a decision where one answer of the attending is not all: votes, further referrals, review.

    specialist -> attending -> vote (in parallel) -> attending -> review -> END
                                                         |           |
                                            specialist <-+-----------+

The node `attending` runs whenever opinions or votes have come in, and says what happens next. Where a single answer is
wanted it asks the physician itself; several are asked in the node `vote`, where a failure is only one vote less.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END
from langgraph.types import Command, Send

from mmedagent_graph.chat import reply
from mmedagent_graph.context import Contexts, Settings, run_context
from mmedagent_graph.events import Decided, Referred, Tallied, announce
from mmedagent_graph.nodes.attending import attending_input
from mmedagent_graph.nodes.base import Answering, Update
from mmedagent_graph.review import Change, Hear, ask_reviewer, changed
from mmedagent_graph.state import (
    Ballot,
    CaseFields,
    DeliberationState,
    Opinion,
    Referral,
    SpecialistInput,
    add_votes,
)
from mmedagent_graph.votes import budget, decide, outstanding, winner


def hear(case: CaseFields, specialty: str, heard: Sequence[Opinion], count: int) -> list[Send]:
    """Send the case to `count` doctors of a specialty, numbered on from those that were heard."""
    last = max((opinion["doctor"] for opinion in heard), default=0)
    doctors = range(last + 1, last + count + 1)
    return [
        Send("specialist", SpecialistInput(**case, specialty=specialty, doctor=doctor, doctors=doctors[-1]))
        for doctor in doctors
    ]


@dataclasses.dataclass(frozen=True)
class Deliberation:
    """The node `attending`, and what becomes of opinions and votes.

    Args:
        attending: who answers where a single answer is wanted.
        settings: as the graph was built.
        contexts: of the graph's runs, which may change them. None: nothing does.
        doctors: how many doctors a specialty has in this run.
        specialties: those that there are.
    """

    attending: Answering
    settings: Settings
    contexts: Contexts | None
    doctors: Callable[[str], int]
    specialties: Sequence[str]

    def call(self, state: DeliberationState, config: RunnableConfig | None) -> Update:
        """The attending's own answer as a vote; nothing where votes are to be cast, or have been."""
        ballot = self._ballot(state)
        return self.attending.call(ballot, config) if ballot else {}

    async def acall(self, state: DeliberationState, config: RunnableConfig | None) -> Update:
        """As `call`."""
        ballot = self._ballot(state)
        return await self.attending.acall(ballot, config) if ballot else {}

    def decide(self, update: Update, state: DeliberationState) -> Command[Any]:
        """Call for votes, ask for a further specialty, or decide; `update` is what `call` returned."""
        settings, opinions = self._settings(state), state["opinions"]
        votes = add_votes(state["votes"], update.get("votes", []))
        if self.contexts and (context := run_context()):
            update = {**update, "kept": self.contexts.keep(context)}
        missing = outstanding(votes, settings.votes, opinions)
        if votes:
            tally = decide(votes, opinions)["tally"]
            announce(Tallied(event="votes", cast=len(votes), budget=budget(settings.votes, opinions), tally=tally))
        if missing:
            ballots = [self._ballot_of(len(votes) + 1 + i, state, settings) for i in range(missing)]
            return Command(update=update, goto=[Send("vote", ballot) for ballot in ballots])
        won = winner(votes, opinions)
        if won and won["refer"]:
            return self._refer(update, state, Referral(specialty=won["refer"], reasoning=won["reasoning"]))
        decision = decide(votes, opinions, settings.abstain_below)
        announce(Decided(event="decision", decision=decision))
        if settings.review:
            return Command(update={**update, "decision": decision}, goto="review")
        return Command(update={**update, "decision": decision, "messages": [reply(decision)]}, goto=END)

    def review(self, state: DeliberationState) -> Command[Any]:
        """Wait for a human, and release the decision, change it, or hear one more specialist."""
        decision = state["decision"]
        assert decision is not None
        verdict = ask_reviewer(state, self.specialties)
        if isinstance(verdict, Hear):
            referral = Referral(specialty=verdict.specialty, reasoning="")
            announce(Referred(event="referral", by="review", referral=referral))
            sends = hear(state["case"], verdict.specialty, state["opinions"], 1)
            return Command(update={"votes": None, "decision": None}, goto=sends)
        if isinstance(verdict, Change):
            decision = changed(decision, verdict, state["case"]["options"], state["opinions"])
        else:
            decision = {**decision, "review": "approved"}
        announce(Decided(event="decision", decision=decision))
        return Command(update={"decision": decision, "messages": [reply(decision)]}, goto=END)

    def _settings(self, state: DeliberationState) -> Settings:
        return self.contexts.current(state.get("kept")) if self.contexts else self.settings

    def _ballot(self, state: DeliberationState) -> Ballot | None:
        settings, votes = self._settings(state), state["votes"]
        missing = outstanding(votes, settings.votes, state["opinions"])
        single = missing == 1 and not votes
        # The only hope, in the place of the first vote: no error handler is here, so that a failure is the run's, and
        # the run can be resumed.
        unvoted = bool(votes) and not missing and all(vote["error"] for vote in votes)
        return self._ballot_of(1, state, settings) if single or unvoted else None

    def _ballot_of(self, vote: int, state: DeliberationState, settings: Settings) -> Ballot:
        offered = list[str]()
        if len(state["further"]) < settings.max_referrals:
            heard = {opinion["specialty"] for opinion in state["opinions"]}
            offered = [specialty for specialty in self.specialties if specialty not in heard]
        return Ballot(**attending_input(state), vote=vote, may_refer=offered)

    def _refer(self, update: Update, state: DeliberationState, referral: Referral) -> Command[Any]:
        """The attending's wish: the whole panel of one more specialty, after which it votes anew."""
        announce(Referred(event="referral", by="attending", referral=referral))
        specialty = str(referral["specialty"])
        sends = hear(state["case"], specialty, state["opinions"], self.doctors(specialty))
        return Command(update={**update, "further": [referral], "votes": None}, goto=sends)
