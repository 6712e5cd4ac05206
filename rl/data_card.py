"""The data card of expert traces: how they were made, how many there are of what, and what was dropped and why.

Invariant: every number is counted from the traces that are written, or while they were chosen.
"""

import argparse
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean

import yaml

from rl.datasets import BENCHMARKS, is_benchmark
from rl.duplicates import TELLING
from rl.expert_traces import SPLITS, ExpertTrace
from rl.guidelines import PERSPECTIVES

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
"""The hub's names of sizes."""
TO_FILL_IN = "TO BE FILLED IN before it is given to anybody"


@dataclasses.dataclass
class Making:
    """How a data set came about."""

    given: argparse.Namespace
    """The flags of `rl.build_traces`."""
    splits: dict[str, list[ExpertTrace]] = dataclasses.field(default_factory=lambda: {name: [] for name in SPLITS})
    cases: int = 0
    """How many the teacher was to answer."""
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)
    """Cases that it was not asked, by the reason."""
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    """Why cases have no answers, by their ids."""
    left: int = 0
    """Cases that are still to be asked."""
    answers: int = 0
    """How many the teacher gave."""
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    """Those that were not kept, by the reason."""
    models: set[str] = dataclasses.field(default_factory=set)
    """What the teacher's answers call it."""

    @property
    def traces(self) -> list[ExpertTrace]:
        """Those of all splits."""
        return [trace for name in SPLITS for trace in self.splits[name]]

    def __str__(self) -> str:
        """In a line or two."""
        sizes = ", ".join(f"{len(traces)} {name}" for name, traces in self.splits.items())
        cases = len({trace.case for trace in self.traces})
        left_out = "".join(f"; {why}: {count}" for why, count in self.left_out.items())
        dropped = "".join(f"; {why}: {count}" for why, count in self.dropped.items())
        return (
            f"{len(self.traces)} traces ({sizes}) of {cases} of {self.cases} cases\n"
            f"cases left out: {self.left_out.total()}{left_out}\n"
            f"answers dropped: {self.dropped.total()} of {self.answers}{dropped}"
        )


def card(making: Making) -> str:
    """The README.md of the data set, with the front matter that `datasets` and the hub read."""
    given, traces = making.given, making.traces
    front = {
        "pretty_name": f"Expert traces of {given.cases}",
        "license": "other",
        "license_name": "to-be-filled-in",
        "task_categories": ["visual-question-answering"],
        "tags": ["medical", "reasoning", "synthetic"],
        "size_categories": [next((name for most, name in SIZES if len(traces) < most), "n>1M")],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": name, "path": f"data/{name}.parquet"} for name in SPLITS if making.splits[name]
                ],
            }
        ],
    }
    tests = ", ".join(f"`{name}`" for name in given.exclude) or "none is known; exclude what is measured on"
    source = BENCHMARKS[given.cases.partition(":")[0]].licence if is_benchmark(given.cases) else TO_FILL_IN
    called = f" (its answers say {', '.join(sorted(making.models))})" if making.models - {given.teacher} else ""
    known_by = hashlib.sha256(given.guideline.read_bytes()).hexdigest()
    unfinished = (
        f"\n{len(making.failed)} cases failed and {making.left} are still to be asked."
        if making.failed or making.left
        else ""
    )
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
            f"# {front['pretty_name']}\n",
            "Medical questions with images, each with step-by-step reasoning to its right answer, for the training of "
            "specialists.\n",
            "**Research data, written by a language model. Nobody has checked the reasoning: only its answer is known "
            "to be right. Not for clinical use.**\n",
            "## How it was made\n",
            "By `python -m rl.build_traces` of mmedagent-graph.\n",
            f"- cases: `{given.cases}`, split `{given.split or 'as by default'}`; {making.cases} of them",
            f"- teacher: `{given.teacher}`{called}, asked by the specialist's prompt with the guideline behind it; it "
            "was never told the answer",
            f"- guideline: `{given.guideline.name}`, sha256 `{known_by}`",
            f"- {given.samples} answers a case from each perspective, of which at most {given.keep} a case are kept, "
            "from as many perspectives as there are; seed " + str(given.seed),
            "- kept where the strict reader finds the right answer"
            + (", and all of the guideline's checks pass" if given.require_checks else "")
            + "; equal texts of a case once",
            f"- without the test splits: {tests} (the same pixels, or near-duplicate words with the same options; a "
            f"question of fewer than {TELLING} words about a picture goes by the picture alone)",
            f"- split by image: a share of {given.holdout} of them, with all their questions, is for validation\n",
            f"`text` is what is trained on; the prompt is the specialist's, without the guideline.{unfinished}\n",
            "## What there is\n",
            _table(
                ["specialty", *PERSPECTIVES, "traces", "cases", *SPLITS],
                [[name, *_counts(traces, name, making)] for name in (*sorted({t.specialty for t in traces}), None)],
            ),
            "Share of the guideline's checks that the traces pass:\n",
            _table(["perspective", "checks passed"], [[name, _passed(traces, name)] for name in PERSPECTIVES]),
            "## What was left out\n",
            _table(["cases that the teacher was not asked", "n"], making.left_out.items()),
            _table([f"answers that were dropped, of {making.answers}", "n"], making.dropped.items()),
            "## Licence\n",
            f"- of the source: {source}",
            f"- terms of the teacher's provider on training with its answers: {TO_FILL_IN}",
            "",
        ]
    )


def _counts(traces: Sequence[ExpertTrace], specialty: str | None, making: Making) -> list[object]:
    """The row of a specialty; None: of all."""
    mine = [trace for trace in traces if specialty in (None, trace.specialty)]
    by = Counter(trace.perspective for trace in mine)
    sizes = [sum(specialty in (None, trace.specialty) for trace in making.splits[name]) for name in SPLITS]
    return [*(by[name] for name in PERSPECTIVES), len(mine), len({trace.case for trace in mine}), *sizes]


def _passed(traces: Sequence[ExpertTrace], perspective: str) -> str:
    checks = [passed for trace in traces if trace.perspective == perspective for passed in trace.checks.values()]
    return f"{100 * fmean(checks):.0f} %" if checks else "-"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *([("all" if cell is None else cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |\n" for line in lines)
