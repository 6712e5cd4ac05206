"""The curriculum: how hard a case is by what its specialists said, and what each stage trains on.

    s = Acc(y_d, y*) over the opinions:  easy s = 1,  medium 0 < s < 1,  hard s = 0      (MMedAgent-RL, section 3)

A stage is one GRPO run with its own cases and KL weight, warm-started from the one before. Its entropy weight gamma
belongs to each sample: by the tier of its case, or the same for the whole stage. Where a stage holds cases of one tier
only, as in the paper, that is the same thing; where tiers are mixed, it tells the order of the stages and the growth
of gamma apart.
"""

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from mmedagent_graph.answers import same_text
from mmedagent_graph.state import Opinion
from rl.traces import Trace, is_right

TIERS = ("easy", "medium", "hard")
MIXED = "mixed"
"""A stage that takes the cases as they come, whatever their tiers."""
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "rise": lambda done: done,
    "fall": lambda done: 1.0 - done,
}
"""How the entropy weight goes within a stage: the factor on gamma when a share `done` (0 to 1) of its steps is done."""


def tier_of(opinions: Sequence[Opinion], key: str) -> str:
    """The tier of a case. A failed or unparsed opinion is not right; a case without any opinion is hard."""
    right = sum(is_right(opinion["answer"], key) for opinion in opinions)
    if right == 0:
        return "hard"
    return "easy" if right == len(opinions) else "medium"


def tier_without_key(opinions: Sequence[Opinion], unadvised: Sequence[str | None]) -> str:
    """The tier of a case that has no answer key: how far the policy, asked alone, bears its specialists out.

    The key in `s = Acc(y_d, y*)` is replaced by what the policy itself believes before it hears anybody: s is then the
    chance that an opinion and a sample agree, and is rounded to the nearest count of right opinions. Specialists who
    disagree, or a policy that is unsure (its samples differ), make a case medium; a sure policy that all specialists
    contradict makes it hard. This is ours: the paper has no tiers without labels.

    Args:
        opinions: the specialists' opinions; failed or unparsed ones agree with nobody.
        unadvised: the policy's own answers to the case without any opinion, sampled several times.
    """
    if not opinions or not unadvised:
        return "medium"
    pairs = [(opinion["answer"], own) for opinion in opinions for own in unadvised]
    share = sum(said is not None and own is not None and same_text(said, own) for said, own in pairs) / len(pairs)
    half = 0.5 / len(opinions)  # as far from the next count as from this one
    return "easy" if share > 1 - half else "hard" if share < half else "medium"


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
    """Shares of the tiers among the attending's prompts; empty: the cases as they come."""
    nodes: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"attending": 1.0})
    """The nodes that are trained, each with its share of the prompts."""
    gammas: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Entropy weight of a sample, by the tier of its case, or `triage` or `specialist`."""
    schedule: str = "constant"
    """How the entropy weight goes within the stage, one of `SCHEDULES`."""
    rate_scale: float = 1.0
    """What the run's learning rate is multiplied by."""

    def weight(self, node: str) -> float:
        """What an advantage of this node counts: all nodes weigh the same, whatever their shares of the prompts."""
        return sum(self.nodes.values()) / (len(self.nodes) * self.nodes[node])

    def gamma(self, trace: Trace, done: float) -> float:
        """The entropy weight of a sample when a share `done` (0 to 1) of the stage's steps is done."""
        return self.gammas[trace.kind] * SCHEDULES[self.schedule](done)


def draw_prompts(upstream: Mapping[str, Sequence[Trace]], stage: Stage, prompts: int, seed: int) -> list[Trace]:
    """The stage's prompts in training order: nodes, and tiers of the attending's, mixed evenly in the stage's shares.

    Within a node and tier every case comes once before any comes again. A tier without any case gives its share to the
    others.

    Args:
        upstream: for each of the stage's nodes, the traces that pause there.
        stage: the stage.
        prompts: how many to draw.
        seed: of the order.

    Raises:
        ValueError: if a node has no case that the stage trains on.
    """
    rng = np.random.default_rng(seed)
    draws = {node: _draw(upstream[node], stage, node, rng) for node in stage.nodes}
    return [next(draws[node]) for node in itertools.islice(_interleaved(stage.nodes), prompts)]


def _draw(traces: Sequence[Trace], stage: Stage, node: str, rng: np.random.Generator) -> Iterator[Trace]:
    """Traces of one node without end."""
    by_tier: dict[str, list[Trace]] = defaultdict(list)
    shares: Mapping[str, float] = stage.shares if node == "attending" else {}
    for trace in traces:
        by_tier[str(trace.tier) if shares else MIXED].append(trace)
    present = {tier: share for tier, share in (shares or {MIXED: 1.0}).items() if share > 0 and by_tier[tier]}
    if not present:
        have = ", ".join(f"{tier}: {len(by_tier[tier])}" for tier in TIERS)
        raise ValueError(f"stage {stage.name}: no case of the tiers it trains on ({have})")
    decks = {tier: _deck(by_tier[tier], rng) for tier in present}
    return (next(decks[tier]) for tier in _interleaved(present))


def _deck(traces: Sequence[Trace], rng: np.random.Generator) -> Iterator[Trace]:
    """The traces in a random order, then in another, without end."""
    while True:
        yield from (traces[i] for i in rng.permutation(len(traces)))


def _interleaved(shares: Mapping[str, float]) -> Iterator[str]:
    """The keys without end, each as often as its share says, as evenly spread as can be."""
    taken, total = dict.fromkeys(shares, 0), sum(shares.values())
    for drawn in itertools.count(1):  # not summed up: rounding errors would decide between equal shares
        key = max(shares, key=lambda key: shares[key] * drawn - total * taken[key])
        taken[key] += 1
        yield key


def count_tiers(traces: Sequence[Trace]) -> dict[str, int]:
    """How many cases of each tier there are."""
    found = Counter(trace.tier for trace in traces)
    return {tier: found[tier] for tier in TIERS}
