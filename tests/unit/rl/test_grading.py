"""Graders and their weighted sum: what is paid for, what cannot be graded, and whose graders they are."""

import asyncio
import math
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mmedagent_graph.nodes import Attending, Triage
from mmedagent_graph.prompts import SPECIALTIES
from rl.grading import CONCURRENCY, GRADERS, MADE, NEEDS, PAPER, Grading, f1, overlong_of

THOUGHT = "<think>a ring</think>"


@pytest.fixture
def rewards(images, trace):
    """What the paper's graders give a completion of the attending, decided by its own reader."""

    async def of(text, **fields):
        done = trace(text=text, **fields)
        done.decision = Attending(images).read(text, done.given())["decision"]
        graded = await Grading.parse(PAPER["attending"]).grade(done)
        assert graded is done
        assert graded.reward == 0.5 * graded.rewards["format"] + graded.rewards["accuracy"]
        return graded.rewards["format"], graded.rewards["accuracy"]

    return of


def graded(entries, trace, **made):
    return asyncio.run(Grading.parse(entries, made).grade(trace))


# The paper's graders


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (THOUGHT + "<answer>B</answer>", (1, 1)),
        (THOUGHT + "<answer>cyst</answer>", (1, 1)),
        (THOUGHT + "\n<answer>\nB\n</answer>\n", (1, 1)),
        ("<think>a\nring\n\n</think>\n\n<answer>\n\n cyst\n</answer>", (1, 1)),
        (THOUGHT + "<answer>A</answer>", (1, 0)),
        (THOUGHT + "<answer>A or B</answer>", (1, 0)),
        (THOUGHT + "<answer>cystic</answer>", (1, 0)),
        ("<answer>B</answer>", (0, 1)),
        ("B", (0, 1)),
        (THOUGHT + "<answer>B</answer> I am sure.", (0, 1)),
        (THOUGHT + "<answer>B", (0, 0)),  # truncated
        (THOUGHT + "<ans", (0, 0)),
        ("<think>B", (0, 0)),
        (THOUGHT + "<answer></answer>", (0, 0)),
        ("<answer>B</answer><answer>A</answer>", (0, 0)),
        ("It could be B, but A is likely too.", (0, 0)),
        ("", (0, 0)),
    ],
)
async def test_rewards_of_a_choice(rewards, text, expected):
    assert await rewards(text) == expected


@pytest.mark.parametrize(
    ("answer", "accuracy"),
    [("Left  Lung.", 1), ("left\nlung", 1), ("lung", 0), ("the left lung", 0), ("left lungs", 0), (" ", 0)],
)
async def test_free_text_must_match_exactly(rewards, answer, accuracy):
    text = f"{THOUGHT}<answer>{answer}</answer>"
    assert await rewards(text, options=[], answer="left lung") == (bool(answer.strip()), accuracy)


@pytest.mark.parametrize(
    ("said", "label", "expected"),
    [
        ("Radiologist", "Radiologist", 1.5),
        ("Radiologist", "radiologist", 1.5),
        ("Surgeon", "Radiologist", 0.5),
        ("Nobody", "Radiologist", 0.5),
        ("Radiologist", None, None),
    ],
)
def test_rewards_of_triage(images, trace, said, label, expected):
    text = f"{THOUGHT}<answer>{said}</answer>"
    referral = Triage(tuple(SPECIALTIES), images).read(text, trace().fields())["referral"]
    done = graded(PAPER["triage"], trace(node="triage", text=text, referral=referral, specialty=label))
    assert done.reward == expected
    assert done.ungraded == ([] if label else ["specialty"])


def test_triage_is_paid_for_what_the_graph_then_decides(trace):
    right, wrong, alone = (
        graded(["outcome"], trace(node="triage", decision=decision)).reward
        for decision in ({"answer": "cyst"}, {"answer": "scar"}, None)
    )
    assert (right, wrong, alone) == (1, 0, None)


# What cannot be graded


UNGRADABLE = {
    "format": {"text": None},
    "accuracy": {"answer": None, "decision": {"answer": "cyst"}},
    "specialty": {"referral": None, "specialty": "Surgeon"},
    "outcome": {"decision": None},
    "token_f1": {"answer": None, "decision": {"answer": "cyst"}},
}


