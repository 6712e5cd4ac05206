"""How good a policy under training is on held-out cases: before and after, with whatever triage and specialists.

The same graph, prompts and reader as at inference: triage and specialists run first, then the policy decides greedily.
Whole systems are compared by `rl.evaluate`.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from rich.table import Table
from tqdm import tqdm

from rl.curriculum import TIERS
from rl.grading import PAPER, Grading
from rl.policy import PolicyChatModel
from rl.printed import show
from rl.rollout import Rollout
from rl.statistics import wilson
from rl.traces import Trace, is_right

BATCH = 64
GRADING = Grading.parse(PAPER["attending"])


async def decide(rollout: Rollout, upstream: Sequence[Trace], attending: BaseChatModel, title: str) -> list[Trace]:
    """The attending's decision on each case, graded.

    Args:
        rollout: what renders its prompts and finishes the consultations.
        upstream: the cases, with their opinions.
        attending: a policy, asked in batches that do not depend on who is faster, or any other chat model.
        title: of the progress bar.
    """
    finished: list[Trace] = []
    for start in tqdm(range(0, len(upstream), BATCH), title, unit="batch"):
        batch = upstream[start : start + BATCH]
        prompts = [rollout.prompt(trace) for trace in batch]
        if isinstance(attending, PolicyChatModel):
            messages = await asyncio.to_thread(attending.answer, prompts)
        else:
            messages = await attending.abatch(list(prompts))
        for trace, message in zip(batch, messages, strict=True):
            ended = await GRADING.grade(await rollout.finish(trace, str(message.text)))
            ended.prompt_ids = message.response_metadata.get("prompt_token_ids")
            ended.completion_ids = message.response_metadata.get("token_ids")
            ended.finish = message.response_metadata.get("finish_reason")
            finished.append(ended)
    return finished


Figure = dict[str, Any]
"""`accuracy`, `low`, `high` (shares of 1, or None) and `n`."""


def interval(right: int, n: int) -> Figure:
    """Accuracy with its 95 % Wilson score interval, as shares of 1; None where there is no case."""
    if n == 0:
        return {"accuracy": None, "low": None, "high": None, "n": 0}
    low, high = wilson(right, n)
    return {"accuracy": right / n, "low": low, "high": high, "n": n}


def by_tier(traces: Sequence[Trace], answers: Sequence[str | None]) -> dict[str, Figure]:
    """Accuracy overall and in each tier, of one answer for each trace; cases without a key are left out."""
    pairs = zip(traces, answers, strict=True)
    right = [(trace.tier, is_right(answer, trace.answer)) for trace, answer in pairs if trace.answer is not None]
    figures = {"overall": interval(sum(hit for _, hit in right), len(right))}
    for tier in TIERS:
        among = [hit for of, hit in right if of == tier]
        figures[tier] = interval(sum(among), len(among))
    return figures


def decided(traces: Sequence[Trace]) -> list[str | None]:
    """The answers that the consultations ended with."""
    return [trace.decision["answer"] if trace.decision else None for trace in traces]


def referred(traces: Sequence[Trace]) -> dict[str, Any]:
    """Triage's accuracy (`triage`), and whom it referred the cases of each specialty to (`confusion`), by the labels.

    Cases without a label are left out, as are those of a specialist that was asked by the label; a referral that could
    not be read counts as wrong, under `unread`.
    """
    asked = [trace for trace in traces if trace.specialty is not None and trace.node != "specialist"]
    pairs = [(trace.specialty, _specialty(trace)) for trace in asked]
    confusion: dict[str, dict[str, int]] = {}
    for label, specialty in sorted(pairs):
        row = confusion.setdefault(str(label), {})
        row[specialty] = row.get(specialty, 0) + 1
    return {
        "triage": interval(sum(label == specialty for label, specialty in pairs), len(pairs)),
        "confusion": confusion,
    }


def _specialty(trace: Trace) -> str:
    named = trace.referral["specialty"] if trace.referral else None
    return named or "unread"


def unparsed(traces: Sequence[Trace]) -> float:
    """Share of the decisions that the strict reader could not read."""
    return sum(answer is None for answer in decided(traces)) / max(1, len(traces))


def print_table(rows: dict[str, dict[str, Figure]], title: str) -> None:
    """Accuracy in % with its interval: a row for each of `rows`, a column for each tier and triage if there are any."""
    table = Table(title=title)
    table.add_column("")
    counts = {
        column: {figures[column]["n"] for figures in rows.values() if column in figures}
        for column in ("overall", *TIERS, "triage")
    }
    columns = {column: n for column, n in counts.items() if column == "overall" or any(n)}
    for column, n in columns.items():
        table.add_column(f"{column} (n={min(n)})" if len(n) == 1 else column, justify="right")
    for name, figures in rows.items():
        cells = (_cell(figures.get(column, interval(0, 0)), len(n) > 1) for column, n in columns.items())
        table.add_row(name, *cells)
    show(table)


def _cell(figure: Figure, count: bool) -> str:
    if figure["accuracy"] is None:
        return "-"
    n = f" (n={figure['n']})" if count else ""
    return f"{100 * figure['accuracy']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]{n}"


def print_confusion(confusion: dict[str, dict[str, int]], title: str) -> None:
    """Whom the cases of each specialty (rows) were referred to (columns), as counts."""
    columns = sorted({name for row in confusion.values() for name in row} | set(confusion))
    table = Table(title=title)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for label, row in confusion.items():
        table.add_row(label, *(str(row.get(column, "")) for column in columns))
    show(table)
