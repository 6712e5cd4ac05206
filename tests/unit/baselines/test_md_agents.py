"""Tests of MDAgents: how a case is rated, who is asked how often, what each is shown, how a discussion ends."""

from typing import Any

import pytest
from casts import AGREED, DIVIDED, MD_FIELDS, MEMBERS, TEAMS, answering
from casts import md_agents_cast as cast
from fakes import QUESTION, Consult, consulting, encoded, image, pictures, usage
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedagent_graph.baselines import md_agents
from mmedagent_graph.baselines.md_agents import Remark, add_remarks
from mmedagent_graph.baselines.reading import GENERALIST

FREE = {"question": "What is it?"}


@pytest.fixture(params=["invoke", "ainvoke"])
def consult(request: pytest.FixtureRequest) -> Consult:
    return consulting(request.param)


def said(result: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(one["doctor"], one["specialty"], one["answer"], one["error"]) for one in result["opinions"]]


# How a case is rated


@pytest.mark.parametrize(
    ("text", "complexity"),
    [
        ("low", "low"),
        ("<think>It may be high.</think><answer>Moderate</answer>", "moderate"),
        ("**High**", "high"),
        ("1) basic", "moderate, since the answer could not be read"),
        ("low or high", "moderate, since the answer could not be read"),
        ("", "moderate, since the answer could not be read"),
    ],
)
def test_the_check(text: str, complexity: str, consult: Consult) -> None:
    model = cast(checker=text)
    result = consult(md_agents(model=model), QUESTION)
    assert result["referral"] == {"specialty": None, "reasoning": f"complexity: {complexity}"}
    first = {"low": "clinician", "moderate": "recruiter", "high": "team_recruiter"}[complexity.split(",")[0]]
    assert next(iter([node for node, _, _ in model.calls][1:])) == first


@settings(deadline=None, max_examples=20)
@given(st.text(max_size=30) | st.sampled_from(["low", "moderate", "high", "low, high", "<answer>", "3) advanced"]))
def test_any_answer_to_the_check_leads_to_a_decision(text: str) -> None:
    model = cast(checker=text, opinion=AGREED)
    result = md_agents(model=model, experts=2).invoke(QUESTION)
    assert result["decision"]["answer"] in QUESTION["options"]
    rated = result["referral"]["reasoning"].removeprefix("complexity: ")
    assert rated in ("low", "moderate", "moderate, since the answer could not be read", "high")
    assert rated.startswith("moderate") or rated in text.casefold()


@pytest.mark.parametrize(("complexity", "calls"), [("low", 1), ("moderate", 70), ("high", 14)])
def test_a_complexity_that_is_given_is_not_checked(complexity: Any, calls: int, consult: Consult) -> None:
    model = cast("nonsense")
    result = consult(md_agents(model=model, complexity=complexity), QUESTION)
    assert "checker" not in model.counted()
    assert len(model.calls) == calls
    assert result["referral"]["reasoning"] == f"complexity: {complexity}"


# Low


def test_low(consult: Consult) -> None:
    model = cast("low")
    result = consult(md_agents(model=model), QUESTION)
    assert model.counted() == {"checker": 1, "clinician": 1}
    assert result["usage"] == usage(checker=1, clinician=1)
    assert (result["decision"]["answer"], result["decision"]["reasoning"]) == ("CT", "Plain.")
    assert result["opinions"] == []


# Moderate


def test_moderate_all_agree_at_once(consult: Consult) -> None:
    model = cast(opinion=AGREED, final_answer=AGREED, moderator="<answer>CT</answer>")
    result = consult(md_agents(model=model), QUESTION)
    assert model.counted() == {"checker": 1, "recruiter": 1, "opinion": 5, "final_answer": 5, "moderator": 1}
    assert len(model.calls) == 13
    assert result["usage"] == usage(**model.counted())
    assert said(result) == [(i, field, "CT", None) for i, field in enumerate(MD_FIELDS, 1)]
    decided = {key: result["decision"][key] for key in ("answer", "agreement", "entropy", "opinions")}
    assert decided == {"answer": "CT", "agreement": 1.0, "entropy": 0.0, "opinions": 5}
    assert "Discussion:" not in model.asked("moderator")[0]


def test_moderate_nobody_has_anything_to_say(consult: Consult) -> None:
    model = cast(talk="<answer>nothing</answer>")
    result = consult(md_agents(model=model), QUESTION)
    assert model.counted() == {"checker": 1, "recruiter": 1, "opinion": 5, "talk": 5, "final_answer": 5, "moderator": 1}
    assert len(model.calls) == 18
    assert [one["answer"] for one in result["opinions"]] == ["PET"] * 5  # the final answers, not the first opinions
    assert result["decision"]["answer"] == "PET"


