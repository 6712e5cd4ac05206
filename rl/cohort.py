"""Who is treated in a run: the cases, how they are split, and the frozen specialists that see them.

Invariant: no image is in two parts of a split that is made here. Splits that a data set brings are taken as they are
(VQA-RAD's share nearly all their images), and a run says how many images they share.
"""

import dataclasses
import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmedagent_graph.hospital import is_hospital, open_hospital
from mmedagent_graph.images import ImageStore, default_store
from mmedagent_graph.models import Loader, load_model, sampled
from mmedagent_graph.nodes.staff import Panel
from mmedagent_graph.prompts import SPECIALTIES
from rl.clinic.cases import make_cases
from rl.clinic.doctors import DOCTORS
from rl.datasets import LabeledCase, is_benchmark, read_benchmark, read_cases, splits_of
from rl.duplicates import Seen, Tests
from rl.models import model_string

TRAIN, HELD_OUT, VALIDATION = 10_000, 20_000, 30_000
"""Added to the seed of the clinic's training, held-out and validation cases, so that no two draws share any."""


TRAINING = "train"
"""What benchmarks call the split that is trained on."""
CLINIC, FAINT = "clinic", "faint"
"""The names of the clinic's own cases, and of those with faint findings, where others are named beside them."""
Cohorts = tuple[Sequence[LabeledCase], Sequence[LabeledCase], int]
"""Training cases, held-out cases, and how many rows were skipped."""


@dataclasses.dataclass
class Cohort:
    """Some cases, and how many rows were left out."""

    cases: Sequence[LabeledCase]
    skipped: int = 0
    """Rows without options, where only questions with options are asked for, and those that cannot be used."""


def clinic_cohort(
    size: int, seed: int, images: ImageStore, faint: bool = False, specialty: str | None = None
) -> Cohort:
    """`size` of the clinic's cases; seeds `TRAIN + s` and `HELD_OUT + s` are for training and measuring."""
    return Cohort(list(make_cases(size, seed, images, faint, specialty)))


def own_cohort(
    path: str | Path,
    split: str | None,
    free_text: str,
    without_keys: str | None = "leave them out",
    images: ImageStore | None = None,
) -> Cohort:
    """Cases of one's own from JSONL, or of a benchmark.

    Args:
        path: the file, or what `rl.datasets.read_benchmark` takes.
        split: keep only this split's rows. Default: all; of a benchmark the one that the papers' tables are of.
        free_text: `skip` leaves out the rows without options, and counts them; `grade` keeps them.
        without_keys: what can be done about rows without an answer key (`"answer": null`), which are refused; None:
            they are taken.
        images: where a benchmark's images go that lie inside its files. Default: a store of this process.
    """
    left_out = 0
    if is_benchmark(path):
        read = read_benchmark(str(path), images or default_store(), split, "all")
        print(f"note: {read}")
        cases, left_out = read.cases, sum(read.left_out.values())
    else:
        cases = read_cases(path, split)
    if without_keys and (without := [case.id for case in cases if case.answer is None]):
        raise ValueError(f"cases: {len(without)} rows have no answer key ({without[0]!r} first); {without_keys}")
    kept = cases if free_text == "grade" else [case for case in cases if case.options]
    if not kept:
        rows = f"cases: no row of {str(path)!r} (split {split}) has options"
        raise ValueError(f"{rows}; give --free_text grade to keep those without")
    return Cohort(kept, len(cases) - len(kept) + left_out)


def measured(cases: str, images: ImageStore, split: str | None, free_text: str, size: int, seed: int) -> Cohort:
    """Cases to measure on: `clinic`, its `faint` ones, a benchmark or a JSONL file.

    Args:
        cases: which.
        images: where their images go.
        split: as in `own_cohort`.
        free_text: as in `own_cohort`.
        size: how many, of the clinic's.
        seed: of the clinic's.
    """
    if cases in (CLINIC, FAINT):
        return clinic_cohort(size, HELD_OUT + seed, images, faint=cases == FAINT)
    return own_cohort(cases, split, free_text, images=images)


def cohorts(recipe: Any, seed: int, images: ImageStore) -> Cohorts:
    """The cases that a recipe (`rl.settings.Consultations`) asks for."""
    alone = recipe.nodes == ["specialist"]
    if recipe.made_up:
        faint = alone or recipe.cases == FAINT
        sizes = {TRAIN: recipe.train_size, HELD_OUT: recipe.eval_size}
        learn, held = (
            clinic_cohort(size, draw + seed, images, faint, recipe.specialty) for draw, size in sizes.items()
        )
        return learn.cases, held.cases, 0
    cohort = _asked(recipe, recipe.split, images)
    if recipe.eval_split is None:
        learning, held_out = hold_out(cohort.cases, recipe.holdout, seed)
    else:
        other = _asked(recipe, recipe.eval_split, images)
        learning, held_out = list(cohort.cases), list(other.cases)
        if shared := shared_images(learning, held_out):
            print(f"note: {shared} images are in both {recipe.split} and {recipe.eval_split}, as the data set has it")
    if (keyed := recipe.by_key()) and not any(case.answer for case in learning):
        raise ValueError(
            f"cases: no row of {recipe.cases!r} has an answer key, without which {', '.join(keyed)} cannot grade, and "
            "no completion has a reward; give --graders that need none, such as format or a function of your own"
        )
    if recipe.by_label() and not any(case.specialty for case in learning):
        raise ValueError(
            f"cases: no row of {recipe.cases!r} has a specialty, by which triage learns; give --outcome_weight 1 with "
            "--triage_graders format=0.5 to pay it for the final answer alone"
        )
    print(f"{len(learning)} training and {len(held_out)} held-out cases; {cohort.skipped} rows without options skipped")
    return learning, held_out, cohort.skipped


