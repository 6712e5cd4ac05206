"""The wiring of a consultation, and nothing else.

    START -> triage -> specialist (x3, in parallel) -> attending -> END

Invariant: the attending always runs. A specialist that fails is an opinion that says so, and a referral that cannot
be read sends the case straight to the attending. Where one answer of the attending is not all (votes, further
referrals, review), `mmedagent_graph.deliberation` stands between the specialists and the end.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from langgraph.cache.base import BaseCache
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START
from langgraph.store.base import BaseStore
from langgraph.types import RetryPolicy, Send, TimeoutPolicy

from mmedagent_graph.answers import same_text
from mmedagent_graph.consultation import Builder, Consultation, kept_images
from mmedagent_graph.context import Context, Contexts, Settings, Votes
from mmedagent_graph.deliberation import Deliberation, hear
from mmedagent_graph.frozen import FrozenAnswers
from mmedagent_graph.hospital import Hospital, open_hospital
from mmedagent_graph.images import ImageStore
from mmedagent_graph.models import Loader
from mmedagent_graph.nodes import Attending, Specialist, Swappable, Triage, Voter
from mmedagent_graph.nodes.attending import attending_input, failed_vote, replied
from mmedagent_graph.nodes.base import Answering
from mmedagent_graph.nodes.specialist import failed
from mmedagent_graph.nodes.staff import Panel, Staff
from mmedagent_graph.nodes.standing import Standing, says_so
from mmedagent_graph.prompts import SPECIALTIES
from mmedagent_graph.state import (
    Ballot,
    ConsultationOutput,
    ConsultationState,
    DeliberationState,
    SpecialistInput,
    TriageInput,
)

Retry = RetryPolicy | Sequence[RetryPolicy]
Timeout = float | timedelta | TimeoutPolicy
NODES = ("triage", "specialist", "attending")


def build_graph(
    *,
    triage: Swappable | None = None,
    specialists: Panel | Mapping[str, Panel] | None = None,
    attending: Swappable | None = None,
    hospital: str | Path | None = None,
    specialties: Sequence[str] | None = None,
    doctors: int = 3,
    votes: Votes = 1,
    abstain_below: float | None = None,
    max_referrals: int = 0,
    review: bool = False,
    images: ImageStore | None = None,
    retry_policy: Retry | Mapping[str, Retry] | None = None,
    timeout: Timeout | Mapping[str, Timeout] | None = None,
    error_handler: Mapping[str, Callable[..., Any]] | None = None,
    context_schema: type[Any] | None = None,
    checkpointer: BaseCheckpointSaver[Any] | None = None,
    store: BaseStore | None = None,
    cache: BaseCache[Any] | None = None,
    name: str = "consultation",
) -> Consultation:
    """A consultation as a compiled LangGraph graph (MMedAgent-RL, section 3).

    `graph.invoke({"question": ..., "options": [...], "images": [...]})` returns `referral`, `opinions`, `decision`,
    `usage` and `messages`; `graph.invoke({"messages": [...]})` takes a chat. `ainvoke`, `stream`, `batch`, use as a
    node of a larger graph and the rest work as they do on any LangGraph graph.

    Args:
        triage: who refers the case. A model string (`openai:gpt-4o`, `clinic:base`), a LangChain chat model, or a node
            of one's own: a callable, Runnable or compiled graph that takes `TriageInput` and returns `{"specialty":
            ...}`.
        specialists: who answers. One of the same for all doctors (it takes `SpecialistInput` and returns
            `{"answer": ...}`), a list with one for each doctor, or a mapping from specialty to either.
        attending: who decides: the same again (it takes `AttendingInput` and returns `{"answer": ...}`).
        hospital: who answers where none of these three is given: a folder or a server with all as adapters of one base
            model; see `mmedagent_graph.hospital`.
        specialties: what triage may choose from; the hospital's, or else the paper's seven.
        doctors: how many specialists are heard; a list says it by its length.
        votes: how often the attending is asked; the majority wins (section 4). `"adaptive"`: up to 3 times where the
            specialists agree and up to 9 where they do not, and no more once the majority cannot change. Votes are
            samples: a model whose temperature is 0 votes at temperature 1.
        abstain_below: withhold a majority with a smaller share of the votes (0 to 1); a human must then decide.
        max_referrals: how often the attending may ask for another specialty before it decides.
        review: interrupt before a decision is released; see `mmedagent_graph.review`. What was decided can be seen
            before, in the state and its streams.
        images: where images are kept; by default a temporary folder of the process.
        retry_policy: LangGraph's, for all three nodes or by node (`triage`, `specialist`, `attending`).
        timeout: seconds, or LangGraph's, for all three or by node; kept by `ainvoke` and `astream` only.
        error_handler: LangGraph's, by node; it returns a `Command` that says where to go on (`goto="attending"`). By
            default a failed specialist is an opinion that says so, and any other failure is the run's. Of several votes
            a failed one is not counted, whatever is given here.
        context_schema: as in LangGraph. With `mmedagent_graph.Context`, or a subclass, a run may change models, votes
            and review: `graph.invoke(case, context={"votes": 5})`.
        checkpointer: as in LangGraph. One that outlives the process needs `images` that do, too. What is finished is
            written before the run goes on (`durability="sync"`), unless a call says otherwise.
        store: as in LangGraph, for one's own nodes.
        cache: a LangGraph cache that keeps what models answer, so that nothing is asked twice: see
            `mmedagent_graph.frozen`.
        name: the compiled graph's name.

    Raises:
        ValueError: naming the argument and the valid choices.
    """
    settings = Settings(votes=votes, abstain_below=abstain_below, review=review, max_referrals=max_referrals)
    load = Loader()
    house = None if hospital is None else open_hospital(hospital)
    ours = house.specialties if house and specialties is None else ()
    specialties = checked_specialties(ours or (tuple(SPECIALTIES) if specialties is None else specialties))
    triage, specialists, attending = _staffed(house, triage, specialists, attending, specialties, doctors, load)
    pictures = kept_images(images, checkpointer)
    frozen = FrozenAnswers(cache) if cache is not None else None
    changeable = isinstance(context_schema, type) and issubclass(context_schema, Context)
    contexts = Contexts(cast(type[Context], context_schema), settings, load) if changeable else None
    deliberates = changeable or settings.deliberates
    staff = Staff(changeable, frozen, load)
    panels = staff.doctors(Specialist(pictures), specialists, specialties, doctors)

    def refer(state: ConsultationState) -> list[Send] | str:
        specialty = state["referral"]["specialty"] if state["referral"] else None
        return "attending" if specialty is None else hear(state["case"], specialty, [], panels.count(specialty))

    retries, timeouts = _by_node(retry_policy, "retry_policy"), _by_node(timeout, "timeout")
    on_error = {"specialist": says_so(failed), **_by_node(error_handler, "error_handler")}

    builder = Builder(
        DeliberationState if deliberates else ConsultationState,
        output_schema=ConsultationOutput,
        context_schema=context_schema,
    )
    builder.images = pictures
    builder.contexts = contexts

    def add(name: str, who: Answering, as_node: str | None = None, **given: Any) -> None:
        """Add a node; one that stands in for another (`as_node`) is retried and timed as that is."""
        given = {"error_handler": on_error.get(name)} | given
        kind = as_node or name
        node = Standing(who, name, given.pop("enter", None), given.pop("leave", None), bool(given["error_handler"]))
        builder.add_node(name, node, retry_policy=retries.get(kind), timeout=timeouts.get(kind), **given)

    add("triage", staff.member(Triage(specialties, pictures), triage, "triage"), enter=_triage_input)
    add("specialist", panels, input_schema=SpecialistInput)
    builder.add_edge(START, "triage")
    builder.add_conditional_edges("triage", refer, ["specialist", "attending"])
    builder.add_edge("specialist", "attending")
    if deliberates:
        voter = Voter(pictures)
        alone = staff.member(voter, attending, "attending")
        deliberation = Deliberation(alone, settings, contexts, panels.count, specialties)
        ahead = ("vote", "specialist", "review", END)
        add("attending", deliberation, leave=deliberation.decide, destinations=ahead)
        voting = staff.member(voter, attending, "attending", samples=True)
        add("vote", voting, "attending", input_schema=Ballot, error_handler=says_so(failed_vote))
        builder.add_edge("vote", "attending")
        builder.add_node("review", deliberation.review, destinations=("specialist", END))
    else:
        deciding = staff.member(Attending(pictures), attending, "attending")
        add("attending", deciding, enter=attending_input, leave=replied)
        builder.add_edge("attending", END)
    return builder.compile(checkpointer=checkpointer, store=store, cache=cache, name=name)


def _staffed(
    house: Hospital | None,
    triage: Swappable | None,
    specialists: Panel | Mapping[str, Panel] | None,
    attending: Swappable | None,
    specialties: Sequence[str],
    number: int,
    load: Loader,
) -> tuple[Swappable, Panel | Mapping[str, Panel], Swappable]:
    """Who answers: whoever is given, and else the hospital's. A mapping of specialists may name but some of them.

    Raises:
        ValueError: naming who is not given, and not in the hospital either.
    """
    if house is None:
        if triage is None or specialists is None or attending is None:
            given = {"triage": triage, "specialists": specialists, "attending": attending}
            unnamed = ", ".join(name for name, one in given.items() if one is None)
            raise ValueError(f"{unnamed}: nobody is given; give a model string, or a hospital")
        return triage, specialists, attending
    own = house.models([name for name, one in (("triage", triage), ("attending", attending)) if one is None], load)
    if specialists is None or isinstance(specialists, Mapping):
        swapped: Mapping[str, Panel] = specialists or {}
        specialists = {**house.specialists([one for one in specialties if one not in swapped], number, load), **swapped}
    triage = own["triage"] if triage is None else triage
    attending = own["attending"] if attending is None else attending
    return triage, specialists, attending


def _triage_input(state: ConsultationState) -> TriageInput:
    return TriageInput(**state["case"])


def _by_node(given: Any, argument: str) -> dict[str, Any]:
    """What was given for each node: one for all, or a mapping."""
    if not isinstance(given, Mapping):
        return dict.fromkeys(NODES, given) if given is not None else {}
    if unknown := sorted(set(given) - set(NODES)):
        raise ValueError(f"{argument}: unknown node {', '.join(unknown)}; nodes are {', '.join(NODES)}")
    return dict(given)


def checked_specialties(specialties: Sequence[str]) -> tuple[str, ...]:
    """The specialties of a graph.

    Raises:
        ValueError: if they are not a list of one or more different names.
    """
    if isinstance(specialties, str) or not all(isinstance(name, str) and name.strip() for name in specialties):
        raise ValueError(f"specialties: {specialties!r} is not a list of names, such as {list(SPECIALTIES)}")
    for i, specialty in enumerate(specialties):
        if any(same_text(specialty, earlier) for earlier in specialties[:i]):
            raise ValueError(f"specialties[{i}]: {specialty!r} is there twice; specialties must differ")
    if not specialties:
        raise ValueError(f"specialties: the list is empty; give at least one, such as {', '.join(SPECIALTIES)}")
    return tuple(specialties)
