"""The curriculum: how hard a case is by what its specialists said, and what each stage trains on.

    s = Acc(y_d, y*) over the opinions:  easy s = 1,  medium 0 < s < 1,  hard s = 0      (MMedAgent-RL, section 3)

A stage is one GRPO run with its own cases and KL weight, warm-started from the one before. The entropy weight gamma
belongs to a *case's* tier: where a stage holds cases of one tier only, as in the paper, that is the paper's gamma of
the stage; where earlier tiers are rehearsed, they keep their own.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from mmedagent_graph.state import Opinion
from rl.grading import is_right
from rl.traces import Trace

TIERS = ("easy", "medium", "hard")


def tier_of(opinions: Sequence[Opinion], key: str) -> str:
    """The tier of a case. A failed or unparsed opinion is not right; a case without any opinion is hard."""
    right = sum(is_right(opinion["answer"], key) for opinion in opinions)
    if right == 0:
        return "hard"
    return "easy" if right == len(opinions) else "medium"


@dataclasses.dataclass(frozen=True)
class Stage:
    """One GRPO run."""

    name: str
    """Its place and main tier, such as `1-easy`."""
    steps: int
    """Optimizer steps."""
    beta: float
    """Weight of the KL term against the stage's first policy."""
    shares: Mapping[str, float]
    """Shares of the tiers among the stage's prompts."""


def draw_cases(traces: Sequence[Trace], stage: Stage, prompts: int, seed: int) -> list[Trace]:
    """The stage's cases in training order: `prompts` of them, tiers mixed evenly in the stage's shares.

    Within a tier every case comes once before any comes again. A tier without any case gives its share to the others.

    Raises:
        ValueError: if no case has a tier that the stage trains on.
    """
    by_tier: dict[str, list[Trace]] = defaultdict(list)
    for trace in traces:
        by_tier[str(trace.tier)].append(trace)
    shares = {tier: share for tier, share in stage.shares.items() if share > 0 and by_tier[tier]}
    if not shares:
        have = ", ".join(f"{tier}: {len(by_tier[tier])}" for tier in TIERS)
        raise ValueError(f"stage {stage.name}: no case of the tiers it trains on ({have})")
    rng = np.random.default_rng(seed)
    decks: Mapping[str, list[Trace]] = {tier: [] for tier in shares}
    chosen, owed = [], dict.fromkeys(shares, 0.0)
    for _ in range(prompts):
        for tier, share in shares.items():
            owed[tier] += share / sum(shares.values())
        tier = max(owed, key=owed.__getitem__)
        owed[tier] -= 1
        if not decks[tier]:
            decks[tier].extend(by_tier[tier][i] for i in rng.permutation(len(by_tier[tier])))
        chosen.append(decks[tier].pop())
    return chosen
