"""MDAgents (Kim et al. 2024, arXiv 2404.15155): how complex a case is decides who answers it.

    START -> checker -> clinician -> END                                                                      (low)
                     -> recruiter -> opinion (x5) -> talk (x5) ... -> final_answer (x5) -> moderator -> END   (moderate)
                     -> team_recruiter -> (request -> findings (x2) -> team_report) x3 -> decision_maker -> END   (high)

The paper's description is followed rather than its code, and made finite where it is open:

- the check: low, moderate or high, with the images; what cannot be read is moderate (the code takes the complexity of
  the item before).
- low: one clinician. The paper shows three training examples; here there are none, so it is zero-shot.
- moderate: the paper recruits up to N, here `experts`. A round begins with everybody's opinion (the first alone).
  Where all give the same answer the discussion is over (the paper compares them; the code asks whether anybody wants
  to talk). Otherwise there are up to `turns` turns, in each of which every doctor may address any others, and all hear
  it: what the code asks in three steps (whether, whom, what) is one call here, and all speak at the same time. A turn
  in which nobody speaks ends the discussion (code). At the end of a round the moderator gives feedback (paper).
  3 rounds of 3 turns are those of the code for images; the other has 5 of 5.
- final answers are collected once, after the discussion, however it ended (the code leaves them empty after an early
  consensus); the moderator sees them and the whole discussion (paper; not the code).
- high: three teams (`prompts.TEAMS`), whose members the recruiter chooses, work one after the other: each sees the
  earlier reports, and the decision maker sees all of them (the code shows it the first only, and lets the last team
  work twice).
- temperature: the paper asks at 0.3 and 1.2 for the decision; here the model is left as it is, and asked once.
- the code's warm-up calls, which say nothing, and its report on the opinions, which nobody reads, are not made.
"""

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Annotated, Any, Literal, Unpack, get_args

from langgraph.graph import END, START
from langgraph.types import Send
from typing_extensions import TypedDict

from mmedagent_graph.answers import read_name
from mmedagent_graph.baselines import md_teams, prompts
from mmedagent_graph.baselines.reading import read_fields, read_prose, read_remarks
from mmedagent_graph.baselines.wiring import Ahead, Common, Model, Play, Reading, Words, at_least
from mmedagent_graph.consultation import Consultation
from mmedagent_graph.nodes import Attending, Specialist, Update
from mmedagent_graph.nodes.attending import replied
from mmedagent_graph.nodes.specialist import failed
from mmedagent_graph.nodes.standing import says_so
from mmedagent_graph.state import CaseFields, Opinion, Referral
from mmedagent_graph.votes import entropy

Complexity = Literal["low", "moderate", "high"]
COMPLEXITIES: tuple[Complexity, ...] = get_args(Complexity)


class Remark(TypedDict):
    """What was said in a turn of the discussion; one without a text tells that somebody said nothing."""

    turn: int
    """From 1, through all rounds."""
    doctor: int
    """Who said it; 0 is the moderator."""
    to: int
    """0: everybody."""
    text: str
    error: str | None
    """Why nothing was said, where the doctor failed (the exception's type and text), or None."""


def add_remarks(said: Sequence[Remark], new: Sequence[Remark] | None) -> list[Remark]:
    """Reducer: remarks by turn and speaker, the moderator last; None begins anew."""
    remarks = [*said, *new] if new is not None else []
    return sorted(remarks, key=lambda remark: (remark["turn"], not remark["doctor"], remark["doctor"], remark["to"]))


class MDAgentsState(md_teams.TeamsState):
    """The state."""

    complexity: Complexity | None
    experts: list[str] | None
    """The fields of the doctors who discuss, in the order of their numbers."""
    discussion: Annotated[list[Remark], add_remarks]


class Table(CaseFields):
    """What the moderator is given."""

    opinions: list[Opinion]
    discussion: list[Remark]
    vote: int
    """The number of the opinion or of the turn, which tells the samples of one doctor apart."""


class Seat(Table):
    """What a doctor is given."""

    specialty: str
    doctor: int
    doctors: int


def md_agents(
    *,
    model: Model,
    experts: int = 5,
    rounds: int = 3,
    turns: int = 3,
    complexity: Complexity | None = None,
    **common: Unpack[Common],
) -> Consultation:
    """MDAgents as a compiled LangGraph graph, with the input and output of `build_graph`.

    A case of low complexity takes 2 calls, one of high complexity 15. With five doctors one of moderate complexity
    takes 13 where their opinions agree at once, 18 where nobody has anything to say, and at most 71.

    `referral` tells the complexity in its `reasoning`. `opinions` are the doctors' final answers (moderate), or the
    findings and reports of the teams' members (high), without answers. A doctor or assistant that fails is an opinion
    that says so, or says nothing in that turn; any other failure is the run's.

    Args:
        model: who answers in all roles.
        experts: how many doctors discuss a case of moderate complexity, at most; the recruiter may name fewer.
        rounds: of their discussion, at most.
        turns: in a round, at most.
        complexity: of all cases; none is then checked. Default: each is.
        common: as in `build_graph`.

    Raises:
        ValueError: naming the argument and what is valid.
    """
    at_least(2, experts=experts)
    at_least(1, rounds=rounds, turns=turns)
    if complexity not in (None, *COMPLEXITIES):
        raise ValueError(f"complexity: {complexity!r} is unknown; give {', '.join(COMPLEXITIES)}, or None to check it")
    play = Play(model, MDAgentsState, common, "md_agents")
    if complexity is None:
        play.ask("checker", prompts.checker, _checked, enter=_case)
    else:
        play.builder.add_node("checker", lambda _: _rated(complexity))
    branches: dict[Hashable, str] = {"low": "clinician", "moderate": "recruiter", "high": "team_recruiter"}
    play.builder.add_edge(START, "checker")
    play.builder.add_conditional_edges("checker", _complexity, branches)
    play.ask("clinician", prompts.clinician, Attending(play.images).read, enter=_alone, leave=replied)
    play.builder.add_edge("clinician", END)
    _add_discussion(play, experts, rounds, turns)
    md_teams.add_teams(play)
    return play.compile()


