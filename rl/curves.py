"""The figure of a run: reward, entropy and accuracy by tier, stage after stage."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd

from rl.curriculum import TIERS
from rl.traces import read_completions

COLORS = {"easy": "#2a9d8f", "medium": "#e9a23b", "hard": "#c8553d"}
WINDOW = 15
"""Optimizer steps that a curve is averaged over."""


def draw_curves(run: Path, stages: list[str], summary: dict[str, Any]) -> Path:
    """Draw `curves.png` into the run's folder from its stages' logs and completions."""
    logs, sampled, starts = _read(run, stages)
    figure, (reward, entropy, accuracy) = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    _line(reward, logs, "reward", "#33415c")
    _name(reward, "Reward of sampled completions (at most 1.5)")
    _line(entropy, logs, "entropy", "#33415c")
    _name(entropy, "Entropy of the policy, nats a token")
    entropy.set_ylim(0, None)
    for tier in TIERS:
        right = sampled[sampled.tier == tier].groupby("step")["right"].mean().reset_index()
        _line(accuracy, right, "right", COLORS[tier], tier)
        for name, x, marker in (("before", 0, "o"), ("after", starts[-1], "D")):
            if (share := summary[name][tier]["accuracy"]) is not None:
                accuracy.plot(x, share, marker, color=COLORS[tier], markeredgecolor="black", clip_on=False, zorder=3)
    _name(accuracy, "Accuracy: sampled (lines), greedy on held-out cases (marks)")
    accuracy.set_ylim(0, 1)
    accuracy.legend(loc="lower right", frameon=False)
    for axis in (reward, entropy, accuracy):
        axis.set_xlim(0, starts[-1])
        axis.spines[["top", "right"]].set_visible(False)
        for name, start, end in zip(stages, starts, starts[1:], strict=False):
            axis.axvline(end, color="#cccccc", linewidth=1, zorder=0)
            place = {"transform": axis.get_xaxis_transform(), "ha": "center", "va": "bottom", "fontsize": 9}
            axis.text((start + end) / 2, 1.005, name, color="#888888", **place)
    path = run / "curves.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _name(axis: Any, title: str) -> None:
    axis.set_title(title, fontsize=11, pad=20)
    axis.set_xlabel("optimizer step")


def _read(run: Path, stages: list[str]) -> tuple[pd.DataFrame, pd.DataFrame, list[int]]:
    """Logs, completions, and where each stage starts, with steps counted through the run."""
    logs: list[dict[str, Any]] = []
    sampled: list[tuple[int, str | None, float]] = []
    starts = [0]
    for stage in stages:
        folder = run / "stages" / stage
        completions = list(read_completions(folder / "completions.jsonl"))
        offset = starts[-1]
        sampled.extend((c.step + offset, c.tier, float(c.rewards["accuracy"] > 0)) for c in completions)
        log = folder / "metrics.jsonl"  # a stage shorter than `logging_steps` has none
        rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        logs.extend({**row, "step": row["step"] + offset} for row in rows if "reward" in row)
        starts.append(offset + max((c.step for c in completions), default=0))
    return pd.DataFrame(logs), pd.DataFrame(sampled, columns=["step", "tier", "right"]), starts


def _line(axis: Any, rows: pd.DataFrame, column: str, color: str, label: str | None = None) -> None:
    if len(rows):
        every = max(1.0, float(rows.step.diff().median() or 1))
        smooth = rows[column].rolling(max(1, round(WINDOW / every)), min_periods=1, center=True).mean()
        axis.plot(rows.step, smooth, color=color, label=label, linewidth=1.8)
