"""Tests of Case: what is refused, and with which words; what is handed on."""

from pathlib import Path
from typing import Any

import pytest
from fakes import data_url, encoded, image
from langchain_core.messages import AIMessage, HumanMessage
from pydantic import ValidationError

from mmedagent_graph import Case
from mmedagent_graph.images import ImageStore


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param({}, ["question", "required"], id="no question"),
        pytest.param({"question": ""}, ["question is empty", "give the question"], id="empty question"),
        pytest.param({"question": " \n\t"}, ["question is empty", "give the question"], id="blank question"),
        pytest.param({"question": None}, ["question", "string"], id="question is None"),
        pytest.param({"options": ["CT"]}, ["options has one entry", "'CT'", "two or more"], id="one option"),
        pytest.param({"options": ["CT", "  "]}, ["options[1] is empty", "needs a text"], id="blank option"),
        pytest.param({"options": ["CT", "MRI", "CT"]}, ["options[2] 'CT' repeats options[0]"], id="same option"),
        pytest.param({"options": ["CT", "ct"]}, ["options[1] 'ct' repeats options[0] 'CT'"], id="same but for case"),
        pytest.param({"options": ["Fuß", "FUSS"]}, ["options[1] 'FUSS' repeats"], id="same once case-folded"),
        pytest.param({"options": ["CT scan", "CT  scan."]}, ["options[1]", "repeats"], id="same once normalised"),
        pytest.param({"options": ["\uff23\uff34", "CT"]}, ["options[1]", "repeats"], id="same in full width"),
        pytest.param({"options": ["...", "..."]}, ["options[1]", "repeats"], id="same punctuation"),
        pytest.param({"options": ["x" * 3000] * 2}, ["options[1]", "repeats"], id="same and very long"),
        pytest.param({"options": [f"finding {n}" for n in range(27)]}, ["options", "at most 26"], id="27 options"),
        pytest.param({"options": "CT"}, ["options", "list"], id="options as one string"),
        pytest.param({"options": ["CT", 2]}, ["options", "string"], id="option is a number"),
        pytest.param({"images": "scan.png"}, ["images", "list"], id="images as one path"),
        pytest.param({"context": 3}, ["context", "string"], id="context is a number"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], said: list[str]) -> None:
    given = fields if "question" in fields or not fields else {"question": "What is it?", **fields}
    with pytest.raises(ValueError) as raised:
        Case.model_validate(given)
    message = str(raised.value)
    assert [part for part in said if part not in message] == []


def test_only_the_question_is_needed() -> None:
    case = Case(question="What is it?")
    assert (case.options, case.images, case.context) == ([], [], None)


def test_question_and_options_are_stripped() -> None:
    case = Case(question=" What is it?\n", options=[" CT", "MRI "])
    assert (case.question, case.options) == ("What is it?", ["CT", "MRI"])


def test_as_many_options_as_letters() -> None:
    assert len(Case(question="q", options=[f"finding {n}" for n in range(26)]).options) == 26


def test_options_may_contain_each_other() -> None:
    assert Case(question="q", options=["left", "left lung", "5", "-5"]).options == ["left", "left lung", "5", "-5"]


def test_an_answer_key_is_not_taken_in() -> None:
    case = Case.model_validate({"question": "q", "answer": "MRI", "index": 1})
    assert set(case.model_dump()) == {"question", "options", "images", "context"}


def test_a_case_cannot_be_changed() -> None:
    case = Case(question="q")
    with pytest.raises(ValidationError):
        case.question = "another"  # type: ignore[misc]


def test_the_error_does_not_repeat_what_was_given() -> None:
    with pytest.raises(ValueError) as raised:
        Case.model_validate({"question": "q", "context": ["Mrs Smith, 71"]})
    assert "Smith" not in str(raised.value)


