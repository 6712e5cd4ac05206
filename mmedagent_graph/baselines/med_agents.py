"""MedAgents (Tang et al. 2024, arXiv 2311.10537): experts write analyses, and vote on a report until nobody objects.

    START -> question_domains -> question_analysis (x5) -> option_analysis (x2) -> synthesis
          -> option_domains                                                           |
                      +---------------------------------------------------------------+
                      v
                    voting (x7) -> advice (of those who object) -> revision -> voting ... decision_maker -> END

Where the paper and its code differ, and what is done here:

- rounds: the paper has at most 5, the code 3; here `rounds`, 3.
- temperature: the paper has 1, the code 0; here the model is left as it is.
- images: the original has none; here every call shows them.
- a vote that cannot be read: the code counts it as consent; here it is neither consent nor objection, as is one that
  failed. A round with no objection is the last.
- fewer than five (two) different fields named: the code has fewer experts; here there are as many as it says, the
  missing ones in `GENERALIST`.
- the code drops the report's key knowledge by a slip; here the report is all that was written.
- the last revision goes to the decision without another vote, as in both.

Without options there is nobody to analyse them: five experts, and no `option_domains`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Unpack

from langgraph.graph import END, START
from langgraph.types import Send
from typing_extensions import TypedDict

from mmedagent_graph.baselines import prompts
from mmedagent_graph.baselines.reading import read_consent, read_fields, read_prose
from mmedagent_graph.baselines.wiring import Ahead, Common, Model, Play, Reading, Words, at_least
from mmedagent_graph.consultation import Consultation
from mmedagent_graph.nodes import Attending, Update
from mmedagent_graph.nodes.attending import replied
from mmedagent_graph.nodes.specialist import failed, said
from mmedagent_graph.nodes.standing import says_so
from mmedagent_graph.state import CaseFields, ConsultationState, Opinion

QUESTION_EXPERTS, OPTION_EXPERTS = 5, 2


class View(TypedDict):
    """What an expert says of a report."""

    round: int
    doctor: int
    specialty: str
    agrees: bool | None
    """None: the vote could not be read, or failed."""
    advice: str | None
    error: str | None
    """Why there is no vote, or no advice (the exception's type and text), or None."""


def add_views(held: Sequence[View], new: Sequence[View] | None) -> list[View]:
    """Reducer: views by round and expert, a later one in place of an earlier one; None begins anew."""
    by_expert = {(view["round"], view["doctor"]): view for view in [*held, *new]} if new is not None else {}
    return [by_expert[key] for key in sorted(by_expert)]


class MedAgentsState(ConsultationState):
    """The state; `opinions` are the experts' analyses, which hold no answers."""

    question_fields: list[str] | None
    option_fields: list[str] | None
    report: str | None
    round: int | None
    """The round of votes that the report is for, from 1."""
    views: Annotated[list[View], add_views]


class Desk(CaseFields):
    """What everybody is given."""

    opinions: list[Opinion]
    report: str
    vote: int
    """The round, which tells the samples of one expert apart."""


class ExpertDesk(Desk):
    """What an expert is given."""

    specialty: str
    doctor: int
    doctors: int


class WriterDesk(Desk):
    """What the writer of a report is given."""

    objections: list[View]


def med_agents(*, model: Model, rounds: int = 3, **common: Unpack[Common]) -> Consultation:
    """MedAgents as a compiled LangGraph graph, with the input and output of `build_graph`.

    A case takes 11 calls and, in every round, 7 and one more for each objection and one for the revision: 18 with no
    objection, 56 where all object in each of three rounds. Without options it takes 7 and 5: 13 to 41.

    `opinions` are the analyses (`specialty` is the expert's field), without answers; `referral` is None. An expert that
    fails is an opinion that says so, or a vote that is not counted; any other failure is the run's.

    Args:
        model: who answers in all roles.
        rounds: of votes, at most.
        common: as in `build_graph`.

    Raises:
        ValueError: naming the argument and what is valid.
    """
    at_least(1, rounds=rounds)
    play = Play(model, MedAgentsState, common, "med_agents")
    builder, ask = play.builder, play.ask

    def ask_experts(name: str, words: Words, reading: Reading, failure: Any, goto: str) -> None:
        ask(name, words, reading, input_schema=ExpertDesk, error_handler=says_so(failure, goto))

    def to_options(state: MedAgentsState) -> Ahead:
        return _experts("option_analysis", state, _option_experts(state)) or "synthesis"

    def to_votes(state: MedAgentsState) -> Ahead:
        over = (state["round"] or 1) > rounds
        return "decision_maker" if over else _experts("voting", state, _all_experts(state))

    def to_advice(state: MedAgentsState) -> Ahead:
        objecting = {view["doctor"]: view["specialty"] for view in _objections(state)}
        return _experts("advice", state, objecting) or "decision_maker"

    question_domains = functools.partial(prompts.question_domains, QUESTION_EXPERTS)
    option_domains = functools.partial(prompts.option_domains, OPTION_EXPERTS)
    ask("question_domains", question_domains, _fields("question_fields", QUESTION_EXPERTS), enter=_case)
    ask("option_domains", option_domains, _fields("option_fields", OPTION_EXPERTS), enter=_case)
    ask_experts("question_analysis", prompts.question_analysis, _analysis, failed, "analysed")
    ask_experts("option_analysis", prompts.option_analysis, _analysis, failed, "synthesis")
    ask("synthesis", prompts.synthesis, _report, enter=_writer)
    ask_experts("voting", prompts.voting, _vote, _failed_vote, "voted")
    ask_experts("advice", prompts.advice, _advice, _failed_advice, "revision")
    ask("revision", prompts.revision, _report, enter=_writer)
    ask("decision_maker", prompts.decision_by_report, Attending(play.images).read, enter=_desk, leave=replied)

    builder.add_conditional_edges(START, _to_domains, ["question_domains", "option_domains"])
    builder.add_conditional_edges("question_domains", _to_questions, ["question_analysis"])
    builder.add_edge("question_analysis", "analysed")
    play.join("analysed", to_options, ["option_analysis", "synthesis"])
    builder.add_edge("option_analysis", "synthesis")
    builder.add_conditional_edges("synthesis", to_votes, ["voting"])
    builder.add_edge("voting", "voted")
    play.join("voted", to_advice, ["advice", "decision_maker"])
    builder.add_edge("advice", "revision")
    builder.add_conditional_edges("revision", to_votes, ["voting", "decision_maker"])
    builder.add_edge("decision_maker", END)
    return play.compile()


# Who is next


def _to_domains(state: MedAgentsState) -> list[str]:
    return ["question_domains", "option_domains"] if state["case"]["options"] else ["question_domains"]


def _to_questions(state: MedAgentsState) -> list[Send]:
    return _experts("question_analysis", state, _question_experts(state))


def _experts(node: str, state: MedAgentsState, experts: Mapping[int, str]) -> list[Send]:
    """The case to these experts, in parallel."""
    doctors = len(_all_experts(state))
    return [
        Send(node, ExpertDesk(**_desk(state), specialty=field, doctor=doctor, doctors=doctors))
        for doctor, field in experts.items()
    ]


def _question_experts(state: MedAgentsState) -> dict[int, str]:
    """The fields of the experts, by their numbers."""
    return dict(enumerate(state["question_fields"] or [], 1))


def _option_experts(state: MedAgentsState) -> dict[int, str]:
    return dict(enumerate(state["option_fields"] or [], 1 + QUESTION_EXPERTS))


def _all_experts(state: MedAgentsState) -> dict[int, str]:
    return _question_experts(state) | _option_experts(state)


# What they are given


def _case(state: MedAgentsState) -> CaseFields:
    return state["case"]


def _desk(state: MedAgentsState) -> Desk:
    opinions, report = state["opinions"], state["report"] or ""
    return Desk(**state["case"], opinions=opinions, report=report, vote=state["round"] or 1)


def _writer(state: MedAgentsState) -> WriterDesk:
    return WriterDesk(**_desk(state), objections=_objections(state))


def _objections(state: MedAgentsState) -> list[View]:
    return [view for view in state["views"] if view["round"] == state["round"] and view["agrees"] is False]


# What they say


def _fields(channel: str, number: int) -> Callable[[str, Any], Update]:
    return lambda text, _: {channel: read_fields(text, number, number)}


def _analysis(text: str, state: Any) -> Update:
    return said(state, None, None, read_prose(text))


def _report(text: str, state: WriterDesk) -> Update:
    """A report, for the round of votes after that in which there were objections."""
    return {"report": read_prose(text), "round": state["vote"] + bool(state["objections"])}


def _vote(text: str, state: ExpertDesk) -> Update:
    return _view(state, read_consent(text))


def _advice(text: str, state: ExpertDesk) -> Update:
    return _view(state, False, read_prose(text))


def _failed_vote(state: ExpertDesk, error: BaseException) -> Update:
    return _view(state, None, error=error)


def _failed_advice(state: ExpertDesk, error: BaseException) -> Update:
    return _view(state, False, error=error)


def _view(
    state: ExpertDesk, agrees: bool | None, advice: str | None = None, error: BaseException | None = None
) -> Update:
    why = f"{type(error).__name__}: {error}" if error else None
    who = {"round": state["vote"], "doctor": state["doctor"], "specialty": state["specialty"]}
    return {"views": [View(**who, agrees=agrees, advice=advice, error=why)]}  # type: ignore[typeddict-item]
