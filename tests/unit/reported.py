"""Folders as an evaluation and a training run leave them, made by hand."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mmedagent_graph.images import ImageStore
from mmedagent_graph.state import Decision, Opinion, Referral
from rl.figures import figures, outcome_of
from rl.statistics import compare
from rl.store import row_of, write_traces
from rl.traces import NodeCall, Trace

EVIL = '</script><img src=x onerror="window.harmed=1"><script>window.harmed=1</script>{{7*7}}<!--\'&\u202e\u2028\ud83d'
"""What ends a script, begins a tag, turns the direction of writing, ends a line, and is half of a surrogate pair."""
HALF = "\ud83d"
"""The last of these, which no file of UTF-8 can hold."""
Told = Mapping[str, Mapping[str, Sequence[Trace]]]
"""Traces by the cases' name and the system's."""


def figure(value: float | None, low: float | None = None, high: float | None = None, n: int = 10) -> dict[str, Any]:
    """A figure as `evaluation.json` has it."""
    return {"value": value, "low": low, "high": high, "n": n}


def result(value: float | None = 0.5, **fields: Any) -> dict[str, Any]:
    """What `evaluation.json` says of a system, told by its accuracy; any field can be given."""
    attending = ("majority", "right_to_wrong", "wrong_to_right", "conformity", "conformity_when_wrong")
    cost = {"calls": 5.0, "input_tokens": 70.0, "output_tokens": 30.0, "seconds": 1.5, "dollars": None}
    default = {
        **{"done": 10, "failed": 0, "left": 0, "failed_cases": {}},
        "accuracy": figure(value, 0.4, 0.6),
        "unparsed": figure(0.0, 0.0, 0.1),
        "by": {"tier": {"easy": figure(1.0, 0.9, 1.0), "hard": figure(0.1, 0.0, 0.3)}, "specialty": {}},
        "attending": {name: figure(0.25, 0.2, 0.3) for name in (*attending, "minority_suppression")},
        "triage": {"accuracy": figure(0.9, 0.8, 1.0), "confusion": {}},
        "confidence": None,
        "cost": cost,
        "against_reference": None,
    }
    return default | fields


def told(difference: float, p: float) -> dict[str, Any]:
    """How a system compares with the reference."""
    return {
        "difference": figure(difference, difference - 0.1, difference + 0.1),
        "only_first": 1,
        "only_second": 2,
        "p": p,
    }


def write_evaluation(
    folder: Path,
    results: Mapping[str, Mapping[str, Mapping[str, Any]]],
    seed: int = 0,
    sources: Mapping[str, str] | None = None,
    chosen: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
    **fields: Any,
) -> Path:
    """A folder whose `evaluation.json` says this of its systems on some cases, which were chosen so."""
    folder.mkdir(parents=True, exist_ok=True)
    systems = dict.fromkeys(system for found in results.values() for system in found)
    report = {
        "seed": seed,
        "reference": next(iter(systems)),
        "systems": {name: {"system": "single", "model": f"clinic:{name}"} for name in systems},
        "cases": {
            name: {
                "source": (sources or {}).get(name, name if name == "clinic" else f"{name}.jsonl"),
                **{
                    "cases": (sizes or {}).get(name, 10),
                    "skipped": 0,
                    "split": None,
                    "free_text": "skip",
                    "limit": None,
                },
                **(chosen or {}),
            }
            for name in results
        },
        "results": results,
        "versions": {"torch": "2.13.0"},
        "commit": "abc1234",
    }
    (folder / "evaluation.json").write_text(json.dumps(report | fields))
    return folder


def write_traced(folder: Path, traces: Told, seed: int = 0, **fields: Any) -> Path:
    """A folder of these traces, with figures of them."""
    results = {}
    for cases, found in traces.items():
        reference = next(iter(found))
        results[cases] = {name: _result(made, found[reference], name != reference) for name, made in found.items()}
        for name, made in found.items():
            trial = folder / "trials" / cases / name
            trial.mkdir(parents=True, exist_ok=True)
            lines = (json.dumps({"id": trace.case, **row_of(trace)}) + "\n" for trace in made)
            (trial / "traces.jsonl").write_text("".join(lines))
    sizes = {cases: max(map(len, found.values())) for cases, found in traces.items()}
    return write_evaluation(folder, results, seed, sizes=sizes, **fields)


def _result(made: Sequence[Trace], reference: Sequence[Trace], compared: bool) -> dict[str, Any]:
    outcomes = [outcome_of(trace) for trace in made]
    others = [outcome_of(trace) for trace in reference]
    images = [outcome.image for outcome in outcomes]
    against = compare([one.right for one in outcomes], [one.right for one in others], images) if compared else None
    counts = {"done": len(made), "failed": 0, "left": 0, "failed_cases": {}}
    return counts | figures(outcomes) | {"against_reference": dataclasses.asdict(against) if against else None}


def a_consultation(
    case: str,
    heard: Sequence[str | None] = ("cyst", "scar", "scar"),
    decided: str | None = "cyst",
    said: str = "I see it.",
    confidence: float | None = None,
    **fields: Any,
) -> Trace:
    """A finished consultation, whose key is `cyst`; `said` is all that its models wrote."""
    opinions = [
        Opinion(specialty="Radiologist", doctor=doctor, answer=answer, index=None, reasoning=said, error=None)
        for doctor, answer in enumerate(heard, 1)
    ]
    decision = Decision(
        **{"answer": decided, "index": None, "reasoning": said, "agreement": 1 / 3, "entropy": 0.9, "opinions": 3},
        **{"votes": 1 if confidence is None else 5, "tally": [], "confidence": confidence, "abstained": False},
        review=None,
    )
    nodes = [("triage", None), *(("specialist", doctor) for doctor in range(1, len(heard) + 1)), ("attending", None)]
    calls = [
        NodeCall(node, None, doctor, None, "clinic:base", said, [1], [2], None, "stop", 32, 7, 0.25)
        for node, doctor in nodes
    ]
    right = sum(answer == "cyst" for answer in heard)
    default = {
        "question": "What does the image show?",
        "options": ["nodule", "cyst", "scar"],
        "images": [],
        "context": None,
        "answer": "cyst",
        "specialty": "Radiologist",
        "referral": Referral(specialty="Radiologist", reasoning=said),
        "opinions": opinions,
        "decision": decision,
        "calls": calls,
        "tier": "hard" if right == 0 else "easy" if right == len(heard) else "medium",
    }
    return Trace(case=case, **{**default, **fields})


def picture(folder: Path, size: tuple[int, int] = (112, 112), color: tuple[int, int, int] = (90, 120, 160)) -> str:
    """The reference of an image in a run's folder."""
    return ImageStore(folder / "images").put(Image.new("RGB", size, color))


def write_training(folder: Path, stages: Sequence[str] = ("1-easy", "2-hard")) -> Path:
    """A training run of two steps a stage."""
    for stage in stages:
        (folder / "stages" / stage).mkdir(parents=True)
        rows = [{"stage": stage, "step": step, "loss": 0.1, "reward": 1.0, "entropy": 0.2} for step in (1, 2)]
        log = folder / "stages" / stage / "metrics.jsonl"
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sampled = [a_consultation(f"{stage}-{step}", node="attending", step=step) for step in (1, 2)]
        write_traces(folder / "stages" / stage / "rollouts.parquet", sampled)
    found = {kind: {"accuracy": 0.5} for kind in ("overall", "easy", "medium", "hard", "triage")}
    summary = {"before": found, "after": found, "ideal": None, "seed": 0, "recipe": "clinic", "arguments": []}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder
