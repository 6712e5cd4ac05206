"""Expert traces: questions with the reasoning that led a teacher to the right answer, as a data set of `datasets`.

    load_dataset("traces/radiology")                                        # Hugging Face: train and validation
    for trace in read_expert_traces("traces/radiology", "train", images):   # examples for the specialist node
        prompt, completion = Specialist(images).render(trace.given()), trace.text

Invariant: what is trained on is asked as at inference: a trace has the fields of the specialist's own prompt, and
nothing of the guideline that its teacher followed. Its completion is well-formed and reads as the right answer.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value

from mmedagent_graph.images import ImageStore
from mmedagent_graph.state import SpecialistInput

TEXT = Value("string")
FEATURES = Features(
    {
        "case": TEXT,
        "question": TEXT,
        "options": List(TEXT),
        "images": List(Image()),
        "context": TEXT,
        "answer": TEXT,
        "specialty": TEXT,
        "perspective": TEXT,
        "reasoning": TEXT,
        "text": TEXT,
        "checks": List({"name": TEXT, "passed": Value("bool")}),
        "teacher": TEXT,
    }
)
SPLITS = ("train", "validation")
ROWS = 64
"""Rows that are in memory at a time: each has its images."""


@dataclasses.dataclass(frozen=True)
class ExpertTrace:
    """One right answer of a specialist, with its reasoning."""

    case: str
    """The case's id."""
    question: str
    options: list[str]
    images: list[str]
    """References into an image store."""
    context: str | None
    answer: str
    """The key."""
    specialty: str
    perspective: str
    """The one that the teacher was told to reason from, one of `rl.guidelines.PERSPECTIVES`."""
    reasoning: str
    text: str
    """The completion to train on: `<think>reasoning</think><answer>answer</answer>`."""
    checks: dict[str, bool]
    """Which of the perspective's checks the reasoning passes."""
    teacher: str
    """Its model string."""

    def given(self) -> SpecialistInput:
        """What the specialist node is given: the prompt is its `render` of this."""
        return SpecialistInput(
            question=self.question,
            options=self.options,
            images=self.images,
            context=self.context,
            specialty=self.specialty,
            doctor=1,
            doctors=1,
        )


def parquet_of(folder: str | Path, split: str) -> Path:
    """Where a split of a data set lies."""
    return Path(folder) / "data" / f"{split}.parquet"


def write_expert_traces(path: Path, traces: Iterable[ExpertTrace], images: ImageStore) -> None:
    """Write a split, over the one that may be there, with the images in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")  # shards may end at once
    with pq.ParquetWriter(unfinished, FEATURES.arrow_schema, compression="zstd") as writer:
        waiting = (_row(trace, images) for trace in traces)
        while rows := list(islice(waiting, ROWS)):
            writer.write_table(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema))
    unfinished.replace(path)


def _row(trace: ExpertTrace, images: ImageStore) -> dict[str, Any]:
    return {
        **vars(trace),
        "images": [{"bytes": images.get(ref), "path": None} for ref in trace.images],
        "checks": [{"name": name, "passed": passed} for name, passed in trace.checks.items()],
    }


def read_expert_traces(folder: str | Path, split: str, images: ImageStore) -> Iterator[ExpertTrace]:
    """The traces of a data set that `rl.build_traces` made.

    Args:
        folder: of the data set.
        split: `train` or `validation`.
        images: where its images go.

    Raises:
        ValueError: if there is no such split, or the file's columns are not those of expert traces.
    """
    return _read(_parquet(folder, split), images)


def specialties_of(folder: str | Path) -> list[str]:
    """Those that a data set has training traces of, in the order of the alphabet.

    Raises:
        ValueError: as `read_expert_traces`.
    """
    column = pq.read_table(_parquet(folder, "train"), columns=["specialty"])["specialty"]
    return sorted(column.unique().to_pylist())


def _parquet(folder: str | Path, split: str) -> Path:
    """Where a split lies, which is there and has the columns."""
    path = parquet_of(folder, split)
    if not path.is_file():
        there = ", ".join(name for name in SPLITS if parquet_of(folder, name).is_file()) or "none"
        raise ValueError(f"traces: no split {split!r} in {str(folder)!r}; it has {there}")
    with pq.ParquetFile(path) as parquet:
        if missing := sorted(FEATURES.keys() - set(parquet.schema_arrow.names)):
            raise ValueError(f"traces: {path} lacks {', '.join(missing)}; give a folder that rl.build_traces made")
    return path


def _read(path: Path, images: ImageStore) -> Iterator[ExpertTrace]:
    with pq.ParquetFile(path) as parquet:
        for batch in parquet.iter_batches(ROWS, columns=list(FEATURES)):
            for row in batch.to_pylist():
                refs = [images.put(image["bytes"]) for image in row["images"]]
                checks = {told["name"]: told["passed"] for told in row["checks"]}
                yield ExpertTrace(**{**row, "images": refs, "checks": checks})
