"""Tests of MedAgents: who is asked how often, what each is shown, how the rounds of votes end."""

from collections.abc import Callable
from typing import Any

import pytest
from casts import MED_FIELDS
from casts import med_agents_cast as cast
from fakes import QUESTION, Consult, consulting, encoded, image, pictures, untagged, usage
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedagent_graph.baselines import med_agents
from mmedagent_graph.baselines.med_agents import View, add_views
from mmedagent_graph.baselines.reading import GENERALIST

FREE = {"question": "What is it?"}
SET_UP = {"question_domains": 1, "option_domains": 1, "question_analysis": 5, "option_analysis": 2, "synthesis": 1}
WITHOUT_OPTIONS = {"question_domains": 1, "question_analysis": 5, "synthesis": 1}


@pytest.fixture(params=["invoke", "ainvoke"])
def consult(request: pytest.FixtureRequest) -> Consult:
    return consulting(request.param)


def numbered_reports() -> Callable[[dict[str, Any]], str]:
    written = [1]

    def revise(_: dict[str, Any]) -> str:
        written[0] += 1
        return f"Total analysis: report {written[0]}."

    return revise


# Rounds


def test_all_agree_at_once(consult: Consult) -> None:
    model = cast()
    result = consult(med_agents(model=model), QUESTION)
    assert model.counted() == {**SET_UP, "voting": 7, "decision_maker": 1}
    assert len(model.calls) == 18
    assert result["usage"] == usage(**model.counted())
    assert untagged(result)["messages"] == [("ai", "MRI\n\nBy the report.")]
    assert result["referral"] is None
    assert [
        (one["doctor"], one["specialty"], one["answer"], one["reasoning"], one["error"]) for one in result["opinions"]
    ] == [(i, field, None, f"Analysis {i}.", None) for i, field in enumerate(MED_FIELDS, 1)]
    decided = {key: result["decision"][key] for key in ("answer", "index", "agreement", "opinions", "votes")}
    assert decided == {"answer": "MRI", "index": 1, "agreement": None, "opinions": 0, "votes": 1}


def test_one_objects_in_the_first_round(consult: Consult) -> None:
    model = cast(lambda told: told["doctor"] == 6 and told["vote"] == 1, revision=numbered_reports())
    consult(med_agents(model=model), QUESTION)
    assert model.counted() == {**SET_UP, "voting": 14, "advice": 1, "revision": 1, "decision_maker": 1}
    [advice], [revision], [decision] = model.asked("advice"), model.asked("revision"), model.asked("decision_maker")
    assert "in the field: Pathology" in advice
    assert "report 1." in advice
    assert "report 1.\nAdvice:\nDoctor 6 (Pathology): Advice 6 of round 1." in revision
    assert all("report 1." in vote for vote in model.asked("voting", vote=1))
    assert all("report 2." in vote and "report 1." not in vote for vote in model.asked("voting", vote=2))
    assert "report 2." in decision


def test_nobody_ever_agrees(consult: Consult) -> None:
    model = cast(lambda _: True, revision=numbered_reports())
    consult(med_agents(model=model), QUESTION)
    assert model.counted() == {**SET_UP, "voting": 21, "advice": 21, "revision": 3, "decision_maker": 1}
    assert len(model.calls) == 56
    for round_, revision in enumerate(model.asked("revision"), 1):
        advised = [f"Doctor {i} ({field}): Advice {i} of round {round_}." for i, field in enumerate(MED_FIELDS, 1)]
        assert revision.endswith("\n".join(["Advice:", *advised]))  # that of this round, and no other
        assert f"report {round_}." in revision
    assert "report 4." in model.asked("decision_maker")[0]  # which is not voted upon again


