"""What a result was made with."""

import hashlib
import json
import subprocess
from importlib.metadata import version
from pathlib import Path

PACKAGES = (
    *("mmedagent-graph", "torch", "transformers", "trl", "peft", "datasets", "accelerate", "langgraph"),
    *("langchain-core", "numpy", "scipy", "pillow"),
)
WEIGHTS = ".safetensors"
SAMPLES, SAMPLE = 64, 65536
"""How many samples are read of a file of weights, and how many bytes each has."""


def versions() -> dict[str, str]:
    """The versions of the packages that decide what comes out."""
    return {package: version(package) for package in PACKAGES}


def commit() -> str | None:
    """What is checked out, `-dirty` where the tree differs from it; None where this is not a checkout.

    An installed package may lie inside somebody else's repository, which is then not asked.
    """
    here = Path(__file__)
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here.parent, "describe", "--always", "--dirty", "--exclude=*")


def digest_of(path: Path) -> str | None:
    """What tells a file or a folder from others that had its name: of a folder the files in it, and in its `data`.

    Returns:
        A hash; None where there is nothing.
    """
    files = [path] if path.is_file() else sorted([*path.glob("*"), *path.glob("data/*")])
    told = [_told(file) for file in files if file.is_file()]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest() if told else None


def _told(file: Path) -> str:
    if file.suffix == WEIGHTS:
        return sampled(file)
    with file.open("rb") as opened:
        return f"{file.name} {hashlib.file_digest(opened, 'sha256').hexdigest()}"


def sampled(file: Path) -> str:
    """What tells a file of weights from others wherever it lies: its name, its size, a hash of samples of its bytes."""
    digest, size = hashlib.sha256(), file.stat().st_size
    with file.open("rb") as opened:
        for place in range(SAMPLES):
            opened.seek(size * place // SAMPLES)
            digest.update(opened.read(SAMPLE))
    return f"{file.name} {size} {digest.hexdigest()}"


def _git(folder: Path, *asked: str) -> str | None:
    """What git says; None where it is not installed, or refuses."""
    try:
        return subprocess.run(["git", *asked], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
