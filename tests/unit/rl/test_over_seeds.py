"""Intervals over seeds that were measured on the same cases: by hand, and whether they hold what is true."""

import math

import numpy as np
import pytest

from rl.statistics import Figure, over_seeds, wilson

DRAWS = 1000


def test_over_seeds_on_the_same_cases():
    within = [Figure(value, value - 0.03, value + 0.05, 450) for value in (0.712, 0.713, 0.714)]
    found = over_seeds([0.712, 0.713, 0.714], within)
    half = math.hypot(4.302653 * 0.001 / math.sqrt(3), 0.04)  # t(0.975, 2 degrees)
    assert (found.low, found.high) == pytest.approx((0.713 - half, 0.713 + half))


def test_what_is_always_the_same_has_the_intervals_of_its_cases():
    found = over_seeds([0.5, 0.5], [Figure(0.5, 0.4, 0.6, 10)] * 2)
    assert (found.low, found.high) == pytest.approx((0.4, 0.6))


def test_seeds_without_intervals_add_none():
    values = [4.0, 6.0]
    assert over_seeds(values, [Figure(value, None, None, 1) for value in values]) == over_seeds(values)


def covered(runs, flips, images=150, seeds=3):
    """How often intervals hold what is true of all runs and cases, without the seeds' own ones and with them.

    Half of the cases are hard. Each run is better or worse by chance (`runs`), and answers each case as it should by
    its hardness, or by chance (`flips`) the other way round.
    """
    draw, held = np.random.default_rng(0), np.zeros(2)
    for _ in range(DRAWS):
        hard = np.where(draw.random(images) < 0.5, flips, 1 - flips)
        shift = draw.normal(0, runs, seeds)
        right = draw.random((seeds, images)) < np.clip(hard + shift[:, None], 0, 1)
        counts = [int(count) for count in right.sum(axis=1)]
        within = [Figure(count / images, *wilson(count, images), images) for count in counts]
        values = [count / images for count in counts]
        held += [one.low <= 0.5 <= one.high for one in (over_seeds(values), over_seeds(values, within))]
    return held / DRAWS


@pytest.mark.parametrize(
    ("runs", "flips", "alone"),
    [(0.0, 0.0, (0.0, 0.2)), (0.0, 0.1, (0.5, 0.9)), (0.1, 0.25, (0.9, 0.97))],
    ids=["nothing but the cases", "answers by chance", "runs that differ more than cases"],
)
def test_intervals_on_the_same_cases_hold_what_is_true(runs, flips, alone):
    without, with_cases = covered(runs, flips)
    assert alone[0] <= without <= alone[1], "Student's t alone, which knows nothing of the cases"
    assert with_cases >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / DRAWS), "but for the chance of the simulation"
