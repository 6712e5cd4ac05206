"""A search for what merges best: each candidate is built, measured on validation cases, and forgotten.

Invariant: what was measured is measured once, and a figure found under other circumstances is never taken for one of
these.
"""

import asyncio
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmedagent_graph.images import ImageStore
from rl import evaluate
from rl.cohort import HELD_OUT, VALIDATION, measured
from rl.models import model_string
from rl.policy import forget_policies
from rl.systems import LABEL

Candidate = Mapping[str, Any]
NAME = "merged"
"""What the evaluation calls a candidate."""


def search(
    candidates: Sequence[Candidate],
    build: Callable[[Candidate, Path], Any],
    score: Callable[[Path], float],
    cache: Path,
    about: Mapping[str, Any],
) -> Candidate:
    """The candidate with the highest score, the first of those that share it.

    Args:
        candidates: what to try, such as `{"density": 0.2, "scale": 1.0}`.
        build: writes the model of a candidate to a folder.
        score: of such a folder.
        cache: JSON file of what is known already; the same search goes on from it.
        about: everything else that scores depend on.

    Raises:
        ValueError: if what is known was found with something else.
    """
    about = json.loads(json.dumps(about))
    known: dict[str, Any] = (
        json.loads(cache.read_text(encoding="utf-8")) if cache.exists() else {"about": about, "tried": []}
    )
    if differ := [name for name in {**known["about"], **about} if known["about"].get(name) != about.get(name)]:
        raise ValueError(f"out: {cache} was made with another {', '.join(differ)}; remove it, or give another --out")
    for candidate in candidates:
        if _score(known, candidate) is not None:
            continue
        with tempfile.TemporaryDirectory(prefix="mmedagent-search-") as folder:
            build(candidate, Path(folder) / "model")
            known["tried"].append({**candidate, "score": score(Path(folder) / "model")})
        written = cache.with_name(cache.name + ".part")
        written.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        written.replace(cache)
    return max(candidates, key=lambda candidate: _score(known, candidate))


def _score(known: Mapping[str, Any], candidate: Candidate) -> Any:
    """What is known of a candidate; None if nothing is."""
    return next((one["score"] for one in known["tried"] if {**one, **candidate} == one), None)


def role_of(cases: str, split: str | None, seed: int) -> Callable[[str], dict[str, str]]:
    """How a model is to be asked about these cases, as `rl.systems` says it.

    It is the specialist that each case's label names, as its experts were trained to be; where a case has no label, it
    is asked as a single doctor.
    """
    with tempfile.TemporaryDirectory(prefix="mmedagent-search-") as folder:
        cohort = measured(cases, ImageStore(folder), split, "grade", 100, seed)
    if all(case.specialty for case in cohort.cases):
        return lambda model: {"system": "one_specialist", "triage": LABEL, "specialists": model}
    return lambda model: {"system": "single", "model": model}


def accuracy(folder: Path, role: Callable[[str], dict[str, str]], cases: str, split: str | None, seed: int) -> float:
    """The accuracy of a model in a role, by rl.evaluate; of the clinic on cases that nothing else is measured on.

    Raises:
        ValueError: if there is nothing to measure it on, or a case has failed.
    """
    with tempfile.TemporaryDirectory(prefix="mmedagent-search-") as out:
        systems = Path(out) / "systems.yaml"
        systems.write_text(json.dumps({"systems": {NAME: role(model_string(str(folder)))}}), encoding="utf-8")
        flags = ["--systems", str(systems), "--cases", cases, "--out", out, "--seed", str(seed + VALIDATION - HELD_OUT)]
        given = evaluate.parser().parse_args([*flags, *(["--split", split] if split else [])])
        report = asyncio.run(evaluate.evaluate(given))
    forget_policies()  # the next candidate needs the room
    (result,) = report["results"].values()
    if failed := result[NAME]["failed_cases"]:
        raise ValueError(f"cases: {len(failed)} of {cases!r} failed, the first with {next(iter(failed.values()))}")
    found: float | None = result[NAME]["accuracy"]["value"]
    if found is None:
        raise ValueError(f"cases: {cases!r} has none that accuracy can be measured on, in split {split!r}")
    return found
