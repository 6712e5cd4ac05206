"""The words of the baselines.

Invariant: every prompt shows the case with all its images; a baseline whose agents reason about what they have not
seen would be a weak rival. Beyond that the words say what the original systems' prompts ask for, and not how. How an
answer is given (`FORMAT`), and what it has to be, is the same as in a consultation.
"""

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage

from mmedagent_graph.images import ImageStore
from mmedagent_graph.prompts import FORMAT, as_messages, case_lines, how_to_answer, opinion_lines
from mmedagent_graph.state import CaseFields, Opinion

# One model

DOCTOR = "You are a doctor. Answer the question from what you see in the images."


def doctor_messages(state: Any, store: ImageStore) -> list[BaseMessage]:
    """The prompt of a doctor who answers directly."""
    return _deciding([DOCTOR], [], state, store)


# MedAgents

QUESTION_DOMAINS = "Name the fields of medicine whose experts are needed to understand this question."
OPTION_DOMAINS = "Name the fields of medicine whose experts are needed to tell which of the options is right."
DIFFERENT_FIELDS = "Answer with exactly {number} different fields, one on each line."
EXPERT = "You are a medical expert in the field: {specialty}."
QUESTION_ANALYSIS = (
    "Analyse the question from the point of view of your field: what the images show, what is asked, and what has to "
    "be known. Do not answer it yet. Write only your analysis."
)
OPTION_ANALYSIS = (
    "Examine each of the options from the point of view of your field, with what the analyses of the question say: "
    "what speaks for it, what against it. Write only your analysis."
)
SYNTHESIS = (
    "You are a medical report writer. Combine the analyses of the experts into one report on the case: first the key "
    "knowledge, then the total analysis. Write only the report."
)
VOTING = "You are shown a report on the case. Do you agree with it?"
YES_OR_NO = "Answer with exactly one of: yes, no."
ADVICE = "You do not agree with the report on the case. Say what has to be changed in it. Write only your advice."
REVISION = (
    "You are a medical report writer. Revise the report on the case by the advice of the experts who do not agree with "
    "it. Write only the whole revised report."
)
BY_REPORT = "You are the doctor who decides. Answer the question by the report and by what you see in the images."


def question_domains(number: int, state: CaseFields, store: ImageStore) -> list[BaseMessage]:
    """Who shall analyse the question; the options are not shown."""
    return _domains(QUESTION_DOMAINS, number, {**state, "options": []}, store)


def option_domains(number: int, state: CaseFields, store: ImageStore) -> list[BaseMessage]:
    """Who shall analyse the options."""
    return _domains(OPTION_DOMAINS, number, state, store)


def question_analysis(state: Any, store: ImageStore) -> list[BaseMessage]:
    """An expert's analysis of the question; the options are not shown."""
    return _messages([_expert(state), QUESTION_ANALYSIS], [], {**state, "options": []}, store)


def option_analysis(state: Any, store: ImageStore) -> list[BaseMessage]:
    """An expert's analysis of the options, who has read those of the question."""
    return _messages([_expert(state), OPTION_ANALYSIS], _analyses(state["opinions"]), state, store)


def synthesis(state: Any, store: ImageStore) -> list[BaseMessage]:
    """The first report."""
    return _messages([SYNTHESIS], _analyses(state["opinions"]), state, store)


def voting(state: Any, store: ImageStore) -> list[BaseMessage]:
    """An expert's vote on the report."""
    return _messages([_expert(state), VOTING, YES_OR_NO, FORMAT], _report(state), state, store)


def advice(state: Any, store: ImageStore) -> list[BaseMessage]:
    """What an expert who voted against the report wants changed."""
    return _messages([_expert(state), ADVICE], _report(state), state, store)


def revision(state: Any, store: ImageStore) -> list[BaseMessage]:
    """The next report."""
    advised = [_line(one["doctor"], one["specialty"], one["advice"] or "no advice") for one in state["objections"]]
    return _messages([REVISION], [*_report(state), "Advice:", *advised], state, store)


def decision_by_report(state: Any, store: ImageStore) -> list[BaseMessage]:
    """The decision of MedAgents."""
    return _deciding([BY_REPORT], _report(state), state, store)


# MDAgents

