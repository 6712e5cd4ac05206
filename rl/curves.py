"""The curves of a run: reward, entropy and accuracy by tier and of triage, stage after stage."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd

from rl.curriculum import TIERS
from rl.grading import specialty
from rl.store import read_traces
from rl.traces import Trace

COLORS = {"easy": "#2a9d8f", "medium": "#e9a23b", "hard": "#c8553d", "triage": "#5b5fc7", "specialist": "#33415c"}
INK = "#33415c"
"""Of what belongs to no tier."""
TITLES = {
    "reward": "Reward of sampled completions",
    "entropy": "Entropy of the policy, nats a token",
    "accuracy": "Accuracy: sampled (lines), greedy on held-out cases (marks)",
    "loss": "Loss",
}
WINDOW = 15
"""Optimizer steps that a curve is averaged over."""


@dataclasses.dataclass(frozen=True)
class Curves:
    """What a run logged and sampled, with steps counted through the run."""

    stages: list[str]
    starts: list[int]
    """The step at which each stage starts, and last the one at which the run ends."""
    logs: pd.DataFrame
    sampled: pd.DataFrame
    """Of each completion: its step, its tier (or `triage`), and whether it was right."""
    summary: dict[str, Any]

    @property
    def panels(self) -> list[str]:
        """What there is to draw: imitation has a loss, and no rewards or samples."""
        imitates = "loss" in self.logs and "reward" not in self.logs
        return ["loss", "entropy"] if imitates else ["reward", "entropy", "accuracy"]


def draw_curves(run: Path, stages: list[str], summary: dict[str, Any]) -> Path:
    """Draw `curves.png` into the run's folder from its stages' logs and completions."""
    curves = read_curves(run, stages, summary)
    figure, axes = plt.subplots(1, len(curves.panels), figsize=(15, 4.2), layout="constrained", squeeze=False)
    for axis, panel in zip(axes.flat, curves.panels, strict=True):
        draw_panel(axis, curves, panel)
        axis.set_title(TITLES[panel], fontsize=11, pad=20)
    path = run / "curves.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def draw_panel(axis: Any, curves: Curves, panel: str) -> None:
    """Draw one of `Curves.panels`, with the stages' names above it."""
    if panel == "accuracy":
        _accuracy(axis, curves)
    else:
        _line(axis, curves.logs, panel, INK)
    if panel == "entropy":
        axis.set_ylim(0, None)
    axis.set_xlabel("optimizer step")
    axis.set_xlim(0, curves.starts[-1])
    axis.spines[["top", "right"]].set_visible(False)
    for name, start, end in zip(curves.stages, curves.starts, curves.starts[1:], strict=False):
        axis.axvline(end, color="#cccccc", linewidth=1, zorder=0)
        place = {"transform": axis.get_xaxis_transform(), "ha": "center", "va": "bottom", "fontsize": 9}
        axis.text((start + end) / 2, 1.005, name, color="#888888", **place)


def _accuracy(axis: Any, curves: Curves) -> None:
    for kind in (*TIERS, "triage", "specialist"):
        right = curves.sampled[curves.sampled.kind == kind].groupby("step")["right"].mean().reset_index()
        _line(axis, right, "right", COLORS[kind], kind)
        for name, x, marker in (("before", 0, "o"), ("after", curves.starts[-1], "D")):
            measured = curves.summary[name]["overall" if kind == "specialist" else kind]
            if len(right) and (share := measured["accuracy"]) is not None:
                axis.plot(x, share, marker, color=COLORS[kind], markeredgecolor="black", clip_on=False, zorder=3)
    axis.set_ylim(0, 1)
    if axis.get_legend_handles_labels()[1]:  # none where nobody knows what is right
        axis.legend(loc="lower right", frameon=False)


def read_curves(run: Path, stages: list[str], summary: dict[str, Any]) -> Curves:
    """What the stages of a run logged and sampled."""
    logs: list[dict[str, Any]] = []
    sampled: list[tuple[int, str, float]] = []
    starts = [0]
    for stage in stages:
        folder = run / "stages" / stage
        completions = folder / "rollouts.parquet"  # imitation samples none
        rollouts = list(read_traces(completions)) if completions.exists() else []
        offset = starts[-1]
        sampled.extend((int(trace.step or 0) + offset, *found) for trace in rollouts if (found := _right(trace)))
        log = folder / "metrics.jsonl"  # a stage shorter than `logging_steps` has none
        rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        logs.extend({**row, "step": row["step"] + offset} for row in rows)
        steps = [int(trace.step or 0) for trace in rollouts] or [row["step"] for row in rows]
        starts.append(offset + max(steps, default=0))
    frame = pd.DataFrame(sampled, columns=["step", "kind", "right"])
    return Curves(stages, starts, pd.DataFrame(logs), frame, summary)


def _right(trace: Trace) -> tuple[str, float] | None:
    """Which curve a rollout belongs to, and whether it was right; None where that is not known."""
    if trace.node == "triage":
        right = specialty(trace)
        return None if right is None else ("triage", right)
    return None if trace.right is None else (trace.kind, float(trace.right))


def _line(axis: Any, rows: pd.DataFrame, column: str, color: str, label: str | None = None) -> None:
    if column in rows and len(rows := rows.dropna(subset=column)):
        every = max(1.0, float(rows.step.diff().median() or 1))
        smooth = rows[column].rolling(max(1, round(WINDOW / every)), min_periods=1, center=True).mean()
        axis.plot(rows.step, smooth, color=color, label=label, linewidth=1.8)
