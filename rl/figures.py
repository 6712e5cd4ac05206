"""What an evaluation says of a system: figures of finished consultations, each with its interval.

    figures([outcome_of(trace) for trace in read_traces("runs/latest")])

Cases without an answer key are left out. Intervals are by bootstrap over images, since questions about one image stand
and fall together. The specialists' majority is the answer that most readable opinions give; where two are equally
frequent there is none, and the figures that ask for it leave the case out.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mmedagent_graph.answers import same_text
from mmedagent_graph.state import Opinion
from mmedagent_graph.votes import entropy
from rl.curriculum import TIERS
from rl.prices import Prices, dollars_of
from rl.statistics import calibration, digest, risk_coverage, share, threshold
from rl.traces import Trace, is_right

RISK = 0.1
"""Of the answers that are given where a system may abstain, so many may be wrong."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What figures need to know of a consultation, and no word of the case."""

    case: str
    image: str
    """Cases with the same images are one cluster; a case without any is one of its own."""
    right: bool
    readable: bool
    """Whether an answer could be read, also if it was withheld."""
    abstained: bool
    """Whether it was withheld (`abstain_below`): then it is not right."""
    tier: str | None
    majority: bool | None
    """Whether the specialists' majority is right; None without one."""
    conformed: bool
    """Whether the decision is that majority."""
    minority: bool
    """Whether some specialist is right, though the majority is not."""
    entropy: float | None
    """Of the opinions, in bits."""
    doctors: Mapping[int, bool]
    """Of each specialist, by number: whether its opinion is right."""
    specialty: str | None
    """The triage label."""
    triaged: bool
    """Whether anybody was asked whom to refer to."""
    referred: str | None
    """Whom triage named; None where that could not be read, or nobody was asked."""
    confidence: float | None
    """The winner's share of several votes."""
    favoured: bool
    """Whether the votes' winner is right, also where it was withheld."""
    groups: Mapping[str, str]
    calls: int
    """Of models, with those that a cache has spared."""
    input_tokens: int
    output_tokens: int
    seconds: float
    """Of all calls together, whether or not they ran at the same time."""
    dollars: float | None
    """None where a model's price is not known."""


def outcome_of(trace: Trace, prices: Prices | None = None) -> Outcome:
    """The outcome of a finished consultation on a case with a key.

    Raises:
        ValueError: if it has no key.
    """
    if trace.answer is None:
        raise ValueError(f"case {trace.case!r} has no answer key, by which it could be right or wrong")
    answer = trace.decided
    abstained = bool(trace.decision and trace.decision["abstained"])
    tally = trace.decision["tally"] if trace.decision else []
    referred = trace.referral["specialty"] if trace.referral else None
    favourite = majority(trace.opinions)
    best = None if favourite is None else is_right(favourite, trace.answer)
    some = any(is_right(opinion["answer"], trace.answer) for opinion in trace.opinions)
    return Outcome(
        case=trace.case,
        image=cluster_of(trace),
        right=is_right(answer, trace.answer),
        readable=answer is not None or bool(tally),
        abstained=abstained,
        tier=trace.tier,
        majority=best,
        conformed=favourite is not None and answer is not None and same_text(answer, favourite),
        minority=best is False and some,
        entropy=entropy(trace.opinions),
        doctors={one["doctor"]: is_right(one["answer"], trace.answer) for one in trace.opinions},
        specialty=trace.specialty,
        triaged=referred is not None or any(call.node == "triage" for call in trace.calls),
        referred=referred,
        confidence=trace.decision["confidence"] if trace.decision else None,
        favoured=is_right(tally[0]["answer"] if tally else answer, trace.answer),
        groups=trace.groups,
        calls=len(trace.calls),
        input_tokens=sum(call.input_tokens or 0 for call in trace.calls),
        output_tokens=sum(call.output_tokens or 0 for call in trace.calls),
        seconds=sum(call.seconds or 0.0 for call in trace.calls),
        dollars=dollars_of(trace.calls, prices),
    )


def cluster_of(trace: Trace) -> str:
    """What cases about the same images have in common; a case without any is alone."""
    return " ".join(sorted(trace.images)) or trace.case


def majority(opinions: Sequence[Opinion]) -> str | None:
    """The answer that most readable opinions give; None where there is none, or two are equally frequent."""
    said = [opinion["answer"] for opinion in opinions if opinion["answer"] is not None]
    counts = [(sum(same_text(one, other) for other in said), one) for one in said]
    most = max((count for count, _ in counts), default=0)
    first = [one for count, one in counts if count == most]
    return first[0] if first and all(same_text(first[0], other) for other in first) else None


