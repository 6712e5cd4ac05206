"""Statistics of evaluation: intervals that know that questions about one image are not independent, and paired tests.

Shares are of 1, p-values two-sided, intervals at 95 %. Nothing here knows of consultations.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

CONFIDENCE = 0.95
DRAWS = 2000
"""Bootstrap resamples."""
ROOM = 1_000_000
"""At most so many weights of resamples are held at a time."""
Numbers = npt.NDArray[np.float64]


def digest(name: str) -> bytes:
    """Bytes to draw something by that look random and are the name's own, in every process and on every machine.

    Half of a surrogate pair, which UTF-8 does not have, may be in the name.
    """
    return hashlib.sha256(name.encode("utf-8", "backslashreplace")).digest()


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure with its interval."""

    value: float | None
    """None where there is nothing to measure it on."""
    low: float | None
    high: float | None
    n: int
    """How many cases it is of."""


NOTHING = Figure(None, None, None, 0)


def share(
    top: Sequence[float], clusters: Sequence[Any], bottom: Sequence[float] | None = None, seed: int = 0
) -> Figure:
    """A ratio of sums over cases, such as accuracy, with its interval by bootstrap over clusters.

    Whole clusters (the questions about one image) are drawn with replacement, and the 2.5 % and 97.5 % quantiles of the
    resampled ratios are the interval (percentile bootstrap; Cameron, Gelbach and Miller, 2008). Where all clusters have
    the same ratio, resampling says nothing: the interval is then Wilson's, for as many cases as there are clusters.

    Args:
        top: a value for each case, such as 1 where it is right.
        clusters: the name of each case's cluster.
        bottom: what each case counts, such as 0 for one that the figure is not about. Default: 1 each.
        seed: of the draws.
    """
    return _bootstrap(top, clusters, bottom, seed, lambda value, n: wilson(round(value * n), n))


def difference(gains: Sequence[float], clusters: Sequence[Any], seed: int = 0) -> Figure:
    """The mean of paired differences, each from -1 to 1, with its interval by bootstrap over clusters.

    Where all clusters have the same difference, the interval is as far around it as Wilson's goes from 0 where none of
    as many cases is right: so many may differ unseen.
    """

    def around(value: float, n: int) -> tuple[float, float]:
        unseen = wilson(0, n)[1]
        return max(-1.0, value - unseen), min(1.0, value + unseen)

    return _bootstrap(gains, clusters, None, seed, around)


def _bootstrap(
    top: Sequence[float],
    clusters: Sequence[Any],
    bottom: Sequence[float] | None,
    seed: int,
    where_all_are_equal: Callable[[float, int], tuple[float, float]],
) -> Figure:
    of = np.ones(len(top)) if bottom is None else np.asarray(bottom, dtype=float)
    n = int(np.count_nonzero(of))
    if n == 0:
        return NOTHING
    names, places = np.unique(np.asarray([repr(name) for name in clusters]), return_inverse=True)
    tops = np.bincount(places, weights=np.asarray(top, dtype=float) * (of != 0), minlength=len(names))
    ofs = np.bincount(places, weights=of, minlength=len(names))
    tops, ofs = tops[ofs != 0], ofs[ofs != 0]
    value = float(tops.sum() / ofs.sum())
    each = tops / ofs
    if np.allclose(each, each[0]):
        return Figure(value, *where_all_are_equal(value, len(ofs)), n)
    ratios = _resampled(tops, ofs, seed)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Figure(value, float(low), float(high), n)


