"""Tests of the strict answer reader: a table of outputs, properties, and hostile input."""

import gc
import string
import time
from collections.abc import Callable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmedagent_graph.answers import (
    LETTERS,
    letter,
    read_answer,
    read_free_text,
    read_name,
    read_statement,
    same_text,
    split_reasoning,
    well_formed,
)

IMAGING = ["X-ray", "CT", "MRI", "Ultrasound"]
FINDING = ["normal", "effusion", "abnormal", "not seen"]
YES_NO = ["yes", "no", "maybe"]
SIDES = ["left", "left lung", "right lung", "No fracture", "None of the above"]
BLOOD = ["B", "A", "AB", "O"]
BLOOD_IN_ORDER = ["A", "B", "AB", "O"]
LABELLED = ["A. CT", "B. MRI", "C. X-ray"]
ODD = ["<5 mm", "T2*", "T2", "-5", "5", "b.i.d.", "10**3", "(+)", "vitamin B12"]
TWINS = ["CT", "ct.", "MRI"]
MANY = [f"finding {n}" for n in range(30)]

TABLE: list[tuple[str, list[str], int | None]] = [
    # A letter inside a pair.
    ("<answer>B</answer>", IMAGING, 1),
    ("<answer>b</answer>", IMAGING, 1),
    ("<answer>(b)</answer>", IMAGING, 1),
    ("<answer>B.</answer>", IMAGING, 1),
    ("<answer>B)</answer>", IMAGING, 1),
    ("<answer>[B]</answer>", IMAGING, 1),
    ("<answer>option B</answer>", IMAGING, 1),
    ("<answer>Option (B).</answer>", IMAGING, 1),
    ("<answer>**B**</answer>", IMAGING, 1),
    ("<answer>*B*</answer>", IMAGING, 1),
    ("<answer>***B***</answer>", IMAGING, 1),
    ("<answer>`B`</answer>", IMAGING, 1),
    ("<answer>'B'</answer>", IMAGING, 1),
    ("<answer>\u201cB\u201d</answer>", IMAGING, 1),
    (r"<answer>\boxed{B}</answer>", IMAGING, 1),
    (r"<answer>$\boxed{B}$</answer>", IMAGING, 1),
    (r"<answer>$$\boxed{\text{B}}$$.</answer>", IMAGING, 1),
    (r"<answer>\[ \boxed{\textbf{(B)}} \]</answer>", IMAGING, 1),
    (r"<answer>\boxed{\text{B) CT}}</answer>", IMAGING, 1),
    ("<answer>\uff22</answer>", IMAGING, 1),  # full-width B
    ("<answer>\u24b7</answer>", IMAGING, 1),  # circled B
    ("<answer>\u0412</answer>", IMAGING, None),  # Cyrillic Ve only looks like it
    ("<answer>E</answer>", IMAGING, None),
    ("<answer>E. CT</answer>", IMAGING, None),
    ("<answer>E</answer>", SIDES, 4),
    ("<answer>1</answer>", IMAGING, None),
    ("<answer>2</answer>", IMAGING, None),
    ("<answer>B?</answer>", IMAGING, None),
    ("<answer>(B</answer>", IMAGING, None),
    ("<answer>BB</answer>", IMAGING, None),
    ("<answer>B B</answer>", IMAGING, None),
    ("<answer>B, B</answer>", IMAGING, None),
    # Tags: case, line breaks, blanks, several, nested, broken.
    ("<ANSWER>\n\n  B \n</Answer>", IMAGING, 1),
    ("< answer >B</ answer >", IMAGING, 1),
    ("<\nanswer\n>B<\n/\nanswer\n>", IMAGING, 1),
    ("<answer>A</answer><answer>B</answer>", IMAGING, 1),
    ("<answer>A</answer> No, wait. <answer>B</answer> is better.", IMAGING, 1),
    ("<answer>B</answer> So the answer is A.", IMAGING, 1),
    ("The answer is A. <answer>B</answer>", IMAGING, 1),
    ("<answer>B</answer> or in short <answer></answer>", IMAGING, None),
    ("<answer>B</answer> <answer>I am not sure</answer>", IMAGING, None),
    ("<answer>A</answer> wait <answer>B", IMAGING, 0),
    ("<answer>A</answer></answer>", IMAGING, 0),
    ("<answer>A</answer> or B</answer>", IMAGING, 0),
    ("<answer><answer>B</answer>", IMAGING, 1),
    ("<answer>A <answer>B</answer></answer>", IMAGING, 1),
    ("</answer>A<answer>B</answer>", IMAGING, 1),
    ("<answer>B", IMAGING, None),
    ("<answer>B<answer>", IMAGING, None),
    ("<answer>B</answer", IMAGING, None),
    ("B</answer>", IMAGING, None),
    ("</answer>B<answer>", IMAGING, None),
    ("<answer></answer>", IMAGING, None),
    ("<answer> \n </answer>", IMAGING, None),
    ("<answer>.</answer>", IMAGING, None),
    ("<answer/>B", IMAGING, None),
    ("<answer id=1>B</answer>", IMAGING, None),
    ("<answers>B</answers>", IMAGING, None),
    ("<an\u017fwer>B</an\u017fwer>", IMAGING, None),
    ("\uff1canswer\uff1eB\uff1c/answer\uff1e", IMAGING, None),
    ("&lt;answer&gt;B&lt;/answer&gt;", IMAGING, None),
    # Reasoning.
    ("<think>Bone, so X-ray.</think><answer>A</answer>", IMAGING, 0),
    ("<think>I must close with <answer>A</answer>.</think>\n<answer>B</answer>", IMAGING, 1),
    ("<think>I write <answer> last</think><answer>B</answer>", IMAGING, 1),
    ("<think>I write <answer> last</think>B", IMAGING, None),
    ("<think>It shows fluid.</think>\n\nThe answer is B.", FINDING, 1),
    ("\n<THINK>It shows fluid.</THINK> effusion", FINDING, 1),
    ("<think>B</think>", IMAGING, None),
    ("<think>It must be B", IMAGING, None),
    ("<think>a<think>b</think>B", IMAGING, None),
    ("<think>a</think>b</think>B", IMAGING, None),
    ("It is fluid.</think>B", IMAGING, None),
    ("B<think>sure</think>", IMAGING, None),
    ("<think>cut off <answer>B</answer>", IMAGING, 1),
    # A whole text without tags.
    ("B", IMAGING, 1),
    ("  b.\n", IMAGING, 1),
    ("Answer: B", IMAGING, 1),
    ("ANSWER:B", IMAGING, 1),
    ("Answer - C", IMAGING, 2),
    ("answer is: c", IMAGING, 2),
    ("Answer: C) MRI", IMAGING, 2),
    ("**Answer:** C", IMAGING, 2),
    ("**Answer**: **C. MRI**", IMAGING, 2),
    ("Final answer: **C**", IMAGING, 2),
    ("**Final Answer:** The correct answer is **C**.", IMAGING, 2),
    (r"Final answer: $\boxed{C}$", IMAGING, 2),
    ("The answer is effusion.", FINDING, 1),
    ("The answer is: Effusion", FINDING, 1),
    ("The correct option is (C) MRI", IMAGING, 2),
    ("Therefore, the correct answer is option C: MRI.", IMAGING, 2),
    ("The best answer choice is C.", IMAGING, 2),
    ("My final answer is C", IMAGING, 2),
    ("The answer is option D, Ultrasound.", IMAGING, 3),
    ("Effusion", FINDING, 1),
    ("", IMAGING, None),
    (" \n\t", IMAGING, None),
    ("The image shows an effusion. The answer is B.", FINDING, None),
    ("B because the fluid is bright", FINDING, None),
    ("B\n\nExplanation: CT is faster.", IMAGING, None),
    ("Answer: B\nAnswer: C", IMAGING, None),
    ("The answer is", IMAGING, None),
    ("Answer:", IMAGING, None),
    ("Answer: MRA", IMAGING, None),
    ("The answer is probably B", IMAGING, None),
    ("I think it is B or so", IMAGING, None),
    # A letter with its option's text.
    ("<answer>B. CT</answer>", IMAGING, 1),
    ("<answer>B.CT</answer>", IMAGING, 1),
    ("<answer>b) ct</answer>", IMAGING, 1),
    ("<answer>(B) CT</answer>", IMAGING, 1),
    ("<answer>[B] CT.</answer>", IMAGING, 1),
    ("<answer>B: CT</answer>", IMAGING, 1),
    ("<answer>B - CT</answer>", IMAGING, 1),
    ("<answer>B \u2013 CT</answer>", IMAGING, 1),
    ("<answer>B, CT</answer>", IMAGING, 1),
    ("<answer>B CT</answer>", IMAGING, 1),
    ("<answer>B (CT)</answer>", IMAGING, 1),
    ("<answer>CT (B)</answer>", IMAGING, 1),
    ("<answer>CT (option B)</answer>", IMAGING, 1),
    ("<answer>**B)** CT</answer>", IMAGING, 1),
    ("<answer>**B**: *CT*</answer>", IMAGING, 1),
    ("<answer>Option B: 'CT'</answer>", IMAGING, 1),
    ("C) CT", IMAGING, None),
    ("A: effusion", FINDING, None),
    ("<answer>effusion (A)</answer>", FINDING, None),
    ("<answer>B. CT or MRI</answer>", IMAGING, None),
    ("<answer>B. CT (A)</answer>", IMAGING, None),
    ("<answer>B. CTA</answer>", IMAGING, None),
    ("<answer>B-CT</answer>", IMAGING, None),
    # The option's text alone, never a part of it or of something longer, never near it.
    ("<answer>  Left\n lung </answer>", SIDES, 1),
    ("<answer>LEFT</answer>", SIDES, 0),
    ("<answer>left l</answer>", SIDES, None),
    ("<answer>lung</answer>", SIDES, None),
    ("<answer>left lungs</answer>", SIDES, None),
    ("<answer>the left lung</answer>", SIDES, None),
    ("<answer>abnormal</answer>", ["normal", "enlarged"], None),
    ("<answer>abnormal</answer>", FINDING, 2),
    ("<answer>efusion</answer>", FINDING, None),
    ("<answer>pleural effusion</answer>", FINDING, None),
    ("an MRA study", IMAGING, None),
    ("<answer>an MRA study</answer>", IMAGING, None),
    ("<answer>a nodule</answer>", ["effusion", "nodule"], None),
    ("<answer>a nodule</answer>", ["nodule", "effusion"], 0),
    ("<answer>normal?</answer>", FINDING, None),
    # Two options, negation, refusal.
    ("<answer>A or B</answer>", IMAGING, None),
    ("<answer>A and C</answer>", IMAGING, None),
    ("<answer>A, B</answer>", IMAGING, None),
    ("<answer>A/B</answer>", IMAGING, None),
    ("<answer>(A) (B)</answer>", IMAGING, None),
    ("<answer>(A) and (B)</answer>", IMAGING, None),
    (r"<answer>\boxed{A}\boxed{B}</answer>", BLOOD_IN_ORDER, None),
    ("<answer>**A****B**</answer>", BLOOD_IN_ORDER, None),
    ("<answer>CT, MRI</answer>", IMAGING, None),
    ("<answer>CT and MRI</answer>", [*IMAGING, "CT and MRI"], 4),
    ("<answer>A and B</answer>", [*IMAGING, "A and B"], 4),
    ("<answer>A, B</answer>", [*IMAGING, "A, B"], 4),
    ("<answer>both</answer>", IMAGING, None),
    ("<answer>both</answer>", [*IMAGING, "both"], 4),
    ("<answer>neither A nor B</answer>", IMAGING, None),
    ("<answer>A, not B</answer>", IMAGING, None),
    ("<answer>not A</answer>", IMAGING, None),
    ("<answer>definitely not A</answer>", IMAGING, None),
    ("The answer is not A", IMAGING, None),
    ("A is wrong", IMAGING, None),
    ("<answer>not normal</answer>", FINDING, None),
    ("<answer>B (not normal)</answer>", FINDING, None),
    ("<answer>I cannot determine</answer>", IMAGING, None),
    ("<answer>I'm sorry, I can't help with that.</answer>", IMAGING, None),
    ("<answer>I</answer>", IMAGING, None),
    ("<answer>None</answer>", IMAGING, None),
    ("<answer>N/A</answer>", IMAGING, None),
    # Options that hold a negation, a label, punctuation.
    ("<answer>not seen</answer>", FINDING, 3),
    ("<answer>D. Not seen.</answer>", FINDING, 3),
    ("<answer>No</answer>", YES_NO, 1),
    ("The answer is no.", YES_NO, 1),
    ("<answer>no, yes</answer>", YES_NO, None),
    ("<answer>No fracture</answer>", SIDES, 3),
    ("<answer>fracture</answer>", SIDES, None),
    ("<answer>None of the above.</answer>", SIDES, 4),
    ("<answer>A. CT</answer>", LABELLED, 0),
    ("<answer>B</answer>", LABELLED, 1),
    ("<answer>B. CT</answer>", LABELLED, None),
    ("<answer>B. normal</answer>", ["B. normal", "normal"], None),
    ("<answer>E. coli</answer>", ["S. aureus", "E. coli"], 1),
    ("<answer><5 mm</answer>", ODD, 0),
    ("<answer>T2*</answer>", ODD, 1),
    ("<answer>T2</answer>", ODD, 2),
    ("<answer>T2* </answer>", ["T2", "T1"], None),
    ("Answer: -5", ODD, 3),
    ("<answer>D: -5</answer>", ODD, 3),
    ("answer -5", ODD, None),
    ("<answer>5</answer>", ODD, 4),
    ("<answer>b.i.d.</answer>", ODD, 5),
    ("<answer>10**3</answer>", ODD, 6),
    ("<answer>103</answer>", ODD, None),
    ("<answer>(+)</answer>", ODD, 7),
    ("<answer>B12</answer>", ODD, None),
    ("<answer>Stra\u00dfe</answer>", ["STRASSE", "x"], 0),
    ("<answer>5 \u00b5m</answer>", ["5 \u03bcm", "5 mm"], 0),  # micro sign and mu
    ("<answer>e\u0301</answer>", ["\u00e9", "e"], 0),
    # A letter that is also another option's text.
    ("<answer>A</answer>", BLOOD, None),
    ("<answer>(A)</answer>", BLOOD, None),
    ("<answer>option A</answer>", BLOOD, None),
    ("<answer>AB</answer>", BLOOD, 2),
    ("<answer>O</answer>", BLOOD, 3),
    ("<answer>C</answer>", BLOOD, 2),
    ("<answer>A) B</answer>", BLOOD, 0),
    ("<answer>(B) A</answer>", BLOOD, 1),
    ("<answer>A B</answer>", BLOOD, None),
    ("<answer>A, B</answer>", BLOOD, None),
    ("<answer>A (B)</answer>", BLOOD, None),
    ("<answer>A) AB</answer>", BLOOD, None),
    ("<answer>A</answer>", BLOOD_IN_ORDER, 0),
    ("<answer>B. B</answer>", BLOOD_IN_ORDER, 1),
    ("<answer>B</answer>", ["hepatitis B", "hepatitis A"], 1),
    ("<answer>hepatitis A</answer>", ["hepatitis B", "hepatitis A"], 1),
    ("<answer>hepatitis (A)</answer>", ["hepatitis B", "hepatitis A"], None),
    ("<answer>B positive</answer>", ["B positive", "positive"], None),
    # Options that are the same once normalised, empty, or beyond Z.
    ("<answer>CT</answer>", TWINS, None),
    ("<answer>B</answer>", TWINS, 1),
    ("<answer>B. CT</answer>", TWINS, 1),
    ("<answer>B</answer>", ["CT", ""], 1),
    ("<answer>...</answer>", ["CT", "."], None),
    ("<answer>Z</answer>", MANY, 25),
    ("<answer>[</answer>", MANY, None),
    ("<answer>finding 29</answer>", MANY, 29),
    ("<answer>finding 2</answer>", MANY, 2),
]