def test_moderate_a_full_discussion(consult: Consult) -> None:
    model = cast()
    consult(md_agents(model=model), QUESTION)
    rounds = {"opinion": 15, "talk": 45, "feedback": 3}
    assert model.counted() == {"checker": 1, "recruiter": 1, **rounds, "final_answer": 5, "moderator": 1}
    assert len(model.calls) == 71


def test_moderate_silence_in_a_later_turn_ends_the_discussion(consult: Consult) -> None:
    model = cast(talk=lambda told: "To 3: Why?" if told["doctor"] == 2 and told["vote"] <= 4 else "nothing")
    consult(md_agents(model=model), QUESTION)
    counted = model.counted()
    assert {node: counted[node] for node in ("opinion", "talk", "feedback", "final_answer")} == {
        "opinion": 10,
        "talk": 25,  # three turns of the first round, and two of the second
        "feedback": 1,
        "final_answer": 5,
    }


def test_moderate_agreement_after_a_round_ends_the_discussion(consult: Consult) -> None:
    model = cast(opinion=lambda told: (DIVIDED if told["vote"] == 1 else AGREED)(told))
    consult(md_agents(model=model), QUESTION)
    counted = model.counted()
    assert (counted["opinion"], counted["talk"], counted["feedback"], counted["final_answer"]) == (10, 15, 1, 5)


@pytest.mark.parametrize("unreadable", ["CT or MRI", "", "<answer>"])
def test_moderate_unreadable_opinions_are_no_agreement(unreadable: str, consult: Consult) -> None:
    some = cast(opinion=lambda told: unreadable if told["doctor"] == 1 else "CT", talk="nothing")
    none = cast(opinion=unreadable, talk="nothing")
    for model in (some, none):
        consult(md_agents(model=model), QUESTION)
        assert model.counted()["talk"] == 5


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 10), st.none() | st.integers(1, 4))
def test_the_calls_of_any_discussion(experts: int, rounds: int, turns: int, spoken: int, agreed: int | None) -> None:
    """Somebody speaks in the first `spoken` turns, and all agree from opinion `agreed` on."""
    model = cast(
        talk=lambda told: "To 1: Why?" if told["doctor"] == 2 and told["vote"] <= spoken else "",
        opinion=lambda told: (AGREED if agreed and told["vote"] >= agreed else DIVIDED)(told),
    )
    md_agents(model=model, experts=experts, rounds=rounds, turns=turns).invoke(QUESTION)
    expected, turn = {"checker": 1, "recruiter": 1, "final_answer": experts, "moderator": 1}, 0
    calls = dict.fromkeys(("opinion", "talk", "feedback"), 0)
    for number in range(1, rounds + 1):
        calls["opinion"] += experts
        if agreed and number >= agreed:
            break
        silent = False
        for _ in range(turns):
            turn += 1
            calls["talk"] += experts
            if silent := turn > spoken:
                break
        if silent:
            break
        calls["feedback"] += 1
    assert model.counted() == {**expected, **{node: n for node, n in calls.items() if n}}


def test_what_the_doctors_are_shown(consult: Consult) -> None:
    model = cast()
    consult(md_agents(model=model, rounds=2, turns=2), QUESTION)
    heard = [
        line
        for i, field in enumerate(MD_FIELDS, 1)
        for line in (f"Doctor {i} ({field}): {['MRI', 'CT'][i % 2]}", f"Reasoning: As {field}.")
    ]
    turn = [[f"Doctor {i} to doctor {i % 5 + 1}: Remark {i} of turn {n}." for i in range(1, 6)] for n in range(1, 5)]
    feedback = ["Moderator: Feedback after turn 2.", "Moderator: Feedback after turn 4."]
    first, second = turn[0] + turn[1] + feedback[:1], turn[2] + turn[3] + feedback[1:]
    for i, field in enumerate(MD_FIELDS, 1):
        for node in ("opinion", "talk", "final_answer"):
            for shown in model.asked(node, doctor=i):
                assert f"You are doctor {i}, a specialist in the field: {field}." in shown
    for shown in model.asked("opinion", vote=1):
        assert "Doctor" not in shown
        assert shown.endswith("C. PET")  # the first opinion is one's own
    for number, discussed in [(1, []), (2, turn[0]), (3, first), (4, [*first, *turn[2]])]:
        for shown in model.asked("talk", vote=number):
            assert shown.endswith("\n".join(["Opinions:", *heard, *(["Discussion:", *discussed] if discussed else [])]))
    for shown in model.asked("opinion", vote=2):
        assert shown.endswith("\n".join(["Opinions:", *heard, "Discussion:", *first]))
    assert model.asked("feedback", vote=2)[0].endswith("\n".join(["Discussion:", *turn[0], *turn[1]]))
    for shown in model.asked("final_answer"):
        assert shown.endswith("\n".join(["Opinions:", *heard, "Discussion:", *first, *second]))
    finals = [
        line
        for i, field in enumerate(MD_FIELDS, 1)
        for line in (f"Doctor {i} ({field}): PET", f"Reasoning: As {field}.")
    ]
    [decision] = model.asked("moderator")
    assert decision.endswith("\n".join(["Final answers:", *finals, "Discussion:", *first, *second]))


