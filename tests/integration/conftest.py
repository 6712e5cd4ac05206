"""Real parts: the clinic's base model, its images, real TRL steps."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from mmedagent_graph import SPECIALTIES
from mmedagent_graph.hospital import slug
from mmedagent_graph.images import ImageStore
from rl.clinic.doctors import DOCTORS
from rl.cohort import clinic_cohort
from rl.policy import PolicyChatModel, load_policy
from rl.rollout import Rollout, roll_upstream
from rl.serve import make, serving
from rl.traces import Trace
from tests.integration.random_adapters import random_adapter
from tests.integration.servers.vllm_server import Server, served


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)  # tests run side by side, one a core


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return ImageStore(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def policy() -> PolicyChatModel:
    return load_policy("clinic:base")


@pytest.fixture(scope="session")
def rollout(images: ImageStore) -> Rollout:
    return Rollout(triage="clinic:base", specialists=DOCTORS, images=images)


@pytest.fixture(scope="session")
def cases(images: ImageStore):
    return clinic_cohort(240, 99, images).cases


@pytest.fixture(scope="session")
def upstream(rollout: Rollout, cases) -> list[Trace]:
    """What the specialists said of the cases, with tiers."""
    return asyncio.run(roll_upstream(rollout, cases, quiet=True))


@pytest.fixture(scope="session")
def arrivals(rollout: Rollout, cases) -> list[Trace]:
    """The cases before triage."""
    return asyncio.run(roll_upstream(rollout, cases, node="triage", quiet=True))


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clinic's base with five adapters that nobody trained: triage's, the attending's, and three specialties'."""
    folder = tmp_path_factory.mktemp("hospital")
    attending = str(random_adapter(folder / "attending", 0, spread=0.15))
    own = {name: random_adapter(folder / slug(name), seed) for seed, name in enumerate(list(SPECIALTIES)[:3], 1)}
    triage = str(random_adapter(folder / "triage", 4, spread=0.15))
    make(folder, "clinic:base", triage, attending, [f"{name}={own.get(name, '')}" for name in SPECIALTIES])
    return folder


@pytest.fixture(scope="session")
def server(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One vLLM for all that needs one: the hospital's."""
    with served(tmp_path_factory.getbasetemp() / "vllm", *serving(hospital).flags()) as server:
        yield server
