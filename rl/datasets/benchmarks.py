"""The benchmarks of the papers' tables, from the hub or a local copy, as cases.

    read_benchmark("slake", images)                                  # the English test split, closed questions
    read_benchmark("slake:/data/SLAKE", images, split="train")       # a local copy of the hub's files
    read_benchmark("vqa_rad:/data/cases.jsonl", images)              # JSONL, see rl.datasets.read_cases

Closed questions are those that the field counts as closed, open ones the others; where the hub's files give no options,
`rl.datasets.options` says how they are built. What a row says of its modality, organ and kind of question goes into
`LabeledCase.groups`, by which figures are broken down, with the benchmark's name and an `answer_type` of `closed` or
`open`; the modality names the specialty that reads it.
"""

import ast
import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmedagent_graph.answers import LETTERS, same_text
from mmedagent_graph.images import ImageStore
from rl.datasets.cases import LabeledCase, read_cases
from rl.datasets.files import Files
from rl.datasets.options import YES_NO, built, is_yes_no

SUBSETS = ("closed", "open", "all")
READERS = {
    "Radiologist": ("ct", "mr", "mri", "x-ray", "ultrasound"),
    "Pathologist": ("microscopy", "histology"),
    "Ophthalmologist": ("fundus", "oct"),
    "Dermatologist": ("dermoscopy",),
}
"""Who reads which modality, by the first word of its name (paper, triage label: the image modality's specialty)."""
Rows = Iterator["LabeledCase | str"]
"""Cases; in the place of a closed question that cannot be used, why."""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark."""

    hub: str
    """Its id on the hub."""
    licence: str
    """As its page there has it."""
    splits: Mapping[str, int | None]
    """How many rows each split has (None: not published); the first is that of the papers' tables."""
    closed: int
    """How many closed questions the first split has, as published."""
    read: Callable[[Files, str, ImageStore], Rows]
    """The rows of a split."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """What was read of a benchmark."""

    name: str
    split: str
    cases: list[LabeledCase]
    rows: int
    """Of the split, before anything was left out."""
    published: int | None
    """How many rows it should have."""
    closed: int
    """How many of the rows are closed questions, before anything was left out."""
    published_closed: int | None
    """How many should be."""
    left_out: dict[str, int]
    """Rows that cannot be used, by the reason; the other subset's are not among them."""

    def __str__(self) -> str:
        """In one line: what there is, and whether that is what was published."""
        rows = f"{self.rows} rows ({_beside(self.rows, self.published)})"
        closed = f"{self.closed} closed questions ({_beside(self.closed, self.published_closed)})"
        left = "".join(f"; {n} left out: {why}" for why, n in self.left_out.items())
        return f"{self.name} {self.split}: {len(self.cases)} cases of {rows} with {closed}{left}"


def _beside(count: int, published: int | None) -> str:
    if published is None:
        return "no published count"
    return "as published" if count == published else f"{published} published"


def read_benchmark(name: str, images: ImageStore, split: str | None = None, subset: str = "closed") -> Selection:
    """The cases of a benchmark.

    Args:
        name: one of `BENCHMARKS`; after a colon the folder of a copy of the hub's files, or a JSONL file, of
            which all rows are taken where none names a split.
        images: where images go that lie inside the files.
        split: default: the one that the papers' tables are of.
        subset: `closed` questions (with options), `open` ones, or `all`.

    Raises:
        ValueError: naming the field, the value and the valid choices.
    """
    name, _, folder = name.partition(":")
    if name not in BENCHMARKS:
        raise ValueError(
            f"cases: {name!r} is no benchmark; choose one of {', '.join(BENCHMARKS)}, or give a JSONL file"
        )
    if subset not in SUBSETS:
        raise ValueError(f"subset: {subset!r} is unknown; choose one of {', '.join(SUBSETS)}")
    benchmark = BENCHMARKS[name]
    split = split or next(iter(benchmark.splits))
    rows: Iterable[LabeledCase | str]
    if folder.endswith(".jsonl"):
        rows = read_cases(folder, split, unsplit=True)
    elif split not in benchmark.splits:
        raise ValueError(f"split: {name} has no {split!r}; choose one of {', '.join(benchmark.splits)}")
    else:
        rows = benchmark.read(Files(name, benchmark.hub, Path(folder) if folder else None), split, images)
    return _selection(name, split, rows, subset)


def is_benchmark(name: str | Path) -> bool:
    """Whether this names a benchmark, rather than a file."""
    return str(name).partition(":")[0] in BENCHMARKS


