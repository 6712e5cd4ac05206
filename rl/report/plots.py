"""The report's plots. Invariant: each says in words what it shows, with the figures that it is drawn from."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.colors import LinearSegmentedColormap

from rl.curriculum import TIERS
from rl.curves import COLORS, INK, TITLES, draw_panel, read_curves
from rl.report.numbers import percent, rounded
from rl.report.runs import Result, Training
from rl.report.svg import drawing, svg_of
from rl.report.tables import Measured, references_of
from rl.statistics import Figure, calibration_error

PALETTE = ("#4477aa", "#ee6677", "#2f9e44", "#aa7711", "#66ccee", "#aa3377")
"""Tol's bright palette, but a yellow that is seen on white."""
MARKS = "os^DvP"
WIDTH, HEIGHT = 4.4, 3.4
"""Inches of a plot; one is as wide as a phone."""
GRID = "#888888"
ROOM = 24
"""Characters of a name, of which a plot shows the beginning and the end."""


@dataclasses.dataclass(frozen=True)
class Plot:
    """One plot."""

    title: str
    about: str
    """What it shows, in words and figures."""
    svg: str


@dataclasses.dataclass(frozen=True)
class Shelf:
    """Plots of one kind."""

    title: str
    note: str
    plots: Sequence[Plot]


def shelves(systems: Sequence[Measured], columns: Mapping[str, str]) -> list[Shelf]:
    """All plots of evaluations; those that nothing is known for are left out."""
    tier = f"Tiers are by the opinions that {references_of(systems)} heard: easy, all are right; hard, none is."
    cheap = "Tokens that all models of a consultation read and write."
    sure = "Confidence is the winner's share of the attending's votes; a mark's size tells how many cases it is of."
    left = "What is wrong among the surest cases, when the others are left to a human."
    asked = "Whom the cases of each label were referred to; shades are shares of a row."
    found = [
        Shelf("Accuracy by tier", tier, _each(tiers, systems, columns)),
        Shelf("Cost against accuracy", cheap, _each(cost, systems, columns)),
        Shelf("Reliability", sure, _each(reliability, systems, columns)),
        Shelf("Risk against coverage", left, _each(risk, systems, columns)),
        Shelf("Triage", asked, confusions(systems, columns)),
    ]
    return [shelf for shelf in found if shelf.plots]


def _each(
    draw: Callable[[Sequence[Measured], str, str], Plot | None], systems: Sequence[Measured], columns: Mapping[str, str]
) -> list[Plot]:
    drawn = (draw(systems, cases, title) for cases, title in columns.items())
    return [plot for plot in drawn if plot is not None]


def style(systems: Sequence[Measured], one: Measured) -> dict[str, Any]:
    """The colour and the mark by which a system is known in all plots: 36 that differ, the first six in both."""
    turn, place = divmod(systems.index(one), len(PALETTE))
    return {"color": PALETTE[place], "marker": MARKS[(place + turn) % len(MARKS)]}


def short(name: str) -> str:
    """A name that leaves room for the plot."""
    return name if len(name) <= ROOM else f"{name[: ROOM // 2]}…{name[1 - ROOM // 2 :]}"


def tiers(systems: Sequence[Measured], cases: str, title: str) -> Plot | None:
    """Accuracy by tier, a group of bars for each system."""
    told = {one.label: {tier: one.figure(cases, "by", "tier", tier) for tier in TIERS} for one in systems}
    told = {label: found for label, found in told.items() if any(figure.value is not None for figure in found.values())}
    if not told:
        return None
    with drawing(WIDTH, 0.9 + 0.62 * len(told)) as (figure, axis):
        for place, tier in enumerate(TIERS):
            known = [(row, found[tier]) for row, found in enumerate(told.values()) if found[tier].value is not None]
            ys = [row + 0.26 * (place - 1) for row, _ in known]
            values, ends = _percents([found for _, found in known])
            axis.barh(ys, values, 0.24, color=COLORS[tier], label=tier)
            axis.errorbar(values, ys, xerr=ends, fmt="none", ecolor=INK, elinewidth=1)
        axis.set_yticks(range(len(told)), [short(label) for label in told])
        axis.invert_yaxis()
        axis.tick_params("y", length=0)
        axis.set_xlim(0, 100)
        axis.set_xlabel("accuracy, %")
        figure.legend(loc="outside upper left", ncols=3)
        said = "; ".join(
            f"{label}: " + ", ".join(f"{tier} {percent(found[tier]).text}" for tier in TIERS)
            for label, found in told.items()
        )
        return _plot(figure, title, f"Accuracy in %. {said}.")


