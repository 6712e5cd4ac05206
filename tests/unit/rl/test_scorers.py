"""Published scorers: each verdict from what is known of the toolkit, and where they differ from the strict reader."""

import json
import math
import random
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from fakes import answers
from hypothesis import given
from hypothesis import strategies as st
from strategies import quiet

from mmedagent_graph.nodes.staff import answering
from rl.datasets import BENCHMARKS
from rl.scorers import RULES, SCORERS, Output, disagreements, lmms_eval, open_figures
from rl.scorers.__main__ import main
from rl.scorers.table import disagreement_table, verdicts
from rl.scorers.typical import TYPICAL
from rl.store import row_of, write_traces

FINDINGS = ("nodule", "cyst", "scar", "normal")
YES_NO = ("yes", "no")
ROOT = Path(__file__).parents[3]
FRAGMENTS = (
    "<answer>", "</answer>", "<think>", "</think>", "\\boxed{", "}", "{", "answer:", "**Answer**:", "answer is", "is:",
    "final answer", "A", "b", "(C)", "D.", " B ", "\n", "\n\n", ".", ":", "yes", "no", "Normal", "cyst", "\ud800", "İ",
)  # fmt: skip
anything = st.text(st.characters()) | st.lists(st.sampled_from(FRAGMENTS)).map("".join)
some_options = st.lists(st.text(min_size=1, max_size=9), min_size=2, max_size=26, unique_by=str.casefold)


def hits(name, text, key="cyst"):
    """Whether a scorer counts a text as right, with the findings as options, or yes and no where the key is one."""
    return SCORERS[name](text, YES_NO if key in YES_NO else FINDINGS, key)


# MedVLThinker


@pytest.mark.parametrize("said", ["B", "b", " B\n", "cyst", "CYST", "B. cyst", "b. Cyst"])
@pytest.mark.parametrize("name", ["medvlthinker", "medvlthinker_regrade"])
def test_medvlthinker_takes_letter_text_or_both(name, said):
    assert hits(name, said)
    assert hits(name, f"<think>x</think><answer>{said}</answer>")
    assert not hits(name, said, "scar")


@pytest.mark.parametrize("said", ["(B)", "B)", "B.", "B: cyst", "\\boxed{B}", "a cyst", "cystic", "", "A or B"])
@pytest.mark.parametrize("name", ["medvlthinker", "medvlthinker_regrade"])
def test_medvlthinker_takes_nothing_else(name, said):
    assert not hits(name, said)
    assert not hits(name, f"<think>x</think><answer>{said}</answer>")


@pytest.mark.parametrize(
    ("text", "run_time", "regraded"),
    [
        ("<answer>A</answer> No: <answer>B</answer>", False, True),  # the first block, the last block
        ("<answer>B</answer> No: <answer>A</answer>", True, False),
        ("<answer>\nB\nfor its wall is thin</answer>", False, True),  # the whole block, its first line
        ("<ANSWER>B</ANSWER>", False, False),  # tags in small letters only
        ("Answer: B", False, True),
        ("Answer:\n\nB", False, True),
        ("Answer: A\nAnswer: B\nI am sure.", False, True),
        ("Answer: A, no, answer: B", False, False),  # the first one takes the line
        ("The answer is: cyst", False, True),
        ("The answer is B", False, True),
        ("The answer is B.", False, False),
        ("The finding is: B", False, True),
        ("Answer: B</answer>", False, True),  # what is left of tags goes
        ("B</answer>", False, True),
    ],
)
def test_medvlthinker_at_run_time_and_regraded(text, run_time, regraded):
    assert (hits("medvlthinker", text), hits("medvlthinker_regrade", text)) == (run_time, regraded)


# MedEvalKit, and its port in lmms-eval


