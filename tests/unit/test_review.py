"""Tests of the human in the loop: what a reviewer is shown, what may be said, and what is made of it."""

import json
from typing import Any

import pytest
from fakes import (
    QUESTION,
    THREAD,
    Consult,
    answers,
    breaks,
    consulting,
    data_url,
    encoded,
    graph,
    image,
    said,
    thread,
    usage,
    voting,
)
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt

from mmedagent_graph import SPECIALTIES, Context
from mmedagent_graph.images import default_store
from mmedagent_graph.review import Approve, Change, Hear, changed, read_verdict
from mmedagent_graph.votes import decide

OPTIONS = QUESTION["options"]
NAMES = ["Radiologist", "Surgeon"]


@pytest.fixture(params=["invoke", "ainvoke"])
def consult(request: pytest.FixtureRequest) -> Consult:
    return consulting(request.param)


def reviewed(**given: Any) -> Any:
    return graph(**{"review": True, "checkpointer": InMemorySaver(), **given})


def pause(result: dict[str, Any]) -> dict[str, Any]:
    """What the one interrupt shows."""
    [asked] = result["__interrupt__"]
    return asked.value


# What a verdict may be


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        (True, Approve(action="approve")),
        ({"action": "approve"}, Approve(action="approve")),
        (Approve(action="approve"), Approve(action="approve")),
        ({"action": "change", "answer": "MRI"}, Change(action="change", answer="MRI", reasoning="")),
        ({"action": "change", "answer": "CT", "reasoning": "r"}, Change(action="change", answer="CT", reasoning="r")),
        ({"action": "hear", "specialty": "Surgeon"}, Hear(action="hear", specialty="Surgeon")),
    ],
)
def test_a_verdict(given: Any, verdict: Any) -> None:
    assert read_verdict(given, OPTIONS, NAMES) == verdict


WRONG: list[tuple[Any, list[str]]] = [
    (False, ["verdict", "Give an action: approve, change (answer), hear (specialty)"]),
    (None, ["verdict", "approve, change (answer), hear (specialty)"]),
    (1, ["verdict", "approve, change (answer)"]),
    ("approve", ["verdict", "approve, change (answer)"]),
    ([{"action": "approve"}], ["verdict", "approve, change (answer)"]),
    ({}, ["action", "approve, change (answer)"]),
    ({"action": "reject"}, ["'reject'", "'approve', 'change', 'hear'"]),
    ({"action": "approve", "answer": "CT"}, ["approve.answer", "not permitted"]),  # which of the two is meant?
    ({"action": "change"}, ["change.answer", "required"]),
    ({"action": "change", "answer": None}, ["change.answer", "string"]),
    ({"action": "change", "answer": " "}, ["change.answer", "at least 1 character"]),
    ({"action": "change", "answer": "X-ray"}, ["verdict.answer", "'X-ray' is not an option", str(OPTIONS)]),
    ({"action": "change", "answer": "ct"}, ["verdict.answer", "'ct' is not an option", str(OPTIONS)]),
    ({"action": "change", "answer": "CT", "index": 0}, ["change.index", "not permitted"]),
    ({"action": "hear"}, ["hear.specialty", "required"]),
    ({"action": "hear", "specialty": "surgeon"}, ["verdict.specialty", "'surgeon'", "Radiologist, Surgeon"]),
    ({"action": "hear", "specialty": "Oncologist"}, ["'Oncologist' is unknown", "Radiologist, Surgeon"]),
]


@pytest.mark.parametrize(("given", "parts"), WRONG, ids=[str(given) for given, _ in WRONG])
def test_a_verdict_that_cannot_be_used(given: Any, parts: list[str]) -> None:
    with pytest.raises(ValueError) as raised:
        read_verdict(given, OPTIONS, NAMES)
    assert [part for part in parts if part not in str(raised.value)] == []


def test_an_error_does_not_repeat_what_was_given() -> None:
    with pytest.raises(ValueError) as raised:
        read_verdict({"action": "change", "answer": ["Mrs Smith, 71"]}, OPTIONS, NAMES)
    assert "Smith" not in str(raised.value)


def test_an_answer_in_free_text() -> None:
    verdict = read_verdict({"action": "change", "answer": " an old cyst\n"}, [], NAMES)
    assert isinstance(verdict, Change)
    assert verdict.answer == "an old cyst"
    with pytest.raises(ValueError, match=r"change\.answer: .* at least 1 character"):
        read_verdict({"action": "change", "answer": ""}, [], NAMES)


def test_a_changed_decision_still_tells_the_votes() -> None:
    vote: Any = {"vote": 1, "answer": "CT", "index": 0, "reasoning": "Seen.", "refer": None, "error": None}
    opinions: Any = [{"answer": "MRI"}, {"answer": "CT"}, {"answer": None}]
    decision = decide([vote, {**vote, "answer": None}], opinions, abstain_below=0.9)
    assert decision["abstained"]
    after = changed(decision, Change(action="change", answer="MRI", reasoning="Soft."), OPTIONS, opinions)
    new = {"answer": "MRI", "index": 1, "reasoning": "Soft.", "agreement": 0.5, "abstained": False, "review": "changed"}
    assert after == {**decision, **new}
    assert decision["review"] is None  # which is left alone