@pytest.mark.parametrize(("text", "options", "expected"), TABLE)
def test_table(text: str, options: list[str], expected: int | None) -> None:
    assert read_answer(text, options) == expected


def test_table_is_long_enough() -> None:
    assert len(TABLE) >= 100


@pytest.mark.parametrize("options", [[], (), "AB", ""])
def test_options_are_checked(options: list[str]) -> None:
    with pytest.raises(ValueError, match="options"):
        read_answer("A", options)


def test_letter() -> None:
    assert "".join(letter(index) for index in range(26)) == LETTERS == string.ascii_uppercase
    for index in (-1, 26):
        with pytest.raises(ValueError, match="index"):
            letter(index)


RELAXED = settings(deadline=None)  # a busy machine is no failure

# Two letters or more, so that no option reads as a letter; few different ones, so that one option often holds another.
WORDS = st.text("abno", min_size=2, max_size=5)
PLAIN_TEXTS = st.lists(WORDS, min_size=1, max_size=3).map(" ".join).filter(lambda text: text[1] != " ")
PLAIN = st.lists(PLAIN_TEXTS, min_size=1, max_size=8, unique=True)
WILD = st.lists(
    st.text(st.sampled_from("abAB12 .,:()*-<>/$'?\uff22\u00e9\u0301\ufdfa"), max_size=6), min_size=1, max_size=8
)
FREE = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(["<answer>", "</answer>", "<think>", "</think>", "A", "B", " ", "b)", "(", "not "])).map(
        "".join
    ),
)
CASES: list[Callable[[str], str]] = [str, str.upper, str.lower, str.title]
LETTER_FORMS = [
    "{}",
    "({})",
    "[{}]",
    "{})",
    "option {}",
    "Option ({})",
    "**{}**",
    "\\boxed{{{}}}",
    "\\boxed{{\\text{{{}}}}}",
]
BOTH_FORMS = [
    "{} {}",
    "{}. {}",
    "{}) {}",
    "({}) {}",
    "{}: {}",
    "{} - {}",
    "{}, {}",
    "{} ({})",
    "**{}** {}",
    "**{}.** {}",
]
TEXT_FORMS = ["{}", "({})", "**{}**", "'{}'", "\\boxed{{{}}}", "\\text{{{}}}"]
LEADS = ["", "Answer: ", "The answer is ", "Final answer:\n", "So, the correct option is: ", "**Answer:** "]
FRAMES = [
    "{}",
    "<answer>{}</answer>",
    "<think>A or B</think>{}",
    "No. <ANSWER>\n{}\n</Answer> Or B?",
    "<answer>A</answer><answer>{}</answer>",
]


