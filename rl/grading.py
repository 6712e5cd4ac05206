"""Rewards: graders of a whole trace, and their weighted sum.

    python -m rl.grading regrade runs/latest --graders format=0.5 token_f1=1 --judge openai:gpt-4o

A grader is a function of a trace, sync or async; one of your own is named `module:function`.

Invariant: reward and evaluation read answers with the same strict reader, so a policy cannot be paid for an answer that
the evaluation would not count. A trace that cannot be graded has no reward: it is reported, and never 0.
"""

import asyncio
import dataclasses
import importlib
import inspect
import math
import numbers
import re
import string
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from mmedagent_graph.answers import well_formed
from rl.traces import Trace, is_right

Grader = Callable[[Trace], float | Awaitable[float | None] | None]
"""Returns a number, or None where it cannot grade the trace."""
CONCURRENCY = 64
ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def format(trace: Trace) -> float | None:
    """1 where the completion is `<think>...</think><answer>...</answer>`, else 0 (MMedAgent-RL, section 3)."""
    return None if trace.text is None else float(well_formed(trace.text))


def accuracy(trace: Trace) -> float | None:
    """1 where the decision is the key, by exact match once normalised, else 0 (MMedAgent-RL, section 3).

    None without a key or a decision.
    """
    return None if trace.right is None else float(trace.right)


def specialty(trace: Trace) -> float | None:
    """1 where triage chose the labelled specialty, else 0 (MMedAgent-RL, section 3); None without label or referral."""
    if trace.specialty is None or trace.referral is None:
        return None
    return float(is_right(trace.referral["specialty"], trace.specialty))


def outcome(trace: Trace) -> float | None:
    """`accuracy`, for triage: whether the rest of the graph then decided right (ours, not the paper's).

    None without a key, or where the graph was not run on to a decision.
    """
    return accuracy(trace)


def token_f1(trace: Trace) -> float | None:
    """Token F1 of the decided answer with the key, as SQuAD's script counts it (Rajpurkar et al. 2016, section 6.1).

    0 for an unreadable answer; None without a key or a decision.
    """
    if trace.answer is None or trace.decision is None:
        return None
    return 0.0 if trace.decided is None else f1(trace.decided, trace.answer)


def f1(answer: str, key: str) -> float:
    """F1 of two bags of words, without case, punctuation and articles; of empty bags 1 if both are."""
    said, right = Counter(_words(answer)), Counter(_words(key))
    if not said or not right:
        return float(said == right)
    return 2 * (said & right).total() / (said.total() + right.total())


def _words(text: str) -> list[str]:
    return ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split()