# What a reviewer is shown


def test_a_reviewer_is_shown_the_case_and_all_that_was_said(consult: Consult) -> None:
    png = encoded(image())
    given = reviewed(specialists=[answers("CT", "White."), breaks(RuntimeError("away"))], attending=answers("MRI"))
    result = consult(given, {**QUESTION, "images": [png], "context": "Fell."}, THREAD)
    request = pause(result)
    assert request == {
        "case": {**QUESTION, "images": [default_store().put(png)], "context": "Fell."},
        "referral": {"specialty": "Radiologist", "reasoning": "By the image."},
        "opinions": result["opinions"],
        "decision": result["decision"],
        "actions": ["approve", "change", "hear"],
        "specialties": list(SPECIALTIES),
        "error": None,
    }
    assert (request["opinions"][1]["error"], request["decision"]["answer"]) == ("RuntimeError: away", "MRI")
    assert request["decision"]["review"] is None
    json.dumps(request)  # it goes over the wire
    assert result["messages"] == []  # nothing is released


def test_specialties_of_ones_own_can_be_heard(consult: Consult) -> None:
    given = reviewed(triage=answers("Midwife"), specialties=["Midwife", "Nurse"])
    assert pause(consult(given, QUESTION, THREAD))["specialties"] == ["Midwife", "Nurse"]


def test_what_a_reviewer_sees_of_a_chat(consult: Consult) -> None:
    block = {"type": "image", "url": data_url(encoded(image()))}
    chat = {"messages": [("user", [{"type": "text", "text": "Which?\nA. CT\nB. MRI"}, block])]}
    given = reviewed()
    assert pause(consult(given, chat, THREAD))["case"]["options"] == ["CT", "MRI"]
    result = consult(given, Command(resume=True), THREAD)
    assert [message.type for message in result["messages"]] == ["human", "ai"]


# What is made of a verdict


@pytest.mark.parametrize("verdict", [True, {"action": "approve"}])
def test_an_approved_decision_is_released(verdict: Any, consult: Consult) -> None:
    attending = answers("MRI", "Soft.")
    given = reviewed(attending=attending)
    before = consult(given, QUESTION, THREAD)["decision"]
    result = consult(given, Command(resume=verdict), THREAD)
    assert result["decision"] == {**before, "review": "approved"}
    assert [message.text for message in result["messages"]] == ["MRI\n\nSoft."]
    assert "__interrupt__" not in result
    assert len(attending.seen) == 1


def test_a_verdict_may_name_its_interrupt(consult: Consult) -> None:
    given = reviewed()
    [asked] = consult(given, QUESTION, THREAD)["__interrupt__"]
    result = consult(given, Command(resume={asked.id: {"action": "approve"}}), THREAD)
    assert result["decision"]["review"] == "approved"


def test_another_answer_is_released(consult: Consult) -> None:
    given = reviewed(specialists=[answers("CT"), answers("MRI")])
    before = consult(given, QUESTION, THREAD)["decision"]
    result = consult(given, Command(resume={"action": "change", "answer": "MRI", "reasoning": "Soft."}), THREAD)
    new = {"answer": "MRI", "index": 1, "reasoning": "Soft.", "agreement": 0.5, "review": "changed"}
    assert result["decision"] == {**before, **new}
    assert [message.text for message in result["messages"]] == ["MRI\n\nSoft."]


def test_one_more_specialist_is_heard_and_the_attending_decides_again(consult: Consult) -> None:
    def specialist(state: dict[str, Any]) -> str:
        return "MRI" if state["specialty"] == "Surgeon" else "CT"

    def attending(ballot: dict[str, Any]) -> str:
        return ballot["opinions"][-1]["answer"]

    given = reviewed(specialists=specialist, attending=attending, votes=3)
    assert pause(consult(given, QUESTION, THREAD))["decision"]["answer"] == "CT"
    again = consult(given, Command(resume={"action": "hear", "specialty": "Surgeon"}), THREAD)
    opinions = pause(again)["opinions"]
    assert [(one["doctor"], one["specialty"]) for one in opinions[2:]] == [(3, "Radiologist"), (4, "Surgeon")]
    assert pause(again)["decision"]["answer"] == "MRI"
    assert (pause(again)["decision"]["votes"], pause(again)["decision"]["opinions"]) == (3, 4)
    result = consult(given, Command(resume=True), THREAD)
    assert (result["decision"]["answer"], result["decision"]["review"]) == ("MRI", "approved")
    assert len(result["messages"]) == 1


def test_a_decision_that_is_made_again_is_not_shown_meanwhile(consult: Consult) -> None:
    def specialist(state: dict[str, Any]) -> str:
        return interrupt("Which?") if state["specialty"] == "Surgeon" else "CT"

    given = reviewed(specialists=specialist)
    consult(given, QUESTION, THREAD)
    result = consult(given, Command(resume={"action": "hear", "specialty": "Surgeon"}), THREAD)
    assert (pause(result), result["decision"]) == ("Which?", None)
    result = consult(given, Command(resume="PET"), THREAD)
    assert pause(result)["opinions"][-1]["answer"] == "PET"


