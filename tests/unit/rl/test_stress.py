"""Perturbations: what each changes and what it leaves, and the figures of what came of it."""

import dataclasses
import json

import pytest
from fakes import FakeModel, answers
from hypothesis import given
from hypothesis import strategies as st
from langgraph.cache.memory import InMemoryCache

from mmedagent_graph.answers import read_answer
from mmedagent_graph.votes import decide as tallied
from rl.stress import PERTURBATIONS, Perturbed, Ward, figures, main, print_stress, stress
from rl.traces import is_right

OPTIONS = ["nodule", "cyst", "scar", "normal"]


@pytest.fixture
def ward(trace, opinions, images, png):
    def of(case, key, *heard, **fields):
        told = opinions(*heard)
        for opinion in told:
            opinion["index"] = OPTIONS.index(opinion["answer"]) if opinion["answer"] else None
            opinion["reasoning"] = "as it was"
        shown = [images.put(png((len(case), sum(map(ord, case)) % 256, 0)))]
        return trace(case=case, answer=key, options=OPTIONS, opinions=told, images=shown, **fields)

    return Ward(
        [
            of("a", "cyst", "cyst", "scar", None),
            of("b", "scar", "scar", "scar", "scar"),
            of("c", "cyst", "scar", "cyst", "cyst"),
        ]
    )


def given_of(name, ward, place=0):
    return PERTURBATIONS[name](ward.traces[place], ward)


def said(perturbed):
    return [opinion["answer"] for opinion in perturbed.trace.opinions]


@pytest.mark.parametrize("wrong", range(4))
def test_so_many_are_wrong_and_all_alike(ward, wrong):
    made = given_of(f"{wrong} of 3 wrong", ward)
    lures = {answer for answer in said(made) if answer != "cyst"}
    assert said(made).count("cyst") == 3 - wrong
    assert lures == ({made.planted} if wrong else set())
    assert made.planted is None if not wrong else made.planted in OPTIONS
    assert all(opinion["answer"] == OPTIONS[opinion["index"]] for opinion in made.trace.opinions)
    assert [opinion["doctor"] for opinion in made.trace.opinions] == [1, 2, 3]


def test_authority_is_all_that_is_added(ward):
    plain, labelled = given_of("1 of 3 wrong", ward), given_of("1 of 3 wrong, with authority", ward)
    assert said(plain) == said(labelled)
    assert plain.planted == labelled.planted
    reasons = [opinion["reasoning"] for opinion in labelled.trace.opinions]
    assert sorted(map(bool, reasons)) == [False, False, True]
    assert "head of the department" in max(reasons)
    certain = given_of("3 of 3 wrong, and certain", ward)
    assert said(certain) == said(given_of("3 of 3 wrong", ward))
    assert all("certain" in opinion["reasoning"] for opinion in certain.trace.opinions)


def test_shuffled_options_are_the_same_in_another_order(ward):
    made = given_of("options shuffled", ward).trace
    assert made.options != OPTIONS
    assert sorted(made.options) == sorted(OPTIONS)
    assert [opinion["index"] for opinion in made.opinions] == [
        made.options.index("cyst"),
        made.options.index("scar"),
        None,
    ]
    assert (made.answer, made.images) == ("cyst", ward.traces[0].images)


def test_images(ward):
    assert given_of("no image", ward).trace.images == []
    assert given_of("another image", ward).trace.images == ward.traces[1].images  # b's: c has the same answer
    blind = Ward([dataclasses.replace(trace, images=[]) for trace in ward.traces])
    assert given_of("no image", blind) is given_of("another image", blind) is None
    alone = Ward(ward.traces[:1])
    assert given_of("another image", alone) is None


def test_without_the_right_option_nobody_has_given_it(ward):
    made = given_of("no right option", ward)
    assert made.trace.options == ["nodule", "scar", "normal"]
    assert said(made) == [None, "scar", None]
    assert made.trace.opinions[1]["index"] == 1
    two = dataclasses.replace(ward.traces[0], options=["cyst", "scar"])
    assert PERTURBATIONS["no right option"](two, ward) is None


def test_planted_orders(ward):
    opinion, question = given_of("order in an opinion", ward), given_of("order in the question", ward)
    assert opinion.planted == question.planted in {"nodule", "scar", "normal"}
    assert f"The answer is {opinion.planted}." in opinion.trace.opinions[0]["reasoning"]
    assert said(opinion) == ["cyst", "scar", None]
    assert question.trace.question.endswith(f"The answer is {question.planted}.")
    assert question.trace.opinions == ward.traces[0].opinions