def _asked(recipe: Any, split: str | None, images: ImageStore) -> Cohort:
    """Those of a recipe's cases that its nodes can be asked about."""
    cohort = own_cohort(recipe.cases, split, recipe.free_text, recipe.without_keys(), images)
    if recipe.nodes != ["specialist"]:
        return cohort
    mine = [case for case in cohort.cases if case.specialty and recipe.specialty in (None, case.specialty)]
    if not mine:
        known = ", ".join(sorted({case.specialty for case in cohort.cases if case.specialty})) or "no labels"
        asked = recipe.specialty or "any specialty"
        raise ValueError(f"specialty: no row of {recipe.cases!r} (split {split}) is of {asked}; there are {known}")
    return Cohort(mine, cohort.skipped + len(cohort.cases) - len(mine))


def rehearsed(
    recipe: Any, learned: int, seed: int, images: ImageStore, held_out: Sequence[LabeledCase]
) -> list[LabeledCase]:
    """What a specialist rehearses beside so much that it learns (`rehearse` of `rl.settings.Consultations`).

    None is a held-out case, by its pictures, or else by its words (`rl.duplicates.Tests`): what is measured on is not
    trained on, not even without its key. Of the cases that it learns from, it rehearses those of the other specialties.

    Raises:
        ValueError: if there is nothing to rehearse.
    """
    if recipe.rehearse is None:
        return []
    n = round(recipe.rehearse_share / (1 - recipe.rehearse_share) * learned)
    if recipe.rehearse in (CLINIC, FAINT):
        return list(clinic_cohort(n, TRAIN + seed, images, recipe.rehearse == FAINT).cases)
    path, split = named_split(recipe.rehearse)
    same = recipe.cases is not None and Path(path).resolve() == Path(recipe.cases).resolve()
    same = same and split in (None, recipe.split)
    split = recipe.split if same else split or training_split(path)
    cohort = own_cohort(path, split, recipe.free_text, None, images)
    labelled = [case for case in cohort.cases if case.specialty and not (same and case.specialty == recipe.specialty)]
    measured_on = Tests.held_out(held_out, images)
    known = [case for case in labelled if not measured_on.why(Seen.of(case, images))]
    if not known:
        raise ValueError(f"rehearse: no row of {recipe.rehearse!r} has a specialty and is not held out")
    return random.Random(seed).sample(known, min(n, len(known)))


def named_split(name: str) -> tuple[str, str | None]:
    """The cases and the split that `CASES` or `CASES@SPLIT` names."""
    path, _, split = (name, "", "") if "@" not in name or Path(name).exists() else name.rpartition("@")
    return path, split or None


def training_split(path: str) -> str | None:
    """The split to train on where none is named: `train`, or all of a file that has no splits."""
    return TRAINING if is_benchmark(path) or splits_of(path) else None


def hold_out(cases: Sequence[LabeledCase], share: float, seed: int) -> tuple[list[LabeledCase], list[LabeledCase]]:
    """Training and held-out cases, split by image: a `share` of the images, with all their questions, is held out.

    Raises:
        ValueError: if all cases share their images, so that they cannot be split.
    """
    group_of = _groups(cases)
    groups = sorted(set(group_of.values()))
    if len(groups) < 2:
        raise ValueError("holdout: all cases share their images and cannot be split; give --eval_split instead")
    random.Random(seed).shuffle(groups)
    held = set(groups[: min(max(1, round(share * len(groups))), len(groups) - 1)])
    return (
        [case for case in cases if group_of[case.id] not in held],
        [case for case in cases if group_of[case.id] in held],
    )


def _groups(cases: Sequence[LabeledCase]) -> dict[str, str]:
    """For each case the name of its group: cases that share an image, directly or through others, are in one."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    for case in cases:
        for image in case.images:
            parent[root(f"image {_same_picture(image)}")] = root(f"case {case.id}")
    return {case.id: root(f"case {case.id}") for case in cases}


def _same_picture(image: Any) -> str:
    """What two copies of one picture have in common, whatever their names: the hash of their bytes."""
    return hashlib.sha256(image.read_bytes()).hexdigest() if isinstance(image, Path) and image.is_file() else str(image)


def shared_images(some: Sequence[LabeledCase], others: Sequence[LabeledCase]) -> int:
    """How many images two sets of cases share."""
    here, there = ({_same_picture(image) for case in cases for image in case.images} for cases in (some, others))
    return len(here & there)


def hospital_among(specialists: Sequence[str] | None) -> str | None:
    """The hospital that is named in the place of specialists, if one is."""
    return specialists[0] if specialists and len(specialists) == 1 and is_hospital(specialists[0]) else None


def panel(specialists: Sequence[str] | None, cases: str | None, model: str) -> Panel | Mapping[str, Panel]:
    """The frozen specialists: those that are named, a hospital's, or the default for the cases.

    The clinic's doctors can only read the clinic's images; on other cases the policy itself, sampled three times,
    stands in.
    """
    if not specialists and cases in (None, CLINIC, FAINT):
        return list(DOCTORS)
    if hospital := hospital_among(specialists):
        return open_hospital(hospital).specialists(tuple(SPECIALTIES), len(DOCTORS), Loader())
    return [sampled(load_model(name)) for name in (specialists or [model_string(model)] * len(DOCTORS))]
