"""Tiers follow the opinions; stages get their shares, and no case twice before all have come once."""

import itertools
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rl.curriculum import SCHEDULES, TIERS, Stage, count_tiers, draw_prompts, tier_of, tier_without_key


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


findings = st.sampled_from(["cyst", "scar", "nodule", None])
quiet = settings(deadline=None, max_examples=60)


@quiet
@given(said=st.lists(findings, min_size=1, max_size=5), own=st.lists(findings, min_size=1, max_size=9))
def test_without_a_key_the_chance_of_agreeing_is_rounded_to_the_nearest_count(opinions, said, own):
    """In exact arithmetic: how many opinions are right on average, were each of the policy's samples the key."""
    pairs = [(one, other) for one in said for other in own]
    right = Fraction(sum(one is not None and one == other for one, other in pairs), len(own))
    half = Fraction(1, 2)
    expected = "hard" if right < half else "easy" if len(said) - right < half else "medium"
    assert tier_without_key(opinions(*said), own) == expected


@quiet
@given(said=st.lists(findings, min_size=1, max_size=5), sure=st.sampled_from(["cyst", "scar"]), n=st.integers(1, 9))
def test_a_sure_policy_is_taken_for_the_key(opinions, said, sure, n):
    assert tier_without_key(opinions(*said), [sure] * n) == tier_of(opinions(*said), sure)


@quiet
@given(said=st.permutations(["cyst", "cyst", "scar"]), own=st.permutations(["cyst", "scar", "cyst", None, "nodule"]))
def test_neither_the_order_of_doctors_nor_of_samples_matters(opinions, said, own):
    assert tier_without_key(opinions(*said), own) == "medium"


def test_where_nobody_is_heard_or_the_policy_cannot_be_read_nothing_is_known(opinions):
    assert tier_without_key([], ["cyst"]) == "medium"
    assert tier_without_key(opinions("cyst"), []) == "medium"
    assert tier_without_key(opinions("cyst"), [None, None]) == "hard"  # read as contradicted: nothing agrees


def test_texts_are_compared_as_the_reader_normalises_them(opinions):
    assert tier_without_key(opinions(" Cyst.", "CYST"), ["cyst", "cyst "]) == "easy"


def stage(shares=(), nodes=None, name="1-easy", **fields):
    named = dict(zip(TIERS, shares, strict=True)) if shares else {}
    return Stage(name, steps=1, beta=0.0, shares=named, nodes=nodes or {"attending": 1.0}, **fields)


@pytest.fixture(scope="session")
def cases(trace):
    def make(counts):
        return [trace(case=f"{tier}-{i}", tier=tier) for tier, n in zip(TIERS, counts, strict=True) for i in range(n)]

    return make


@pytest.fixture(scope="session")
def arrivals(trace):
    """Cases before triage: nobody was heard, so they have no tier."""
    return lambda n: [trace(case=f"new-{i}", node="triage", referral=None, tier=None) for i in range(n)]


counts = st.tuples(*[st.integers(0, 6)] * 3)
parts = st.tuples(*[st.integers(0, 7)] * 3)


def assert_within_one(drawn, shares):
    """In every prefix, each key has its share to within one."""
    total = sum(shares.values())
    for key, share in shares.items():
        for i, so_far in enumerate(itertools.accumulate(name == key for name in drawn), 1):
            assert abs(so_far - Fraction(share) * i / Fraction(total)) < 1, (key, i)