@pytest.mark.parametrize(
    ("text", "key", "kit", "port"),
    [
        ("b", "cyst", True, True),  # letters of either case
        ("b) cyst", "cyst", True, True),  # no letter, but most like "b. cyst"
        ("B. cyst", "cyst", True, True),
        ("The wall is thin.\n\nB. It is smooth.", "cyst", True, True),  # the last paragraph's letter
        ("B\n\nIt could be C", "cyst", True, True),  # the first one's
        ("Answer: B", "cyst", True, True),
        ("x: A", "nodule", False, True),  # " a" is no letter; of "x: a", "b. cyst" has 2 / 11 and "a. nodule" 2 / 13
        ("\\boxed{A} or \\boxed{B}", "cyst", True, False),  # the last box, the first box
        ("\\boxed{A} or \\boxed{B}", "nodule", False, True),
        ("\\boxed{A}<answer>B</answer>", "cyst", True, False),  # tags first, boxes first
        ("<ANSWER>B</ANSWER>", "cyst", True, True),  # in small letters when they are looked for
        ("cystic lesion", "cyst", True, True),  # a guess by likeness
        ("", "nodule", True, True),  # nothing is alike: the first
        ("???", "nodule", True, True),
        (
            "by its looks " * 30,
            "cyst",
            True,
            False,
        ),  # all letters are frequent; "b" begins "b. cyst"; over 300 characters
        ("cyst " * 60, "cyst", False, False),  # the same: "c" begins "c. scar"
        ("Yes", "yes", True, True),
        ("Yes, a fracture is seen", "yes", True, True),
        ("Yes, there is no doubt", "yes", False, False),  # both
        ("normal", "no", True, True),
        ("a nodule", "no", True, True),
        ("I do not know", "no", True, True),
        ("normal", "yes", False, False),
        ("It is broken", "yes", False, False),  # neither
        ("A", "yes", False, False),  # asked without letters
        ("<answer>yes</answer><answer>no</answer>", "yes", False, True),  # all blocks, the first block
        ("\\boxed{no}<answer>yes</answer>", "no", True, True),  # boxes first
        ("\\boxed{\\text{yes}}", "yes", True, True),
        ("\\boxed{yes", "yes", False, True),  # not closed: MedEvalKit reads "None"
        ("It is boxed in: yes", "yes", False, True),
        ("Answer: no. Wait, answer: yes", "yes", True, False),  # the last "answer:", the first
    ],
)
def test_medevalkit_and_its_port(text, key, kit, port):
    assert (hits("medevalkit", text, key), hits("lmms_eval_medevalkit", text, key)) == (kit, port)


# VLMEvalKit


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("B", "cyst", True),
        ("The answer is B.", "cyst", True),
        ("(B)", "cyst", True),
        ("**B**", "cyst", True),
        ("\\boxed{B}", "cyst", True),
        ("<answer>B</answer>", "cyst", False),  # one word, angle brackets and all
        ("<answer>\nB\n</answer>", "cyst", True),
        ("<answer>cyst</answer>", "cyst", True),
        ("b", "cyst", False),
        ("Not a nodule but B", "cyst", True),  # the letter before the texts
        ("A cyst", "nodule", True),  # the article is a letter
        ("A thin wall, hence B", "cyst", False),  # two letters, no text
        ("A cyst, hence B", "cyst", True),  # two letters, one text
        ("cystic", "cyst", True),
        ("a cyst, not a scar", "cyst", False),
        ("<think>no nodule</think><answer>cyst</answer>", "cyst", False),  # in the reasoning, too
        ("Z", "cyst", False),
        ("Z, or a cyst", "cyst", False),
        ("Cannot determine the answer, perhaps B", "cyst", False),
        ("normal bone", "no", True),
        ("Yes", "yes", True),
        ("Yes, there is no doubt", "yes", False),
        ("", "nodule", False),  # no guess
    ],
)
def test_vlmevalkit(text, key, expected):
    assert hits("vlmevalkit", text, key) == expected