@st.composite
def renderings(draw: st.DrawFn, option_lists: st.SearchStrategy[list[str]]) -> tuple[str, list[str], int]:
    """Draw options and an output that states one of them: (output, options, index)."""
    options = draw(option_lists)
    index = draw(st.integers(0, len(options) - 1))
    text = draw(st.sampled_from(CASES))(options[index])
    name = draw(st.sampled_from(CASES))(letter(index))
    stated = draw(
        st.one_of(
            st.sampled_from(LETTER_FORMS).map(lambda form: form.format(name)),
            st.sampled_from(BOTH_FORMS).map(lambda form: form.format(name, text)),
            st.sampled_from(TEXT_FORMS).map(lambda form: form.format(text)),
            st.just(f"{text} ({name})"),
        )
    )
    stated = stated.replace(" ", draw(st.sampled_from([" ", "  ", "\n", "\u00a0", " \t "])))
    stated = draw(st.sampled_from(LEADS)) + stated + draw(st.sampled_from(["", ".", "!", " .", ";", "\n"]))
    return draw(st.sampled_from(FRAMES)).replace("{}", stated), options, index


@RELAXED
@given(renderings(PLAIN))
def test_every_rendering_of_a_plain_option_reads_as_it(case: tuple[str, list[str], int]) -> None:
    text, options, index = case
    assert read_answer(text, options) == index


