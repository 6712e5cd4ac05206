"""What a result was made with."""

import subprocess
from importlib.metadata import version
from pathlib import Path

PACKAGES = (
    *("mmedagent-graph", "torch", "transformers", "trl", "peft", "datasets", "accelerate", "langgraph"),
    *("langchain-core", "numpy", "scipy", "pillow"),
)


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


def _git(folder: Path, *asked: str) -> str | None:
    """What git says; None where it is not installed, or refuses."""
    try:
        return subprocess.run(["git", *asked], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