def test_without_options_nobody_analyses_them(consult: Consult) -> None:
    unanimous, divided = cast(decision_maker="<answer>a cyst</answer>"), cast(lambda _: True)
    result = consult(med_agents(model=unanimous), FREE)
    assert unanimous.counted() == {**WITHOUT_OPTIONS, "voting": 5, "decision_maker": 1}
    assert len(unanimous.calls) == 13
    assert (result["decision"]["answer"], result["decision"]["index"]) == ("a cyst", None)
    assert [one["specialty"] for one in result["opinions"]] == MED_FIELDS[:5]
    consult(med_agents(model=divided), FREE)
    assert divided.counted() == {**WITHOUT_OPTIONS, "voting": 15, "advice": 15, "revision": 3, "decision_maker": 1}
    assert len(divided.calls) == 41


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 7), max_size=5), st.integers(1, 4))
def test_the_calls_of_any_course(objections: list[int], rounds: int) -> None:
    """`objections`: how many object in each round; afterwards nobody does."""
    by_round = dict(enumerate(objections, 1))
    model = cast(lambda told: told["doctor"] <= by_round.get(told["vote"], 0))
    med_agents(model=model, rounds=rounds).invoke(QUESTION)
    course = [*objections, 0][:rounds]
    held = course[: course.index(0) + 1] if 0 in course else course
    assert len(model.calls) == 10 + sum(7 + no + (no > 0) for no in held) + 1


def test_the_same_report_again_is_voted_on_again(consult: Consult) -> None:
    model = cast(
        lambda told: told["vote"] == 1, revision="Total analysis: report 1.", synthesis="Total analysis: report 1."
    )
    consult(med_agents(model=model), QUESTION)
    assert model.counted()["voting"] == 14


@pytest.mark.parametrize("vote", ["I do not know.", "ERROR.", "", "<answer>yes or no</answer>"])
def test_a_vote_that_cannot_be_read_is_no_objection(vote: str, consult: Consult) -> None:
    model = cast(voting=lambda told: vote if told["doctor"] < 7 else "yes")
    consult(med_agents(model=model), QUESTION)
    assert len(model.calls) == 18


# What they are shown

PICTURES = [encoded(image("red")), encoded(image("blue"))]


@pytest.mark.parametrize("case", [QUESTION, FREE], ids=["options", "free"])
def test_every_call_shows_the_case_with_its_images(case: dict[str, Any], consult: Consult) -> None:
    model = cast(lambda told: told["vote"] == 1)
    consult(med_agents(model=model), {**case, "images": PICTURES, "context": "Fell."})
    roles = 9 if case is QUESTION else 7
    assert len(model.counted()) == roles
    for node, _, messages in model.calls:
        assert pictures(messages) == PICTURES, node
    for node in model.counted():
        for shown in model.asked(node):
            assert f"Context: Fell.\nQuestion: {case['question']}\n" in shown + "\n"


def test_without_images_there_are_none(consult: Consult) -> None:
    model = cast()
    consult(med_agents(model=model), QUESTION)
    assert [pictures(messages) for _, _, messages in model.calls] == [[]] * 18


def test_who_sees_the_options(consult: Consult) -> None:
    model = cast(lambda told: told["vote"] == 1)
    consult(med_agents(model=model), QUESTION)
    seeing = {node for node in model.counted() for shown in model.asked(node) if "A. CT\nB. MRI\nC. PET" in shown}
    assert seeing == set(model.counted()) - {"question_domains", "question_analysis"}


def test_experts_know_their_field_and_what_was_said_before_them(consult: Consult) -> None:
    model = cast()
    consult(med_agents(model=model), QUESTION)
    lines = [f"Doctor {i} ({field}): Analysis {i}." for i, field in enumerate(MED_FIELDS, 1)]
    for field, shown in zip(MED_FIELDS[:5], model.asked("question_analysis"), strict=True):
        assert f"in the field: {field}." in shown
        assert "Analysis" not in shown
    for field, shown in zip(MED_FIELDS[5:], model.asked("option_analysis"), strict=True):
        assert f"in the field: {field}." in shown
        assert shown.endswith("\n".join(["Analyses:", *lines[:5]]))
    assert model.asked("synthesis")[0].endswith("\n".join(["Analyses:", *lines]))
    for field, shown in zip(MED_FIELDS, model.asked("voting"), strict=True):
        assert f"in the field: {field}." in shown
        assert shown.endswith("Report:\nKey knowledge: bone is white.\nTotal analysis: report 1.")
    assert model.asked("decision_maker")[0].endswith("Total analysis: report 1.")


# Who the experts are