# lmms-eval's MMMU


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("B", "cyst"),
        ("B.", "cyst"),
        ("(B)", "cyst"),
        ("The answer is B", "cyst"),
        ("B. It is smooth", "cyst"),
        ("(A) is too solid, (B) is right", "cyst"),  # the last
        ("A is too solid, B is right", "cyst"),
        ("A is too solid, (B) is right", "cyst"),  # brackets before blanks
        ("A.) or B.)", "nodule"),  # several with a full stop: " B " is nowhere, and the first wins
        ("DNA is seen", "nodule"),  # the end of a word
        ("A cyst", "nodule"),  # the article
        ("the wall is thin, as in a cyst", "cyst"),  # more than five words: texts count
        ("it is rather a cyst than a scar", "scar"),  # the last
        ("it is a cyst", None),  # four words
        ("cyst", None),
        ("b", None),  # capital letters only
        ("(b)", None),
        ("<answer>B</answer>", None),  # tags and boxes are words
        ("\\boxed{B}", None),
        ("<answer>B </answer>", "cyst"),
        ("B\n", None),  # only blanks are blanks
        ("", None),
    ],
)
def test_mmmu_reads_a_letter_or_draws(monkeypatch, text, reads):
    monkeypatch.setattr(lmms_eval, "drawn", lambda *_: None)
    assert [key for key in FINDINGS if hits("lmms_eval_mmmu", text, key)] == ([reads] if reads else [])


def test_what_it_draws_is_even():
    drawn = Counter(key for n in range(4000) for key in FINDINGS if hits("lmms_eval_mmmu", f"{n}?", key))
    assert drawn.total() == 4000  # every text draws exactly one option
    assert all(abs(drawn[key] - 1000) < 5 * math.sqrt(4000 * 0.25 * 0.75) for key in FINDINGS)


def test_a_draw_depends_on_the_options_and_not_on_their_key():
    empty = Counter(lmms_eval.drawn("", [f"{n}a", f"{n}b"]) for n in range(400))
    assert min(empty.values()) > 150  # 5 standard deviations of 400 fair draws below 200


# All of them


@pytest.mark.parametrize("name", SCORERS)
def test_a_bare_letter_is_read_by_all(name):
    for index, said in enumerate("ABCD"):
        assert [hits(name, said, key) for key in FINDINGS] == [index == place for place in range(4)]


@quiet
@given(
    thought=st.text("abcdefghijklm ABCDE.,\n", max_size=40),
    key=st.sampled_from([*FINDINGS, *YES_NO]),
    name=st.sampled_from(["strict", "medvlthinker", "medvlthinker_regrade", "medevalkit", "lmms_eval_medevalkit"]),
)
def test_who_reads_tags_reads_the_text_in_them(thought, key, name):
    text = f"<think>{thought}</think><answer>{key}</answer>"
    for other in YES_NO if key in YES_NO else FINDINGS:
        assert hits(name, text, other) == (other == key)