def test_a_specialist_of_the_same_specialty_may_be_heard_again_and_again(consult: Consult) -> None:
    given = reviewed(specialists=[answers("CT"), answers("MRI")])
    consult(given, QUESTION, THREAD)
    for _ in range(3):
        result = consult(given, Command(resume={"action": "hear", "specialty": "Radiologist"}), THREAD)
    assert said(result) == ["CT", "MRI", "CT", "MRI", "CT"]
    assert result["usage"] == usage(triage=1, specialist=5, attending=4)


def test_a_specialist_is_heard_where_triage_referred_to_nobody(consult: Consult) -> None:
    given = reviewed(triage=answers("nobody"))
    assert pause(consult(given, QUESTION, THREAD))["opinions"] == []
    result = consult(given, Command(resume={"action": "hear", "specialty": "Surgeon"}), THREAD)
    assert [(one["doctor"], one["specialty"]) for one in result["opinions"]] == [(1, "Surgeon")]


def test_what_a_reviewer_hears_is_none_of_the_attendings_referrals(consult: Consult) -> None:
    def attending(ballot: dict[str, Any]) -> Any:
        return {"refer": "Surgeon"} if "Surgeon" in ballot["may_refer"] and len(ballot["opinions"]) > 1 else "CT"

    given = reviewed(attending=attending, doctors=1, max_referrals=1)
    consult(given, QUESTION, THREAD)
    result = consult(given, Command(resume={"action": "hear", "specialty": "Oncologist"}), THREAD)
    assert [one["specialty"] for one in result["opinions"]] == ["Radiologist", "Oncologist", "Surgeon"]


@pytest.mark.parametrize(("given", "parts"), WRONG[:4] + WRONG[6:12:2], ids=lambda given: str(given)[:40])
def test_a_verdict_that_cannot_be_used_is_told_and_asked_again(given: Any, parts: list[str], consult: Consult) -> None:
    attending, specialist = answers("CT"), answers("CT")
    ward = reviewed(attending=attending, specialists=specialist)
    first = pause(consult(ward, QUESTION, THREAD))
    # LangGraph takes a resume of None for none at all
    again = pause(consult(ward, Command(resume="" if given is None else given), THREAD))
    assert again == {**first, "error": again["error"]}
    assert given is None or [part for part in parts if part not in again["error"]] == []
    twice = pause(consult(ward, Command(resume={"action": "change", "answer": "X-ray"}), THREAD))
    assert "'X-ray' is not an option" in twice["error"]
    result = consult(ward, Command(resume=True), THREAD)
    assert (result["decision"]["review"], len(result["messages"])) == ("approved", 1)
    assert (len(attending.seen), len(specialist.seen)) == (1, 3)  # nothing is lost, and nobody asked again


def test_wrong_verdicts_after_hearing_another(consult: Consult) -> None:
    given = reviewed()
    consult(given, QUESTION, THREAD)
    consult(given, Command(resume="?"), THREAD)
    consult(given, Command(resume={"action": "hear", "specialty": "Surgeon"}), THREAD)
    assert "verdict" in pause(consult(given, Command(resume="?"), THREAD))["error"]
    assert consult(given, Command(resume=True), THREAD)["decision"]["opinions"] == 4


def test_what_abstained_may_be_released_as_it_is_or_decided(consult: Consult) -> None:
    given = reviewed(attending=voting("CT", "MRI", "PET"), votes=3, abstain_below=0.5)
    for config in (thread(1), thread(2)):
        assert pause(consult(given, QUESTION, config))["decision"]["abstained"] is True
    kept = consult(given, Command(resume=True), thread(1))
    assert (kept["decision"]["answer"], kept["decision"]["abstained"], kept["decision"]["review"]) == (
        None,
        True,
        "approved",
    )
    assert "a human must decide" in kept["messages"][0].text
    decided = consult(given, Command(resume={"action": "change", "answer": "PET"}), thread(2))
    assert (decided["decision"]["answer"], decided["decision"]["confidence"]) == ("PET", pytest.approx(1 / 3))
    assert decided["messages"][0].text == "PET"


@pytest.mark.parametrize("built", [True, False])
def test_a_run_may_ask_for_review_or_do_without(built: bool, consult: Consult) -> None:
    given = reviewed(review=built, context_schema=Context)
    assert ("__interrupt__" in consult(given, QUESTION, THREAD)) is built
    assert ("__interrupt__" in consult(given, QUESTION, thread(2), context={"review": not built})) is not built


def test_nothing_is_reviewed_that_failed(consult: Consult) -> None:
    given = reviewed(attending=breaks(RuntimeError("out of order")))
    with pytest.raises(RuntimeError, match="out of order"):
        consult(given, QUESTION, THREAD)