def cost(systems: Sequence[Measured], cases: str, title: str) -> Plot | None:
    """Tokens a case against accuracy."""
    told = [(one, one.figure(cases, "accuracy"), tokens(one, cases)) for one in systems]
    told = [found for found in told if found[1].value is not None and found[2]]
    if not told:
        return None
    with drawing(WIDTH, HEIGHT) as (figure, axis):
        for one, accuracy, spent in told:
            (value,), ends = _percents([accuracy])
            look = {"linestyle": "none", "markersize": 7, "elinewidth": 1, **style(systems, one)}
            axis.errorbar(spent, value, yerr=ends, label=short(one.label), **look)
        spread = [spent for *_, spent in told]
        if max(spread) > 20 * min(spread):
            axis.set_xscale("log")
        else:
            axis.set_xlim(0, 1.1 * max(spread))
        axis.set_xlabel("tokens a case")
        axis.set_ylabel("accuracy, %")
        figure.legend(loc="outside upper left", ncols=2)
        said = "; ".join(
            f"{one.label}: {rounded(spent, 1)} tokens, {percent(accuracy).text} %" for one, accuracy, spent in told
        )
        return _plot(figure, title, f"Tokens a case and accuracy. {said}.")


def tokens(one: Measured, cases: str) -> float:
    """Tokens a case, read and written; 0 where no model tells."""
    return sum(one.figure(cases, "cost", name).value or 0.0 for name in ("input_tokens", "output_tokens"))


def reliability(systems: Sequence[Measured], cases: str, title: str) -> Plot | None:
    """How often what is sure to some degree is right."""
    told = [(one, pooled) for one in systems if (pooled := bins(one.study.results(cases, one.system)))]
    if not told:
        return None
    with drawing(WIDTH, HEIGHT) as (figure, axis):
        axis.plot([0, 1], [0, 1], color=GRID, linewidth=1, linestyle="--")
        for one, pooled in told:
            sure, right, n = zip(*pooled, strict=True)
            look = style(systems, one)
            axis.plot(sure, right, color=look["color"], linewidth=1.5)
            label = f"{short(one.label)} (ECE {rounded(calibration_error(pooled), 2)})"
            axis.scatter(sure, right, [20 + 120 * many / sum(n) for many in n], zorder=3, label=label, **look)
        axis.set(xlim=(0, 1.03), ylim=(0, 1.03), xlabel="confidence", ylabel="accuracy")
        figure.legend(loc="outside upper left", ncols=1)
        said = "; ".join(
            f"{one.label}: expected calibration error {rounded(calibration_error(pooled), 3)}, "
            + ", ".join(f"{rounded(right, 2)} right at confidence {rounded(sure, 2)}" for sure, right, _ in pooled)
            for one, pooled in told
        )
        return _plot(figure, title, f"{said}.")


def bins(results: Sequence[Result]) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and number of cases of each tenth of confidence, the seeds' cases taken together."""
    pooled: dict[int, list[tuple[float, float, int]]] = {}
    for result in results:
        for sure, right, n in (result["confidence"] or {}).get("bins", ()):
            pooled.setdefault(min(9, int(10 * sure + 1e-9)), []).append((sure, right, n))
    return [
        (sum(sure * n for sure, _, n in found) / many, sum(right * n for _, right, n in found) / many, many)
        for _, found in sorted(pooled.items())
        if (many := sum(n for *_, n in found))
    ]


def risk(systems: Sequence[Measured], cases: str, title: str) -> Plot | None:
    """What is wrong among the surest cases."""
    told = [(one, points) for one in systems if (points := risks(one.study.results(cases, one.system)))]
    if not told:
        return None
    with drawing(WIDTH, HEIGHT) as (figure, axis):
        for one, points in told:
            xs, ys = [100 * kept for _, kept, _ in points], [100 * wrong for *_, wrong in points]
            axis.plot(xs, ys, linewidth=1.5, label=short(one.label), **style(systems, one))
        axis.set(xlim=(0, 103), xlabel="cases that are decided, %", ylabel="of these wrong, %")
        axis.set_ylim(0, 110 * max(wrong for _, points in told for *_, wrong in points) or 1)
        figure.legend(loc="outside upper left", ncols=2)
        said = "; ".join(
            f"{one.label}: wrong of the surest "
            + ", ".join(f"{rounded(100 * kept, 1)} %: {rounded(100 * wrong, 1)} %" for _, kept, wrong in points)
            for one, points in told
        )
        return _plot(figure, title, f"{said}.")


def risks(results: Sequence[Result]) -> list[tuple[float, float, float]]:
    """Threshold, share that is kept, share of these that is wrong, the seeds' cases taken together."""
    counts: dict[float, list[int]] = {}
    total = 0
    for result in results:
        if not result["confidence"]:
            continue
        n = result["confidence"]["n"]
        total, before = total + n, (0, 0)
        for sure, kept, wrong in result["confidence"]["risk_coverage"]:
            so_far = (round(kept * n), round(wrong * kept * n))
            found = counts.setdefault(round(sure, 9), [0, 0])
            found[0] += so_far[0] - before[0]
            found[1] += so_far[1] - before[1]
            before = so_far
    points, kept, wrong = [], 0, 0
    for sure in sorted(counts, reverse=True):
        kept, wrong = kept + counts[sure][0], wrong + counts[sure][1]
        points.append((sure, kept / total, wrong / kept))
    return points