@pytest.mark.parametrize("name", SCORERS)
@quiet
@given(text=anything, options=some_options | st.sampled_from([list(YES_NO), list(FINDINGS)]), data=st.data())
def test_no_text_is_too_much_for_a_scorer(name, text, options, data):
    key = data.draw(st.sampled_from(options))
    verdict = SCORERS[name](text, options, key)
    assert type(verdict) is bool
    assert SCORERS[name](text, options, key) is verdict


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize(
    "piece",
    [
        *FRAGMENTS,
        " ",
        "<answer></answer>",
        "\\boxed{}",
        "answer: ",
        "answer:\n",
        "is:\n",
        "(A) ",
        "cyst scar ",
        "<",
        "\\",
    ],
    ids=ascii,
)
def test_a_long_text_takes_no_longer_than_it_is(name, piece):
    text = piece * (100_000 // len(piece))
    start = time.perf_counter()
    for key in ("cyst", "yes"):
        hits(name, text, key)
        hits(name, f"answer:{text}", key)
    assert time.perf_counter() - start < 5  # what is quadratic takes minutes


def test_likeness_is_found_in_reasonable_time():
    draw = random.Random(0)
    text = "".join(chr(draw.randrange(32, 55_000)) for _ in range(100_000))  # no character is frequent enough to go
    start = time.perf_counter()
    hits("medevalkit", text)
    assert time.perf_counter() - start < 5


def test_a_key_that_is_no_option_is_refused():
    for scorer in SCORERS.values():
        with pytest.raises(ValueError, match="key: it is none of the options"):
            scorer("B", FINDINGS, "tumour")


def test_an_option_may_be_spelled_otherwise_than_the_key():
    assert all(scorer("B", ["nodule", "Cyst."], "cyst") for scorer in SCORERS.values())


# Where they disagree


@quiet
@given(st.lists(st.tuples(anything, st.sampled_from(FINDINGS)), max_size=12))
def test_what_a_scorer_counts_is_what_strict_counts_and_the_difference(drawn):
    outputs = [Output(str(n), text, FINDINGS, key) for n, (text, key) in enumerate(drawn)]
    first, *others = disagreements(outputs)
    assert (first.scorer, first.gained, first.lost) == ("strict", [], [])
    assert [first.scorer, *(row.scorer for row in others)] == list(SCORERS)
    for row in others:
        assert row.n == len(outputs)
        assert row.right == first.right + len(row.gained) - len(row.lost)
        assert not set(row.gained) & set(row.lost)


def test_disagreements_are_named_by_id():
    outputs = [
        Output("same", "B", FINDINGS, "cyst"),
        Output("gained", "<answer>cystic</answer>", FINDINGS, "cyst"),
        Output("lost", "<answer>A</answer><answer>B</answer>", FINDINGS, "cyst"),
    ]
    found = {row.scorer: (row.right, row.gained, row.lost) for row in disagreements(outputs)}
    assert found["strict"] == (2, [], [])
    assert found["medvlthinker"] == (1, [], ["lost"])
    assert found["medvlthinker_regrade"] == (2, [], [])
    assert found["lmms_eval_medevalkit"] == (2, ["gained"], ["lost"])


YES_NO_OF = {
    # options, text, what MedEvalKit and its port make of it; the key is yes
    "vqa_rad": (YES_NO, "<answer>A</answer>", False, False),  # asked without letters
    "path_vqa": (YES_NO, "Yes, no doubt", False, False),
    "omnimedvqa": (("Yes", "No"), "<answer>A</answer>", True, None),  # asked with letters, and no task of the port
    "slake": (YES_NO, "<answer>yes</answer>", None, None),
    None: (YES_NO, "<answer>A</answer>", False, False),
}


@pytest.mark.parametrize(("benchmark", "asked"), YES_NO_OF.items())
def test_the_rule_for_yes_and_no_is_that_of_the_benchmark(benchmark, asked):
    options, text, kit, port = asked
    found = verdicts(Output("1", text, options, options[0], benchmark))
    assert (found["medevalkit"], found["lmms_eval_medevalkit"]) == (kit, port)


@pytest.mark.parametrize(
    ("benchmark", "kit", "port"),
    [("medxpertqa", True, None), ("mmmu_medical", None, None), ("slake", None, None), (None, True, True)],
)
def test_a_toolkit_is_silent_where_its_rule_is_not_known(benchmark, kit, port):
    found = verdicts(Output("1", "B", FINDINGS, "cyst", benchmark))
    silent = {"medevalkit": kit, "lmms_eval_medevalkit": port}
    assert found == dict.fromkeys(SCORERS, True) | silent


def test_rules_are_of_scorers_and_benchmarks_that_there_are():
    assert {name for name, _ in RULES} <= set(SCORERS)
    assert {benchmark for _, benchmark in RULES} <= set(BENCHMARKS)


def test_no_verdict_is_neither_right_nor_wrong():
    outputs = [Output("1", "B", FINDINGS, "cyst"), Output("2", "B", FINDINGS, "cyst", "slake")]
    (row,) = [row for row in disagreements(outputs) if row.scorer == "medevalkit"]
    assert (row.right, row.n, row.gained, row.lost) == (1, 1, [], [])
    assert "| medevalkit | 100.0 (n=1) | 0 | 0 |" in disagreement_table(outputs)
    assert "| medevalkit | - | 0 | 0 |" in disagreement_table(outputs[1:])


def test_typical_outputs_tell_any_two_scorers_apart():
    counted = [verdicts(output) for output in TYPICAL]
    columns = {tuple(verdict[name] for verdict in counted) for name in SCORERS}
    assert len(columns) == len(SCORERS)
    assert len({output.id for output in TYPICAL}) == len(TYPICAL)


def test_the_table_in_the_examples_is_the_one_that_is_printed(capsys):
    main([])
    assert capsys.readouterr().out in (ROOT / "examples" / "scorers.md").read_text()


@pytest.fixture
def stored(tmp_path, trace):
    """A run with two files that have something to say, and one that has not."""
    texts = ["B", "<answer>A</answer><answer>B</answer>", "<answer>secret|\x1b[2J</answer>", "x" * 900]
    closed = [trace(case=f"c{n}", text=text) for n, text in enumerate(texts)]
    keyless, triage = trace(text="B", answer=None), trace(node="triage", text="B")
    read = {"answer": "left lung", "index": None}
    opened = [trace(case="o", options=[], answer="lung", decision=decision) for decision in (read, {"answer": None})]
    write_traces(tmp_path / "run" / "1.parquet", [*closed, keyless, triage])
    write_traces(tmp_path / "run" / "2.parquet", opened)
    write_traces(tmp_path / "run" / "3.parquet", [triage, trace()])
    return tmp_path / "run"


def test_stored_traces_have_a_table_for_each_file(stored, capsys):
    main([str(stored)])
    out = capsys.readouterr().out
    assert f"{stored / '1.parquet'}:" in out
    assert "3.parquet" not in out
    assert "| strict | 50.0 | 0 | 0 |" in out  # of the four closed ones
    assert "| medvlthinker | 25.0 | 0 | 1 (c1) |" in out
    assert "| token_f1 | 0.333 |" in out  # of "left lung" 2 / 3, of the unreadable one 0
    assert "secret" not in out


def test_stored_traces_say_their_benchmark(tmp_path, trace, capsys):
    write_traces(tmp_path / "1.parquet", [trace(case="c1", text="B", groups={"benchmark": "slake"})])
    main([str(tmp_path), "--list", "5"])
    out = capsys.readouterr().out
    assert "| strict | 100.0 | 0 | 0 |" in out
    assert "| medevalkit | - | 0 | 0 |" in out
    assert "| c1 |" not in out  # all that have a verdict agree


def test_outputs_are_shown_only_when_asked_for(stored, capsys):
    main([str(stored), "--list", "1"])
    out = capsys.readouterr().out
    assert "| c1 | cyst | ✓ |  | ✓ |" in out
    assert "secret" not in out
    main([str(stored), "--list", "20"])
    out = capsys.readouterr().out
    assert "`<answer>secret\\|\\x1b[2J</answer>`" in out  # in one line, and harmless to a terminal
    assert "\x1b" not in out
    assert "| c0 |" not in out  # all agree


def test_a_judge_has_a_row_of_its_own(stored, monkeypatch, capsys):
    monkeypatch.setattr("rl.judge.answering", lambda node, model, *_: answering(node, says[model], *_))
    says = {"vllm:kind": answers("correct"), "vllm:away": answers("hm")}
    main([str(stored), "--judge", "vllm:kind"])
    assert "| judge (n=2) | 0.500 |" in capsys.readouterr().out  # what could not be read is wrong
    main([str(stored), "--judge", "vllm:away"])
    assert "| judge (n=1) | 0.000 |" in capsys.readouterr().out  # no verdict on the other


def test_an_evaluation_has_a_table_for_each_trial(tmp_path, trace, capsys):
    for system, node in (("full", "attending"), ("alone", "answer")):
        file = tmp_path / "trials" / "clinic" / system / "traces.0-of-2.jsonl"
        file.parent.mkdir(parents=True)
        lines = [{"id": "c1", **row_of(trace(case="c1", node=node, text="B"))}, {"id": "c2", "error": "away"}]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    main([str(tmp_path)])
    assert capsys.readouterr().out.count("(n=1)") == 2


def test_what_cannot_be_compared_is_said(tmp_path, trace, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "nowhere")])
    assert "no .parquet file and no traces" in capsys.readouterr().err
    write_traces(tmp_path / "traces.parquet", [trace(node="triage", text="B")])
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "none is the attending's answer" in capsys.readouterr().err