@settings(RELAXED, max_examples=300)
@given(renderings(WILD))
def test_no_rendering_of_any_option_reads_as_another(case: tuple[str, list[str], int]) -> None:
    text, options, index = case
    assert read_answer(text, options) in (index, None)


@RELAXED
@given(WILD, st.data())
def test_the_exact_text_is_its_option_unless_ambiguous(options: list[str], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(options) - 1))
    assert read_answer(f"<answer>{options[index]}</answer>", options) in (index, None)


@RELAXED
@given(FREE, WILD)
def test_any_text_reads_as_an_option_or_none(text: str, options: list[str]) -> None:
    result = read_answer(text, options)
    assert result is None or 0 <= result < len(options)
    assert read_answer(text, options) == result
    assert isinstance(split_reasoning(text), str)
    assert isinstance(well_formed(text), bool)
    assert read_free_text(text) != ""


@RELAXED
@given(FREE, FREE, PLAIN)
def test_only_the_last_pair_counts(before: str, inside: str, options: list[str]) -> None:
    assume("answer" not in inside.lower())
    pair = f"<answer>{inside}</answer>"
    assert read_answer(before + pair, options) == read_answer(pair, options)
    assert read_answer(pair + "<answer>" + inside, options) == read_answer(pair, options)
    assert read_free_text(before + pair) == read_free_text(pair)


