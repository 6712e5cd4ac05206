"""What is imitated is right and readable, and each different right answer is there once."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedagent_graph.answers import same_text, well_formed
from mmedagent_graph.nodes import Attending, Triage
from mmedagent_graph.prompts import SPECIALTIES
from rl.grading import PAPER
from rl.rollout import Rollout
from rl.train_sft import RIGHT, _right, gold, gold_answer

word = st.text(string.ascii_letters + string.digits + "äéµ-/,.() ", min_size=2, max_size=20).map(str.strip)
answer = word.filter(lambda text: len(text) > 1 and same_text(text, text))  # one that has any content once normalised
quiet = settings(deadline=None, max_examples=80)


@quiet
@given(key=answer)
def test_a_gold_answer_in_free_text_is_read_as_the_key(trace, images, key):
    text = gold_answer(key)
    assert well_formed(text)
    read = Attending(images).read(text, trace(options=[], answer=key).given())
    assert same_text(read["decision"]["answer"], key)


OPTIONS = [
    ["nodule", "cyst", "scar"],
    ["yes", "no"],
    ["A", "B"],
    ["in the left lung", "in the right lung", "in both lungs"],
    ["1.5 cm", "2.5 cm", "5 cm"],
    ["none of these", "all of these"],
    ["Option A is right", "(b)", "x > 3"],
    ["O", "A", "B", "AB"],
    ["B", "A"],
    ["C", "D", "A. B", "B"],
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options[0])
def test_a_gold_option_is_read_as_that_option(trace, images, options):
    for i, key in enumerate(options):
        (text,) = (one.text for one in gold([trace(options=options, answer=key)]))
        assert well_formed(text)
        decision = Attending(images).read(text, trace(options=options, answer=key).given())["decision"]
        assert (decision["index"], decision["answer"]) == (i, key)


@pytest.mark.parametrize("specialty", SPECIALTIES)
def test_a_gold_referral_is_read_as_that_specialty(trace, images, specialty):
    read = Triage(tuple(SPECIALTIES), images).read(gold_answer(specialty), trace().fields())
    assert read["referral"]["specialty"] == specialty


def test_each_node_learns_its_own_key(trace):
    upstream = [
        trace(case="a", answer="cyst", specialty="Surgeon"),
        trace(case="b", answer="cyst", specialty="Surgeon", node="triage"),
    ]
    assert [one.text for one in gold(upstream)] == [gold_answer("cyst"), gold_answer("Surgeon")]
    assert [one.text for one in upstream] == [None, None]


@pytest.mark.parametrize(
    ("key", "said"), [("O", "O"), ("A", "B) A"), ("B", "C) B"), ("AB", "AB")], ids=["O", "A", "B", "AB"]
)
def test_the_letter_stands_only_where_it_must(key, said):
    assert gold_answer(key, ["O", "A", "B", "AB"]) == f"<think></think><answer>{said}</answer>"


def test_options_without_a_letter_have_none():
    options = [*(f"finding {i}" for i in range(26)), "B"]
    assert gold_answer("B", options) == gold_answer("B")


def test_nothing_is_made_up_where_there_is_no_key(trace):
    upstream = [
        trace(case="a", answer=None, specialty="Surgeon"),
        trace(case="b", answer="cyst", specialty=None, node="triage"),
        trace(case="c", answer="cyst"),
    ]
    assert [one.case for one in gold(upstream)] == ["c"]


def test_what_must_be_right_is_what_the_paper_pays_for():
    assert {node: set(grading.graders) for node, grading in RIGHT.items()} == {
        node: {entry.partition("=")[0] for entry in entries} for node, entries in PAPER.items()
    }


@pytest.fixture
def rollout(images):
    return Rollout(specialists=lambda state: {}, images=images)


async def test_only_right_and_well_formed_answers_are_kept_each_once(trace, rollout):
    a, b = trace(case="a", question="first"), trace(case="b", question="second", answer="scar")
    triage = trace(case="a", node="triage", referral=None, specialty="Surgeon")
    thought = "<think>a ring</think><answer>B</answer>"
    said = [
        (a, gold_answer("cyst")),
        (a, thought),
        (a, gold_answer("cyst")),  # the same again
        (a, gold_answer("scar")),  # wrong
        (a, "<answer>cyst</answer>"),  # right, but not in the format
        (a, "<think>a ring"),  # cut off
        (b, gold_answer("cyst")),  # right for the other case
        (b, gold_answer("scar")),
        (triage, gold_answer("Surgeon")),
        (triage, gold_answer("Radiologist")),
        (triage, gold_answer("cyst")),
    ]
    kept = await _right(rollout, [one for one, _ in said], [text for _, text in said])
    assert [(one.case, one.node, one.text) for one in kept] == [
        ("a", "attending", gold_answer("cyst")),
        ("a", "attending", thought),
        ("b", "attending", gold_answer("scar")),
        ("a", "triage", gold_answer("Surgeon")),
    ]
    assert [one.question for one in kept] == ["first", "first", "second", triage.question]
    assert {one.reward for one in kept} == {2.0}


async def test_a_case_without_a_key_teaches_nothing(trace, rollout):
    assert await _right(rollout, [trace(answer=None)], [gold_answer("cyst")]) == []
