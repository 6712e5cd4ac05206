"""The figure of a run: reward, entropy and accuracy by tier and of triage, stage after stage."""

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

COLORS = {"easy": "#2a9d8f", "medium": "#e9a23b", "hard": "#c8553d", "triage": "#5b5fc7"}
WINDOW = 15
"""Optimizer steps that a curve is averaged over."""


def draw_curves(run: Path, stages: list[str], summary: dict[str, Any]) -> Path:
    """Draw `curves.png` into the run's folder from its stages' logs and completions."""
    logs, sampled, starts = _read(run, stages)
    figure, (reward, entropy, accuracy) = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    _line(reward, logs, "reward", "#33415c")
    _name(reward, "Reward of sampled completions")
    _line(entropy, logs, "entropy", "#33415c")
    _name(entropy, "Entropy of the policy, nats a token")
    entropy.set_ylim(0, None)
    for kind in (*TIERS, "triage"):
        right = sampled[sampled.kind == kind].groupby("step")["right"].mean().reset_index()
        _line(accuracy, right, "right", COLORS[kind], kind)
        for name, x, marker in (("before", 0, "o"), ("after", starts[-1], "D")):
            if len(right) and (share := summary[name][kind]["accuracy"]) is not None:
                accuracy.plot(x, share, marker, color=COLORS[kind], markeredgecolor="black", clip_on=False, zorder=3)
    _name(accuracy, "Accuracy: sampled (lines), greedy on held-out cases (marks)")
    accuracy.set_ylim(0, 1)
    if accuracy.get_legend_handles_labels()[1]:  # none where nobody knows what is right
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
    sampled: list[tuple[int, str, float]] = []
    starts = [0]
    for stage in stages:
        folder = run / "stages" / stage
        rollouts = list(read_traces(folder / "rollouts.parquet"))
        offset = starts[-1]
        sampled.extend((int(trace.step or 0) + offset, *found) for trace in rollouts if (found := _right(trace)))
        log = folder / "metrics.jsonl"  # a stage shorter than `logging_steps` has none
        rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        logs.extend({**row, "step": row["step"] + offset} for row in rows if "reward" in row)
        starts.append(offset + max((int(trace.step or 0) for trace in rollouts), default=0))
    return pd.DataFrame(logs), pd.DataFrame(sampled, columns=["step", "kind", "right"]), starts


def _right(trace: Trace) -> tuple[str, float] | None:
    """Which curve a rollout belongs to, and whether it was right; None where that is not known."""
    if trace.node == "triage":
        right = specialty(trace)
        return None if right is None else ("triage", right)
    return None if trace.right is None else (str(trace.tier), float(trace.right))


def _line(axis: Any, rows: pd.DataFrame, column: str, color: str, label: str | None = None) -> None:
    if len(rows):
        every = max(1.0, float(rows.step.diff().median() or 1))
        smooth = rows[column].rolling(max(1, round(WINDOW / every)), min_periods=1, center=True).mean()
        axis.plot(rows.step, smooth, color=color, label=label, linewidth=1.8)
