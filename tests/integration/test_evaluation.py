"""Evaluations that last: `benchmarks/evaluation.py`, with fewer cases."""

import pytest

from benchmarks.evaluation import CALLS, measure

pytestmark = pytest.mark.timeout(300)
CASES = 300


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return measure(tmp_path_factory.mktemp("evaluation"), CASES)


def test_every_call_is_made_once(told):
    assert told["requests"] == told["sharded"] == CALLS * CASES


def test_a_kill_repeats_no_finished_call(told):
    assert CASES // 2 <= told["kept"] < CASES
    assert told["lost"] == 0


def test_the_figures_are_those_of_one_whole_run(told):
    assert told["same"] == {"killed": True, "shards": True}
