"""The simulated theorem: each part against what can be worked out by hand, then where the claim holds and where not."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from rl.theory import OUTSIDE, Descent, curriculum, direct, distances, gradient, line, log_distances, loss, predicted

SEEDS = range(40)
DIMENSIONS = 10
points = st.lists(st.floats(-4, 4), min_size=3, max_size=3).map(np.array)
within = st.lists(st.floats(-0.57, 0.57), min_size=3, max_size=3).map(np.array)  # 3 * 0.57 ** 2 < 1
gaps = st.floats(0.06, 1)


everywhere = pytest.mark.parametrize("outside", OUTSIDE)


@everywhere
@given(points)
def test_the_gradient_is_the_losses(outside, offset):
    step = 1e-5
    rise = [(loss(offset + side, outside) - loss(offset - side, outside)) / (2 * step) for side in step * np.eye(3)]
    assert gradient(offset, outside) == pytest.approx(rise, abs=2e-5)


@everywhere
@given(within, within)
def test_in_the_basin_it_is_strongly_convex(outside, one, other):
    tangent = loss(one, outside) + gradient(one, outside) @ (other - one)
    assert loss(other, outside) == pytest.approx(tangent + ((other - one) ** 2).sum() / 2)


@everywhere
@given(points, st.floats(1, 4), st.floats(1, 4))
def test_outside_it_is_convex_nowhere(outside, direction, near, far):
    assume(np.linalg.norm(direction) > 0.1 and abs(near - far) > 1e-3)
    ray = direction / np.linalg.norm(direction)
    assert loss(ray * (near + far) / 2, outside) > (loss(ray * near, outside) + loss(ray * far, outside)) / 2


@given(points)
def test_a_plateau_is_flat_far_away(direction):
    assume(np.linalg.norm(direction) > 0.1)
    far = 10 * direction / np.linalg.norm(direction)
    assert loss(far) == pytest.approx(1.5)
    assert np.abs(gradient(far)).max() < 1e-20
    assert loss(np.zeros(3)) == 0


def test_distances_by_hand():
    optima = np.array([[3.0, 4.0], [3.0, 3.0], [0.0, 3.0]])
    assert distances(optima) == pytest.approx([5, 1, 3])
    assert log_distances(optima) == pytest.approx(math.log(25) + math.log(1) + math.log(9))
    assert log_distances(optima, unit=0.1) == pytest.approx(log_distances(optima) + 3 * math.log(100))
    assert distances(line([0.5, 2, 1], 7)) == pytest.approx([0.5, 2, 1])


@given(gaps, st.floats(0.01, 0.9))
def test_in_the_basin_each_step_takes_the_same_share_of_the_way(gap, rate):
    descent = Descent(rate=rate)
    runs = direct(line([gap], 3), descent, [0])
    assert runs.reached.all()
    assert runs.distance[0] == pytest.approx(gap * (1 - rate) ** runs.steps[0])
    assert runs.distance[0] <= 0.05 < gap * (1 - rate) ** (runs.steps[0] - 1)
    assert 0 <= runs.steps[0] - predicted(line([gap], 3), descent) < 1 + 1e-9


@given(gaps, st.floats(0.05, 0.9))
def test_with_the_textbooks_falling_rate_the_steps_are_linear_in_the_distance(gap, rate):
    # the product of 1 - 1 / (1/rate + t) telescopes
    runs = direct(line([gap], 3), Descent(rate=rate, decay=rate), [0])
    assert runs.steps[0] == pytest.approx((1 / rate - 1) * (gap / 0.05 - 1), abs=1 + 1e-6)


@settings(deadline=None, max_examples=30)
@given(st.floats(4, 9), st.floats(0.5, 0.95))
def test_without_noise_direct_training_is_as_slow_as_its_bound(way, part):
    end = part * way  # from there outwards no step is longer than the one that would be taken there
    longest = 0.1 * end * math.exp((1 - end**2) / 2)
    budget = min(1000, math.floor((way - end) / longest))
    assert direct(line([way], 2), Descent(budget=budget), [0]).distance[0] >= end - 1e-9


def test_how_near_noise_lets_it_come():
    descent = Descent(noise=0.1, tolerance=1e-6, budget=300)
    ends = direct(line([0.5], DIMENSIONS), descent, range(400)).distance
    root_mean_square = math.sqrt((ends**2).mean())
    assert root_mean_square == pytest.approx(descent.floor(DIMENSIONS), rel=0.035)  # 3 standard errors of 400 seeds


def test_a_seeds_run_is_its_own():
    optima, descent = line([1, 1, 1], 4), Descent(noise=0.1)
    together, alone = curriculum(optima, descent, [3, 4, 5]), curriculum(optima, descent, [4])
    for field in dataclasses.fields(together):
        assert getattr(together, field.name)[1] == getattr(alone, field.name)[0]
    assert len(set(curriculum(optima, descent, SEEDS).steps)) > 5


def test_a_run_is_given_up_at_its_budget():
    optima = line([1, 1, 1], 4)
    whole = curriculum(optima, Descent(), [0])
    cut = curriculum(optima, Descent(budget=int(whole.steps[0]) - 1), [0])
    assert (cut.steps[0], cut.stages[0], cut.reached[0]) == (whole.steps[0] - 1, 2, False)
    assert (whole.stages[0], whole.reached[0]) == (3, True)
    assert cut.distance[0] > 0.05 >= whole.distance[0]


def test_stages_that_are_done_take_no_steps():
    assert curriculum(line([0.02, 0.02], 4), Descent(), [0]).steps[0] == 0
    assert (
        curriculum(line([1, 0, 0, 1], 4), Descent(), [0]).steps[0]
        == curriculum(line([1, 1], 4), Descent(), [0]).steps[0]
    )


@given(st.lists(gaps, min_size=1, max_size=4), st.integers(0, 3), st.floats(1, 2))
def test_farther_and_nearer_take_longer(ways, which, factor):
    farther = [gap * factor if place == which else gap for place, gap in enumerate(ways)]
    steps = curriculum(line(ways, 2), Descent(), [0]).steps[0]
    assert curriculum(line(farther, 2), Descent(), [0]).steps[0] >= steps - len(ways)  # whole steps, in each stage
    assert curriculum(line(ways, 2), Descent(tolerance=0.05 / factor), [0]).steps[0] >= steps - len(ways)


@pytest.mark.parametrize("way", [0.1, 0.5, 1])
@pytest.mark.parametrize("stages", [1, 2, 4])
def test_within_one_basin_both_arrive(way, stages):
    optima = line([way / stages] * stages, DIMENSIONS)
    assert curriculum(optima, Descent(), [0]).reached.all()
    assert direct(optima, Descent(), [0]).reached.all()


@pytest.mark.parametrize(
    "wrong", [{"rate": 0}, {"rate": 1}, {"tolerance": 0}, {"noise": -1}, {"decay": -0.1}, {"budget": -1}]
)
def test_a_descent_that_cannot_work_is_refused(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: .*; give "):
        Descent(**wrong)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match=r"^outside: 'valley' is unknown; choose one of plateau, slope$"):
        direct(line([1], 2), Descent(), [0], outside="valley")


# What the theorem says


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.05])
@pytest.mark.parametrize("way", [6, 8, 12])
def test_far_from_the_start_only_the_curriculum_arrives(way, noise):
    optima, descent = line([1] * way, DIMENSIONS), Descent(noise=noise)
    staged, straight = curriculum(optima, descent, SEEDS), direct(optima, descent, SEEDS)
    assert staged.reached.all()
    assert not straight.reached.any()
    assert straight.distance.min() > way / 2


def chains(seed, low, high, stages=(4,), many=40):
    """Chains of optima in random directions, with gaps between these, their logs uniform."""
    draw = np.random.default_rng(seed)
    for _ in range(many):
        count = int(draw.choice(stages))
        ways = draw.standard_normal((count, DIMENSIONS))
        ways /= np.linalg.norm(ways, axis=1, keepdims=True)
        yield np.cumsum(ways * np.exp(draw.uniform(math.log(low), math.log(high), (count, 1))), axis=0)


def against_the_sum(found, descent, measure=log_distances):
    """The fit of the mean steps to a measure of the chains."""
    steps = [curriculum(optima, descent, range(20)).steps.mean() for optima in found]
    return stats.linregress([measure(optima) for optima in found], steps)


@pytest.mark.parametrize("noise", [0.0, 0.03])
@pytest.mark.parametrize("seed", range(5))
def test_in_the_basins_the_time_grows_with_the_sum_of_log_distances(seed, noise):
    descent = Descent(noise=noise)
    fit = against_the_sum(list(chains(seed, 0.2, 1)), descent)
    assert fit.rvalue**2 > 0.95
    assert fit.slope == pytest.approx(1 / descent.pace, rel=0.1)


# Where it breaks


@pytest.mark.parametrize("seed", range(5))
def test_it_does_not_when_gaps_are_wider_than_the_basins(seed):
    descent = Descent()
    fit = against_the_sum(list(chains(seed, 1, 3)), descent)
    assert fit.rvalue**2 < 0.9
    assert fit.slope > 3 / descent.pace


@pytest.mark.parametrize("seed", range(5))
def test_it_does_not_when_gaps_are_no_longer_than_the_tolerance(seed):
    descent = Descent()
    found = list(chains(seed, 0.01, 0.1))
    assert against_the_sum(found, descent).slope < 0.7 / descent.pace
    assert min(predicted(optima, descent) for optima in found) < 0  # and no run takes less than no time


@pytest.mark.parametrize("seed", range(5))
def test_across_numbers_of_stages_the_sum_needs_the_tolerance_for_its_unit(seed):
    descent, found = Descent(noise=0.03), list(chains(seed, 0.2, 1, stages=(2, 4, 8)))
    assert against_the_sum(found, descent).slope < 0  # more stages: a smaller sum, a longer time
    fit = against_the_sum(found, descent, lambda optima: predicted(optima, descent))
    assert fit.rvalue**2 > 0.95
    assert fit.slope == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_with_a_falling_rate_the_time_grows_with_the_distances_themselves(seed):
    descent, found = Descent(decay=0.1), list(chains(seed, 0.06, 1))
    by_distance = against_the_sum(found, descent, lambda optima: distances(optima).sum())
    assert by_distance.rvalue**2 > 0.99 > 0.9 > against_the_sum(found, descent).rvalue ** 2


def test_a_gap_between_basins_ends_the_curriculum():
    runs = curriculum(line([1, 1, 5, 1, 1], DIMENSIONS), Descent(noise=0.03), SEEDS)
    assert not runs.reached.any()
    assert (runs.stages == 2).all()


def test_so_does_a_wrong_order():
    optima, descent = line([1] * 8, DIMENSIONS), Descent(noise=0.03)
    assert curriculum(optima, descent, SEEDS).reached.all()
    assert not curriculum(optima[[5, 3, 1, 6, 4, 2, 0, 7]], descent, SEEDS).stages.any()


def test_too_much_noise_ends_it_unless_the_rate_falls():
    optima, loud = line([1] * 4, DIMENSIONS), Descent(noise=0.4, budget=10_000)
    assert loud.floor(DIMENSIONS) > 5 * loud.tolerance
    assert not curriculum(optima, loud, SEEDS).reached.any()
    falling = dataclasses.replace(loud, decay=0.1)
    assert curriculum(optima, falling, SEEDS).reached.all()
    assert not direct(line([1] * 8, DIMENSIONS), falling, SEEDS).reached.any()


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_stages_that_nobody_needs_cost_time(noise):
    descent = Descent(noise=noise)
    medians = [np.median(curriculum(line([1 / n] * n, DIMENSIONS), descent, SEEDS).steps) for n in (1, 2, 4, 8)]
    assert medians == sorted(medians)
    assert medians[-1] > 2 * medians[0]
    assert medians[0] == np.median(direct(line([1], DIMENSIONS), descent, SEEDS).steps)


def test_the_best_gaps_are_as_wide_as_basins_and_the_sum_does_not_tell():
    descent = Descent(noise=0.03)
    chosen = {n: line([8 / n] * n, DIMENSIONS) for n in (1, 4, 8, 16, 64)}
    medians = {n: np.median(curriculum(optima, descent, SEEDS).steps) for n, optima in chosen.items()}
    assert medians[1] == descent.budget
    assert medians[4] < medians[8] < medians[16] < medians[64] < descent.budget
    assert log_distances(chosen[4]) > log_distances(chosen[8]) > log_distances(chosen[16]) > log_distances(chosen[64])


def test_in_one_dimension_noise_finds_the_basin_and_in_ten_it_does_not():
    descent = Descent(noise=1, tolerance=0.5, budget=10_000)
    shares = [direct(line([5], dimensions), descent, SEEDS).reached.mean() for dimensions in (1, 3, 10)]
    assert shares[0] > 0.6 > shares[1] > 0.1 > shares[2]
    assert not direct(line([5], 1), dataclasses.replace(descent, noise=0), [0]).reached.any()


@pytest.mark.parametrize("way", [3, 6, 10])
def test_where_a_slope_leads_to_the_basin_direct_training_arrives(way):
    # outside, the squared distance falls by 2 * rate - rate ** 2 / distance ** 2 with each step
    runs = direct(line([way], DIMENSIONS), Descent(), [0], outside="slope")
    inside = -math.log(0.05) / -math.log(0.9)
    assert (way**2 - 1) / 0.2 <= runs.steps[0] <= (way**2 - 1) / 0.19 + inside + 2
    assert runs.reached.all()
    noisy = direct(line([way], DIMENSIONS), Descent(noise=0.05), SEEDS, outside="slope")
    assert noisy.reached.all()
    assert np.median(noisy.steps) == pytest.approx(runs.steps[0], rel=0.1)
