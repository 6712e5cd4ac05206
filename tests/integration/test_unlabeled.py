"""Tiers without an answer key, held against the tiers that the key says."""

import copy
from collections import Counter

import torch

from rl.curriculum import TIERS
from rl.unlabeled import stratify


def test_disagreement_finds_most_of_the_tiers(upstream, policy, rollout):
    """No key is looked at: that of every case is taken away before."""
    blind = copy.deepcopy(upstream)
    for trace in blind:
        trace.answer = trace.tier = None
    torch.manual_seed(0)
    stratify(blind, policy, rollout, 16)
    found = Counter((by_key.tier, guessed.tier) for by_key, guessed in zip(upstream, blind, strict=True))
    assert sum(found[tier, tier] for tier in TIERS) / len(upstream) > 0.7
    hard = sum(count for (tier, _), count in found.items() if tier == "hard")
    assert found["hard", "hard"] / hard > 0.6
    assert found["easy", "hard"] / len(upstream) < 0.15  # where noise hides what the specialists all saw
