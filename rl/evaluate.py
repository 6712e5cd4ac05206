"""How good a policy is as the attending physician, on held-out cases.

    python -m rl.evaluate --model runs/latest/model --cases cases.jsonl --split test
    python -m rl.evaluate --model clinic:base                      # on the clinic's own cases

The same graph, prompts and reader as at inference: the frozen nodes run first, then the policy decides greedily.
"""

import argparse
import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import set_seed

from mmedagent_graph.images import ImageStore
from rl.cohort import HELD_OUT, clinic_cohort, own_cohort, panel
from rl.curriculum import TIERS
from rl.grading import grade, is_right
from rl.policy import PolicyChatModel, load_policy
from rl.rollout import AttendingRollout, roll_upstream
from rl.traces import Trace, append_traces

CONFIDENCE = 0.95


async def decide(
    rollout: AttendingRollout, upstream: Sequence[Trace], policy: PolicyChatModel, title: str
) -> list[Trace]:
    """The policy's decision on each case, greedily, graded."""
    finished: list[Trace] = []
    for start in tqdm(range(0, len(upstream), policy.max_batch), title, unit="batch"):
        batch = upstream[start : start + policy.max_batch]
        messages = await asyncio.to_thread(policy.answer, [rollout.prompt(trace) for trace in batch])
        ended = [rollout.finish(trace, str(message.text)) for trace, message in zip(batch, messages, strict=True)]
        finished.extend(grade(trace) for trace in await asyncio.gather(*ended))
    return finished


Figure = dict[str, Any]
"""`accuracy`, `low`, `high` (shares of 1, or None) and `n`."""


def interval(right: int, n: int) -> Figure:
    """Accuracy with its 95 % Wilson score interval, as shares of 1; None where there is no case."""
    if n == 0:
        return {"accuracy": None, "low": None, "high": None, "n": 0}
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    share = right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = middle - half if right else 0.0, middle + half if right < n else 1.0  # exact at the ends
    return {"accuracy": share, "low": low, "high": high, "n": n}


def by_tier(traces: Sequence[Trace], answers: Sequence[str | None]) -> dict[str, Figure]:
    """Accuracy overall and in each tier, of one answer for each trace."""
    right = [is_right(answer, trace.answer) for trace, answer in zip(traces, answers, strict=True)]
    figures = {"overall": interval(sum(right), len(right))}
    for tier in TIERS:
        among = [hit for hit, trace in zip(right, traces, strict=True) if trace.tier == tier]
        figures[tier] = interval(sum(among), len(among))
    return figures


def decided(traces: Sequence[Trace]) -> list[str | None]:
    """The answers that the consultations ended with."""
    return [trace.decision["answer"] if trace.decision else None for trace in traces]


def unparsed(traces: Sequence[Trace]) -> float:
    """Share of the decisions that the strict reader could not read."""
    return sum(answer is None for answer in decided(traces)) / max(1, len(traces))


def print_table(rows: dict[str, dict[str, Figure]], title: str) -> None:
    """Accuracy in % with its interval, a row for each of `rows`, a column for each tier."""
    table = Table(title=title)
    table.add_column("")
    for column in ("overall", *TIERS):
        n = next(iter(rows.values()))[column]["n"]
        table.add_column(f"{column} (n={n})", justify="right")
    for name, figures in rows.items():
        table.add_row(name, *(_cell(figures[column]) for column in ("overall", *TIERS)))
    Console().print(table)


def _cell(figure: Figure) -> str:
    if figure["accuracy"] is None:
        return "-"
    return f"{100 * figure['accuracy']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the attending: clinic:base, a folder or a hub id")
    parser.add_argument("--triage", default="clinic:base", help="model string of the triage doctor")
    parser.add_argument(
        "--specialists",
        nargs="+",
        help="model strings, one for each doctor; default: the clinic's doctors, or clinic:base sampled for own cases",
    )
    parser.add_argument("--cases", help="JSONL file of cases; default: the clinic's own")
    parser.add_argument("--split", help="only the rows of this split")
    parser.add_argument("--free_text", choices=["skip", "exact_match"], default="skip", help="rows without options")
    parser.add_argument("--size", type=int, default=1000, help="how many of the clinic's cases")
    parser.add_argument("--seed", type=int, default=0, help="of the clinic's cases, and of sampling")
    parser.add_argument("--out", type=Path, help="folder for evaluation.json and traces.jsonl")
    asyncio.run(evaluate(parser.parse_args(arguments)))


async def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the evaluation that the flags ask for; prints a table and JSON."""
    set_seed(arguments.seed)
    images = ImageStore()
    if arguments.cases:
        cohort = own_cohort(arguments.cases, arguments.split, arguments.free_text)
    else:
        cohort = clinic_cohort(arguments.size, HELD_OUT + arguments.seed, images)
    # the same frozen nodes whatever the model under test, or two models would not be asked the same
    specialists = panel(arguments.specialists, arguments.cases, "clinic:base")
    rollout = AttendingRollout(arguments.triage, specialists, images)
    upstream: list[Trace] = []
    await roll_upstream(rollout, cohort.cases, upstream.append)
    traces = await decide(rollout, upstream, load_policy(arguments.model), "attending")
    figures = by_tier(traces, decided(traces))
    report = {
        "model": arguments.model,
        "cases": len(traces),
        "skipped": cohort.skipped,
        **figures,
        "unparsed": unparsed(traces),
    }
    print_table({arguments.model: figures}, f"{arguments.cases or 'clinic'} {arguments.split or ''}".strip())
    print(json.dumps(report))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "traces.jsonl").unlink(missing_ok=True)
        (arguments.out / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n")
        append_traces(arguments.out / "traces.jsonl", traces)
    return report


if __name__ == "__main__":
    main()
