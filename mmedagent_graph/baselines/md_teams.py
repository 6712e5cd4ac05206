"""The teams of MDAgents, for a case of high complexity: three, one after the other.

    team_recruiter -> request -> findings (x2, in parallel) -> team_report -> request ... -> decision_maker -> END

Invariant: every report is used. A team sees those of the teams before it, and the decision maker sees all of them.
"""

import functools
from typing import Any

from langgraph.graph import END
from langgraph.types import Send

from mmedagent_graph.baselines import prompts
from mmedagent_graph.baselines.reading import read_prose, read_teams
from mmedagent_graph.baselines.wiring import Ahead, Play
from mmedagent_graph.nodes import Attending, Update
from mmedagent_graph.nodes.attending import replied
from mmedagent_graph.nodes.specialist import failed, said
from mmedagent_graph.nodes.standing import says_so
from mmedagent_graph.state import CaseFields, ConsultationState, Opinion

MEMBERS = 3
"""Of a team: the lead, and two assistants."""


class TeamsState(ConsultationState):
    """The state, as far as the teams have one."""

    teams: list[list[str]] | None
    """The fields of each team's members, the lead's first."""
    request: str | None
    """What the lead of the team at work asks of the assistants."""
    reports: list[str] | None
    """Of the teams that have finished, in their order."""


class Member(CaseFields):
    """What a member of a team is given."""

    specialty: str
    doctor: int
    """Numbered through all teams."""
    doctors: int
    team: int
    """From 1."""
    assistants: list[str]
    """The fields of the team's assistants, whose numbers follow the lead's."""
    reports: list[str]
    request: str
    opinions: list[Opinion]
    """Of the team's assistants."""


def add_teams(play: Play) -> None:
    """Add the teams to a graph, for `team_recruiter` to begin."""
    builder, ask = play.builder, play.ask
    ask("team_recruiter", functools.partial(prompts.team_recruiter, MEMBERS), _recruited, enter=_case)
    builder.add_edge("team_recruiter", "request")
    ask("request", prompts.request, _requested, enter=_lead)
    builder.add_conditional_edges("request", _to_assistants, ["findings"])
    handler = says_so(failed, "team_report")
    ask("findings", prompts.findings, _found, input_schema=Member, error_handler=handler)
    builder.add_edge("findings", "team_report")
    ask("team_report", prompts.team_report, _reported, enter=_lead)
    builder.add_conditional_edges("team_report", _to_next_team, ["request", "decision_maker"])
    decide = Attending(play.images).read
    ask("decision_maker", prompts.decision_maker, decide, enter=_decision_maker, leave=replied)
    builder.add_edge("decision_maker", END)


# Who is next


def _to_assistants(state: TeamsState) -> list[Send]:
    return [Send("findings", _member(state, member)) for member in range(2, MEMBERS + 1)]


def _to_next_team(state: TeamsState) -> Ahead:
    return "request" if len(state["reports"] or []) < len(state["teams"] or []) else "decision_maker"


# What they are given


def _case(state: TeamsState) -> CaseFields:
    return state["case"]


def _member(state: TeamsState, member: int) -> Member:
    """The desk of a member of the team at work; the first is the lead."""
    teams, reports = state["teams"] or [], state["reports"] or []
    fields, before = teams[len(reports)], MEMBERS * len(reports)
    return Member(
        **state["case"],
        specialty=fields[member - 1],
        doctor=before + member,
        doctors=MEMBERS * len(teams),
        team=len(reports) + 1,
        assistants=fields[1:],
        reports=reports,
        request=state["request"] or "",
        opinions=[opinion for opinion in state["opinions"] if opinion["doctor"] > before],
    )


def _lead(state: TeamsState) -> Member:
    return _member(state, 1)


def _decision_maker(state: TeamsState) -> dict[str, Any]:
    return {**state["case"], "opinions": state["opinions"], "reports": state["reports"] or []}


# What they say


def _recruited(text: str, _: Any) -> Update:
    return {"teams": read_teams(text, len(prompts.TEAMS), MEMBERS)}


def _requested(text: str, _: Any) -> Update:
    return {"request": read_prose(text)}


def _found(text: str, state: Member) -> Update:
    return said(state, None, None, read_prose(text))


def _reported(text: str, state: Member) -> Update:
    report = read_prose(text)
    return {**said(state, None, None, report), "reports": [*state["reports"], report]}