@quiet
@given(counts=counts, parts=parts, rounds=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_shares_are_exact_and_mixed_evenly(cases, counts, parts, rounds, seed):
    """Over whole rounds each tier has exactly its share, and no prefix is a whole prompt off."""
    shares = {tier: share for tier, share, count in zip(TIERS, parts, counts, strict=True) if count and share}
    assume(shares)
    drawn = draw_prompts({"attending": cases(counts)}, stage(parts), rounds * sum(shares.values()), seed)
    assert Counter(trace.tier for trace in drawn) == {tier: rounds * share for tier, share in shares.items()}
    assert_within_one([trace.tier for trace in drawn], shares)


@quiet
@given(
    nodes=st.fixed_dictionaries({"triage": st.floats(0.05, 5), "attending": st.floats(0.05, 5)}),
    parts=st.tuples(*[st.floats(0.05, 5)] * 3),
    prompts=st.integers(1, 120),
)
def test_nodes_and_within_the_attendings_its_tiers_are_interleaved(cases, arrivals, nodes, parts, prompts):
    upstream = {"triage": arrivals(5), "attending": cases((4, 4, 4))}
    drawn = draw_prompts(upstream, stage(parts, nodes), prompts, seed=0)
    assert len(drawn) == prompts
    assert_within_one([trace.node for trace in drawn], nodes)
    tiers = [trace.tier for trace in drawn if trace.node == "attending"]
    assert_within_one(tiers, dict(zip(TIERS, parts, strict=True)))


def test_equal_shares_take_turns(cases, arrivals):
    upstream = {"triage": arrivals(5), "attending": cases((4, 4, 4))}
    drawn = draw_prompts(upstream, stage((1, 1, 1), {"triage": 1.0, "attending": 1.0}), 12, seed=0)
    assert [trace.node for trace in drawn] == ["triage", "attending"] * 6
    assert [trace.tier for trace in drawn if trace.tier] == ["easy", "medium", "hard"] * 2


def test_the_shares_of_the_tiers_concern_the_attending_alone(arrivals):
    """Triage has heard nobody: its cases come as they are, in a stage of any tier."""
    drawn = draw_prompts({"triage": arrivals(6)}, stage((0, 0, 1), {"triage": 1.0}, name="3-hard"), 6, seed=0)
    assert {trace.case for trace in drawn} == {f"new-{i}" for i in range(6)}


@quiet
@given(counts=counts, parts=parts, prompts=st.integers(1, 60), seed=st.integers(0, 99))
def test_every_case_of_a_tier_comes_once_before_any_comes_twice(cases, counts, parts, prompts, seed):
    assume(any(share and count for share, count in zip(parts, counts, strict=True)))
    drawn = draw_prompts({"attending": cases(counts)}, stage(parts), prompts, seed)
    assert len(drawn) == prompts
    for tier, count in zip(TIERS, counts, strict=True):
        assert_in_turn([trace.case for trace in drawn if trace.tier == tier], count)


@quiet
@given(counts=counts, prompts=st.integers(1, 60), seed=st.integers(0, 99))
def test_a_mixed_stage_takes_every_case_once_before_any_twice(cases, counts, prompts, seed):
    assume(sum(counts) > 0)
    drawn = draw_prompts({"attending": cases(counts)}, stage(), prompts, seed)
    assert len(drawn) == prompts
    assert_in_turn([trace.case for trace in drawn], sum(counts))


def assert_in_turn(names, count):
    for start in range(0, len(names), max(1, count)):
        deck = names[start : start + count]
        assert len(set(deck)) == len(deck)


def names(drawn):
    return [trace.case for trace in drawn]


def test_a_seed_makes_an_order(cases):
    def order(seed):
        return names(draw_prompts({"attending": cases((9, 9, 9))}, stage((0.5, 0.3, 0.2)), 30, seed))

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_cases_are_shuffled_anew_when_they_come_again(cases):
    drawn = names(draw_prompts({"attending": cases((8, 0, 0))}, stage((1, 0, 0)), 16, seed=0))
    assert sorted(drawn[:8]) == sorted(drawn[8:])
    assert drawn[:8] != drawn[8:]


def test_a_longer_stage_begins_as_the_shorter_one(cases, arrivals):
    """So that a run with fewer steps trains on the first prompts of the longer one."""
    upstream = {"triage": arrivals(5), "attending": cases((4, 2, 3))}
    both = stage((0.5, 0.3, 0.2), {"triage": 1.0, "attending": 2.0})
    assert names(draw_prompts(upstream, both, 50, seed=3))[:20] == names(draw_prompts(upstream, both, 20, seed=3))


def test_a_tier_without_cases_gives_its_share_to_the_others(cases):
    drawn = draw_prompts({"attending": cases((5, 0, 5))}, stage((0.6, 0.2, 0.2)), 80, seed=0)
    assert count_tiers(drawn) == {"easy": 60, "medium": 0, "hard": 20}


def test_a_tier_without_a_share_is_not_trained_on(cases):
    assert count_tiers(draw_prompts({"attending": cases((5, 5, 5))}, stage((0, 1, 0)), 40, seed=0))["medium"] == 40


def test_no_case_to_train_on_is_refused_with_the_counts(cases, arrivals):
    with pytest.raises(ValueError, match=r"3-hard.*easy: 4, medium: 2, hard: 0"):
        draw_prompts({"attending": cases((4, 2, 0))}, stage((0, 0, 1), name="3-hard"), 8, seed=0)
    with pytest.raises(ValueError, match="1-mixed"):
        draw_prompts({"triage": arrivals(0)}, stage(nodes={"triage": 1.0}, name="1-mixed"), 8, seed=0)


def test_a_samples_weight_is_its_tiers_or_triages(trace):
    weighing = stage(gammas={"easy": 0.1, "medium": 0.2, "hard": 0.3, "triage": 0.4})
    traces = [trace(tier="easy"), trace(tier="hard"), trace(node="triage", tier=None)]
    assert [weighing.gamma(one, 0.5) for one in traces] == [0.1, 0.3, 0.4]


@pytest.mark.parametrize(
    ("schedule", "factors"), [("constant", [1, 1, 1]), ("rise", [0, 0.25, 1]), ("fall", [1, 0.75, 0])]
)
def test_a_weight_goes_as_its_schedule_says(trace, schedule, factors):
    weighing = stage(gammas={"medium": 0.4}, schedule=schedule)
    given = [weighing.gamma(trace(tier="medium"), done) for done in (0.0, 0.25, 1.0)]
    assert given == pytest.approx([0.4 * factor for factor in factors])
    assert set(SCHEDULES) == {"constant", "rise", "fall"}