@pytest.mark.parametrize(
    ("said_", "experts", "fields"),
    [
        ("\n".join(MD_FIELDS), 3, MD_FIELDS[:3]),
        ("Cardiology\nRadiology", 5, MD_FIELDS[:2]),
        ("Cardiology", 3, ["Cardiology", GENERALIST, GENERALIST]),
        ("Cardiology\ncardiology.", 2, ["Cardiology", GENERALIST]),
        ("Whom? I cannot tell!", 4, [GENERALIST] * 4),
    ],
)
def test_whom_the_recruiter_names(said_: str, experts: int, fields: list[str], consult: Consult) -> None:
    result = consult(md_agents(model=cast(recruiter=said_), experts=experts), QUESTION)
    assert [one["specialty"] for one in result["opinions"]] == fields


# High


def test_high(consult: Consult) -> None:
    model = cast("high")
    result = consult(md_agents(model=model), QUESTION)
    teams = {"team_recruiter": 1, "request": 3, "findings": 6, "team_report": 3}
    assert model.counted() == {"checker": 1, **teams, "decision_maker": 1}
    assert len(model.calls) == 15
    assert result["usage"] == usage(**model.counted())
    fields = [field for members in MEMBERS for field in members]
    assert said(result) == [(i, field, None, None) for i, field in enumerate(fields, 1)]
    reasons = [f"{'Report by' if i in (1, 4, 7) else 'Findings of'} {i}." for i in range(1, 10)]
    assert [one["reasoning"] for one in result["opinions"]] == reasons
    assert (result["decision"]["answer"], result["decision"]["agreement"]) == ("MRI", None)


def test_teams_work_one_after_the_other_and_every_report_is_used(consult: Consult) -> None:
    model = cast("high")
    consult(md_agents(model=model), QUESTION)
    reports = [f"Report of the {team}:\nReport by {lead}." for team, lead in zip(TEAMS, (1, 4, 7), strict=True)]
    assert model.asked("decision_maker")[0].endswith("\n".join(["C. PET", *reports]))
    for number, (team, (lead, *assistants)) in enumerate(zip(TEAMS, MEMBERS, strict=True)):
        first = 3 * number + 1
        before = "\n".join(["C. PET", *reports[:number]])
        [request], [report] = model.asked("request", doctor=first), model.asked("team_report", doctor=first)
        assert f"You are doctor {first}, in the field: {lead}. You lead the {team}" in request
        assert f"doctor {first + 1} ({assistants[0]}) and doctor {first + 2} ({assistants[1]})" in request
        assert request.endswith(before)
        for doctor, field in enumerate(assistants, first + 1):
            [found] = model.asked("findings", doctor=doctor)
            assert f"You are doctor {doctor}, in the field: {field}, and an assistant in the {team}" in found
            assert found.endswith(f"{before}\nThe lead's request:\nRequest of {first}.")
        findings = [f"Doctor {i} ({field}): Findings of {i}." for i, field in enumerate(assistants, first + 1)]
        assert report.endswith("\n".join([before, "Your request:", f"Request of {first}.", "Findings:", *findings]))
    order = [node for node, _, _ in model.calls]
    assert order[2:14] == ["request", "findings", "findings", "team_report"] * 3


def test_teams_that_cannot_be_read_have_general_members(consult: Consult) -> None:
    model = cast("high", team_recruiter="I would take good doctors.")
    result = consult(md_agents(model=model), QUESTION)
    assert [one["specialty"] for one in result["opinions"]] == [GENERALIST] * 9
    assert len(model.calls) == 15


# Images


PICTURES = [encoded(image("red")), encoded(image("blue"))]


@pytest.mark.parametrize("case", [QUESTION, FREE], ids=["options", "free"])
@pytest.mark.parametrize(("complexity", "roles"), [("low", 2), ("moderate", 7), ("high", 6)])
def test_every_call_shows_the_case_with_its_images(
    complexity: str, roles: int, case: dict[str, Any], consult: Consult
) -> None:
    model = cast(complexity)
    consult(md_agents(model=model), {**case, "images": PICTURES, "context": "Fell."})
    assert len(model.counted()) == roles
    for node, _, messages in model.calls:
        assert pictures(messages) == PICTURES, node
    for node in model.counted():
        for shown in model.asked(node):
            assert f"Context: Fell.\nQuestion: {case['question']}\n" in shown + "\n"
            assert ("A. CT\nB. MRI\nC. PET" in shown) == (case is QUESTION)