def test_fields_hold_references(store: ImageStore) -> None:
    red, blue = encoded(image("red")), encoded(image("blue"))
    fields = Case(question="q", options=["CT", "MRI"], images=[red, blue, red], context="c").fields(store)
    assert (fields["question"], fields["options"], fields["context"]) == ("q", ["CT", "MRI"], "c")
    assert [store.get(ref) for ref in fields["images"]] == [red, blue, red]


def test_fields_are_taken_again_as_they_are(store: ImageStore) -> None:
    fields = Case(question="q", images=[encoded(image())]).fields(store)
    assert Case.model_validate(fields).fields(store) == fields


def test_an_unreadable_image_is_named_by_its_place(store: ImageStore) -> None:
    case = Case(question="q", images=[encoded(image()), b"no image"])
    with pytest.raises(ValueError, match=r"images\[1\]: .*give a path"):
        case.fields(store)


# In whatever a graph was given


def chat(*said: str) -> list[HumanMessage]:
    return [HumanMessage(words) for words in said]


@pytest.mark.parametrize(
    ("given", "question", "options"),
    [
        ({"question": "q", "options": ["CT", "MRI"]}, "q", ["CT", "MRI"]),
        ({"question": "q", "options": None, "images": None, "context": None}, "q", []),
        ({"question": "q", "answer": "KEY", "referral": {}, "opinions": []}, "q", []),
        ({"messages": chat("first", "Which?\nA. CT\nB. MRI")}, "Which?", ["CT", "MRI"]),
        ({"messages": chat("Which?\nA. CT\nB. MRI"), "options": ["PET", "X-ray"]}, "Which?", ["PET", "X-ray"]),
        ({"messages": chat("Which?"), "question": "q"}, "q", []),
        ({"messages": [AIMessage("hello")], "question": "q"}, "q", []),  # of somebody else's chat around this graph
        ({"messages": [], "question": "q"}, "q", []),
        ({"messages": None, "question": "q"}, "q", []),
    ],
)
def test_a_case_in_what_a_graph_was_given(given: dict[str, Any], question: str, options: list[str]) -> None:
    case = Case.of(given)
    assert (case.question, case.options) == (question, options)


def test_a_case_is_taken_as_it_is() -> None:
    case = Case(question="q")
    assert Case.of(case) is case


def test_a_context_beside_a_chat() -> None:
    assert Case.of({"messages": chat("q"), "context": "Fell."}).context == "Fell."


def test_images_given_beside_a_chat_stand_before_its_own() -> None:
    shown = HumanMessage([{"type": "text", "text": "q"}, {"type": "image", "url": data_url(encoded(image("red")))}])
    blue = encoded(image("blue"))
    assert Case.of({"messages": [shown], "images": [blue]}).images == [blue]
    assert Case.of({"messages": [shown]}).images == [data_url(encoded(image("red")))]


def test_a_question_beside_a_chat_loses_none_of_its_images() -> None:
    shown = HumanMessage([{"type": "text", "text": "?"}, {"type": "image", "url": data_url(encoded(image()))}])
    case = Case.of({"question": "Which scan is it?", "messages": [shown]})
    assert (case.question, case.images) == ("Which scan is it?", [data_url(encoded(image()))])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "input: cannot use a int; give a mapping with question or messages"),
        ("Which scan is it?", "input: cannot use a str"),
        (["q"], "input: cannot use a list"),
        ({}, "question"),
        ({"messages": []}, "question"),
        ({"messages": [AIMessage("hello")]}, "messages: there is no human message"),
        ({"messages": chat("A. CT\nB. MRI")}, "question is empty"),
        ({"messages": chat("Which?\nA. CT\nB. ct")}, r"options\[1\] 'ct' repeats options\[0\]"),
    ],
)
def test_what_is_no_case_is_named(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Case.of(given)


def test_a_question_beside_a_chat_takes_no_options_from_it() -> None:
    case = Case.of({"question": "Which scan is it?", "messages": chat("Which?\nA. CT\nB. MRI"), "images": []})
    assert (case.question, case.options) == ("Which scan is it?", [])