def _add_discussion(play: Play, experts: int, rounds: int, turns: int) -> None:
    """Add the discussion of a case of moderate complexity, for `recruiter` to begin."""
    builder, ask = play.builder, play.ask
    opine, decide = Specialist(play.images).read, Attending(play.images).read

    def ask_doctors(name: str, words: Words, reading: Reading, failure: Any, goto: str) -> None:
        ask(name, words, reading, input_schema=Seat, error_handler=says_so(failure, goto))

    def after_opinions(state: MDAgentsState) -> Ahead:
        agreed = _agreed(state["opinions"])
        return _doctors("final_answer", state, 1) if agreed else _doctors("talk", state, _turn(state) + 1)

    def after_turn(state: MDAgentsState) -> Ahead:
        turn = _turn(state)
        if not any(remark["turn"] == turn and remark["text"] for remark in state["discussion"]):
            return _doctors("final_answer", state, 1)
        return _doctors("talk", state, turn + 1) if turn % turns else "feedback"

    def after_round(state: MDAgentsState) -> Ahead:
        done = _turn(state) // turns
        return _doctors("opinion", state, done + 1) if done < rounds else _doctors("final_answer", state, 1)

    ask("recruiter", functools.partial(prompts.recruiter, experts), _recruited(experts), enter=_case)
    builder.add_conditional_edges("recruiter", _first_opinions, ["opinion"])
    ask_doctors("opinion", prompts.opinion, opine, failed, "opinions_heard")
    builder.add_edge("opinion", "opinions_heard")
    play.join("opinions_heard", after_opinions, ["talk", "final_answer"])
    ask_doctors("talk", prompts.talk, _talked, _said_nothing, "turn_over")
    builder.add_edge("talk", "turn_over")
    play.join("turn_over", after_turn, ["talk", "feedback", "final_answer"])
    ask("feedback", prompts.feedback, _fed_back, enter=_table)
    builder.add_conditional_edges("feedback", after_round, ["opinion", "final_answer"])
    ask_doctors("final_answer", prompts.final_answer, opine, failed, "moderator")
    builder.add_edge("final_answer", "moderator")
    ask("moderator", prompts.moderator, decide, enter=_table, leave=replied)
    builder.add_edge("moderator", END)


# Who is next


def _complexity(state: MDAgentsState) -> str:
    return str(state["complexity"])


def _first_opinions(state: MDAgentsState) -> list[Send]:
    return _doctors("opinion", state, 1)


def _doctors(node: str, state: MDAgentsState, number: int) -> list[Send]:
    """The case to all doctors, in parallel."""
    experts = state["experts"] or []
    table = Table(**{**_table(state), "vote": number})
    return [
        Send(node, Seat(**table, specialty=field, doctor=doctor, doctors=len(experts)))
        for doctor, field in enumerate(experts, 1)
    ]


def _agreed(opinions: Sequence[Opinion]) -> bool:
    """Whether everybody who did not fail has given the same readable answer."""
    heard = [opinion for opinion in opinions if opinion["error"] is None]
    return all(opinion["answer"] is not None for opinion in heard) and entropy(heard) == 0


def _turn(state: MDAgentsState) -> int:
    """How many turns there have been."""
    return max((remark["turn"] for remark in state["discussion"]), default=0)


# What they are given


def _case(state: MDAgentsState) -> CaseFields:
    return state["case"]


def _alone(state: MDAgentsState) -> dict[str, Any]:
    return {**state["case"], "opinions": []}


def _table(state: MDAgentsState) -> Table:
    opinions, discussion = state["opinions"], state["discussion"]
    return Table(**state["case"], opinions=opinions, discussion=discussion, vote=_turn(state))


# What they say


def _checked(text: str, _: Any) -> Update:
    index = read_name(text, COMPLEXITIES)
    return _rated("moderate", ", since the answer could not be read") if index is None else _rated(COMPLEXITIES[index])


def _rated(complexity: Complexity, why: str = "") -> Update:
    return {
        "complexity": complexity,
        "referral": Referral(specialty=None, reasoning=f"complexity: {complexity}{why}"),
    }


def _recruited(experts: int) -> Callable[[str, Any], Update]:
    """Those who are named; where fewer than two are, nobody could discuss, and generalists make up the number."""

    def recruited(text: str, _: Any) -> Update:
        named = read_fields(text, 0, experts)
        return {"experts": named if len(named) > 1 else read_fields(text, experts, experts)}

    return recruited


def _talked(text: str, state: Seat) -> Update:
    said = read_remarks(text, state["doctor"], state["doctors"])
    return {"discussion": [_remark(state, state["doctor"], to, words) for to, words in said or [(0, "")]]}


def _said_nothing(state: Seat, error: BaseException) -> Update:
    return {"discussion": [_remark(state, state["doctor"], 0, "", f"{type(error).__name__}: {error}")]}


def _fed_back(text: str, state: Table) -> Update:
    return {"discussion": [_remark(state, 0, 0, read_prose(text))]}


def _remark(state: Mapping[str, Any], doctor: int, to: int, text: str, error: str | None = None) -> Remark:
    return Remark(turn=state["vote"], doctor=doctor, to=to, text=text, error=error)
