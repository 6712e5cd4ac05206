"""Intervals against hand-worked values; the figures of the tiers add up."""

import pytest
from fakes import answers
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage

from rl.curriculum import TIERS
from rl.held_out import (
    BATCH,
    by_tier,
    decide,
    decided,
    interval,
    print_confusion,
    print_table,
    referred,
    unparsed,
)
from rl.policy import PolicyChatModel
from rl.rollout import Rollout

EPSILON = 1e-12


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        # z = 1.959964, z^2 = 3.841459: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
        (8, 10, 0.4902, 0.9433),
        (50, 100, 0.4038, 0.5962),
        (0, 10, 0.0, 0.2775),  # z^2 / (n + z^2)
        (10, 10, 0.7225, 1.0),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_wilson_by_hand(right, n, low, high):
    figure = interval(right, n)
    assert figure["accuracy"] == right / n
    assert figure["n"] == n
    assert figure["low"] == pytest.approx(low, abs=5e-5)
    assert figure["high"] == pytest.approx(high, abs=5e-5)


def test_nothing_is_said_of_no_cases():
    assert interval(0, 0) == {"accuracy": None, "low": None, "high": None, "n": 0}


@settings(deadline=None)
@given(n=st.integers(1, 10**6), data=st.data())
def test_an_interval_holds_its_share_and_narrows(n, data):
    right = data.draw(st.integers(0, n))
    figure, more, mirrored = interval(right, n), interval(4 * right, 4 * n), interval(n - right, n)
    assert 0 <= figure["low"] <= figure["accuracy"] + EPSILON
    assert figure["accuracy"] - EPSILON <= figure["high"] <= 1
    assert more["high"] - more["low"] < figure["high"] - figure["low"]
    assert figure["low"] == pytest.approx(1 - mirrored["high"], abs=1e-9)


said = st.sampled_from(["cyst", "scar", None])


@settings(deadline=None)
@given(rows=st.lists(st.tuples(st.sampled_from(TIERS), said), max_size=30))
def test_the_tiers_add_up(trace, rows):
    traces = [trace(tier=tier, decision=answer and {"answer": answer}) for tier, answer in rows]
    figures = by_tier(traces, decided(traces))
    assert list(figures) == ["overall", *TIERS]
    assert figures["overall"]["n"] == len(rows) == sum(figures[tier]["n"] for tier in TIERS)
    right = sum(round((figures[tier]["accuracy"] or 0) * figures[tier]["n"]) for tier in TIERS)
    assert right == sum(answer == "cyst" for _, answer in rows)
    assert figures["overall"]["accuracy"] == (right / len(rows) if rows else None)
    for tier in TIERS:
        assert figures[tier]["n"] == sum(other == tier for other, _ in rows)


def test_each_trace_needs_one_answer(trace):
    with pytest.raises(ValueError):
        by_tier([trace(), trace()], ["cyst"])


def test_the_share_of_unparsed_decisions(trace):
    traces = [trace(decision=said) for said in (None, {"answer": None}, {"answer": "cyst"}, {"answer": "scar"})]
    assert unparsed(traces) == 0.5
    assert unparsed(traces[2:]) == 0
    assert unparsed([]) == 0


def test_the_table_says_accuracy_in_percent_with_its_interval(capsys):
    figures = {"overall": interval(8, 10), "easy": interval(8, 10), "medium": interval(0, 0), "hard": interval(0, 0)}
    print_table({"before": figures}, "title")
    shown = capsys.readouterr().out
    assert "80.0 [49.0, 94.3]" in shown
    assert "easy (n=10)" in shown
    assert "hard" not in shown, "no case is"


class Fake(PolicyChatModel):
    """A policy that answers by the question, and counts its batches."""

    batches: list = []  # noqa: RUF012 (a pydantic field)

    def answer(self, prompts):
        self.batches.append(len(prompts))
        told = {"prompt_token_ids": [1, 2], "token_ids": [3], "finish_reason": "stop"}
        return [
            AIMessage(f"<answer>{'cyst' if 'no. 1' in prompt[1].text else 'scar'}</answer>", response_metadata=told)
            for prompt in prompts
        ]


def fake():
    return Fake(model_name="fake", model=None, processor=None, batches=[])


def specialist(state):
    return {"answer": "cyst"} if state["doctor"] < 3 or "no. 1" in state["question"] else {"answer": "scar"}


def triage(state):
    return {"specialty": "Radiologist"}


@pytest.fixture
def rollout(images):
    return Rollout(triage=triage, specialists=specialist, images=images)


async def test_the_policy_decides_in_batches_and_in_order(rollout, trace):
    """Batches are cut by number alone: what an answer is padded with does not depend on who was faster."""
    n = BATCH + 5
    upstream = [trace(case=str(i), question=f"no. {i}") for i in range(n)]
    policy = fake()
    finished = await decide(rollout, upstream, policy, "test")
    assert policy.batches == [BATCH, 5]
    assert [done.case for done in finished] == [str(i) for i in range(n)]
    assert decided(finished)[:5] == ["scar", "cyst", "scar", "scar", "scar"]
    assert [done.rewards["accuracy"] for done in finished[:5]] == [0, 1, 0, 0, 0]
    assert (finished[0].prompt_ids, finished[0].completion_ids, finished[0].finish) == ([1, 2], [3], "stop")


async def test_any_chat_model_can_decide(rollout, trace):
    upstream = [trace(case=str(i), question=f"no. {i}") for i in range(3)]
    finished = await decide(rollout, upstream, answers("cyst"), "test")
    assert decided(finished) == ["cyst"] * 3
    assert [done.completion_ids for done in finished] == [None] * 3


def refers_to(trace, label, specialty):
    return trace(specialty=label, referral={"specialty": specialty, "reasoning": ""})


def test_whom_triage_refers_to(trace):
    traces = [
        refers_to(trace, "Surgeon", "Surgeon"),
        refers_to(trace, "Surgeon", "Radiologist"),
        refers_to(trace, "Radiologist", None),  # unreadable: wrong
        trace(specialty="Radiologist", referral=None),  # and so is none at all
        refers_to(trace, None, "Surgeon"),  # without a label: not counted
    ]
    found = referred(traces)
    assert (found["triage"]["accuracy"], found["triage"]["n"]) == (0.25, 4)
    assert found["confusion"] == {"Radiologist": {"unread": 2}, "Surgeon": {"Radiologist": 1, "Surgeon": 1}}
    assert referred([])["triage"]["n"] == 0


def test_the_confusion_has_a_column_for_everybody(capsys):
    print_confusion({"Surgeon": {"Radiologist": 7}}, "title")
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("title", "Surgeon", "Radiologist", "7"))


def test_the_table_shows_triage_where_any_case_has_a_label(capsys):
    figures = dict.fromkeys(("overall", *TIERS), interval(8, 10))
    print_table({"a": {**figures, "triage": interval(3, 4)}, "ideal": figures}, "one")
    shown = capsys.readouterr().out
    assert "triage (n=4)" in shown
    assert shown.count("-") > 0  # nobody knows the ideal's triage
    print_table({"a": {**figures, "triage": interval(0, 0)}, "ideal": figures}, "none")
    assert "triage" not in capsys.readouterr().out


def test_where_rows_have_different_cases_each_cell_says_its_number(capsys):
    row = dict.fromkeys(("overall", *TIERS), interval(8, 10))
    print_table({"a": row, "b": {**row, "hard": interval(1, 2)}}, "t")
    shown = capsys.readouterr().out
    assert "(n=2)" in shown
    assert "easy (n=10)" in shown
    assert "hard (n=" not in shown