CHECKER = (
    "You judge how complex a medical question is, so that the right people answer it.\n"
    "low: one general practitioner can answer it.\n"
    "moderate: a group of specialists has to discuss it.\n"
    "high: several teams have to work on it, one after the other."
)
ONE_COMPLEXITY = "Answer with exactly one of: low, moderate, high."
CLINICIAN = "You are a general practitioner. Answer the question from what you see in the images."
RECRUITER = "You recruit the doctors who shall discuss the case. Name the fields of medicine that are needed."
SEVERAL_FIELDS = "Answer with at least two and at most {number} different fields, one on each line."
DOCTOR_NUMBER = "You are doctor {doctor}, a specialist in the field: {specialty}."
FIRST_OPINION = "Answer the question from what you see in the images."
NEXT_OPINION = "You have discussed the case with other doctors. Answer the question by what you see and have heard."
TALK = (
    "You discuss the case with other doctors. You may ask them, object, or point to what they have missed, where that "
    "could change an answer."
)
ADDRESS = "Answer with one line for each doctor whom you address, as in `To 2: ...`, or with `nothing` if it is nobody."
FEEDBACK = (
    "You are the moderator of a group of doctors who do not agree. Tell each of them, by number, what to consider "
    "again. Write only your feedback."
)
FINAL = "The discussion is over. Give your final answer by what you see in the images and have heard."
MODERATOR = (
    "You are the moderator of a group of doctors who have discussed the case. Doctors can be wrong, alone or all "
    "together: weigh their discussion and their final answers against what you see in the images, then decide."
)
TEAMS = {
    "Initial Assessment Team": "assesses the case first",
    "Diagnostic Evidence Team": "gathers the evidence for and against each possible answer",
    "Final Review and Decision Team": "reviews what the other teams have found, and comes to a conclusion",
}
TEAM_RECRUITER = "You recruit the teams that shall work on the case one after the other:"
TEAM_FIELDS = (
    "Answer with one line for each team: its number, a colon, and the fields of its {number} members, the lead's "
    "first, with semicolons between them, as in `1: field; field; field`."
)
LEAD = "You are doctor {doctor}, in the field: {specialty}. You lead the {team}, which {task}."
REQUEST = "Tell your assistants, who are {assistants}, what each shall examine. Write only your request."
ASSISTANT = (
    "You are doctor {doctor}, in the field: {specialty}, and an assistant in the {team}, which {task}. "
    "Examine what the lead asks you to. Write only your findings."
)
TEAM_REPORT = "Write your team's report from what your assistants have found and what you see. Write only the report."
DECISION_MAKER = (
    "You are the doctor who decides. Answer the question by the reports of all teams and by what you see in the images."
)


def checker(state: CaseFields, store: ImageStore) -> list[BaseMessage]:
    """How complex the case is."""
    return _messages([CHECKER, ONE_COMPLEXITY, FORMAT], [], state, store)


def clinician(state: CaseFields, store: ImageStore) -> list[BaseMessage]:
    """The one clinician of a case of low complexity."""
    return _deciding([CLINICIAN], [], state, store)


def recruiter(number: int, state: CaseFields, store: ImageStore) -> list[BaseMessage]:
    """Who shall discuss a case of moderate complexity."""
    return _messages([RECRUITER, SEVERAL_FIELDS.format(number=number), FORMAT], [], state, store)


def opinion(state: Any, store: ImageStore) -> list[BaseMessage]:
    """A doctor's opinion: alone at first, later by what was discussed."""
    asked = NEXT_OPINION if state["opinions"] else FIRST_OPINION
    return _deciding([_doctor(state), asked], _heard(state), state, store)


def talk(state: Any, store: ImageStore) -> list[BaseMessage]:
    """Whom a doctor addresses in a turn of the discussion, and with what."""
    return _messages([_doctor(state), TALK, ADDRESS, FORMAT], _heard(state), state, store)


def feedback(state: Any, store: ImageStore) -> list[BaseMessage]:
    """What the moderator says to doctors who do not agree."""
    return _messages([FEEDBACK], _heard(state), state, store)


def final_answer(state: Any, store: ImageStore) -> list[BaseMessage]:
    """A doctor's final answer."""
    return _deciding([_doctor(state), FINAL], _heard(state), state, store)


