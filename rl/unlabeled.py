"""Tiers of cases that have no answer key: the policy is asked alone, several times, before it hears anybody."""

import dataclasses
from collections.abc import Sequence

from tqdm import tqdm

from mmedagent_graph.nodes import Attending
from rl.curriculum import tier_without_key
from rl.policy import PolicyChatModel
from rl.rollout import Rollout
from rl.traces import Trace

SAMPLES = 8
"""How often the policy is asked alone."""


def stratify(traces: Sequence[Trace], policy: PolicyChatModel, rollout: Rollout, max_tokens: int | None) -> None:
    """Set each trace's tier from its opinions and the policy's own, unadvised answers; no key is looked at.

    Args:
        traces: upstream traces that pause before the attending.
        policy: the attending that will be trained.
        rollout: what renders its prompts.
        max_tokens: as in training; None: as many as the policy likes.
    """
    node = Attending(rollout.images)
    sampler = policy.model_copy(update={"temperature": 1.0, "max_tokens": max_tokens})
    each = max(1, sampler.max_batch // SAMPLES)
    for start in tqdm(range(0, len(traces), each), "tiers", unit="batch"):
        batch = [dataclasses.replace(trace, opinions=[]) for trace in traces[start : start + each]]
        asked = [trace for trace in batch for _ in range(SAMPLES)]
        said = sampler.answer([rollout.prompt(trace) for trace in asked])
        answers = [
            node.read(str(m.text), trace.given())["decision"]["answer"] for m, trace in zip(said, asked, strict=True)
        ]
        for i, trace in enumerate(traces[start : start + each]):
            trace.tier = tier_without_key(trace.opinions, answers[i * SAMPLES : (i + 1) * SAMPLES])
