"""Rewards of a whole trace: format 0.5 and accuracy 1.0 (MMedAgent-RL, section 3).

Invariant: reward and evaluation read answers with the same strict reader, so a policy cannot be paid for an answer that
the evaluation would not count.
"""

from mmedagent_graph.answers import same_text, well_formed
from rl.traces import Trace

FORMAT_REWARD = 0.5
ACCURACY_REWARD = 1.0


def is_right(answer: str | None, key: str) -> bool:
    """Whether an answer, as the reader gave it, is the key: the same text after normalisation (exact match)."""
    return answer is not None and same_text(answer, key)


def format_reward(trace: Trace) -> float:
    """0.5 where the learnable node's completion is `<think>...</think><answer>...</answer>`, else 0."""
    return FORMAT_REWARD if trace.text is not None and well_formed(trace.text) else 0.0


def accuracy_reward(trace: Trace) -> float:
    """1 where the consultation's decision is right, else 0."""
    return ACCURACY_REWARD if trace.decision is not None and is_right(trace.decision["answer"], trace.answer) else 0.0


def grade(trace: Trace) -> Trace:
    """The trace with its rewards filled in."""
    trace.rewards = {"format": format_reward(trace), "accuracy": accuracy_reward(trace)}
    return trace
