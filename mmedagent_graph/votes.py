"""Test-time scaling: how many votes the attending casts, and what they amount to.

The paper takes the majority of samples of the attending (MMedAgent-RL, section 4); how many is not published. Adaptive
voting is ours.

Invariant: the result depends on the votes and the opinions alone, so a tally made again is the same tally.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from mmedagent_graph.answers import same_text
from mmedagent_graph.context import Votes
from mmedagent_graph.state import Decision, Opinion, Vote, VoteCount

Item = TypeVar("Item")
LEAST, MOST = 3, 9
"""The budget of adaptive voting: where the opinions agree, and where they are as divided as they can be."""


def budget(votes: Votes, opinions: Sequence[Opinion]) -> int:
    """At most so many votes are cast.

    Adaptive: 3, 5, 7 or 9, growing with the entropy of the opinions; 9 where there is none to go by. An odd number
    leaves no tie between two answers.
    """
    if votes != "adaptive":
        return votes
    disagreement = entropy(opinions)
    if disagreement is None:
        return MOST
    heard = len(_readable(opinions))
    divided = disagreement / math.log2(heard) if heard > 1 else 0.0
    return LEAST + 2 * round((MOST - LEAST) / 2 * divided)


def outstanding(cast: Sequence[Vote], votes: Votes, opinions: Sequence[Opinion]) -> int:
    """How many votes to cast now; 0: the decision stands.

    A fixed number is cast at once. Adaptive voting casts as many as could settle it, looks, and stops as soon as no
    further votes could change the winner.
    """
    left = max(0, budget(votes, opinions) - len(cast))
    if votes != "adaptive":
        return left
    sizes = sorted((len(group) for group in _groups(cast)), reverse=True)
    lead, second = (*sizes, 0, 0)[:2]
    if lead > second + left:
        return 0
    return min(left, (second + left - lead) // 2 + 1)


def winner(votes: Sequence[Vote], opinions: Sequence[Opinion]) -> Vote | None:
    """The first vote for what most votes want, an answer or a further specialty; None where none is readable."""
    ranked = _ranked(votes, opinions)
    return ranked[0][0] if ranked else None


def decide(votes: Sequence[Vote], opinions: Sequence[Opinion], abstain_below: float | None = None) -> Decision:
    """The decision that the votes amount to.

    The answer with most votes wins; of several, the one that more opinions support; of these, the one that was voted
    for first. Unreadable and failed votes are for nobody, but count in the confidence.

    Args:
        votes: one or more, in the order of their numbers.
        opinions: of the specialists.
        abstain_below: a winner with a smaller share of the votes (0 to 1) is withheld. Default: none is.
    """
    ranked = [group for group in _ranked(votes, opinions) if group[0]["refer"] is None]
    won: Vote | None = ranked[0][0] if ranked else None
    share = len(ranked[0]) / len(votes) if ranked else 0.0
    weak = abstain_below is not None and share < abstain_below
    readable = _readable(opinions)
    answer = None if won is None or weak else won["answer"]
    return Decision(
        answer=answer,
        index=None if won is None or weak else won["index"],
        reasoning=(won or votes[0])["reasoning"],
        agreement=agreement(answer, opinions),
        entropy=entropy(opinions),
        opinions=len(readable),
        votes=len(votes),
        tally=[VoteCount(answer=str(g[0]["answer"]), index=g[0]["index"], votes=len(g)) for g in ranked],
        confidence=share if len(votes) > 1 else None,
        abstained=weak,
        review=None,
    )


def agreement(answer: str | None, opinions: Sequence[Opinion]) -> float | None:
    """Share of the readable opinions that gave this answer, 0 to 1; None without an answer or a readable opinion."""
    readable = _readable(opinions)
    return _support(answer, readable) / len(readable) if readable and answer is not None else None


def entropy(opinions: Sequence[Opinion]) -> float | None:
    """Entropy of the readable opinions' answers, in bits; None where none is readable."""
    readable = _readable(opinions)
    if not readable:
        return None
    groups = _grouped(readable, same_text)
    shares = [len(group) / len(readable) for group in groups]
    return -sum(share * math.log2(share) for share in shares) + 0.0  # no negative zero


def _readable(opinions: Sequence[Opinion]) -> list[str]:
    return [opinion["answer"] for opinion in opinions if opinion["answer"] is not None]


def _support(answer: str | None, readable: Sequence[str]) -> int:
    return sum(answer is not None and same_text(opinion, answer) for opinion in readable)


def _groups(votes: Sequence[Vote]) -> list[list[Vote]]:
    """The readable votes that want the same, in the order in which each was first wanted."""
    return _grouped([vote for vote in votes if vote["answer"] is not None or vote["refer"] is not None], _same)


def _grouped(items: Sequence[Item], same: Callable[[Item, Item], bool]) -> list[list[Item]]:
    groups: list[list[Item]] = []
    for item in items:
        for group in groups:
            if same(group[0], item):
                group.append(item)
                break
        else:
            groups.append([item])
    return groups


def _same(a: Vote, b: Vote) -> bool:
    if a["answer"] is None or b["answer"] is None:
        return a["refer"] == b["refer"] and a["answer"] == b["answer"]
    return same_text(a["answer"], b["answer"]) or a["answer"] == b["answer"]


def _ranked(votes: Sequence[Vote], opinions: Sequence[Opinion]) -> list[list[Vote]]:
    readable = _readable(opinions)  # sorting is stable: groups that are equal in both stay in the order of voting
    return sorted(_groups(votes), key=lambda group: (-len(group), -_support(group[0]["answer"], readable)))