def _resampled(tops: Numbers, ofs: Numbers, seed: int) -> Numbers:
    """The ratios of the resamples, some at a time: their weights may be many."""
    draw, many = np.random.default_rng(seed), len(ofs)
    ratios: list[Numbers] = []
    at_once = max(1, ROOM // many)
    for start in range(0, DRAWS, at_once):
        weights = draw.multinomial(many, np.full(many, 1 / many), size=min(at_once, DRAWS - start))
        ratios.append((weights @ tops) / (weights @ ofs))
    return np.concatenate(ratios)


def wilson(right: int, n: int) -> tuple[float, float]:
    """The Wilson score interval of a share."""
    interval = stats.binomtest(right, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two systems on the same cases."""

    difference: Figure
    """Accuracy of the first minus that of the second."""
    only_first: int
    """Cases that the first alone has right."""
    only_second: int
    p: float
    """McNemar's exact test: that the two are equally often the only one that is right."""


def compare(first: Sequence[bool], second: Sequence[bool], clusters: Sequence[Any], seed: int = 0) -> Comparison:
    """Two systems on the same cases, paired: the bootstrap over clusters, and McNemar's exact test.

    McNemar's test takes cases for independent, which the bootstrap does not: where they disagree, believe the interval.
    """
    pairs = list(zip(first, second, strict=True))
    ahead, behind = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    p = float(stats.binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0
    return Comparison(difference([float(a) - float(b) for a, b in pairs], clusters, seed), ahead, behind, p)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How well confidence tells what is right."""

    ece: float
    """Expected calibration error, in bins of equal width (Guo et al., 2017)."""
    brier: float
    """Mean squared distance of the confidence from 1 where it is right, and from 0 where it is not."""
    bins: list[tuple[float, float, int]]
    """Of each bin that is not empty: mean confidence, accuracy, number of cases."""


def calibration(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> Calibration:
    """Expected calibration error and Brier score of one case or more."""
    sure, hits = np.asarray(confidence, dtype=float), np.asarray(right, dtype=float)
    places = np.minimum((sure * bins).astype(int), bins - 1)
    told = [
        (float(sure[among].mean()), float(hits[among].mean()), int(among.sum()))
        for place in range(bins)
        if (among := places == place).any()
    ]
    return Calibration(calibration_error(told), float(((sure - hits) ** 2).mean()), told)


def calibration_error(bins: Sequence[tuple[float, float, int]]) -> float:
    """The expected calibration error of bins as in `Calibration`."""
    return sum(n * abs(sure - right) for sure, right, n in bins) / sum(n for *_, n in bins)


def risk_coverage(confidence: Sequence[float], right: Sequence[bool]) -> list[tuple[float, float, float]]:
    """What is wrong among the surest cases: threshold, share that is kept, share of these that is wrong.

    One point for each confidence that occurs, the highest first; cases of equal confidence are kept or left together
    (El-Yaniv and Wiener, 2010).
    """
    points, kept, wrong = [], 0, 0
    by_confidence: dict[float, list[bool]] = {}
    for sure, hit in zip(confidence, right, strict=True):
        by_confidence.setdefault(sure, []).append(hit)
    for sure in sorted(by_confidence, reverse=True):
        kept += len(by_confidence[sure])
        wrong += sum(not hit for hit in by_confidence[sure])
        points.append((sure, kept / len(confidence), wrong / kept))
    return points


def threshold(confidence: Sequence[float], right: Sequence[bool], risk: float) -> float | None:
    """The lowest confidence from which on at most `risk` of the answers are wrong; None if there is none.

    Choose it on other cases than those that it is measured on.
    """
    good = [sure for sure, _, wrong in risk_coverage(confidence, right) if wrong <= risk]
    return min(good) if good else None


def over_seeds(values: Sequence[float], within: Sequence[Figure] | None = None) -> Figure:
    """The mean over seeds, with its interval by Student's t; of one seed, the value alone.

    Seeds that were measured on the same cases differ by their runs alone, and their spread says nothing of other cases:
    of a system that answers always the same it is none. What the cases add is in each seed's own interval, and does not
    become less with more seeds. So the half of the interval is the root of t's half squared and the mean of theirs
    squared: the variance of runs and that of cases add up. It is rather too wide, since a seed's own interval holds
    some of the chance of its run, too.

    Args:
        values: of each seed.
        within: the seeds' figures with their own intervals, if all are of the same cases. Those without one add none.
    """
    if len(values) == 1:
        return Figure(values[0], None, None, 1)
    runs = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    known = [(one.high - one.low) / 2 for one in within or () if one.low is not None and one.high is not None]
    half = math.hypot(runs, math.sqrt(fmean(cases**2 for cases in known)) if known else 0.0)
    mean = fmean(values)
    return Figure(mean, mean - half, mean + half, len(values))


def p_over_seeds(differences: Sequence[float]) -> float | None:
    """Student's t: that the mean over seeds is 0; None of one seed, or where all differences are the same."""
    if len(set(differences)) < 2:
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)