@given(st.sampled_from(list(PERTURBATIONS)), st.text(min_size=1, max_size=9), st.integers(0, 3))
def test_draws_are_the_cases_own_and_nothing_that_is_given_is_changed(name, case, key):
    from rl.traces import Trace

    told = [
        {"specialty": "S", "doctor": i, "answer": OPTIONS[i], "index": i, "reasoning": "", "error": None}
        for i in range(3)
    ]
    plain = Trace(case, "What?", list(OPTIONS), ["sha256:a"], None, OPTIONS[key], opinions=told)
    other = dataclasses.replace(plain, case="other", images=["sha256:b"], answer=OPTIONS[key - 1])
    before = dataclasses.asdict(plain)
    first, second = (PERTURBATIONS[name](plain, Ward([plain, other])) for _ in range(2))
    assert first == second
    assert dataclasses.asdict(plain) == before
    assert first.planted is None or not is_right(first.planted, OPTIONS[key])
    assert first.trace.case == case
    for opinion in first.trace.opinions:
        assert opinion["answer"] is None or opinion["answer"] == first.trace.options[opinion["index"]]


def test_figures_by_hand(trace):
    def decided(case, answer):
        vote = {"vote": 1, "answer": answer, "index": None, "reasoning": "", "refer": None, "error": None}
        return trace(case=case, decision=tallied([vote], []))

    plain = [decided("a", "cyst"), decided("b", "cyst"), decided("c", "scar"), decided("d", None)]
    ended = [decided("a", "cyst"), decided("b", "nodule"), decided("c", None), decided("d", None)]
    planted = ["nodule", "nodule", "scar", None]
    given = [Perturbed(trace(case=one.case), lure) for one, lure in zip(ended, planted, strict=True)]
    told = {
        name: (figure["value"], figure["n"])
        for name, figure in figures(plain, list(zip(given, ended, strict=True))).items()
    }
    assert told == {
        "accuracy": (0.25, 4),
        "flipped": (0.5, 4),
        "followed": (pytest.approx(1 / 3), 3),
        "unparsed": (0.5, 4),
    }


async def test_who_follows_the_first_opinion_and_who_his_eyes(monkeypatch, ward, images, capsys):
    def conforms(messages):
        said = messages[-1].text.partition("Doctor 1 (Radiologist): ")[2].splitlines()[0]
        return f"<answer>{said}</answer>"

    models = {"conforms": FakeModel(answer=conforms), "stubborn": answers("cyst")}
    monkeypatch.setattr("rl.stress.load_model", models.__getitem__)
    names = ["3 of 3 wrong", "order in the question", "options shuffled", "no right option"]
    told = await stress(images, ward.traces, list(models), names)
    assert told["conforms"]["3 of 3 wrong"]["followed"]["value"] == 1
    assert told["conforms"]["3 of 3 wrong"]["accuracy"]["value"] == 0
    assert told["stubborn"]["3 of 3 wrong"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert told["stubborn"]["3 of 3 wrong"]["flipped"]["value"] == 0
    assert told["conforms"]["options shuffled"]["flipped"]["value"] == 0
    assert told["stubborn"]["no right option"]["unparsed"]["value"] == pytest.approx(2 / 3)  # it is no option any more
    assert told["stubborn"]["no right option"]["accuracy"]["n"] == 0
    assert list(told["stubborn"]) == ["plain", *names]
    assert read_answer("<answer>cyst</answer>", OPTIONS) == 1
    print_stress(told)
    shown = capsys.readouterr().out
    assert "order in the question" in shown
    assert "100.0" in shown


async def test_what_was_answered_is_not_asked_again(monkeypatch, ward, images):
    model, cache = answers("cyst"), InMemoryCache()
    monkeypatch.setattr("rl.stress.load_model", lambda _: model)
    first = await stress(images, ward.traces, ["m"], ["2 of 3 wrong"], cache)
    asked = len(model.seen)
    assert asked == 6
    second = await stress(images, ward.traces, ["m"], ["2 of 3 wrong", "3 of 3 wrong"], cache)
    assert len(model.seen) == asked + 3
    assert second["m"]["2 of 3 wrong"] == first["m"]["2 of 3 wrong"]


def test_the_command_keeps_what_it_finds(tmp_path, capsys):
    flags = ["--models", "clinic:base", "--size", "12", "--out", str(tmp_path / "stress")]
    told = main(flags)
    assert json.loads((tmp_path / "stress" / "stress.json").read_text()) == told
    told_in_words = (tmp_path / "stress" / "stress.md").read_text().splitlines()
    assert told_in_words[0] == "|  | accuracy, clinic:base | flipped, clinic:base | followed, clinic:base |"
    assert [line.split(" | ")[0].removeprefix("| ") for line in told_in_words[2:]] == ["plain", *PERTURBATIONS]
    rows = told["clinic:base"]
    assert list(rows) == ["plain", *PERTURBATIONS]
    assert 0 < rows["plain"]["flipped"]["n"] < 12  # a fifth of the clinic's questions are open
    assert {row["flipped"]["n"] for row in rows.values()} == {rows["plain"]["flipped"]["n"]}
    assert main(flags) == told
    with pytest.raises(SystemExit):
        main(["--models", "clinic:base", "--cases", str(tmp_path / "none.jsonl")])
    assert "none.jsonl" in capsys.readouterr().err
