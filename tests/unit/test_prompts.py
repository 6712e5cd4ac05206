"""Tests of the prompts: what stands in them, in which order, and what never does."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import encoded, image, pictures, words
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage

from mmedagent_graph import SPECIALTIES, prompts
from mmedagent_graph.images import ImageStore, default_store
from mmedagent_graph.prompts import attending_messages, specialist_messages, triage_messages
from mmedagent_graph.state import Opinion

Render = Callable[[Any, ImageStore], list[BaseMessage]]
NAMES = tuple(SPECIALTIES)
RENDER: dict[str, Render] = {
    "triage": lambda state, store: triage_messages(state, NAMES, store),
    "specialist": specialist_messages,
    "attending": attending_messages,
}
every_node = pytest.mark.parametrize("render", RENDER.values(), ids=RENDER)
those_who_answer = pytest.mark.parametrize("render", [specialist_messages, attending_messages])


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


def opinion(doctor: int, answer: str | None = "CT", reasoning: str = "", error: str | None = None) -> Opinion:
    return Opinion(specialty="Radiologist", doctor=doctor, answer=answer, index=None, reasoning=reasoning, error=error)


def state(**fields: Any) -> dict[str, Any]:
    """Everything that any node is given, so that one state serves all three."""
    return {
        "question": "Which scan is it?",
        "options": ["CT", "MRI", "PET"],
        "images": [],
        "context": None,
        "specialty": "Radiologist",
        "doctor": 2,
        "referral": {"specialty": "Radiologist", "reasoning": ""},
        "opinions": [opinion(1, "CT"), opinion(2, "MRI"), opinion(3, "PET")],
        **fields,
    }


def lines(messages: list[BaseMessage]) -> list[str]:
    return words(messages).split("\n")


@every_node
def test_the_same_input_gives_the_same_messages(render: Render, store: ImageStore) -> None:
    given_ = state(images=[store.put(image("red"))], context="none")
    before = copy.deepcopy(given_)
    assert render(given_, store) == render(copy.deepcopy(given_), store)
    assert given_ == before


@given(question=st.text(min_size=1), options=st.lists(st.text(min_size=1), max_size=26), context=st.none() | st.text())
def test_any_words_are_handed_on_as_they_are(question: str, options: list[str], context: str | None) -> None:
    for render in RENDER.values():
        said = words(render(state(question=question, options=options, context=context), default_store()))
        assert f"Question: {question}\n" in said + "\n"
    for render in (specialist_messages, attending_messages):
        said = words(render(state(question=question, options=options, context=context), default_store()))
        listed = [f"{'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[i]}. {option}" for i, option in enumerate(options)]
        assert "\n".join(["Options:", *listed] if options else []) in said
        assert not context or f"Context: {context}\n" in said


@every_node
def test_one_system_turn_and_one_user_turn(render: Render, store: ImageStore) -> None:
    system, user = render(state(), store)
    assert isinstance(system, SystemMessage)
    assert isinstance(user, HumanMessage)
    assert prompts.FORMAT in system.text
    assert "Question: Which scan is it?" in user.text


@every_node
@pytest.mark.parametrize("count", [0, 1, 3])
def test_every_image_reaches_the_user_turn_before_the_words(render: Render, count: int, store: ImageStore) -> None:
    scans = [encoded(image(color)) for color in ["red", "green", "blue"][:count]]
    system, user = render(state(images=[store.put(scan) for scan in scans]), store)
    if count == 0:  # servers of models that only read take nothing but a plain text
        assert isinstance(user.content, str)
    else:
        assert [block["type"] for block in user.content if isinstance(block, dict)] == ["image"] * count + ["text"]
    assert pictures([user]) == scans
    assert pictures([system]) == []


@every_node
def test_an_image_given_twice_is_shown_twice(render: Render, store: ImageStore) -> None:
    ref = store.put(image())
    assert len(pictures(render(state(images=[ref, ref]), store))) == 2


@every_node
def test_an_image_that_is_gone_is_an_error(render: Render, store: ImageStore) -> None:
    with pytest.raises(ValueError, match="no image"):
        render(state(images=["sha256:" + "0" * 64]), store)


@those_who_answer
def test_options_are_lettered_in_order(render: Render, store: ImageStore) -> None:
    said = lines(render(state(), store))
    start = said.index("Options:")
    assert said[start - 1 : start + 4] == ["Question: Which scan is it?", "Options:", "A. CT", "B. MRI", "C. PET"]
    assert prompts.ONE_OPTION in said
    assert prompts.FEW_WORDS not in said


@those_who_answer
def test_without_options_an_answer_in_a_few_words(render: Render, store: ImageStore) -> None:
    said = lines(render(state(options=[]), store))
    assert prompts.FEW_WORDS in said
    assert prompts.ONE_OPTION not in said
    assert "Options:" not in said


@those_who_answer
def test_context_comes_before_the_question(render: Render, store: ImageStore) -> None:
    said = lines(render(state(context="Fell from a horse."), store))
    assert said.index("Context: Fell from a horse.") < said.index("Question: Which scan is it?")
    assert not any(line.startswith("Context") for line in lines(render(state(context=None), store)))


@every_node
def test_no_answer_key_anywhere(render: Render, store: ImageStore) -> None:
    key = {"answer": "KEY", "index": 1, "label": "KEY", "solution": "KEY", "tier": "KEY", "decision": {"answer": "KEY"}}
    assert render(state(**key), store) == render(state(), store)


def test_triage_sees_the_specialties_and_neither_options_nor_opinions(store: ImageStore) -> None:
    said = lines(triage_messages(state(), NAMES, store))  # type: ignore[arg-type]
    start = said.index("Specialties:") + 1
    assert said[start:] == [f"{name}: {reads}" for name, reads in SPECIALTIES.items()]
    assert prompts.ONE_SPECIALTY in said
    assert not {"Options:", "Opinions:"} & set(said)


def test_triage_lists_specialties_of_ones_own(store: ImageStore) -> None:
    said = lines(triage_messages(state(), ["Cardiologist", "Surgeon"], store))  # type: ignore[arg-type]
    assert said[said.index("Specialties:") + 1 :] == ["Cardiologist", f"Surgeon: {SPECIALTIES['Surgeon']}"]


def test_the_seven_specialties_of_the_paper() -> None:
    assert NAMES == (
        "Pathologist",
        "Radiologist",
        "Surgeon",
        "Oncologist",
        "Endocrinologist",
        "Ophthalmologist",
        "Dermatologist",
    )


def test_a_specialist_is_told_its_specialty_and_nothing_of_the_others(store: ImageStore) -> None:
    alone = specialist_messages(state(opinions=[]), store)  # type: ignore[arg-type]
    assert specialist_messages(state(), store) == alone  # type: ignore[arg-type]
    assert "Radiologist" in alone[0].text
    assert "Dermatologist" in specialist_messages(state(specialty="Dermatologist"), store)[0].text  # type: ignore[arg-type]


def test_all_doctors_of_a_specialty_get_the_same_prompt(store: ImageStore) -> None:
    first, third = (specialist_messages(state(doctor=doctor), store) for doctor in (1, 3))  # type: ignore[arg-type]
    assert first == third


def test_opinions_stand_after_the_options_in_the_order_of_the_doctors(store: ImageStore) -> None:
    heard = [opinion(1, "CT", "Bone is white."), opinion(2, None), opinion(3, None, error="TimeoutError: late")]
    said = lines(attending_messages(state(opinions=heard), store))  # type: ignore[arg-type]
    assert said[said.index("C. PET") + 1 :] == [
        "Opinions:",
        "Doctor 1 (Radiologist): CT",
        "Reasoning: Bone is white.",
        "Doctor 2 (Radiologist): no opinion",
        "Doctor 3 (Radiologist): no opinion",
    ]


def test_an_attending_that_may_refer_is_told_the_words(store: ImageStore) -> None:
    offered = attending_messages(state(vote=1, may_refer=["Surgeon", "Eye doctor"]), store)  # type: ignore[arg-type]
    plain = attending_messages(state(), store)  # type: ignore[arg-type]
    line = "If you need another specialty before you decide, answer instead with exactly one of: "
    assert offered[1] == plain[1]
    assert lines(offered[:1]) == [
        *lines(plain[:1])[:-1],
        f"{line}refer to Surgeon; refer to Eye doctor.",
        prompts.FORMAT,  # which stays the last word
    ]


def test_an_attending_that_must_answer_gets_the_plain_prompt(store: ImageStore) -> None:
    plain = attending_messages(state(), store)  # type: ignore[arg-type]
    assert attending_messages(state(vote=7, may_refer=[]), store) == plain  # type: ignore[arg-type]


def test_an_attending_without_opinions_is_told_so(store: ImageStore) -> None:
    said = lines(attending_messages(state(opinions=[]), store))  # type: ignore[arg-type]
    assert said[-2:] == ["Opinions:", "no opinion"]