def moderator(state: Any, store: ImageStore) -> list[BaseMessage]:
    """The decision on a case of moderate complexity."""
    return _deciding([MODERATOR], _heard(state, "Final answers:"), state, store)


def team_recruiter(members: int, state: CaseFields, store: ImageStore) -> list[BaseMessage]:
    """Who shall be in the teams of a case of high complexity."""
    teams = [f"{number}: {team}, which {task}" for number, (team, task) in enumerate(TEAMS.items(), 1)]
    return _messages([TEAM_RECRUITER, *teams, TEAM_FIELDS.format(number=members), FORMAT], [], state, store)


def request(state: Any, store: ImageStore) -> list[BaseMessage]:
    """What the lead of a team asks of the assistants."""
    numbered = enumerate(state["assistants"], state["doctor"] + 1)
    assistants = " and ".join(f"doctor {number} ({field})" for number, field in numbered)
    return _messages([_in_team(LEAD, state), REQUEST.format(assistants=assistants)], _reports(state), state, store)


def findings(state: Any, store: ImageStore) -> list[BaseMessage]:
    """What an assistant finds."""
    asked = [*_reports(state), "The lead's request:", state["request"]]
    return _messages([_in_team(ASSISTANT, state)], asked, state, store)


def team_report(state: Any, store: ImageStore) -> list[BaseMessage]:
    """The lead's report on the work of the team."""
    found = [_line(one["doctor"], one["specialty"], one["reasoning"] or "no findings") for one in state["opinions"]]
    heard = [*_reports(state), "Your request:", state["request"], "Findings:", *found]
    return _messages([_in_team(LEAD, state), TEAM_REPORT], heard, state, store)


def decision_maker(state: Any, store: ImageStore) -> list[BaseMessage]:
    """The decision on a case of high complexity."""
    return _deciding([DECISION_MAKER], _reports(state), state, store)


# What they have in common


def _messages(system: list[str], heard: list[str], state: Any, store: ImageStore) -> list[BaseMessage]:
    return as_messages(system, [*case_lines(state), *heard], state, store)


def _deciding(system: list[str], heard: list[str], state: Any, store: ImageStore) -> list[BaseMessage]:
    return _messages([*system, how_to_answer(state), FORMAT], heard, state, store)


def _domains(what: str, number: int, state: Any, store: ImageStore) -> list[BaseMessage]:
    return _messages([what, DIFFERENT_FIELDS.format(number=number), FORMAT], [], state, store)


def _expert(state: Any) -> str:
    return EXPERT.format(specialty=state["specialty"])


def _doctor(state: Any) -> str:
    return DOCTOR_NUMBER.format(doctor=state["doctor"], specialty=state["specialty"])


def _in_team(words: str, state: Any) -> str:
    team, task = list(TEAMS.items())[state["team"] - 1]
    return words.format(doctor=state["doctor"], specialty=state["specialty"], team=team, task=task)


def _line(doctor: int, specialty: str, said: str) -> str:
    return f"Doctor {doctor} ({specialty}): {said}"


def _analyses(opinions: Sequence[Opinion]) -> list[str]:
    said = [_line(one["doctor"], one["specialty"], one["reasoning"] or "no analysis") for one in opinions]
    return ["Analyses:", *said]


def _report(state: Any) -> list[str]:
    return ["Report:", state["report"]]


def _reports(state: Any) -> list[str]:
    """All teams' reports so far."""
    written = zip(TEAMS, state["reports"], strict=False)
    return [line for team, report in written for line in (f"Report of the {team}:", report)]


def _heard(state: Any, opinions: str = "Opinions:") -> list[str]:
    """The doctors' opinions and all that was said; nothing before anybody has an opinion."""
    said = [line for one in state["opinions"] for line in opinion_lines(one)]
    discussed = [_remark(one) for one in state["discussion"] if one["text"]]
    return [*([opinions, *said] if said else []), *(["Discussion:", *discussed] if discussed else [])]


def _remark(remark: Any) -> str:
    if not remark["doctor"]:
        return f"Moderator: {remark['text']}"
    return f"Doctor {remark['doctor']} to doctor {remark['to']}: {remark['text']}"