@RELAXED
@given(st.text().filter(lambda text: "<" not in text), renderings(PLAIN))
def test_reasoning_does_not_alter_the_result(reasoning: str, case: tuple[str, list[str], int]) -> None:
    text, options, index = case
    assume("<think>" not in text)
    assert read_answer(f"<think>{reasoning}</think>{text}", options) == index


@RELAXED
@given(PLAIN, st.data())
def test_a_part_or_an_extension_is_never_read(options: list[str], data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(options))
    start, stop = sorted(data.draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
    extra = data.draw(st.sampled_from(["ab", "x", "not ", "no ", "un"]))
    for other in (text[start:stop], extra + text, text + extra, f"{text} {extra}", f"{text} or {text}"):
        other = other.strip()
        if len(other) > 1 and other[1] != " " and other not in options:  # "b x" is a letter and its text
            assert read_answer(f"<answer>{other}</answer>", options) is None


@RELAXED
@given(PLAIN, st.data())
def test_a_letter_with_the_text_of_another_is_unparsed(options: list[str], data: st.DataObject) -> None:
    i, j = (data.draw(st.integers(0, len(options) - 1)) for _ in range(2))
    assume(i != j)
    form = data.draw(st.sampled_from(BOTH_FORMS))
    assert read_answer(form.format(letter(i), options[j]), options) is None
    assert read_answer(f"{options[j]} ({letter(i)})", options) is None
    for joint in (" or ", " and ", ", ", "/", " ", ", not ", "\n"):
        assert read_answer(letter(i) + joint + letter(j), options) is None
        assert read_answer(options[i] + joint + letter(j), options) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>pleural\n effusion </answer>", "pleural effusion"),
        ("<answer>one</answer><answer>two</answer>", "two"),
        ("<think>x</think><answer>" + "a" * 300 + "</answer>", "a" * 300),
        ("<answer> </answer>", None),
        ("<answer>effusion", None),
        ("effusion</answer>", None),
        ("<answer>a<think>b</answer>", None),
        (" effusion. ", "effusion."),
        ("<think>fluid</think>\neffusion", "effusion"),
        ("<think>fluid", None),
        ("fluid</think>effusion", None),
        ("", None),
        ("a" * 200, "a" * 200),
        ("a" * 201, None),
        ("a" + " " * 300 + "b", "a b"),
    ],
)
def test_read_free_text(text: str, expected: str | None) -> None:
    assert read_free_text(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>x</think><answer> one\n two </answer> three", " one\n two "),
        ("<think>x</think> one\n two", " one\n two"),
        ("one", "one"),
        ("<answer>one", None),
        ("one<think>two</think>", None),
    ],
)
def test_read_statement(text: str, expected: str | None) -> None:
    assert read_statement(text) == expected


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("Effusion.", " effusion ", True),
        ("pleural\neffusion", "Pleural  Effusion!", True),
        ("\uff22", "b", True),
        ("normal", "abnormal", False),
        ("effusion", "effusions", False),
        ("effusion", "no effusion", False),
        ("", "", False),
        (".", "!", False),
        ("a" * 2001, "a" * 2001, False),
    ],
)
def test_same_text(a: str, b: str, expected: bool) -> None:
    assert same_text(a, b) is expected
    assert same_text(b, a) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think> fluid\nis bright </think><answer>B</answer>", "fluid\nis bright"),
        ("so <THINK>a</Think> b <think>c</think>", "a"),
        ("</think><think>a</think>", "a"),
        ("<think>I use <think> tags</think>", "I use <think> tags"),
        ("<think>I put <answer>B</answer></think>", "I put <answer>B</answer>"),
        ("<think></think>", ""),
        ("<think>cut off", ""),
        ("no block", ""),
    ],
)
def test_split_reasoning(text: str, expected: str) -> None:
    assert split_reasoning(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think><answer>B</answer>", True),
        ("\n<think>\na\n\nb</think>\n\n<answer>\nB\n</answer>\n", True),
        ("<think></think><answer>B</answer>", True),
        ("<think>a</think><answer> </answer>", False),
        ("<think>a</think><answer></answer>", False),
        ("<think>a</think><answer>B", False),
        ("<answer>B</answer>", False),
        ("<answer>B</answer><think>a</think>", False),
        ("<think>a</think>so<answer>B</answer>", False),
        ("So <think>a</think><answer>B</answer>", False),
        ("<think>a</think><answer>B</answer>.", False),
        ("<think>a</think><answer>B</answer><answer>B</answer>", False),
        ("<think>a<think>b</think><answer>B</answer>", False),
        ("<think>a <answer>A</answer></think><answer>B</answer>", False),
        ("<think>a<answer>B</think></answer>", False),
        ("<THINK>a</THINK><answer>B</answer>", False),
        ("< think>a</think><answer>B</answer>", False),
        ("", False),
    ],
)
def test_well_formed(text: str, expected: bool) -> None:
    assert well_formed(text) is expected