@pytest.mark.parametrize(
    ("said", "fields"),
    [
        ("\n".join(MED_FIELDS), MED_FIELDS[:5]),
        ("Cardiology\ncardiology\nRadiology", ["Cardiology", "Radiology", *[GENERALIST] * 3]),
        ("I cannot tell: there is no image", [GENERALIST] * 5),
        ("", [GENERALIST] * 5),
    ],
)
def test_there_are_always_five_and_two_experts(said: str, fields: list[str], consult: Consult) -> None:
    model = cast(question_domains=said, option_domains=said)
    result = consult(med_agents(model=model), QUESTION)
    assert [one["specialty"] for one in result["opinions"]] == [*fields, *fields[:2]]
    assert len(model.calls) == 18


# Failures


@pytest.mark.parametrize(
    ("node", "doctors"),
    [("question_analysis", {2, 5}), ("option_analysis", {6, 7}), ("question_analysis", {1, 2, 3, 4, 5})],
)
def test_an_expert_that_fails_is_an_opinion_that_says_so(node: str, doctors: set[int], consult: Consult) -> None:
    model = cast().failing(node, *doctors)
    result = consult(med_agents(model=model), QUESTION)
    errors = {one["doctor"]: one["error"] for one in result["opinions"]}
    assert errors == {i: "TimeoutError: away" if i in doctors else None for i in range(1, 8)}
    assert len(model.calls) == 18
    for doctor in doctors:
        assert f"Doctor {doctor} ({MED_FIELDS[doctor - 1]}): no analysis" in model.asked("synthesis")[0]
    assert result["decision"]["answer"] == "MRI"


def test_a_vote_that_fails_is_not_counted(consult: Consult) -> None:
    model = cast().failing("voting", 1, 2, 3)
    assert consult(med_agents(model=model), QUESTION)["decision"]["answer"] == "MRI"
    assert len(model.calls) == 18
    divided = cast(lambda told: told["doctor"] == 7 and told["vote"] == 1).failing("voting", 1)
    consult(med_agents(model=divided), QUESTION)
    assert (divided.counted()["advice"], divided.counted()["revision"], divided.counted()["voting"]) == (1, 1, 14)


def test_advice_that_fails_is_missing_in_the_revision(consult: Consult) -> None:
    model = cast(lambda told: told["doctor"] in (1, 2) and told["vote"] == 1).failing("advice", 1)
    graph = med_agents(model=model)
    consult(graph, QUESTION)
    [revision] = model.asked("revision")
    assert revision.endswith("Doctor 1 (Cardiology): no advice\nDoctor 2 (Radiology): Advice 2 of round 1.")


@pytest.mark.parametrize("node", ["question_domains", "option_domains", "synthesis", "revision", "decision_maker"])
def test_any_other_failure_is_the_runs(node: str, consult: Consult) -> None:
    with pytest.raises(TimeoutError, match="away"):
        consult(med_agents(model=cast(lambda _: True).failing(node)), QUESTION)


# The reducer


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4), st.booleans()), max_size=12), st.integers(0, 12))
def test_views_are_one_for_each_round_and_expert(drawn: list[tuple[int, int, bool]], split: int) -> None:
    held = [
        View(round=round_, doctor=doctor, specialty="", agrees=agrees, advice=None, error=None)
        for round_, doctor, agrees in drawn
    ]
    added = add_views(add_views([], held[:split]), held[split:])
    last = {(round_, doctor): agrees for round_, doctor, agrees in drawn}
    assert [((view["round"], view["doctor"]), view["agrees"]) for view in added] == sorted(last.items())
    assert add_views(added, None) == []


# Arguments


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rounds": 0}, "rounds: 0 is not a whole number of 1 or more"),
        ({"rounds": True}, "rounds: True is not a whole number"),
        ({"rounds": 2.0}, r"rounds: 2\.0 is not a whole number"),
        ({"model": print}, "model: cannot use a builtin_function_or_method; give a model string or a chat model"),
        ({"model": "gpt-4o"}, "model: .*'gpt-4o' is not of the form 'provider:model'"),
    ],
)
def test_arguments_that_are_wrong(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        med_agents(**{"model": cast(), **wrong})