# Free text


def test_free_answers_agree_by_their_words(consult: Consult) -> None:
    model = cast(
        opinion=answering("a cyst", "A  cyst."), final_answer=answering("a cyst"), moderator="<answer>a cyst</answer>"
    )
    result = consult(md_agents(model=model), FREE)
    assert len(model.calls) == 13
    assert (result["decision"]["answer"], result["decision"]["index"]) == ("a cyst", None)
    assert result["decision"]["agreement"] == 1.0


# Failures


@pytest.mark.parametrize("doctors", [{1}, {2, 4}, {1, 2, 3, 4, 5}])
def test_a_final_answer_that_fails_is_an_opinion_that_says_so(doctors: set[int], consult: Consult) -> None:
    model = cast().failing("final_answer", *doctors)
    result = consult(md_agents(model=model), QUESTION)
    assert said(result) == [
        (i, field, *((None, "TimeoutError: away") if i in doctors else ("PET", None)))
        for i, field in enumerate(MD_FIELDS, 1)
    ]
    assert len(model.calls) == 71
    assert result["decision"]["opinions"] == 5 - len(doctors)


def test_a_doctor_that_fails_does_not_stop_the_others_from_agreeing(consult: Consult) -> None:
    model = cast(opinion=AGREED).failing("opinion", 1)
    consult(md_agents(model=model), QUESTION)
    assert len(model.calls) == 13
    alone = cast(talk="nothing").failing("opinion")
    consult(md_agents(model=alone), QUESTION)
    assert alone.counted()["talk"] == 5  # nobody's opinion is no agreement


def test_a_doctor_that_fails_in_a_turn_says_nothing(consult: Consult) -> None:
    model = cast().failing("talk", 2, 3)
    consult(md_agents(model=model, rounds=1, turns=1), QUESTION)
    assert [f"Remark {i}" in model.asked("moderator")[0] for i in range(1, 6)] == [True, False, False, True, True]
    silent = cast().failing("talk")
    consult(md_agents(model=silent), QUESTION)
    assert silent.counted()["talk"] == 5


def test_findings_that_fail_are_an_opinion_that_says_so(consult: Consult) -> None:
    model = cast("high").failing("findings", 2, 5, 6)
    result = consult(md_agents(model=model), QUESTION)
    assert len(model.calls) == 15
    assert [one["doctor"] for one in result["opinions"] if one["error"] == "TimeoutError: away"] == [2, 5, 6]
    assert "Doctor 2 (Nursing): no findings\nDoctor 3 (Imaging): Findings of 3." in model.asked("team_report")[0]


SINGLE = {
    "low": ["checker", "clinician"],
    "moderate": ["checker", "recruiter", "feedback", "moderator"],
    "high": ["checker", "team_recruiter", "request", "team_report", "decision_maker"],
}


@pytest.mark.parametrize(("complexity", "node"), [(key, node) for key, nodes in SINGLE.items() for node in nodes])
def test_any_other_failure_is_the_runs(complexity: str, node: str, consult: Consult) -> None:
    with pytest.raises(TimeoutError, match="away"):
        consult(md_agents(model=cast(complexity).failing(node)), QUESTION)


# The reducer

remark = st.builds(
    Remark,
    turn=st.integers(1, 3),
    doctor=st.integers(0, 3),
    to=st.integers(0, 3),
    text=st.text(max_size=2),
    error=st.none(),
)


@settings(deadline=None)
@given(st.lists(remark, max_size=8), st.integers(0, 8))
def test_remarks_stand_in_the_order_of_turns_and_the_moderator_speaks_last(said_: list[Remark], split: int) -> None:
    added = add_remarks(add_remarks([], said_[:split]), said_[split:])
    assert sorted(map(str, added)) == sorted(map(str, said_))
    assert [one["turn"] for one in added] == sorted(one["turn"] for one in said_)
    for turn in (1, 2, 3):
        speakers = [one["doctor"] or 9 for one in added if one["turn"] == turn]
        assert speakers == sorted(speakers)
    assert add_remarks(added, None) == []


# Arguments


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"experts": 1}, "experts: 1 is not a whole number of 2 or more"),
        ({"rounds": 0}, "rounds: 0 is not a whole number of 1 or more"),
        ({"turns": -1}, "turns: -1 is not a whole number of 1 or more"),
        ({"complexity": "basic"}, "complexity: 'basic' is unknown; give low, moderate, high, or None"),
        ({"model": None}, "model: cannot use a NoneType; give a model string or a chat model"),
    ],
)
def test_arguments_that_are_wrong(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        md_agents(**{"model": cast(), **wrong})