def _selection(name: str, split: str, rows: Iterable[LabeledCase | str], subset: str) -> Selection:
    cases: dict[str, LabeledCase] = {}
    left_out: Counter[str] = Counter()
    count = closed = 0
    for row in rows:
        count += 1
        if isinstance(row, str):
            closed += 1
            left_out[row] += 1
            continue
        case = _completed(row, name)
        closed += case.groups["answer_type"] == "closed"
        if subset == "all" or bool(case.options) == (subset == "closed"):
            try:
                case.given()
            except ValueError:
                left_out["options that repeat, or an empty question"] += 1
                continue
            if case.id in cases:
                raise ValueError(f"cases: {name} {split} has id {case.id!r} twice; ids must differ")
            cases[case.id] = case
        elif subset == "closed" == case.groups["answer_type"]:
            left_out["closed, but without options"] += 1
    benchmark = BENCHMARKS[name]
    published_closed = benchmark.closed if split == next(iter(benchmark.splits)) else None
    published = benchmark.splits.get(split)
    return Selection(name, split, list(cases.values()), count, published, closed, published_closed, dict(left_out))


def _completed(case: LabeledCase, name: str) -> LabeledCase:
    """With what follows from the benchmark, the modality and the options; a JSONL file may say it itself."""
    said = case.groups.get("answer_type", "").lower()  # SLAKE has it in capitals
    kind = said if said in ("closed", "open") else "closed" if case.options else "open"
    return dataclasses.replace(
        case,
        specialty=case.specialty or _reader_of(case.groups.get("modality", "")),
        groups={**case.groups, "benchmark": name, "answer_type": kind},
    )


def _reader_of(modality: str) -> str | None:
    """The specialty that reads a modality; None for one that is not known."""
    first = re.split(r"[ (]", modality.strip().lower(), maxsplit=1)[0]
    return next((specialty for specialty, known in READERS.items() if first in known), None)


class _Pictures:
    """Puts images that lie inside a file into the store, each picture once."""

    def __init__(self, images: ImageStore) -> None:
        self._images, self._known = images, dict[bytes, str]()

    def put(self, cell: Mapping[str, Any] | None) -> list[str]:
        """The reference of the image in a cell of a Parquet file; none for an empty cell."""
        if cell is None:
            return []
        data: bytes = cell["bytes"]
        if data not in self._known:
            self._known[data] = self._images.put(data)
        return [self._known[data]]


def _yes_no_set(name: str, specialty: str) -> Callable[[Files, str, ImageStore], Rows]:
    """VQA-RAD and PathVQA: image, question and answer, and nothing else; closed is what is answered by yes or no."""

    def read(files: Files, split: str, images: ImageStore) -> Rows:
        pictures = _Pictures(images)
        for number, row in enumerate(files.parquet(f"data/{split}-*.parquet")):
            answer = row["answer"].strip()
            closed = is_yes_no(answer)
            yield LabeledCase(
                id=f"{name}-{split}-{number}",
                question=row["question"],
                answer=answer.lower() if closed else answer,
                options=list(YES_NO) if closed else [],
                images=pictures.put(row["image"]),
                specialty=specialty,
                groups={"question_type": "yes/no" if closed else "open"},
            )

    return read


def _slake(files: Files, split: str, images: ImageStore) -> Rows:
    """SLAKE's English questions; closed is what it calls CLOSED."""
    rows = [row for row in files.json(f"{split}.json") if row["q_lang"] == "en"]
    vocabulary: dict[str, list[str]] = {}
    for row in rows:
        if row["answer_type"].strip().upper() == "CLOSED" and not is_yes_no(row["answer"]):
            vocabulary.setdefault(row["content_type"], []).append(row["answer"].strip())
    folder = files.unpacked("imgs.zip", "imgs")
    for row in rows:
        name, answer = f"slake-{row['qid']}", row["answer"].strip()
        options: list[str] | str = []
        if is_yes_no(answer) and row["answer_type"].strip().upper() == "CLOSED":
            answer, options = answer.lower(), list(YES_NO)
        elif row["answer_type"].strip().upper() == "CLOSED":
            options = built(row["question"], answer, vocabulary[row["content_type"]], name)
        if isinstance(options, str):
            yield options
            continue
        answer = next((option for option in options if same_text(option, answer)), answer)  # in the options' spelling
        yield LabeledCase(
            id=name,
            question=row["question"],
            answer=answer,
            options=options,
            images=[folder / row["img_name"]],
            groups={"modality": row["modality"], "organ": row["location"], "question_type": row["content_type"]},
        )