@pytest.mark.parametrize("name", GRADERS)
def test_what_cannot_be_graded_is_none_and_not_zero(trace, name):
    done = graded(["always", name], trace(**UNGRADABLE[name]), always=lambda _: 1)
    assert done.rewards == {"always": 1.0, name: None}
    assert (done.reward, done.ungraded) == (None, [name])


def test_a_grader_that_counts_for_nothing_does_not_spoil_the_reward(trace):
    done = graded(["always=2", "accuracy=0"], trace(answer=None), always=lambda _: 1)
    assert (done.reward, done.ungraded) == (2, ["accuracy"])


def test_for_every_grader_it_is_known_what_it_needs():
    assert set(NEEDS) == set(GRADERS) | set(MADE)


# Token F1


@pytest.mark.parametrize(
    ("answer", "key", "expected"),
    [
        ("left lung", "left lung", 1),
        ("The left lung.", "left lung", 1),
        ("lung, LEFT", "left lung", 1),
        ("lung", "left lung", Fraction(2, 3)),  # precision 1, recall 1/2
        ("left upper lung lobe", "left lung", Fraction(2, 3)),  # precision 1/2, recall 1
        ("lung lung lung", "left lung", Fraction(2, 5)),  # precision 1/3, recall 1/2: a word counts once
        ("x-ray", "x ray", 0),  # SQuAD's script drops the hyphen: "xray"
        ("heart", "left lung", 0),
        ("the", "left lung", 0),
        ("a", "The.", 1),
    ],
)
def test_token_f1(trace, answer, key, expected):
    assert f1(answer, key) == pytest.approx(float(expected))
    assert graded(["token_f1"], trace(answer=key, decision={"answer": answer})).reward == f1(answer, key)


def test_an_answer_that_could_not_be_read_has_no_tokens(trace):
    assert graded(["token_f1"], trace(decision={"answer": None})).reward == 0


words = st.lists(st.sampled_from(["left", "Left", "lung", "node", "the", "a", "10", "mm.", "—"]), max_size=6)


def bag(text):
    kept = (word.lower().strip(".") for word in text.split())
    return sorted(word for word in kept if word not in ("the", "a"))


@given(one=words, other=words, blank=st.sampled_from([" ", "  ", "\n"]))
def test_f1_is_symmetric_and_one_only_for_the_same_bag(one, other, blank):
    a, b = " ".join(one), blank.join(other)
    assert 0 <= f1(a, b) <= 1
    assert f1(a, b) == f1(b, a)
    assert (f1(a, b) == 1) == (bag(a) == bag(b))
    assert (f1(a, b) == 0) == (not set(bag(a)) & set(bag(b)) and bag(a) != bag(b))


# Length


@pytest.mark.parametrize(
    ("length", "penalty"), [(0, 0), (80, 0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1), (101, -1), (None, None)]
)
def test_the_last_fifth_of_a_completion_costs(trace, length, penalty):
    done = trace(completion_ids=None if length is None else [1] * length)
    assert graded(["overlong"], done, overlong=overlong_of(100)).reward == (
        penalty if penalty is None else pytest.approx(penalty)
    )


# Graders of one's own, and weights


@given(
    values=st.lists(st.floats(-5, 5), min_size=1, max_size=4),
    weights=st.lists(st.floats(-5, 5), min_size=4, max_size=4),
    gap=st.none() | st.integers(0, 3),
)
def test_the_reward_is_the_weighted_sum_of_what_counts(values, weights, gap):
    from rl.traces import Trace

    assume(gap is None or gap < len(values))
    given_ = [None if i == gap else value for i, value in enumerate(values)]
    names = [f"g{i}" for i in range(len(values))]
    made = {name: lambda _, value=value: value for name, value in zip(names, given_, strict=True)}
    entries = [f"{name}={weight!r}" for name, weight in zip(names, weights, strict=False)]
    done = graded(entries, Trace("c", "q", [], [], None, None), **made)
    assert list(done.rewards.values()) == given_
    if gap is not None and weights[gap] != 0:
        assert done.reward is None
    else:
        counted = [(w, v) for w, v in zip(weights, given_, strict=False) if v is not None]
        assert done.reward == pytest.approx(math.fsum(w * v for w, v in counted), abs=1e-9)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of somebody's own."""
    (tmp_path / "own_graders.py").write_text(
        "import asyncio\n"
        "def brevity(trace):\n"
        "    return 1 / (1 + len(trace.text))\n"
        "async def slow(trace):\n"
        "    await asyncio.sleep(0)\n"
        "    return 0.25\n"
        "def broken(trace):\n"
        "    raise KeyError('mine')\n"
        "LIMIT = 3\n"
    )
    (tmp_path / "needs_more.py").write_text("import not_installed_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_graders", None)