def every_reader(text: str) -> None:
    """Run all that takes a model's output on ``text``, bare and in a pair; it must find nothing in it."""
    for output in (text, f"<answer>{text}</answer>", f"<think>{text}</think><answer>{text}</answer>"):
        assert read_answer(output, IMAGING) is None
        read_free_text(output)
        split_reasoning(output)
        well_formed(output)
    same_text(text, text + "x")


@pytest.mark.parametrize(
    "unit",
    [
        "<answer>",
        "</answer>",
        "<answer></answer>",
        "<think>",
        "<",
        "< ",
        "</ ",
        " ",
        "(",
        "()",
        "A",
        "A ",
        "*",
        "**a",
        "$",
        "\\boxed{",
        "\\boxed{}",
        "answer: ",
        "the right ",
        "\u0301\u0323",
        "\ufdfa",
        "'",
    ],
)
def test_work_grows_linearly(unit: str) -> None:
    def seconds(size: int) -> float:
        text = "<" + unit * (size // len(unit))
        start = time.process_time()
        every_reader(text)
        return time.process_time() - start

    # The collector's passes go over all that the test run holds: they cost the long text several times its own work.
    gc.disable()
    try:
        # Eight times the text: about 8 if linear, 64 if quadratic. The floor keeps the clock's noise out, and the
        # number of tries what other processes do to this one.
        assert any(seconds(400_000) < 28 * max(seconds(50_000), 0.01) for _ in range(5))
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "text", ["<answer>" * 125_000, "<" + " " * 1_000_000, "\\boxed{" * 100_000, "<think>" * 100_000]
)
def test_a_megabyte_ends(text: str) -> None:
    every_reader(text)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 900 + "a" + ")" * 900,
        "answer: " * 240 + "a",
        "a, (" * 490,
        "\u0301\u0323" * 999,
        "\\text{" * 300 + "}" * 199,
        "((a) " + "(" * 900 + ")" * 900 + ")",
    ],
)
def test_the_longest_statements_are_cheap(text: str) -> None:
    start = time.perf_counter()
    assert read_answer(text, IMAGING) is None
    assert time.perf_counter() - start < 2  # measured: 0.03; all work past the tags is bounded by the statement's limit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>Surgeon</answer>", 1),
        ("<think>A</think><answer> surgeon. </answer>", 1),
        ("The answer is Radiologist.", 0),
        ("<answer>B</answer>", None),
        ("<answer>B. Surgeon</answer>", None),
        ("<answer>neurosurgeon</answer>", None),
        ("<answer>Radiologist or Surgeon</answer>", None),
    ],
)
def test_names_have_no_letters(text, expected):
    assert read_name(text, ["Radiologist", "Surgeon"]) == expected