def confusions(systems: Sequence[Measured], columns: Mapping[str, str]) -> list[Plot]:
    """Triage's confusion matrices; systems with the same one share it."""
    plots: list[Plot] = []
    for cases, title in columns.items():
        same: list[tuple[dict[str, dict[str, int]], list[str]]] = []
        for one in systems:
            found = referrals(one.study.results(cases, one.system))
            known = next((labels for other, labels in same if other == found), None)
            if known is not None:
                known.append(one.label)
            elif any(name != "unread" for row in found.values() for name in row):  # somebody was asked
                same.append((found, [one.label]))
        plots.extend(_confusion(f"{title}: {', '.join(labels)}", found) for found, labels in same)
    return plots


def referrals(results: Sequence[Result]) -> dict[str, dict[str, int]]:
    """Whom the cases of each label were referred to, over all seeds; by label."""
    summed: dict[str, dict[str, int]] = {}
    for result in results:
        for label, row in result["triage"]["confusion"].items():
            for name, n in row.items():
                own = summed.setdefault(label, {})
                own[name] = own.get(name, 0) + n
    return dict(sorted(summed.items()))


def _confusion(title: str, found: Mapping[str, Mapping[str, int]]) -> Plot:
    others = {other for row in found.values() for other in row} - set(found)
    asked = [*found, *sorted(others, key=lambda other: (other == "unread", other))]
    shades = LinearSegmentedColormap.from_list("", [(COLORS["triage"], 0.0), (COLORS["triage"], 1.0)])
    with drawing(WIDTH, 1.5 + 0.3 * len(found)) as (figure, axis):
        shares = [[row.get(other, 0) / sum(row.values()) for other in asked] for row in found.values()]
        axis.pcolormesh(shares, cmap=shades, vmin=0, vmax=1)
        for y, row in enumerate(found.values()):
            for x, other in enumerate(asked):
                if n := row.get(other):
                    ink = "white" if shares[y][x] > 0.5 else INK
                    axis.text(x + 0.5, y + 0.5, f"{n}", ha="center", va="center", color=ink, fontsize=9)
        names = [short(other) for other in asked]
        axis.set_xticks([x + 0.5 for x in range(len(asked))], names, rotation=40, ha="right", rotation_mode="anchor")
        axis.set_yticks([y + 0.5 for y in range(len(found))], [short(label) for label in found])
        axis.invert_yaxis()
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set(xlabel="referred to", ylabel="label")
        said = "; ".join(
            f"{label}: " + ", ".join(f"{n} to {other}" for other, n in row.items()) for label, row in found.items()
        )
        return _plot(figure, title, f"Referred of the cases of each label. {said}.")


def training_shelf(training: Training) -> Shelf:
    """The curves of a training run."""
    curves = read_curves(training.folder, training.stages, dict(training.summary))
    was, now = (Figure(training.summary[when]["overall"]["accuracy"], None, None, 0) for when in ("before", "after"))
    ideal = training.summary.get("ideal")
    told = f"Held-out accuracy {percent(was).text} % before, {percent(now).text} % after"
    told += f"; the ideal is {percent(Figure(ideal['overall']['accuracy'], None, None, 0)).text} %." if ideal else "."
    plots = []
    for panel in curves.panels:
        with drawing(WIDTH, HEIGHT) as (figure, axis):
            draw_panel(axis, curves, panel)
            about = f"{TITLES[panel]} by optimizer step, stages {', '.join(training.stages)}. {told}"
            plots.append(_plot(figure, TITLES[panel], about))
    return Shelf(f"Training: {training.name}", f"Seed {training.summary.get('seed')}. {told}", plots)


def _percents(figures: Sequence[Figure]) -> tuple[list[float], list[list[float]] | None]:
    """Values in %, and how far their intervals reach below and above; None where one has none."""
    values = [100 * (figure.value or 0.0) for figure in figures]
    if any(figure.low is None or figure.high is None for figure in figures):
        return values, None
    below = [value - 100 * (figure.low or 0.0) for value, figure in zip(values, figures, strict=True)]
    above = [100 * (figure.high or 0.0) - value for value, figure in zip(values, figures, strict=True)]
    return values, [[max(0.0, end) for end in below], [max(0.0, end) for end in above]]


def _plot(figure: Any, title: str, about: str) -> Plot:
    return Plot(title, about, svg_of(figure, title, about))