def overlong_of(longest: int) -> Grader:
    """A grader of length: 0, falling to -1 over the last fifth of what is allowed (DAPO, equation 13).

    None where the completion's tokens are not known. DAPO's own numbers are a fifth, too: 4096 of 20480 tokens.

    Args:
        longest: tokens that a completion may have (`max_completion_length`).
    """
    from trl.rewards import get_soft_overlong_punishment

    penalty = get_soft_overlong_punishment(longest, longest // 5)

    def overlong(trace: Trace) -> float | None:
        return None if trace.completion_ids is None else float(penalty([trace.completion_ids])[0])

    return overlong


GRADERS: dict[str, Grader] = {
    "format": format,
    "accuracy": accuracy,
    "specialty": specialty,
    "outcome": outcome,
    "token_f1": token_f1,
}
"""By name. `overlong` and `judge` join them where it is known how long is too long, and who judges."""
MADE = {
    "overlong": "the longest completion that is allowed",
    "judge": "a model that judges",
    "checks": "a guideline, and a prompt that asks for one of its perspectives",
}
PAPER: dict[str, tuple[str, ...]] = {
    "attending": ("format=0.5", "accuracy=1"),
    "triage": ("format=0.5", "specialty=1"),
    "specialist": ("format=0.5", "accuracy=1"),
}
"""The paper's graders of each node that learns, with their weights; a specialist's, which does not learn there, are
those of the attending."""
NEEDS = {
    "format": "a completion",
    "accuracy": "a key and a decision",
    "specialty": "a triage label and a referral",
    "outcome": "a key and a decision",
    "token_f1": "a key and a decision",
    "overlong": "the completion's tokens",
    "judge": "a key, a decision and the judge's verdict",
    "checks": "a perspective, and checks for such a question",
}
KEYED = ("accuracy", "outcome", "token_f1", "judge")
"""Those that cannot grade a case without an answer key."""


@dataclasses.dataclass(frozen=True)
class Grading:
    """Graders with their weights."""

    graders: Mapping[str, Grader]
    weights: Mapping[str, float]
    """Of the same names. 0: the grader's value is kept, and counts for nothing."""

    @classmethod
    def parse(cls, entries: Sequence[str], made: Mapping[str, Grader] | None = None) -> "Grading":
        """The graders that are named, as in `["format=0.5", "accuracy", "my.module:brevity=0.2"]`.

        Args:
            entries: each a name of `GRADERS` or `made`, or `module:function`; with `=weight`, or of weight 1.
            made: further graders by name: `{"judge": judge_of(model), "overlong": overlong_of(512)}`.

        Raises:
            ValueError: naming the entry and what is valid.
        """
        known = {**GRADERS, **(made or {})}
        graders: dict[str, Grader] = {}
        weights: dict[str, float] = {}
        for entry in entries:
            name, equals, weight = entry.partition("=")
            if name in graders:
                raise ValueError(f"graders: {entry!r}: {name!r} is there twice; names must differ")
            graders[name] = _grader(entry, name, known)
            weights[name] = _weight(entry, weight if equals else "1")
        if not graders:
            raise ValueError(f"graders: there are none; give at least one of {', '.join(known)}")
        return cls(graders, weights)

    async def grade(self, trace: Trace) -> Trace:
        """The trace with its rewards filled in; those that it had are gone.

        `reward` is None if a grader that counts could not grade the trace; `trace.ungraded` tells which.

        Raises:
            ValueError: if a grader returns something else than a finite number or None. What a grader raises is raised.
        """
        trace.rewards = {name: await _value(name, grader, trace) for name, grader in self.graders.items()}
        parts = [self._part(name, value) for name, value in trace.rewards.items()]
        trace.reward = None if None in parts else sum(part for part in parts if part is not None)
        return trace

    async def grade_all(self, traces: Iterable[Trace]) -> list[Trace]:
        """Grade many, `CONCURRENCY` at a time; in a script `asyncio.run(grading.grade_all(traces))`."""
        gate = asyncio.Semaphore(CONCURRENCY)

        async def one(trace: Trace) -> Trace:
            async with gate:
                return await self.grade(trace)

        return list(await asyncio.gather(*map(one, traces)))

    def _part(self, name: str, value: float | None) -> float | None:
        """What a grader adds to the reward."""
        weight = self.weights[name]
        if weight == 0:
            return 0.0
        return None if value is None else weight * value


async def _value(name: str, grader: Grader, trace: Trace) -> float | None:
    given: Any = grader(trace)
    value = await given if inspect.isawaitable(given) else given
    if value is None:
        return None
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"grader {name!r}: {value!r} for case {trace.case!r} is neither a finite number nor None")
    return float(value)


def _grader(entry: str, name: str, known: Mapping[str, Grader]) -> Grader:
    """The grader of this name."""
    if name in known:
        return known[name]
    valid = f"graders are {', '.join(known)}, or module:function of your own"
    if name in MADE:
        raise ValueError(f"graders: {entry!r} needs {MADE[name]}; {valid}")
    module, colon, function = name.partition(":")
    if not (colon and module and function):
        raise ValueError(f"graders: {entry!r}: unknown grader {name!r}; {valid}")
    try:
        own = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"graders: {entry!r}: no module {error.name!r}; {valid}") from error
    if not callable(getattr(own, function, None)):
        raise ValueError(f"graders: {entry!r}: no function {function!r} in {module!r}; {valid}")
    grader: Grader = getattr(own, function)
    return grader


def _weight(entry: str, given: str) -> float:
    try:
        weight = float(given)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ValueError(f"graders: {entry!r}: weight {given!r} is not a finite number, as in 'accuracy=0.5'")
    return weight


if __name__ == "__main__":
    from rl.regrade import main

    main()
