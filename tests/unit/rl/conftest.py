"""Traces and opinions made by hand: no model, no checkpoint, no network."""

import io
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from PIL import Image

from mmedagent_graph.images import ImageStore
from mmedagent_graph.state import Opinion, Referral
from rl.traces import Trace


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return ImageStore(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def png() -> Callable[[tuple[int, int, int]], bytes]:
    """A small image of one colour."""

    def make(color: tuple[int, int, int]) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), color).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def opinions() -> Callable[..., list[Opinion]]:
    """What doctors 1, 2, ... of a specialty said; None for one that could not be read."""

    def make(*answers: str | None, specialty: str = "Radiologist") -> list[Opinion]:
        return [
            Opinion(specialty=specialty, doctor=doctor, answer=answer, index=None, reasoning="", error=None)
            for doctor, answer in enumerate(answers, 1)
        ]

    return make


@pytest.fixture(scope="session")
def trace() -> Callable[..., Trace]:
    """A trace that has heard its specialists; any field can be given."""

    def make(**fields: Any) -> Trace:
        default = {
            "case": "case-1",
            "question": "What does the image show?",
            "options": ["nodule", "cyst", "scar"],
            "images": [],
            "context": None,
            "answer": "cyst",
            "referral": Referral(specialty="Radiologist", reasoning=""),
            "node": "attending",
        }
        return Trace(**{**default, **fields})

    return make
