"""The traces of a report, drawn evenly, and as the page's script reads them.

Invariant: what is drawn does not depend on what was answered. Cases are put in order by a hash of their ids, so that of
every system the same cases are drawn.
"""

import base64
import dataclasses
import heapq
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mmedagent_graph.images import ImageStore
from rl.figures import outcome_of
from rl.report.runs import Evaluation
from rl.report.tables import Measured
from rl.statistics import digest
from rl.traces import Trace, is_right

SIDE = 320
"""Pixels of an image's longer side."""
WHO = ("node", "specialty", "doctor", "vote", "model")
CALL = (*WHO, "text", "finish", "input_tokens", "output_tokens", "seconds", "cached")
"""What the page shows of a model's answer; token ids and log-probabilities stay where they are."""


@dataclasses.dataclass(frozen=True)
class Source:
    """The consultations of one system, with one seed, on some cases."""

    label: str
    evaluation: Evaluation
    system: str
    cases: str
    title: str

    def traces(self) -> Iterator[Trace]:
        """All of them."""
        return self.evaluation.traces(self.cases, self.system)


@dataclasses.dataclass(frozen=True)
class Browser:
    """What the page's browser is given."""

    shown: int
    total: int
    data: dict[str, Any]


def browser(systems: Sequence[Measured], columns: Mapping[str, str], limit: int) -> Browser:
    """Traces of all systems, cases and seeds, at most `limit`."""
    sources = [
        Source(one.label, evaluation, one.system, cases, title)
        for cases, title in columns.items()
        for one in systems
        for evaluation in one.study.evaluations
        if one.system in evaluation.results.get(cases, {})
    ]
    sizes = [sum(1 for _ in source.traces()) for source in sources]
    book = _Book()
    if limit:
        known: dict[tuple[Path, str], dict[str, str | None]] = {}
        for source, n in zip(sources, shares(sizes, limit), strict=True):
            place = (source.evaluation.folder, source.cases)
            if place not in known:
                known[place] = _tiers(source)
            for trace in heapq.nsmallest(n, source.traces(), key=lambda trace: digest(trace.case)):
                book.add(source, trace, known[place].get(trace.case))
    return Browser(len(book.traces), sum(sizes), book.data())


def shares(sizes: Sequence[int], limit: int) -> list[int]:
    """How many of each, as evenly as their sizes allow; what a small one leaves goes to the others."""
    given = [0] * len(sizes)
    for done, place in enumerate(sorted(range(len(sizes)), key=lambda place: sizes[place])):
        given[place] = min(sizes[place], (limit - sum(given)) // (len(sizes) - done))
    return given


def _tiers(source: Source) -> dict[str, str | None]:
    """As in the tables it is the reference's opinions that say the tiers for all systems."""
    return {trace.case: trace.tier for trace in source.evaluation.traces(source.cases, source.evaluation.reference)}


class _Book:
    """The traces, and their cases and images, each once."""

    def __init__(self) -> None:
        self.traces: list[dict[str, Any]] = []
        self._cases: dict[str, tuple[int, dict[str, Any]]] = {}
        self._images: dict[str, tuple[int, str | None]] = {}

    def add(self, source: Source, trace: Trace, tier: str | None) -> None:
        """One trace more."""
        told = {"case": self._case(source, trace), "system": source.label, "seed": source.evaluation.seed, "tier": tier}
        self.traces.append(told | _shown(trace))

    def _case(self, source: Source, trace: Trace) -> int:
        folder = source.evaluation.folder / "images"
        case = {
            "set": source.title,
            "id": trace.case,
            "question": trace.question,
            "context": trace.context,
            "options": trace.options,
            "key": trace.answer,
            "label": trace.specialty,
            "groups": trace.groups,
            "images": [self._image(folder, ref) for ref in trace.images],
        }
        return self._cases.setdefault(json.dumps(case), (len(self._cases), case))[0]

    def _image(self, folder: Path, ref: str) -> int:
        if ref not in self._images or self._images[ref][1] is None:  # another run may hold it
            place = self._images[ref][0] if ref in self._images else len(self._images)
            self._images[ref] = (place, thumbnail(folder, ref))
        return self._images[ref][0]

    def data(self) -> dict[str, Any]:
        """As the page's script reads it."""
        return {
            "traces": sorted(self.traces, key=lambda told: told["case"]),
            "cases": [case for _, case in self._cases.values()],
            "images": [url for _, url in self._images.values()],
        }


def _shown(trace: Trace) -> dict[str, Any]:
    """What the page shows of a consultation, beside its case."""
    outcome = None if trace.answer is None else outcome_of(trace)
    flip = None
    if outcome is not None and outcome.majority is not None and outcome.majority != outcome.right:
        flip = "wrong to right" if outcome.right else "right to wrong"
    return {
        "right": None if outcome is None else outcome.right,
        "read": trace.decided is not None,
        "flip": flip,
        "referral": trace.referral,
        "opinions": [
            {**opinion, "right": None if trace.answer is None else is_right(opinion["answer"], trace.answer)}
            for opinion in trace.opinions
        ],
        "decision": trace.decision,
        "calls": [{name: getattr(call, name) for name in CALL} for call in trace.calls],
    }


def thumbnail(folder: Path, ref: str) -> str | None:
    """An image as a small data URL; None where it is not there, or cannot be read."""
    try:
        image = ImageStore(folder).open(ref) if folder.is_dir() else None
    except (OSError, ValueError):
        image = None
    if image is None:
        return None
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def as_json(data: Any) -> str:
    """JSON that can stand in a `<script>`: nothing in it can end that, or begin a comment.

    It is ASCII: a model may write half of a surrogate pair, which no file could hold.
    """
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
