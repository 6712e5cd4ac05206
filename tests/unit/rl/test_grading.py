"""Rewards: 0.5 for the format, 1.0 for the right decision, read as inference reads it."""

import pytest

from mmedagent_graph.nodes import Attending
from rl.grading import grade, is_right

THOUGHT = "<think>a ring</think>"


@pytest.fixture
def rewards(images, trace):
    """Format and accuracy reward of a completion, decided by the attending's own reader."""

    def of(text, **fields):
        done = trace(text=text, **fields)
        done.decision = Attending(images).read(text, done.given())["decision"]
        graded = grade(done)
        assert graded is done
        return graded.rewards["format"], graded.rewards["accuracy"]

    return of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (THOUGHT + "<answer>B</answer>", (0.5, 1.0)),
        (THOUGHT + "<answer>cyst</answer>", (0.5, 1.0)),
        (THOUGHT + "\n<answer>\nB\n</answer>\n", (0.5, 1.0)),
        ("<think>a\nring\n\n</think>\n\n<answer>\n\n cyst\n</answer>", (0.5, 1.0)),
        (THOUGHT + "<answer>A</answer>", (0.5, 0.0)),
        (THOUGHT + "<answer>A or B</answer>", (0.5, 0.0)),
        (THOUGHT + "<answer>cystic</answer>", (0.5, 0.0)),
        ("<answer>B</answer>", (0.0, 1.0)),
        ("B", (0.0, 1.0)),
        (THOUGHT + "<answer>B</answer> I am sure.", (0.0, 1.0)),
        (THOUGHT + "<answer>B", (0.0, 0.0)),  # truncated
        (THOUGHT + "<ans", (0.0, 0.0)),
        ("<think>B", (0.0, 0.0)),
        (THOUGHT + "<answer></answer>", (0.0, 0.0)),
        ("<answer>B</answer><answer>A</answer>", (0.0, 0.0)),
        ("It could be B, but A is likely too.", (0.0, 0.0)),
        ("", (0.0, 0.0)),
    ],
)
def test_rewards_of_a_choice(rewards, text, expected):
    assert rewards(text) == expected


@pytest.mark.parametrize(
    ("answer", "accuracy"),
    [("Left  Lung.", 1.0), ("left\nlung", 1.0), ("lung", 0.0), ("the left lung", 0.0), ("left lungs", 0.0), (" ", 0.0)],
)
def test_free_text_must_match_exactly(rewards, answer, accuracy):
    text = f"{THOUGHT}<answer>{answer}</answer>"
    assert rewards(text, options=[], answer="left lung") == (0.5 if answer.strip() else 0.0, accuracy)


def test_a_trace_without_completion_and_decision_earns_nothing(trace):
    assert grade(trace()).rewards == {"format": 0.0, "accuracy": 0.0}


def test_grading_again_replaces_the_rewards(trace):
    done = trace(text="B", rewards={"accuracy": 1.0, "style": 3.0})
    assert grade(done).rewards == {"format": 0.0, "accuracy": 0.0}


@pytest.mark.parametrize(
    ("answer", "right"), [("cyst", True), ("CYST.", True), (None, False), ("", False), ("cys", False)]
)
def test_is_right(answer, right):
    assert is_right(answer, "cyst") is right


def test_nothing_is_right_where_the_key_is_blank():
    assert not is_right("", "")
