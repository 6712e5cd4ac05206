"""Guideline-based advantages (GBA): GRPO over several ways to reason about one case.

MMedExpert-R1 (arXiv 2601.10949) names the idea, a variant of GRPO whose advantages are relative to four clinical
reasoning perspectives (differential, intuitive, analytical, Bayesian), and gives no formula. What follows is ours.

A group is stratified: each of the P perspectives of a case has the same number G of completions, whose prompt asks for
that perspective (`rl.guidelines`), and which are paid for its own checks besides format and accuracy. With rewards
r_pi, mean m_p and standard deviation s_p of perspective p, and m and s of all P * G,

    A_pi = (1 - w) * (r_pi - m_p) / s_p  +  w * (r_pi - m) / s

The first term compares like with like: it does not see that one perspective's checks are easier than another's. The
second is GRPO's over the whole case: what a perspective as a whole does better than the others is made likelier. With
one perspective both are GRPO's advantage, and so is A. For every case the advantages add up to zero. They do not change
where the same number is added to all rewards of a case, nor where these are multiplied by a positive one (but for the
1e-4 that TRL adds to s); and for w = 0 not where a number is added to one perspective's alone.
"""

import dataclasses
from collections.abc import Sequence

import torch
from trl.trainer.utils import nanstd

from mmedagent_graph.answers import split_reasoning
from rl.grading import Grader
from rl.guidelines import Guideline, Name, checks_passed
from rl.traces import Trace

TINY = 1e-4
"""What TRL adds to a standard deviation."""


def across(rewards: torch.Tensor, scale: bool = True) -> torch.Tensor:
    """GRPO's advantage over all completions of a case, whatever their perspectives.

    Args:
        rewards: (cases, P, G); NaN where a completion could not be graded, which then has advantage 0.
        scale: whether they are divided by their standard deviation, as with `scale_rewards` other than `none`.

    Returns:
        (cases, P, G)
    """
    flat = rewards.flatten(1)
    gained = flat - torch.nanmean(flat, dim=1, keepdim=True)
    if scale:
        gained = gained / (nanstd(flat, dim=1, keepdim=True) + TINY)
    return gained.nan_to_num(nan=0.0).view(rewards.shape)


def from_each(traces: Sequence[Trace], perspectives: Sequence[str]) -> list[Trace]:
    """Every prompt once from each perspective, one after the other."""
    return [dataclasses.replace(trace, perspective=name) for trace in traces for name in perspectives]


def checks_of(guideline: Guideline) -> Grader:
    """A grader: the share of its perspective's checks that a reasoning passes.

    None where a completion has no perspective, or none of its checks is for such a question.
    """

    def checks(trace: Trace) -> float | None:
        if trace.text is None or trace.perspective is None:
            return None
        named: Name = trace.perspective  # type: ignore[assignment]
        passed = checks_passed(split_reasoning(trace.text), trace.options, guideline.perspectives[named])
        return sum(passed.values()) / len(passed) if passed else None

    return checks