def figures(outcomes: Sequence[Outcome], by: Iterable[str] = (), seed: int = 0) -> dict[str, Any]:
    """All figures of a system on some cases, as plain JSON.

    Args:
        outcomes: one for each case.
        by: also the accuracy in each group of these names, such as `modality` (`LabeledCase.groups`).
        seed: of the bootstrap.
    """

    def of(top: Callable[[Outcome], float], about: Callable[[Outcome], bool] = lambda _: True) -> dict[str, Any]:
        among = [outcome for outcome in outcomes if about(outcome)]
        clusters = [outcome.image for outcome in among]
        return dataclasses.asdict(share([float(top(outcome)) for outcome in among], clusters, seed=seed))

    def right(outcome: Outcome) -> bool:
        return outcome.right

    def heard(doctor: int, about: Callable[[Outcome], bool] = lambda _: True) -> dict[str, Any]:
        return of(lambda outcome: outcome.doctors[doctor], lambda outcome: doctor in outcome.doctors and about(outcome))

    doctors = sorted({doctor for outcome in outcomes for doctor in outcome.doctors})

    def split(name: Callable[[Outcome], str | None], order: Sequence[str] = ()) -> dict[str, Any]:
        def accuracy(known: str) -> dict[str, Any]:
            return of(right, lambda outcome: name(outcome) == known)

        found = {known for outcome in outcomes if (known := name(outcome)) is not None}
        return {known: accuracy(known) for known in [known for known in order if known in found] or sorted(found)}

    def grouped(name: str) -> dict[str, Any]:
        return split(lambda outcome: outcome.groups.get(name))

    return {
        "accuracy": of(right),
        "unparsed": of(lambda outcome: not outcome.readable),
        "abstained": of(lambda outcome: outcome.abstained),
        "by": {
            "tier": split(lambda outcome: outcome.tier, TIERS),
            "specialty": split(lambda outcome: outcome.specialty),
            **{name: grouped(name) for name in by},
        },
        "attending": {
            "majority": of(lambda outcome: bool(outcome.majority), lambda outcome: outcome.majority is not None),
            "right_to_wrong": of(lambda outcome: not outcome.right, lambda outcome: outcome.majority is True),
            "wrong_to_right": of(right, lambda outcome: outcome.majority is False),
            "conformity": of(lambda outcome: outcome.conformed, lambda outcome: outcome.majority is not None),
            "conformity_when_wrong": of(lambda outcome: outcome.conformed, lambda outcome: outcome.majority is False),
            "minority_suppression": of(lambda outcome: not outcome.right, lambda outcome: outcome.minority),
        },
        "specialists": {str(doctor): heard(doctor) for doctor in doctors},
        "best_specialist": _best(outcomes, doctors, heard),
        "triage": _triage(outcomes, of),
        "confidence": _confidence(outcomes),
        "cost": _cost(outcomes),
    }


def _best(
    outcomes: Sequence[Outcome], doctors: Sequence[int], heard: Callable[..., dict[str, Any]]
) -> dict[str, Any] | None:
    """The best single specialist: who it is by one half of the images, how good it is by the other.

    The best by all of them, measured on the same cases, would look better than it is.
    """
    chosen = {doctor: heard(doctor, lambda outcome: _half(outcome) == 0)["value"] for doctor in doctors}
    known = {doctor: value for doctor, value in chosen.items() if value is not None}
    if not known:
        return None
    best = max(known, key=lambda doctor: known[doctor])
    return {"doctor": str(best), **heard(best, lambda outcome: _half(outcome) == 1)}


def _half(outcome: Outcome) -> int:
    """In which half of the images a case is: what is chosen on one is measured on the other."""
    return digest(outcome.image)[0] % 2


def _triage(outcomes: Sequence[Outcome], of: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Triage's accuracy by the labels, and whom it referred the cases of each label to."""
    confusion: dict[str, dict[str, int]] = {}
    for outcome in outcomes:
        if outcome.specialty is not None and outcome.triaged:
            row = confusion.setdefault(outcome.specialty, {})
            row[outcome.referred or "unread"] = row.get(outcome.referred or "unread", 0) + 1
    return {
        "accuracy": of(
            lambda outcome: outcome.referred == outcome.specialty,
            lambda outcome: outcome.specialty is not None and outcome.triaged,
        ),
        "confusion": {label: dict(sorted(row.items())) for label, row in sorted(confusion.items())},
    }


def _confidence(outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    """Calibration, and risk against coverage, of the votes' shares; None where nobody voted more than once.

    They are of the votes' winner, also where it was withheld: they say where withholding would pay.
    """
    told = [outcome for outcome in outcomes if outcome.confidence is not None]
    if not told:
        return None
    sure, right = _sureness(told)
    return {
        **dataclasses.asdict(calibration(sure, right)),
        "risk_coverage": risk_coverage(sure, right),
        "abstention": _abstention(told),
        "n": len(told),
    }


def _abstention(told: Sequence[Outcome]) -> dict[str, float | None] | None:
    """Where to abstain: from which confidence on at most `RISK` of the answers are wrong, by half of the images.

    With what that comes to on the other half: the share that is answered, and that of wrong answers among these. None
    where no confidence is high enough.
    """
    halves: tuple[list[Outcome], list[Outcome]] = [], []
    for outcome in told:
        halves[_half(outcome)].append(outcome)
    least = threshold(*_sureness(halves[0]), RISK) if halves[0] else None
    if least is None or not halves[1]:
        return None
    answered = [outcome for outcome in halves[1] if (outcome.confidence or 0.0) >= least]
    wrong = sum(not outcome.favoured for outcome in answered) / len(answered) if answered else None
    return {"threshold": least, "coverage": len(answered) / len(halves[1]), "risk": wrong}


def _sureness(told: Sequence[Outcome]) -> tuple[list[float], list[bool]]:
    return [outcome.confidence or 0.0 for outcome in told], [outcome.favoured for outcome in told]


def _cost(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Means for each case: calls, tokens, seconds of all calls together, dollars (None: a price is not known)."""

    def mean(values: Sequence[float]) -> float | None:
        return sum(values) / len(values) if values else None

    dollars = [outcome.dollars for outcome in outcomes]
    return {
        "calls": mean([outcome.calls for outcome in outcomes]),
        "input_tokens": mean([outcome.input_tokens for outcome in outcomes]),
        "output_tokens": mean([outcome.output_tokens for outcome in outcomes]),
        "seconds": mean([outcome.seconds for outcome in outcomes]),
        "dollars": None if None in dollars else mean([spent for spent in dollars if spent is not None]),
    }
