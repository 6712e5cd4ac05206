"""Figures of consultations, each by hand."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import a_trace, quiet

from mmedagent_graph.votes import decide
from rl.figures import figures, majority, outcome_of
from rl.traces import NodeCall, is_right


@pytest.fixture
def said(trace, opinions):
    """The outcome of a case whose specialists said these, and whose attending then decided."""

    def make(decided, *heard, votes=1, right_votes=None, **fields):
        ballots = [
            {"vote": i, "answer": decided, "index": None, "reasoning": "", "refer": None, "error": None}
            for i in range(1, votes + 1)
        ]
        for ballot in ballots[right_votes:] if right_votes is not None else []:
            ballot["answer"] = None
        told = opinions(*heard)
        return outcome_of(trace(opinions=told, decision=decide(ballots, told), **fields))

    return make


def value(told):
    return told["value"], told["n"]


def test_what_the_attending_makes_of_its_specialists(said):
    told = figures(
        [
            said("cyst", "cyst", "cyst", "scar", case="a"),  # goes with a right majority
            said("scar", "cyst", "cyst", "scar", case="b"),  # turns it over, wrongly
            said("cyst", "scar", "scar", "cyst", case="c"),  # sides with the right minority
            said("scar", "scar", "scar", "cyst", case="d"),  # overrules the right minority
            said("nodule", "scar", "scar", "cyst", case="e"),  # neither
            said("cyst", "scar", "scar", "scar", case="f"),  # against all of them, and right
            said("cyst", "scar", "cyst", "nodule", case="g"),  # there is no majority
            said(None, "cyst", "cyst", "cyst", case="h"),  # says nothing
        ]
    )
    attending = told["attending"]
    assert value(told["accuracy"]) == (4 / 8, 8)
    assert value(told["unparsed"]) == (1 / 8, 8)
    assert value(attending["majority"]) == (3 / 7, 7)
    assert value(attending["right_to_wrong"]) == (2 / 3, 3)  # b, h
    assert value(attending["wrong_to_right"]) == (2 / 4, 4)  # c, f of c, d, e, f
    assert value(attending["conformity"]) == (2 / 7, 7)  # a, d
    assert value(attending["conformity_when_wrong"]) == (1 / 4, 4)  # d
    assert value(attending["minority_suppression"]) == (2 / 3, 3)  # d, e of c, d, e
    json.dumps(told)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["cyst", "scar", "Cyst."], "cyst"),
        (["cyst", "scar", "scar", "cyst"], None),
        (["cyst", None, None], "cyst"),
        ([None], None),
        ([], None),
    ],
)
def test_the_majority(opinions, answers, expected):
    assert majority(opinions(*answers)) == expected


def test_by_tier_specialty_and_group(said, trace):
    referral = {"specialty": "Surgeon", "reasoning": ""}
    told = figures(
        [
            said("cyst", "cyst", case="a", tier="easy", groups={"modality": "CT"}, specialty="Radiologist"),
            said("scar", "scar", case="b", tier="hard", groups={"modality": "MRI"}, specialty="Radiologist"),
            said("cyst", "scar", case="c", tier="hard", referral=referral, specialty="Radiologist"),
            said("cyst", "scar", case="d", referral=None),
        ],
        by=["modality", "organ"],
    )
    by = {name: {group: value(figure) for group, figure in split.items()} for name, split in told["by"].items()}
    assert by["tier"] == {"easy": (1, 1), "hard": (0.5, 2)}
    assert list(by["tier"]) == ["easy", "hard"]
    assert by["specialty"] == {"Radiologist": (pytest.approx(2 / 3), 3)}  # by the label, whoever was asked
    assert by["modality"] == {"CT": (1, 1), "MRI": (0, 1)}
    assert by["organ"] == {}
    assert value(told["triage"]["accuracy"]) == (2 / 3, 3)
    assert told["triage"]["confusion"] == {"Radiologist": {"Radiologist": 2, "Surgeon": 1}}


def test_questions_about_one_image_are_one_cluster(said):
    one = [said("cyst" if i < 6 else "scar", case=str(i), images=["sha256:a"]) for i in range(10)]
    ten = [said("cyst" if i < 6 else "scar", case=str(i), images=[f"sha256:{i}"]) for i in range(10)]
    assert figures(one)["accuracy"]["value"] == figures(ten)["accuracy"]["value"] == 0.6
    assert figures(one)["accuracy"]["low"] < figures(ten)["accuracy"]["low"] < 0.5


def test_confidence_is_the_share_of_several_votes(said):
    assert figures([said("cyst", "cyst")])["confidence"] is None
    told = figures([said("cyst", votes=4, right_votes=3, case="a"), said("scar", votes=4, case="b")])["confidence"]
    assert told["n"] == 2
    assert told["brier"] == pytest.approx((0.25**2 + 1) / 2)
    assert told["risk_coverage"] == [(1.0, 0.5, 1.0), (0.75, 1.0, 0.5)]


def test_what_is_withheld_is_no_answer_and_still_tells_where_withholding_pays(trace):
    def ballot(vote, answer):
        return {"vote": vote, "answer": answer, "index": None, "reasoning": "", "refer": None, "error": None}

    withheld = decide([ballot(1, "cyst"), ballot(2, "cyst"), ballot(3, "scar")], [], abstain_below=0.9)
    unread = decide([ballot(1, None), ballot(2, None)], [], abstain_below=0.9)
    made = [trace(case="a", decision=withheld), trace(case="b", decision=unread)]
    told = figures([outcome_of(one) for one in made])
    assert value(told["accuracy"]) == (0, 2)
    assert value(told["abstained"]) == (1, 2)
    assert value(told["unparsed"]) == (0.5, 2)
    assert told["confidence"]["bins"] == [(0.0, 0.0, 1), (pytest.approx(2 / 3), 1.0, 1)]  # its winner is right


def test_the_best_specialist_is_chosen_on_one_half_and_measured_on_the_other(said):
    """Doctor 2 is right in 3 of 4 cases, the others in 2 of 4; by chance they are not equally good on each half."""
    heard = [("cyst" if i % 4 < 2 else "scar", "cyst" if i % 4 else "scar", "cyst" if i % 2 else "scar")
             for i in range(200)]  # fmt: skip
    told = figures([said("cyst", *answers, case=str(i)) for i, answers in enumerate(heard)])
    assert {doctor: value(figure) for doctor, figure in told["specialists"].items()} == {
        "1": (0.5, 200),
        "2": (0.75, 200),
        "3": (0.5, 200),
    }
    best = told["best_specialist"]
    assert best["doctor"] == "2"
    assert 60 < best["n"] < 140
    assert best["value"] == pytest.approx(0.75, abs=0.1)
    assert figures([said("cyst", case="a")])["best_specialist"] is None


def test_who_was_not_asked_has_not_referred_wrongly(said, trace):
    nobody = said("cyst", case="a", specialty="Surgeon", referral={"specialty": None, "reasoning": ""})
    mumbled = said("cyst", case="b", specialty="Surgeon", referral=None, calls=[call("m", 1, 1, 1.0, node="triage")])
    told = figures([nobody, mumbled])["triage"]
    assert value(told["accuracy"]) == (0, 1)
    assert told["confusion"] == {"Surgeon": {"unread": 1}}


def test_whom_to_believe_is_learned_on_one_half_and_measured_on_the_other(said):
    """Four votes of four are right in 19 of 20 cases, two of four in one of two."""
    sure = [said("cyst" if i % 20 else "scar", votes=4, case=f"s{i}") for i in range(400)]
    torn = [said("cyst" if i % 2 else "scar", votes=4, right_votes=2, case=f"t{i}") for i in range(400)]
    told = figures([*sure, *torn])["confidence"]["abstention"]
    assert told["threshold"] == 1.0
    assert told["coverage"] == pytest.approx(0.5, abs=0.1)
    assert told["risk"] == pytest.approx(0.05, abs=0.05)
    right = [said("cyst", votes=4, case=f"r{i}") for i in range(50)]
    assert figures([*right, *torn])["confidence"]["abstention"]["risk"] == 0
    assert figures(torn)["confidence"]["abstention"] is None


def call(model, read, written, seconds, cached=False, node="specialist"):
    said = (node, None, None, None, model, "t", None, None, None, None)
    return NodeCall(*said, read, written, seconds, cached)


def test_what_a_case_costs_with_or_without_a_cache(trace):
    decision = decide([{"vote": 1, "answer": "cyst", "index": 1, "reasoning": "", "refer": None, "error": None}], [])
    calls = [call("a", 1000, 100, 0.5), call("b", 2000, 0, 1.5, cached=True)]
    made = trace(calls=calls, decision=decision)
    prices = {"a": (1.0, 10.0), "b": (0.5, 1.0)}
    cost = figures([outcome_of(made, prices)])["cost"]
    assert cost == {
        "calls": 2,
        "input_tokens": 3000,
        "output_tokens": 100,
        "seconds": 2.0,
        "dollars": pytest.approx((1000 * 1 + 100 * 10 + 2000 * 0.5) / 1e6),
    }
    assert figures([outcome_of(made, {"a": (1.0, 1.0)})])["cost"]["dollars"] is None
    assert figures([outcome_of(made)])["cost"]["dollars"] is None


def test_no_case_says_nothing():
    told = figures([])
    assert told["accuracy"]["value"] is None
    assert told["cost"]["calls"] is None


def test_a_case_without_a_key_is_no_outcome(trace):
    with pytest.raises(ValueError, match="'case-1' has no answer key"):
        outcome_of(trace(answer=None))


@quiet
@given(st.lists(a_trace, max_size=6))
def test_any_trace_with_a_key_has_figures(traces):
    outcomes = [outcome_of(trace) for trace in traces if trace.answer is not None]
    told = figures(outcomes)
    json.dumps(told)
    right = [is_right(trace.decided, trace.answer) for trace in traces if trace.answer is not None]
    assert told["accuracy"]["n"] == len(right)
    if right:
        assert told["accuracy"]["value"] == pytest.approx(sum(right) / len(right))
        assert told["accuracy"]["low"] <= told["accuracy"]["high"]
