"""The paper's theorem as a simulation: stages whose losses are convex only near their optima, and SGD on them.

The paper's (MMedAgent-RL, theory section; its proof takes a loss for strongly convex near its stage's optimum only):
trained stage by stage, the time grows with `sum_j log ||theta*_j - theta*_{j+1}||^2`, while SGD on the loss of the last
stage from the start is kept away from the optimum. Ours: the losses, the noise, when a stage counts as done, and taking
the start for `theta*_0`. A stage's loss is a quadratic within the radius of its basin, where the assumption holds
exactly, and convex nowhere outside, where it flattens into a plateau, or keeps a slope: the assumption allows both.

The unit of length is the basin's radius r, that of loss is mu r^2 (mu: the curvature in the basin): a rate here is the
paper's step times mu, a noise of 1 is as strong as the pull at the basin's rim. A seed's run depends on nothing but its
own stream of noise, so curriculum and direct training are compared on the same noise.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
BLOCK = 256
"""Steps whose noise is drawn at a time."""
OUTSIDE: dict[str, tuple[Callable[[Numbers], Numbers], Callable[[Numbers], Numbers]]] = {
    "plateau": (lambda squared: 1.5 - np.exp((1 - squared) / 2), lambda squared: np.exp((1 - squared) / 2)),
    "slope": (lambda squared: (1 + np.log(squared)) / 2, lambda squared: 1 / squared),
}
"""How a loss goes on outside the basin: its value, and its gradient's factor on the offset, by the squared distance.

The pull of a plateau vanishes like a Gaussian, that of a slope like 1 / distance."""


def loss(offset: npt.ArrayLike, outside: str = "plateau") -> Numbers:
    """A stage's loss at `theta - theta*`, along the last axis: a quadratic within 1, one of `OUTSIDE` beyond."""
    squared = (np.asarray(offset, dtype=float) ** 2).sum(axis=-1)
    beyond, _ = _beyond(outside)
    return np.where(squared <= 1, squared / 2, beyond(np.maximum(squared, 1)))


def gradient(offset: npt.ArrayLike, outside: str = "plateau") -> Numbers:
    """The gradient of `loss`: it grows up to the basin's rim, and falls outside."""
    away = np.asarray(offset, dtype=float)
    _, factor = _beyond(outside)
    return away * factor(np.maximum((away**2).sum(axis=-1, keepdims=True), 1))  # 1 within the basin


def _beyond(outside: str) -> tuple[Callable[[Numbers], Numbers], Callable[[Numbers], Numbers]]:
    if outside not in OUTSIDE:
        raise ValueError(f"outside: {outside!r} is unknown; choose one of {', '.join(OUTSIDE)}")
    return OUTSIDE[outside]


def line(gaps: Sequence[float], dimensions: int) -> Numbers:
    """The optima of the stages, one a row, on a line from the start at these distances from one to the next."""
    optima = np.zeros((len(gaps), dimensions))
    optima[:, 0] = np.cumsum(gaps)
    return optima


def distances(optima: Numbers) -> Numbers:
    """How far each stage's optimum is from the one before it, and the first from the start, which is the origin."""
    gaps: Numbers = np.linalg.norm(np.diff(optima, axis=0, prepend=0), axis=1)
    return gaps


def log_distances(optima: Numbers, unit: float = 1.0) -> float:
    """The theorem's sum of log squared distances, with lengths in a unit, which is else the basin's radius."""
    return float(2 * np.log(distances(optima) / unit).sum())


@dataclasses.dataclass(frozen=True)
class Descent:
    """SGD, and when it ends.

    Raises:
        ValueError: if it overshoots, never ends, or has a negative noise, decay or budget.
    """

    rate: float = 0.1
    """The step size."""
    decay: float = 0.0
    """0: the rate is constant. Else a stage's t-th rate is `rate / (1 + decay t)`; `decay = rate` is the textbook's
    `1 / (mu (t + t0))` for strongly convex losses."""
    noise: float = 0.0
    """Standard deviation of a gradient's noise in each dimension."""
    tolerance: float = 0.05
    """A stage is done at the first step that is so near its optimum. Only a simulation can see that."""
    budget: int = 5000
    """Steps of all stages together, after which a run is given up."""

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"rate: {self.rate}; give a number between 0 and 1, from where on steps overshoot")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance: {self.tolerance}; give a distance above 0")
        for field in ("decay", "noise", "budget"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"{field}: {getattr(self, field)}; give 0 or more")

    @property
    def pace(self) -> float:
        """By how much the log squared distance falls with each step in a basin, without noise or decay."""
        return -2 * math.log1p(-self.rate)

    def floor(self, dimensions: int) -> float:
        """The root mean square distance from an optimum at which noise keeps a constant rate in the long run."""
        return self.noise * math.sqrt(self.rate * dimensions / (2 - self.rate))


@dataclasses.dataclass(frozen=True)
class Runs:
    """What became of each seed's run."""

    steps: Counts
    """Steps until the last stage was done; the budget for a run that was given up."""
    stages: Counts
    """How many stages were done."""
    reached: npt.NDArray[np.bool_]
    """Whether the last one was."""
    distance: Numbers
    """How far from the last optimum the run ended."""


def curriculum(optima: Numbers, descent: Descent, seeds: Sequence[int], outside: str = "plateau") -> Runs:
    """SGD from the origin on one stage's loss after another, each from where the one before ended.

    Args:
        optima: the optimum of each stage, one a row.
        descent: how it descends.
        seeds: one run for each.
        outside: how the losses go on outside their basins, one of `OUTSIDE`.
    """
    runs, (last, dimensions) = len(seeds), optima.shape
    theta = np.zeros((runs, dimensions))
    stages, clock, steps = (np.zeros(runs, dtype=int) for _ in range(3))
    noise = _noise(descent.noise, dimensions, seeds)
    while True:
        offset = theta - optima[np.minimum(stages, last - 1)]
        near = (np.linalg.norm(offset, axis=1) <= descent.tolerance) & (stages < last)
        if near.any():  # perhaps near the next optimum, too
            stages, clock = stages + near, np.where(near, 0, clock)
            continue
        on = (stages < last) & (steps < descent.budget)
        if not on.any():
            break
        rate = on * descent.rate / (1 + descent.decay * clock)
        theta = theta - rate[:, None] * (gradient(offset, outside) + next(noise))
        steps, clock = steps + on, clock + on
    return Runs(steps, stages, stages == last, np.linalg.norm(theta - optima[-1], axis=1))


def direct(optima: Numbers, descent: Descent, seeds: Sequence[int], outside: str = "plateau") -> Runs:
    """SGD from the origin on the last stage's loss alone; arguments as for `curriculum`."""
    return curriculum(optima[-1:], descent, seeds, outside)


def predicted(optima: Numbers, descent: Descent) -> float:
    """The theorem's steps with its constants, for a constant rate and without noise.

    Each stage goes from its gap down to the tolerance at the pace of a quadratic. So the unit of the distances is the
    tolerance: in any other one the sum lacks a term for each stage.
    """
    return log_distances(optima, descent.tolerance) / descent.pace


def _noise(scale: float, dimensions: int, seeds: Sequence[int]) -> Iterator[Numbers]:
    """The noise of each step, one row a seed, each seed's from a stream of its own."""
    streams = [np.random.default_rng(seed) for seed in seeds]
    while scale:
        yield from scale * np.stack([stream.standard_normal((BLOCK, dimensions)) for stream in streams], axis=1)
    while True:
        yield np.zeros((len(seeds), dimensions))
