"""The simpler systems: one model, its majority, and MMedAgent's graph with one of its nodes taken away.

Invariant: what is left of MMedAgent's graph is its own nodes with their own prompts, so that a difference is due to
what was taken away.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

from langgraph.graph import END, START
from langgraph.types import Send

from mmedagent_graph.baselines import prompts
from mmedagent_graph.baselines.wiring import Common, Model, Play, Wiring, at_least
from mmedagent_graph.consultation import Consultation
from mmedagent_graph.context import Settings
from mmedagent_graph.deliberation import Deliberation
from mmedagent_graph.graph import build_graph, checked_specialties
from mmedagent_graph.models import Loader
from mmedagent_graph.nodes import Attending, Specialist, Swappable, Voter
from mmedagent_graph.nodes.attending import attending_input, failed_vote, replied
from mmedagent_graph.nodes.specialist import failed
from mmedagent_graph.nodes.staff import Panel, Staff
from mmedagent_graph.nodes.standing import says_so
from mmedagent_graph.prompts import SPECIALTIES
from mmedagent_graph.state import (
    AttendingInput,
    Ballot,
    ConsultationState,
    DeliberationState,
    SpecialistInput,
    TriageInput,
    Vote,
)
from mmedagent_graph.votes import winner


def single(*, model: Model, **common: Unpack[Common]) -> Consultation:
    """One model answers directly: one call, decoded as the model is.

    Args:
        model: who answers.
        common: as in `build_graph`.

    Raises:
        ValueError: naming the argument and what is valid.
    """
    common.setdefault("name", "single")
    return self_consistency(model=model, samples=1, **common)


def self_consistency(*, model: Model, samples: int = 5, **common: Unpack[Common]) -> Consultation:
    """Self-consistency (Wang et al. 2023): the majority of several samples of one model; one call each.

    They are cast and counted as the votes of an attending with nobody before it: `decision` has the tally and, as
    confidence, the winner's share. Of several answers with equally many votes the one that was voted for first wins.
    A model whose temperature is 0 is sampled at temperature 1; the comparison that MedAgents makes is 5 samples at 0.7.

    A sample that fails is not counted; where all do, the model is asked once more, and that failure is the run's.

    Args:
        model: who answers.
        samples: how often.
        common: as in `build_graph`.

    Raises:
        ValueError: naming the argument and what is valid.
    """
    at_least(1, samples=samples)
    play = Play(model, DeliberationState, common, "self_consistency")
    doctor = ("doctor", prompts.doctor_messages, Voter(play.images).read)
    deliberation = Deliberation(play.role(*doctor), Settings(votes=samples), None, lambda _: 0, ())
    play.add("attending", deliberation, leave=deliberation.decide, destinations=("vote", END))
    voting = play.role(*doctor, samples=True)
    play.add("vote", voting, input_schema=Ballot, error_handler=says_so(failed_vote))
    play.builder.add_edge(START, "attending")
    play.builder.add_edge("vote", "attending")
    return play.compile()


def majority_vote(
    *,
    triage: Swappable,
    specialists: Panel | Mapping[str, Panel],
    specialties: Sequence[str] = tuple(SPECIALTIES),
    doctors: int = 3,
    **common: Unpack[Common],
) -> Consultation:
    """MMedAgent without its attending: the majority of the specialists' opinions; 1 call and one for each doctor.

    Of several answers with equally many opinions the one that was given first, in the order of the doctors, wins.
    There is no answer where none is readable, as after a referral that could not be read, when nobody is heard. Where
    all specialists fail, so does the run.

    Args:
        triage: as in `build_graph`, as are the others.
        specialists: who answers.
        specialties: what triage may choose from.
        doctors: how many are heard.
        common: as in `build_graph`.

    Raises:
        ValueError: naming the argument and the valid choices.
    """
    common.setdefault("name", "majority_vote")
    return build_graph(
        triage=triage,
        specialists=specialists,
        attending=_majority,
        specialties=specialties,
        doctors=doctors,
        **common,
    )


def one_specialist(
    *,
    triage: Swappable,
    specialist: Swappable | Mapping[str, Swappable],
    specialties: Sequence[str] = tuple(SPECIALTIES),
    **common: Unpack[Common],
) -> Consultation:
    """Triage and one doctor, whose opinion is the decision: 2 calls.

    Args:
        triage: as in `build_graph`.
        specialist: the doctor, or a mapping from specialty to one.
        specialties: what triage may choose from.
        common: as in `build_graph`.

    Raises:
        ValueError: naming the argument and the valid choices.
    """
    common.setdefault("name", "one_specialist")
    return majority_vote(triage=triage, specialists=specialist, specialties=specialties, doctors=1, **common)


def random_triage(
    specialties: Sequence[str] = tuple(SPECIALTIES), seed: int = 0
) -> Callable[[TriageInput], dict[str, Any]]:
    """A triage for `build_graph` that refers at random, and calls no model.

    The draw depends on the seed and the case alone: the same in whatever order cases come, and in every process.

    Args:
        specialties: what is drawn from; each is equally likely.
        seed: of the draws.

    Raises:
        ValueError: if the specialties are no list of different names.
    """
    names = checked_specialties(specialties)

    def triage(case: TriageInput) -> dict[str, Any]:
        drawn = json.dumps([seed, case["question"], case["options"], case["images"], case["context"]])
        number = int.from_bytes(hashlib.sha256(drawn.encode()).digest())
        return {"specialty": names[number % len(names)], "reasoning": "Drawn at random."}

    return triage


def all_specialties(
    *,
    specialists: Panel | Mapping[str, Panel],
    attending: Swappable,
    specialties: Sequence[str] = tuple(SPECIALTIES),
    doctors: int = 1,
    **common: Unpack[Common],
) -> Consultation:
    """MMedAgent without its triage: every specialty is heard; 1 call and one for each doctor of each specialty.

    `referral` is None. Doctors are numbered through all specialties.

    Args:
        specialists: as in `build_graph`, as are the others.
        attending: who decides.
        specialties: all that are heard.
        doctors: how many of each; a list says it by its length.
        common: as in `build_graph`.

    Raises:
        ValueError: naming the argument and the valid choices.
    """
    specialties = checked_specialties(specialties)
    wiring = Wiring(ConsultationState, common, "all_specialties")
    staff = Staff(False, wiring.frozen, Loader())
    panels = staff.doctors(Specialist(wiring.images), specialists, specialties, doctors)
    heard = [specialty for specialty in specialties for _ in range(panels.count(specialty))]

    def hear(state: ConsultationState) -> list[Send]:
        return [
            Send("specialist", SpecialistInput(**state["case"], specialty=name, doctor=doctor, doctors=len(heard)))
            for doctor, name in enumerate(heard, 1)
        ]

    wiring.add("specialist", panels, input_schema=SpecialistInput, error_handler=says_so(failed))
    deciding = staff.member(Attending(wiring.images), attending, "attending")
    wiring.add("attending", deciding, enter=attending_input, leave=replied)
    wiring.builder.add_conditional_edges(START, hear, ["specialist"])
    wiring.builder.add_edge("specialist", "attending")
    wiring.builder.add_edge("attending", END)
    return wiring.compile()


def _majority(state: AttendingInput) -> dict[str, Any]:
    """What stands in the attending's place: every opinion is a vote."""
    heard = state["opinions"]
    if heard and all(opinion["error"] for opinion in heard):
        raise RuntimeError(f"no specialist could be heard: {heard[0]['error']}")
    votes = [
        Vote(vote=i, answer=one["answer"], index=one["index"], reasoning=one["reasoning"], refer=None, error=None)
        for i, one in enumerate(heard, 1)
    ]
    won = winner(votes, [])
    return {"answer": won["answer"], "index": won["index"], "reasoning": won["reasoning"]} if won else {}