# Open questions


@pytest.mark.parametrize(
    ("answer", "key", "exact", "f1", "bleu", "rouge"),
    [
        ("left lung", "left lung", 1, 1, (1, 1, 0, 0), (1, 1, 1)),  # of two words there are no three in a row
        ("Left lung.", "left lung", 1, 1, (2 / 3, (2 / 3 / 2) ** 0.5, 0, 0), (1, 1, 1)),  # for BLEU "." is a word
        # too short: the brevity penalty is exp(1 - 2 / 1); precision 1, recall 1 / 2
        ("lung", "left lung", 0, Fraction(2, 3), (math.exp(-1), 0, 0, 0), (Fraction(2, 3), 0, Fraction(2, 3))),
        # 5 of 7 words are in the key (one "the" is not), 3 of 6 pairs, 1 of 5 triples ("mass in the"). The key has 6
        # words and 5 pairs; "mass in the upper lobe" is the longest common subsequence. F1 leaves out articles: 4 of 5.
        (
            "the mass in the left upper lobe",
            "mass in the right upper lobe",
            0,
            Fraction(4, 5),
            (5 / 7, (5 / 7 * 3 / 6) ** (1 / 2), (5 / 7 * 3 / 6 * 1 / 5) ** (1 / 3), 0),
            (Fraction(10, 13), Fraction(6, 11), Fraction(10, 13)),
        ),
        # the words are all there, in another order: one of three stays in place
        ("lobe upper left", "left upper lobe", 0, 1, (1, 0, 0, 0), (1, 0, Fraction(1, 3))),
        ("heart", "lung", 0, 0, (0, 0, 0, 0), (0, 0, 0)),
        ("", "lung", 0, 0, (0, 0, 0, 0), (0, 0, 0)),
    ],
)
def test_figures_of_open_answers_by_hand(answer, key, exact, f1, bleu, rouge):
    figures = open_figures(answer, key)
    names = ["exact_match", "token_f1", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_1", "rouge_2", "rouge_l"]
    assert list(figures) == names
    assert list(figures.values()) == pytest.approx([float(value) for value in (exact, f1, *bleu, *rouge)], abs=1e-6)


words = st.lists(st.sampled_from(["left", "lung", "the", "mass", "3.5", "x-ray", ".", "肺", "\ud800"]), max_size=8)


@quiet
@given(words.map(" ".join) | anything, words.map(" ".join))
def test_figures_are_shares(answer, key):
    figures = open_figures(answer, key)
    assert all(0 <= value <= 1 + 1e-6 for value in figures.values())
    back = open_figures(key, answer)  # all but BLEU are symmetric
    for name in ("exact_match", "token_f1", "rouge_1", "rouge_2", "rouge_l"):
        assert back[name] == pytest.approx(figures[name], abs=1e-6)


@quiet
@given(st.lists(st.sampled_from(["left", "lung", "mass", "ring"]), min_size=4, max_size=9))
def test_the_key_itself_has_every_figure_in_full(key):
    assert list(open_figures(" ".join(key), " ".join(key)).values()) == pytest.approx([1.0] * 9)