def _omnimedvqa(files: Files, split: str, images: ImageStore) -> Rows:
    """OmniMedVQA's open-access part: all of it is multiple choice, in one JSON file for each data set behind it."""
    folder = files.unpacked("OmniMedVQA.zip", "OmniMedVQA")
    for path in sorted((folder / "QA_information" / "Open-access").glob("*.json")):
        for row in json.loads(path.read_text(encoding="utf-8")):
            options = [row[key].strip() for key in ("option_A", "option_B", "option_C", "option_D") if row.get(key)]
            answer = row["gt_answer"].strip()
            if answer not in options:
                yield "the answer is none of the options"
                continue
            modality = row.get("modality_type") or row.get("modality") or ""  # one row of Chest CT Scan.json
            yield LabeledCase(
                id=f"omnimedvqa-{row['question_id']}",
                question=row["question"],
                answer=answer,
                options=options,
                images=[folder / row["image_path"]],
                groups={"modality": modality, "question_type": row["question_type"], "dataset": row["dataset"]},
            )


SUBJECTS = (
    "Basic_Medical_Science",
    "Clinical_Medicine",
    "Diagnostics_and_Laboratory_Medicine",
    "Pharmacy",
    "Public_Health",
)
"""MMMU's Health & Medicine."""
WITHHELD = "?"
"""The answers of its test split."""


def _mmmu(files: Files, split: str, images: ImageStore) -> Rows:
    """MMMU's Health & Medicine; the questions that it calls open have no options."""
    pictures = _Pictures(images)
    for subject in SUBJECTS:
        for row in files.parquet(f"{subject}/{split}-*.parquet"):
            options = [str(option).strip() for option in ast.literal_eval(row["options"])]
            closed = row["question_type"] == "multiple-choice"
            key = row["answer"].strip()
            if closed and key != WITHHELD:
                place = LETTERS.find(key) if len(key) == 1 else -1
                if not 0 <= place < len(options):
                    yield "the answer is none of the options"
                    continue
                key = options[place]
            yield LabeledCase(
                id=f"mmmu-{row['id']}",
                question=row["question"],
                answer=None if key == WITHHELD else key,
                options=options if closed else [],
                images=[ref for n in range(1, 8) for ref in pictures.put(row[f"image_{n}"])],
                groups={"subject": subject, "subfield": row["subfield"], "question_type": row["question_type"]},
            )


CHOICES = re.compile(r"\s*Answer Choices:\s*\(A\).*\Z", re.DOTALL)


def _medxpertqa(files: Files, split: str, images: ImageStore) -> Rows:
    """MedXpertQA's multimodal part. Its questions repeat their options, which our prompts list themselves."""
    folder = files.unpacked("images.zip", "images")
    for row in map(json.loads, files.text(f"MM/{split}.jsonl").splitlines()):
        options = [text.strip() for _, text in sorted(row["options"].items())]
        place = sorted(row["options"]).index(row["label"])
        yield LabeledCase(
            id=f"medxpertqa-{row['id']}",
            question=CHOICES.sub("", row["question"]),
            answer=options[place],
            options=options,
            images=[folder / name for name in row["images"]],
            groups={name: row[name] for name in ("medical_task", "body_system", "question_type")},
        )


BENCHMARKS = {
    "vqa_rad": Benchmark(
        hub="flaviagiammarino/vqa-rad",
        licence="CC0-1.0",
        splits={"test": 451, "train": 1793},
        closed=251,
        read=_yes_no_set("vqa_rad", "Radiologist"),
    ),
    "slake": Benchmark(
        hub="BoKelvin/SLAKE",
        licence="CC-BY-4.0",
        splits={"test": 1061, "train": 4919, "validation": 1053},
        closed=416,
        read=_slake,
    ),
    "path_vqa": Benchmark(
        hub="flaviagiammarino/path-vqa",
        licence="MIT",
        splits={"test": 6719, "train": 19654, "validation": 6259},
        closed=3362,
        read=_yes_no_set("path_vqa", "Pathologist"),
    ),
    "omnimedvqa": Benchmark(
        hub="foreverbeliever/OmniMedVQA",
        licence="of each data set behind it",
        splits={"all": 88996},
        closed=88996,
        read=_omnimedvqa,
    ),
    "mmmu_medical": Benchmark(
        hub="MMMU/MMMU",
        licence="Apache-2.0",
        splits={"validation": 150, "dev": 25, "test": None},
        closed=145,
        read=_mmmu,
    ),
    "medxpertqa": Benchmark(
        hub="TsinghuaC3I/MedXpertQA", licence="MIT", splits={"test": 2000, "dev": 5}, closed=2000, read=_medxpertqa
    ),
}
"""By the names that `--cases` takes. VQA-RAD has 272 closed questions by the original file's answer_type, which a JSONL
file may have. The hub's copy lacks it: 251 of them are answered by yes or no."""
