"""Statistics: each against a well-kept library, a hand-worked case, or a simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from rl.statistics import (
    NOTHING,
    calibration,
    compare,
    over_seeds,
    p_over_seeds,
    risk_coverage,
    share,
    threshold,
    wilson,
)


def test_alone_in_their_clusters_cases_have_scipys_interval():
    right = np.random.default_rng(1).random(300) < 0.7
    found = share(right, range(300))
    theirs = stats.bootstrap((right,), np.mean, method="percentile", n_resamples=2000, rng=0).confidence_interval
    assert found.value == right.mean()
    assert found.n == 300
    assert found.low == pytest.approx(theirs.low, abs=0.01)
    assert found.high == pytest.approx(theirs.high, abs=0.01)


def test_cases_that_say_the_same_count_once():
    right = np.random.default_rng(2).random(60) < 0.5
    single, tenfold = share(right, range(60)), share(np.repeat(right, 10), np.repeat(range(60), 10))
    assert tenfold.value == single.value
    assert tenfold.n == 600
    assert (tenfold.low, tenfold.high) == (single.low, single.high)


def coverage(clusters, questions, alike, times=400):
    """How often the interval holds the truth, where a share of the questions of an image stand or fall together."""
    draw, held = np.random.default_rng(3), 0
    names = np.repeat(range(clusters), questions)
    for seed in range(times):
        image = np.repeat(draw.random(clusters) < 0.7, questions)
        right = np.where(draw.random(len(names)) < alike, image, draw.random(len(names)) < 0.7)
        found = share(right, names, seed=seed)
        held += found.low <= 0.7 <= found.high
    return held / times


@pytest.mark.parametrize(("clusters", "questions", "alike"), [(100, 1, 0.0), (100, 5, 0.5), (200, 3, 1.0)])
def test_the_interval_holds_the_truth_as_often_as_it_says(clusters, questions, alike):
    assert coverage(clusters, questions, alike) == pytest.approx(0.95, abs=0.035)  # 3 standard errors of 400


def test_without_clusters_it_would_not():
    draw, held = np.random.default_rng(3), 0
    for seed in range(200):
        found = share(np.repeat(draw.random(100) < 0.7, 5), range(500), seed=seed)
        held += found.low <= 0.7 <= found.high
    assert held / 200 < 0.8


def test_what_a_figure_is_not_about_does_not_count():
    whole = share([1, 0, 1], "abc")
    part = share([1, 0, 1, 1, 1], "abcde", bottom=[1, 1, 1, 0, 0])
    assert (part.value, part.n) == (whole.value, 3)
    assert share([1.0], "a", bottom=[0]) == share([], []) == NOTHING


@pytest.mark.parametrize("right", [0, 1])
def test_where_all_are_right_or_wrong_the_interval_is_wilsons(right):
    found = share([right] * 30, list(range(10)) * 3)
    assert (found.low, found.high) == pytest.approx(proportion_confint(10 * right, 10, method="wilson"))
    assert found.low < found.high


@pytest.mark.parametrize(("clusters", "right", "of"), [("a" * 10, 0, 1), ("aabbccddee", 2, 5)])
def test_clusters_that_are_all_alike_are_not_certain(clusters, right, of):
    found = share([1, 0] * 5, list(clusters))
    assert (found.low, found.high) == pytest.approx(proportion_confint(right, of, method="wilson"))
    assert found.low < found.value < found.high


@given(n=st.integers(1, 300), data=st.data())
def test_wilson(n, data):
    right = data.draw(st.integers(0, n))
    low, high = wilson(right, n)
    assert (low, high) == pytest.approx(proportion_confint(right, n, method="wilson"), abs=1e-9)
    assert 0 <= low <= right / n <= high <= 1


pairs = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 5)), min_size=1, max_size=60)


@settings(deadline=None, max_examples=50)
@given(pairs)
def test_mcnemar(drawn):
    first, second, clusters = zip(*drawn, strict=True)
    told = compare(first, second, clusters)
    table = [[sum(a == x and b == y for a, b, _ in drawn) for y in (True, False)] for x in (True, False)]
    assert told.p == pytest.approx(mcnemar(table, exact=True).pvalue)
    assert (told.only_first, told.only_second) == (table[0][1], table[1][0])
    assert told.difference.value == pytest.approx((told.only_first - told.only_second) / len(drawn))
    back = compare(second, first, clusters)
    assert back.p == pytest.approx(told.p)
    assert back.difference.value == pytest.approx(-told.difference.value)
    mirrored = (-told.difference.high, -told.difference.low)
    assert (back.difference.low, back.difference.high) == pytest.approx(mirrored, abs=1e-9)
    assert -1 <= back.difference.low <= back.difference.value <= back.difference.high <= 1


def test_systems_that_never_differ_may_do_so_unseen():
    same = compare([True, False] * 50, [True, False] * 50, range(100)).difference
    unseen = proportion_confint(0, 100, method="wilson")[1]
    assert (same.low, same.high) == pytest.approx((-unseen, unseen))
    ahead = compare([True] * 100, [False] * 100, range(100)).difference
    assert (ahead.low, ahead.high) == pytest.approx((1 - unseen, 1))


def test_a_clear_difference_and_none():
    cases = range(400)
    good, bad, other = [i % 5 != 0 for i in cases], [i % 5 > 1 for i in cases], [i % 5 != 1 for i in cases]
    clear, none = compare(good, bad, cases), compare(good, other, cases)
    assert clear.p < 1e-9
    assert clear.difference.low > 0.1
    assert none.p == 1
    assert none.difference.low < 0 < none.difference.high


def test_calibration_by_hand():
    # two bins of ten: 0.25 (twice, one right) and 0.95 (three, two right)
    told = calibration([0.25, 0.25, 0.95, 0.95, 0.95], [True, False, True, True, False])
    assert told.ece == pytest.approx((2 * 0.25 + 3 * (0.95 - 2 / 3)) / 5)
    assert told.brier == pytest.approx((0.75**2 + 0.25**2 + 2 * 0.05**2 + 0.95**2) / 5)
    assert told.bins == [(0.25, 0.5, 2), (pytest.approx(0.95), pytest.approx(2 / 3), 3)]


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_who_is_always_as_sure_as_he_is_right_is_calibrated(right):
    assert calibration([sum(right) / len(right)] * len(right), right).ece == pytest.approx(0)
    assert calibration([1.0 * hit for hit in right], right).brier == 0


def test_risk_and_coverage_by_hand():
    sure, right = [0.9, 0.6, 0.9, 0.3], [True, False, False, True]
    assert risk_coverage(sure, right) == [(0.9, 0.5, 0.5), (0.6, 0.75, pytest.approx(2 / 3)), (0.3, 1.0, 0.5)]
    assert threshold(sure, right, 0.5) == 0.3
    assert threshold(sure, right, 0.4) is None


@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.9]), st.booleans()), min_size=1, max_size=30))
def test_full_coverage_has_everybodys_risk(drawn):
    sure, right = zip(*drawn, strict=True)
    *_, last = risk_coverage(sure, right)
    assert last == (min(sure), 1.0, pytest.approx(1 - sum(right) / len(right)))


def test_over_seeds():
    values = [0.71, 0.74, 0.69, 0.73, 0.72]
    found = over_seeds(values)
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.value, found.n) == (pytest.approx(0.718), 5)
    assert over_seeds([0.5]).low is None


@given(st.lists(st.integers(-20, 20).map(lambda n: n / 100), min_size=2, max_size=8))
def test_the_test_over_seeds_agrees_with_their_interval(differences):
    p, interval = p_over_seeds(differences), over_seeds(differences)
    if p is None:
        assert len(set(differences)) == 1
    else:
        assert (p < 0.05) == (interval.low > 0 or interval.high < 0)
    assert p_over_seeds(differences[:1]) is None
