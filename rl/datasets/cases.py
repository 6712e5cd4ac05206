"""Cases with their answer keys, for training and measuring. The graph itself is never given the key.

Invariant: what `LabeledCase.given()` returns holds nothing that reveals the answer.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmedagent_graph import Case

GROUPS = (
    "modality", "organ", "answer_type", "question_type", "body_system", "medical_task", "subject", "subfield",
    "dataset",
)  # fmt: skip
"""What a row may say of its case, beside what is asked."""


@dataclasses.dataclass(frozen=True)
class LabeledCase:
    """One question with its answer key."""

    id: str
    question: str
    answer: str | None
    """The right option's text, or the right free text where there are no options; None where nobody knows."""
    options: list[str] = dataclasses.field(default_factory=list)
    images: list[Any] = dataclasses.field(default_factory=list)
    context: str | None = None
    specialty: str | None = None
    """The triage label: who reads this kind of image; None where the data set does not say."""
    groups: dict[str, str] = dataclasses.field(default_factory=dict)
    """What the data set says of the case, one of `GROUPS` or the like, by which figures are broken down."""

    def given(self) -> Case:
        """What the consultation is given, checked."""
        return Case(question=self.question, options=self.options, images=self.images, context=self.context)


def read_cases(path: str | Path, split: str | None = None, unsplit: bool = False) -> list[LabeledCase]:
    """Cases from a JSONL file, one object a line; `image` (or `images`) relative to the file's folder.

    Args:
        path: the file. Fields read: id, split, image or images, question, options, answer, context, specialty,
            and those of `GROUPS`.
        split: keep only the rows of this split; None keeps all.
        unsplit: keep all where no row names a split, too.

    Raises:
        ValueError: naming file, line, field and what is valid.
    """
    path = Path(path)
    rows = list(_rows(path))
    splits = sorted({str(row.get("split")) for _, row in rows})
    if split is not None and not (unsplit and all(row.get("split") is None for _, row in rows)):
        rows = [(number, row) for number, row in rows if row.get("split") == split]
        if not rows:
            raise ValueError(f"split: {split!r} is not in {str(path)!r}; it has {', '.join(splits)}")
    cases: dict[str, LabeledCase] = {}
    for number, row in rows:
        case = _case(path, number, row)
        if case.id in cases:  # traces are kept by id: two cases of one id would share their opinions
            raise ValueError(f"{path}:{number}: id {case.id!r} is there twice; ids must differ")
        cases[case.id] = case
    return list(cases.values())


def splits_of(path: str | Path) -> list[str]:
    """The splits that a JSONL file's rows name; none where none does.

    Raises:
        ValueError: naming file and line.
    """
    return sorted({str(row["split"]) for _, row in _rows(Path(path)) if row.get("split") is not None})


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.is_file():
        raise ValueError(f"cases: no file {str(path)!r}; give a JSONL file with one case a line")
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: a case is a JSON object, not a {type(row).__name__}")
            yield number, row


def _case(path: Path, number: int, row: dict[str, Any]) -> LabeledCase:
    where = f"{path}:{number}"
    for field in ("question", "answer"):
        if field == "answer" and row.get(field, "") is None:
            continue  # a case without a key says so
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise ValueError(f"{where}: {field} is {row.get(field)!r}; it must be a text")
    options = _texts(where, "options", row.get("options"))
    if options and row["answer"] is not None and row["answer"] not in options:
        raise ValueError(f"{where}: answer {row['answer']!r} is not one of the options {options}")
    image = row.get("image")
    images = _texts(where, "images" if "images" in row else "image", row.get("images", [image] if image else []))
    identity = row.get("id")
    case = LabeledCase(
        id=f"{path.stem}-{number}" if identity is None else str(identity),
        question=row["question"],
        answer=row["answer"],
        options=options,
        images=[path.parent / image for image in images],
        context=row.get("context"),
        specialty=row.get("specialty"),
        groups={name: row[name] for name in GROUPS if isinstance(row.get(name), str)},
    )
    for image in case.images:
        if not image.is_file():
            raise ValueError(f"{where}: image {str(image)!r} is not there; images are relative to the file's folder")
    try:
        case.given()  # one option, equal options, too many: refused here, not in the middle of a rollout
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return case


def _texts(where: str, field: str, value: Any) -> list[str]:
    """A list of texts, or null for none."""
    if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise ValueError(f"{where}: {field} is {value!r}; it must hold texts, in a list where there may be several")
    return list(value or [])
