"""What happened in one consultation, stored so that it can be graded again without generating again.

Invariant: a trace is plain JSON. Images are references, and the answer key stands beside what was said, never in a
prompt.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mmedagent_graph.nodes.attending import attending_input
from mmedagent_graph.state import AttendingInput, CaseFields, ConsultationState, Decision, Opinion, Referral
from rl.datasets import LabeledCase


@dataclasses.dataclass
class Trace:
    """One consultation, up to a node (upstream) or to its end."""

    case: str
    """The case's id."""
    question: str
    options: list[str]
    images: list[str]
    """References into the run's image store."""
    context: str | None
    answer: str
    """The key: the right option's text, or the right free text."""
    specialty: str | None = None
    """The triage label."""
    referral: Referral | None = None
    opinions: list[Opinion] = dataclasses.field(default_factory=list)
    decision: Decision | None = None
    node: str = ""
    """The node under training, whose completion follows."""
    text: str | None = None
    """That node's completion, as the model wrote it."""
    usage: dict[str, Any] = dataclasses.field(default_factory=dict)
    tier: str | None = None
    rewards: dict[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, case: LabeledCase, state: dict[str, Any], node: str = "", text: str | None = None) -> "Trace":
        """The trace of a case from the state that its consultation has reached."""
        return cls(
            case=case.id,
            **state["case"],
            answer=case.answer,
            specialty=case.specialty,
            referral=state.get("referral"),
            opinions=list(state.get("opinions", [])),
            decision=state.get("decision"),
            node=node,
            text=text,
            usage=dict(state.get("usage", {})),
        )

    def fields(self) -> CaseFields:
        """The case as every node sees it; the answer key is not in it."""
        return CaseFields(question=self.question, options=self.options, images=self.images, context=self.context)

    def state(self) -> ConsultationState:
        """The graph's state that this trace ends in: what a rollout goes on from."""
        return ConsultationState(
            case=self.fields(),
            referral=self.referral,
            opinions=self.opinions,
            decision=self.decision,
            usage=self.usage,
        )

    def given(self) -> AttendingInput:
        """What the attending was given."""
        return attending_input(self.state())


def append_traces(path: Path, traces: Iterable[Trace]) -> None:
    """Append traces to a JSONL file, one a line."""
    _append(path, (dataclasses.asdict(trace) for trace in traces))


def read_traces(path: Path) -> Iterator[Trace]:
    """The traces of a JSONL file."""
    return (Trace(**row) for row in _rows(path))


@dataclasses.dataclass
class Completion:
    """One completion of the node under training; with its upstream trace it is the whole trace again."""

    case: str
    step: int
    """The stage's optimizer step, from 1, that it was sampled for."""
    text: str
    answer: str | None
    """The consultation's answer."""
    rewards: dict[str, float]
    tier: str | None

    @classmethod
    def of(cls, trace: Trace, step: int) -> "Completion":
        """What a graded trace adds to its upstream."""
        answer = trace.decision["answer"] if trace.decision else None
        return cls(trace.case, step, str(trace.text), answer, trace.rewards, trace.tier)


def append_completions(path: Path, completions: Iterable[Completion]) -> None:
    """Append completions to a JSONL file, one a line."""
    _append(path, (dataclasses.asdict(completion) for completion in completions))


def read_completions(path: Path) -> Iterator[Completion]:
    """The completions of a JSONL file."""
    return (Completion(**row) for row in _rows(path))


def forget_after(path: Path, step: int) -> None:
    """Drop the rows of a JSONL file whose `step` is beyond a checkpoint's: the resumed run will write them again."""
    if path.exists():
        kept = [json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(path) if row["step"] <= step]
        path.write_text("".join(kept), encoding="utf-8")


def _append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with path.open("ab+") as file:
        whole = _end_of_last_line(file)
        if whole < file.seek(0, os.SEEK_END):  # a killed run stopped in the middle of a line
            file.truncate(whole)
        file.write(text.encode())


def _end_of_last_line(file: BinaryIO) -> int:
    """The length of a file up to its last line break."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file; a last line that a killed run left unfinished is passed over."""
    if path.exists():
        with path.open("rb") as file:
            yield from (json.loads(line) for line in file if line.endswith(b"\n"))
