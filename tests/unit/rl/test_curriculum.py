"""Tiers follow the opinions; stages get their shares, and no case twice before all have come once."""

from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rl.curriculum import TIERS, Stage, draw_cases, tier_of


@pytest.mark.parametrize(
    ("answers", "tier"),
    [
        (["cyst", "cyst", "cyst"], "easy"),
        (["cyst"], "easy"),
        ([" Cyst.", "CYST", "cyst"], "easy"),
        (["cyst", "cyst", "scar"], "medium"),
        (["scar", "nodule", "cyst"], "medium"),
        (["cyst", None, "cyst"], "medium"),  # failed or unparsed: heard, and not right
        (["scar", "scar", "scar"], "hard"),
        (["cysts", "a cyst", ""], "hard"),
        ([None, None, None], "hard"),
        ([None, "scar", None], "hard"),
        ([], "hard"),
    ],
)
def test_the_tier_of_a_case(opinions, answers, tier):
    assert tier_of(opinions(*answers), "cyst") == tier


def test_the_order_of_the_doctors_does_not_matter(opinions):
    assert {tier_of(opinions(*order), "a") for order in (("a", "b", None), (None, "a", "b"), ("b", None, "a"))} == {
        "medium"
    }


def stage(shares, name="1-easy"):
    return Stage(name, steps=1, beta=0.0, shares=dict(zip(TIERS, shares, strict=True)))


@pytest.fixture(scope="session")
def cases(trace):
    def make(counts):
        return [trace(case=f"{tier}-{i}", tier=tier) for tier, n in zip(TIERS, counts, strict=True) for i in range(n)]

    return make


counts = st.tuples(*[st.integers(0, 6)] * 3)
parts = st.tuples(*[st.integers(0, 7)] * 3)
quiet = settings(deadline=None, max_examples=60)


@quiet
@given(counts=counts, parts=parts, rounds=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_shares_are_exact_and_mixed_evenly(cases, counts, parts, rounds, seed):
    """Over whole rounds each tier has exactly its share, and no prefix is more than two cases off."""
    shares = [share if count else 0 for share, count in zip(parts, counts, strict=True)]
    assume(sum(shares) > 0)
    drawn = [trace.tier for trace in draw_cases(cases(counts), stage(parts), rounds * sum(shares), seed)]
    assert Counter(drawn) == Counter({t: rounds * share for t, share in zip(TIERS, shares, strict=True) if share})
    for tier, share in zip(TIERS, shares, strict=True):
        so_far = 0
        for i, other in enumerate(drawn, 1):
            so_far += other == tier
            assert abs(so_far - i * share / sum(shares)) < 2


@quiet
@given(counts=counts, parts=parts, prompts=st.integers(1, 60), seed=st.integers(0, 99))
def test_every_case_of_a_tier_comes_once_before_any_comes_twice(cases, counts, parts, prompts, seed):
    assume(any(share and count for share, count in zip(parts, counts, strict=True)))
    drawn = draw_cases(cases(counts), stage(parts), prompts, seed)
    assert len(drawn) == prompts
    for tier, count in zip(TIERS, counts, strict=True):
        names = [trace.case for trace in drawn if trace.tier == tier]
        for start in range(0, len(names), max(1, count)):
            deck = names[start : start + count]
            assert len(set(deck)) == len(deck)


def test_a_seed_makes_an_order(cases):
    def names(seed):
        return [trace.case for trace in draw_cases(cases((9, 9, 9)), stage((0.5, 0.3, 0.2)), 30, seed)]

    assert names(1) == names(1)
    assert names(1) != names(2)


def test_cases_are_shuffled_anew_when_they_come_again(cases):
    drawn = [trace.case for trace in draw_cases(cases((8, 0, 0)), stage((1, 0, 0)), 16, seed=0)]
    assert sorted(drawn[:8]) == sorted(drawn[8:])
    assert drawn[:8] != drawn[8:]


def test_a_tier_without_cases_gives_its_share_to_the_others(cases):
    drawn = Counter(trace.tier for trace in draw_cases(cases((5, 0, 5)), stage((0.6, 0.2, 0.2)), 80, seed=0))
    assert drawn == {"easy": 60, "hard": 20}


def test_a_tier_without_a_share_is_not_trained_on(cases):
    assert {trace.tier for trace in draw_cases(cases((5, 5, 5)), stage((0, 1, 0)), 40, seed=0)} == {"medium"}


def test_no_case_to_train_on_is_refused_with_the_counts(cases):
    with pytest.raises(ValueError, match=r"3-hard.*easy: 4, medium: 2, hard: 0"):
        draw_cases(cases((4, 2, 0)), stage((0, 0, 1), "3-hard"), 8, seed=0)
