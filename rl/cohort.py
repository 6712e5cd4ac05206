"""Who is treated in a run: the cases, how they are split, and the frozen specialists that see them.

Invariant: no image is in two parts of a split, so nothing measured has been trained on.
"""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

from langchain_core.language_models import BaseChatModel

from mmedagent_graph.images import ImageStore
from mmedagent_graph.models import load_model
from rl.clinic.cases import make_cases
from rl.clinic.doctors import DOCTORS
from rl.datasets import LabeledCase, read_cases

TRAIN, HELD_OUT = 10_000, 20_000
"""Added to the seed of the clinic's training and held-out cases, so that no two draws share any."""


@dataclasses.dataclass
class Cohort:
    """Some cases, and how many rows were left out."""

    cases: Sequence[LabeledCase]
    skipped: int = 0
    """Rows without options, where only questions with options are asked for."""


def clinic_cohort(size: int, seed: int, images: ImageStore) -> Cohort:
    """`size` of the clinic's cases; seeds `TRAIN + s` and `HELD_OUT + s` are for training and measuring."""
    return Cohort(list(make_cases(size, seed, images)))


def own_cohort(path: str | Path, split: str | None, free_text: str) -> Cohort:
    """Cases of one's own from JSONL.

    Args:
        path: the file.
        split: keep only this split's rows.
        free_text: `skip` leaves out the rows without options, and counts them; `exact_match` keeps them.
    """
    cases = read_cases(path, split)
    kept = cases if free_text == "exact_match" else [case for case in cases if case.options]
    if not kept:
        rows = f"cases: no row of {str(path)!r} (split {split}) has options"
        raise ValueError(f"{rows}; give --free_text exact_match to keep those without")
    return Cohort(kept, len(cases) - len(kept))


def hold_out(cases: Sequence[LabeledCase], share: float, seed: int) -> tuple[list[LabeledCase], list[LabeledCase]]:
    """Training and held-out cases, split by image: a `share` of the images, with all their questions, is held out."""
    groups = sorted({_group(case) for case in cases})
    random.Random(seed).shuffle(groups)
    held = set(groups[: max(1, round(share * len(groups)))])
    return [case for case in cases if _group(case) not in held], [case for case in cases if _group(case) in held]


def _group(case: LabeledCase) -> str:
    return " ".join(str(image) for image in case.images) or case.id


def panel(specialists: Sequence[str] | None, cases: str | None, model: str) -> list[BaseChatModel]:
    """The frozen specialists: those that are named, or the default for the cases.

    The clinic's doctors can only read the clinic's images; on other cases the policy itself, sampled three times,
    stands in.
    """
    if not specialists and cases is None:
        return list(DOCTORS)
    return [sampled(name) for name in (specialists or [model_string(model)] * len(DOCTORS))]


def model_string(model: str) -> str:
    """A policy's folder or hub id as a model string of the graph."""
    return model if model.startswith(("clinic:", "transformers:")) else f"transformers:{model}"


def sampled(name: str) -> BaseChatModel:
    """A model that answers anew each time: at temperature 1, where greedy decoding is its default."""
    model = load_model(name)
    return model.model_copy(update={"temperature": 1.0}) if getattr(model, "temperature", None) == 0.0 else model