@pytest.mark.usefixtures("own")
def test_graders_of_ones_own_are_named_by_module_and_function(trace):
    done = graded(["own_graders:brevity=2", "own_graders:slow"], trace(text="abc"))
    assert done.rewards == {"own_graders:brevity": 0.25, "own_graders:slow": 0.25}
    assert done.reward == 0.75


@pytest.mark.usefixtures("own")
def test_an_error_of_ones_own_grader_is_raised(trace):
    with pytest.raises(KeyError, match="mine"):
        graded(["own_graders:broken"], trace())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1", [1.0], 1j], ids=str)
def test_what_is_no_number_is_refused_with_its_grader_and_case(trace, value):
    with pytest.raises(ValueError, match=r"grader 'odd': .* for case 'case-1' is neither a finite number nor None"):
        graded(["odd"], trace(), odd=lambda _: value)


@pytest.mark.parametrize("value", [True, 1, 1.0, np.float32(1), np.int64(1)], ids=lambda value: type(value).__name__)
def test_any_number_will_do(trace, value):
    done = graded(["odd"], trace(), odd=lambda _: value)
    assert (done.reward, type(done.rewards["odd"])) == (1.0, float)


def test_grading_again_replaces_the_rewards(trace):
    done = graded(["accuracy"], trace(rewards={"style": 3.0}, reward=3.0, decision={"answer": "scar"}))
    assert (done.rewards, done.reward) == ({"accuracy": 0.0}, 0.0)


def test_many_are_graded_at_a_time_and_stay_in_order(trace):
    running, most = 0, 0

    async def slow(one):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return int(one.case)

    traces = [trace(case=str(i)) for i in range(2 * CONCURRENCY)]
    done = asyncio.run(Grading.parse(["slow"], {"slow": slow}).grade_all(traces))
    assert [one.reward for one in done] == list(range(2 * CONCURRENCY))
    assert most == CONCURRENCY


# Entries


def test_a_weight_may_be_left_out():
    assert Grading.parse(["format=0.5", "accuracy", "token_f1=-1e-1"]).weights == {
        "format": 0.5,
        "accuracy": 1.0,
        "token_f1": -0.1,
    }


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["acuracy=1"], "'acuracy=1': unknown grader 'acuracy'; graders are format, accuracy, .*module:function"),
        (["judge=1"], "'judge=1' needs a model that judges; graders are format"),
        (["overlong"], "'overlong' needs the longest completion"),
        (["nowhere_at_all:f=1"], "'nowhere_at_all:f=1': no module 'nowhere_at_all'; graders are"),
        (["needs_more:f"], "'needs_more:f': no module 'not_installed_here'"),
        (["own_graders:absent"], "'own_graders:absent': no function 'absent' in 'own_graders'"),
        (["own_graders:LIMIT"], "'own_graders:LIMIT': no function 'LIMIT'"),
        (["own_graders:"], "unknown grader 'own_graders:'"),
        ([":brevity"], "unknown grader ':brevity'"),
        (["=1"], "unknown grader ''"),
        (["format=a"], "'format=a': weight 'a' is not a finite number"),
        (["format="], "'format=': weight '' is not a finite number"),
        (["format=inf"], "weight 'inf' is not"),
        (["format=nan"], "weight 'nan' is not"),
        (["format=0.5", "format=1"], "'format=1': 'format' is there twice"),
        ([], "there are none; give at least one of format, accuracy"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named_when_it_is_read(entries, message):
    with pytest.raises(ValueError, match=f"graders: .*{message}"):
        Grading.parse(entries)
