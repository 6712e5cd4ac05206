"""Guidelines: what a clinician writes is what is told and what is checked."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage, SystemMessage

from mmedagent_graph.answers import split_reasoning
from mmedagent_graph.prompts import SPECIALTIES
from rl.guidelines import (
    GENERAL,
    PERSPECTIVES,
    Check,
    Guideline,
    Perspective,
    checks_passed,
    guided,
    named_options,
    pinned,
    read_guideline,
)

WORDS = st.text(st.sampled_from("abc xyz"), min_size=1, max_size=12).filter(str.strip)
EXAMPLES = {
    "differential": "It could be a nodule or an effusion. The round margin supports a nodule. An effusion is unlikely, "
    "since the costophrenic angle is free.",
    "intuitive": "At first glance a classic coin lesion.",
    "analytical": "A frontal chest film. There is a round opacity in the left upper lobe. Its margin is smooth. "
    "Therefore a nodule.",
    "bayesian": "Before looking, an effusion is more common, at about 30 %. The round shape makes a nodule much more "
    "likely, so in the end the nodule is the most probable.",
}
"""What one would write who had read the general guideline, and not its checks."""


def check(**fields):
    return Perspective(prompt="Think.", checks=[Check(name="it", **fields)])


def passes(reasoning, **fields):
    return checks_passed(reasoning, [], check(**fields))["it"]


def told(path=GENERAL):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def write(tmp_path, content):
    path = tmp_path / "own.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def test_the_general_guideline_knows_every_perspective_and_the_papers_specialties():
    general = read_guideline()
    assert tuple(general.perspectives) == PERSPECTIVES
    assert set(general.specialties) == set(SPECIALTIES)


@pytest.mark.parametrize("perspective", PERSPECTIVES)
def test_each_perspective_passes_its_own_checks_and_nobody_elses(perspective):
    """Or the checks could not tell whether a specialist reasoned as it was told."""
    options = ["nodule", "effusion"]
    for name, told in read_guideline().perspectives.items():
        found = checks_passed(EXAMPLES[perspective], options, told)
        assert all(found.values()) == (name == perspective), (name, found)


@pytest.mark.parametrize("perspective", PERSPECTIVES)
def test_a_mere_answer_does_not_pass(perspective):
    found = checks_passed("A nodule.", ["nodule", "effusion"], read_guideline().perspectives[perspective])
    assert not all(found.values())


def test_what_is_told():
    general = read_guideline()
    general = general.model_copy(update={"specialties": {"Radiologist": "Compare the sides.\n"}})
    prompt = general.perspectives["intuitive"].prompt
    assert general.text("intuitive", "Radiologist") == f"{prompt}\nCompare the sides."
    assert general.text("intuitive", "Surgeon") == prompt


def test_a_guided_prompt_says_more_and_nothing_less():
    prompt = [SystemMessage("You are a doctor."), HumanMessage([{"type": "text", "text": "Which?"}])]
    system, user = guided(prompt, "Reason.")
    assert system.text == "You are a doctor.\nReason."
    assert user == prompt[1]


@pytest.mark.parametrize(
    ("phrase", "reasoning", "passed"),
    [
        ("rule out", "This RULES out", False),
        ("rule out", "We Rule\n  Out both", True),
        ("compar*", "in comparison", True),
        ("compar*", "incomparable", False),
        ("fit", "outfit fits", False),
        ("speak* for", "it speaks for it", True),
        ("a.b", "axb", False),
    ],
)
def test_a_phrase(phrase, reasoning, passed):
    assert passes(reasoning, says_any=["never there", phrase]) == passed


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("an Effusion?", {1}),
        ("a pleural  effusion", {2}),
        ("an effusion, a pleural effusion", {1, 2}),
        ("effusions", set()),
        ("Option A, choice C", {0, 2}),
        ("option a (b) A (Z)", set()),
        ("(A) not (B)", {0, 1}),
        ("", set()),
    ],
)
def test_options_that_are_named(text, named):
    assert named_options(text, ["nodule", "effusion", "Pleural effusion"]) == named


def test_a_question_with_fewer_options_wants_all_and_one_without_is_not_asked():
    three = check(options=3)
    assert checks_passed("yes or no", ["yes", "no"], three) == {"it": True}
    assert checks_passed("yes", ["yes", "no"], three) == {"it": False}
    assert checks_passed("yes", [], three) == {}


@given(st.lists(WORDS, max_size=30), st.integers(1, 30))
def test_words_are_counted_as_people_do(words, most):
    text = "\n ".join(words)
    assert passes(text, at_most_words=most) == (0 < sum(len(word.split()) for word in words) <= most)


def test_who_does_not_reason_is_not_brief():
    """Nor is who never comes to an end: of a `<think>` that stays open there is no reasoning."""
    assert not passes(split_reasoning("<think>" + "on and on " * 500), at_most_words=60)
    assert not passes(split_reasoning("<answer>nodule</answer>"), at_most_words=60)


@given(WORDS, st.text(max_size=30), st.text(max_size=30))
def test_a_phrase_that_stands_by_itself_is_found(phrase, before, after):
    assert passes(f"{before} {phrase.upper()} {after}", says_any=[phrase])


@given(st.text(), st.lists(st.text(max_size=5), max_size=4))
def test_no_text_makes_a_check_fail_otherwise_than_by_not_passing(text, options):
    for perspective in read_guideline().perspectives.values():
        names = {check.name for check in perspective.checks if check.options is None or options}
        assert checks_passed(text, options, perspective).keys() == names


@given(st.lists(st.text(st.sampled_from("abA .(*"), max_size=6), max_size=5))
def test_every_option_that_is_there_as_words_is_named(options):
    options = [option for option in options if re.search(r"\w$", option.strip()) and re.match(r"\w", option.strip())]
    for number, option in enumerate(options):
        assert number in named_options(f"Maybe: {option}; no.", options)


def test_a_pattern():
    assert passes("about 30%", pattern=r"\d+ ?%")
    assert not passes("about a third", pattern=r"\d+ ?%")


def test_an_own_file(tmp_path):
    own = told()
    own["specialties"] = {"Pediatrician": "Mind the age."}
    own["perspectives"]["intuitive"]["checks"] = [{"name": "short", "at_most_words": 5}]
    guideline = read_guideline(write(tmp_path, own))
    assert isinstance(guideline, Guideline)
    assert checks_passed("a b c d e f", [], guideline.perspectives["intuitive"]) == {"short": False}


def changed(**fields):
    own = told()
    own["perspectives"]["intuitive"]["checks"] = [{"name": "it", **fields}]
    return own


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("perspectives: [", "own.yaml' cannot be read"),
        ("a text", "has no `perspectives:`"),
        ({"specialties": {}}, "perspectives: it is missing"),
        ({**told(), "extra": 1}, "extra: there is no such field; fields are perspectives, specialties"),
        (
            {"perspectives": {"intuitive": told()["perspectives"]["intuitive"]}},
            "differential, analytical, bayesian is missing; there must be all of differential, intuitive",
        ),
        (
            {"perspectives": {"hopeful": told()["perspectives"]["intuitive"]}},
            "'hopeful': Input should be 'differential', 'intuitive', 'analytical' or 'bayesian'",
        ),
        (changed(at_most_words=0), "intuitive.checks.0.at_most_words: 0: Input should be greater"),
        (changed(), "'it' has none; a check has exactly one of says_any, options, at_most_words, pattern"),
        (changed(options=1, pattern="a"), "'it' has options and pattern; a check has exactly one"),
        (changed(says="a"), "intuitive.checks.0.says: there is no such field; fields are name, says_any"),
        (changed(says_any=["a", " "]), "says_any: ' ' has no word"),
        (changed(says_any=["a*b"]), "'a\\*b': a \\* stands at the end of a word"),
        (changed(pattern="("), "'\\(' is no regular expression"),
        (changed(name="No name", options=1), "name: 'No name': String should match"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, why):
    with pytest.raises(ValueError, match=why) as raised:
        read_guideline(write(tmp_path, content))
    assert "own.yaml" in str(raised.value)


def test_a_name_twice(tmp_path):
    own = changed(options=1)
    own["perspectives"]["intuitive"]["checks"] *= 2
    with pytest.raises(ValueError, match="it is there twice; names must differ"):
        read_guideline(write(tmp_path, own))


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"guideline: .* cannot be read"):
        read_guideline(tmp_path / "none.yaml")


def test_a_pinned_guideline_is_refused_once_it_says_something_else(tmp_path, monkeypatch):
    file = tmp_path / "mine.yaml"
    file.write_bytes(GENERAL.read_bytes())
    monkeypatch.chdir(tmp_path)
    named = pinned("mine.yaml")
    assert named.startswith(str(file))
    assert read_guideline(named) == read_guideline(GENERAL)
    assert pinned(named) == named
    file.write_text(GENERAL.read_text() + "\n# a word more\n")
    with pytest.raises(ValueError, match=r"guideline: '.*mine\.yaml' has changed since it was pinned"):
        read_guideline(named)
