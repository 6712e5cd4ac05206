"""What a report is made of: folders of evaluations and of training runs.

Invariant: a figure of several seeds is their mean with its interval over seeds, never the best; of one seed it is that
seed's figure with the interval that its evaluation gave it.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl.cohort import CLINIC
from rl.datasets import BENCHMARKS, is_benchmark
from rl.statistics import NOTHING, Figure, over_seeds, p_over_seeds
from rl.traces import Trace
from rl.trials import Trial

NAME = re.compile(r"\w[\w.+-]*")
"""Of a system or of cases: it is a part of a path, and begins no formula where a spreadsheet reads the table."""
Result = Mapping[str, Any]
"""What `evaluation.json` says of one system on some cases."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A folder that `rl.evaluate --out` has written."""

    folder: Path
    seed: int
    reference: str
    systems: Mapping[str, Mapping[str, Any]]
    cases: Mapping[str, Mapping[str, Any]]
    results: Mapping[str, Mapping[str, Result]]
    versions: Mapping[str, str]
    commit: str | None
    concurrency: int | None
    per_minute: float | None

    def traces(self, cases: str, system: str) -> Iterator[Trace]:
        """The consultations of a system on some cases, one for each case."""
        return Trial(self.folder / "trials" / cases / system).traces()


@dataclasses.dataclass(frozen=True)
class Training:
    """The folder of a finished training run."""

    folder: Path
    summary: Mapping[str, Any]
    stages: list[str]

    @property
    def name(self) -> str:
        """What the report calls it."""
        return self.folder.resolve().name


@dataclasses.dataclass(frozen=True)
class Study:
    """The same systems, or one training of each for each seed, evaluated on the same cases or others."""

    evaluations: Sequence[Evaluation]
    """By their seeds."""

    @property
    def systems(self) -> list[str]:
        """Their names, in the order in which they were told."""
        return list(self.evaluations[0].systems)

    @functools.cached_property
    def cases(self) -> dict[str, Mapping[str, Any]]:
        """What is known of all cases that any seed was measured on, by their names."""
        return {name: about for evaluation in self.evaluations for name, about in evaluation.cases.items()}

    @property
    def reference(self) -> str:
        """The system that others are compared with."""
        return self.evaluations[0].reference

    @property
    def seeds(self) -> list[int]:
        """All of them."""
        return sorted({evaluation.seed for evaluation in self.evaluations})

    def specs(self, system: str) -> dict[int, Mapping[str, Any]]:
        """What a system is with each seed."""
        return {one.seed: one.systems[system] for one in self.evaluations}

    def results(self, cases: str, system: str) -> list[Result]:
        """What was found with each seed."""
        return [one.results[cases][system] for one in self.evaluations if system in one.results.get(cases, {})]

    def lost(self, cases: str, system: str) -> tuple[int, int]:
        """How many of the cases failed, and how many have no result without having failed, over all seeds."""
        failed = left = 0
        for one in self.evaluations:
            if result := one.results.get(cases, {}).get(system):
                lost = result.get("failed", 0)
                failed += lost
                left += max(0, one.cases[cases]["cases"] - result["accuracy"]["n"] - lost)
        return failed, left

    def figure(self, cases: str, system: str, *path: str) -> Figure:
        """A figure over seeds; one that a single seed knows is that seed's, with its own interval.

        Args:
            cases: their name.
            system: its name.
            path: where `rl.figures.figures` has it, such as `by`, `tier`, `hard`.
        """
        known = self.known(cases, system, *path)
        if len(known) < 2:
            return known[0] if known else NOTHING
        values = [figure.value for figure in known if figure.value is not None]
        return _possible(over_seeds(values, known if self.same_cases(cases) else None), path)

    def known(self, cases: str, system: str, *path: str) -> list[Figure]:
        """The figure of each seed that knows it."""
        found = [figure_at(result, path) for result in self.results(cases, system)]
        return [figure for figure in found if figure.value is not None]

    def same_cases(self, cases: str) -> bool:
        """Whether all seeds were measured on the same cases; the clinic draws others with each."""
        return bool(self.cases[cases]["source"] != CLINIC)

    def p(self, cases: str, system: str) -> float | None:
        """That the system is as often right as the reference: McNemar's test, or over seeds Student's t.

        None for the reference itself, where no case is of both, and where the seeds' differences are all the same.
        """
        told = [result["against_reference"] for result in self.results(cases, system)]
        compared = [one for one in told if one and one["difference"]["n"]]  # on no case of both nothing is compared
        if len(compared) == 1:
            return float(compared[0]["p"])
        return p_over_seeds([one["difference"]["value"] for one in compared])


def figure_at(result: Result, path: Sequence[str]) -> Figure:
    """A figure of one seed; a mean that has no interval is a figure without one."""
    told: Any = result
    for name in path:
        told = told.get(name) if isinstance(told, Mapping) else None
    if isinstance(told, Mapping):
        return Figure(told["value"], told["low"], told["high"], told["n"])
    return NOTHING if told is None else Figure(float(told), None, None, 1)


def _possible(figure: Figure, path: Sequence[str]) -> Figure:
    """A figure whose interval ends where its values do: shares at 0 and 1, their differences at -1 and 1."""
    if figure.low is None or figure.high is None or path[0] == "cost":
        return figure
    least = -1.0 if path[0] == "against_reference" else 0.0
    return dataclasses.replace(figure, low=max(least, figure.low), high=min(1.0, figure.high))


def read_runs(folders: Sequence[Path]) -> tuple[list[Evaluation], list[Training]]:
    """The evaluations and the training runs in these folders.

    Raises:
        ValueError: naming the folder that is neither, and what it must hold.
    """
    runs = [_read(folder) for folder in folders]
    return [run for run in runs if isinstance(run, Evaluation)], [run for run in runs if isinstance(run, Training)]


def _read(folder: Path) -> Evaluation | Training:
    if (folder / "evaluation.json").is_file():
        return _evaluation(folder)
    if (folder / "summary.json").is_file() and (folder / "stages").is_dir():
        stages = [path.name for path in (folder / "stages").iterdir() if path.is_dir()]
        return Training(folder, _json(folder / "summary.json"), sorted(stages, key=_place))
    raise ValueError(
        f"runs: {str(folder)!r} is no finished run; give a folder with evaluation.json (python -m rl.evaluate --out), "
        "or with summary.json and stages/ (a training command)"
    )


def _place(stage: str) -> tuple[int, str]:
    """Stages are numbered from 1; imitation's has no number."""
    number = stage.partition("-")[0]
    return (int(number) if number.isdecimal() else 0, stage)


def _evaluation(folder: Path) -> Evaluation:
    told = _json(folder / "evaluation.json")
    names = ("seed", "reference", "systems", "cases", "results")
    if missing := [name for name in names if name not in told]:
        raise ValueError(f"runs: {folder / 'evaluation.json'} lacks {', '.join(missing)}; evaluate again")
    known: dict[str, Any] = {name: told[name] for name in names}
    for name in map(str, (*told["systems"], *told["cases"], told["reference"])):
        if not NAME.fullmatch(name):
            raise ValueError(
                f"runs: {folder / 'evaluation.json'} has the name {name!r}; names are letters, digits and . + - _, and "
                "begin with a letter, a digit or _"
            )
    later: dict[str, Any] = {name: told.get(name) for name in ("commit", "concurrency", "per_minute")}
    return Evaluation(folder, **known, versions=told.get("versions", {}), **later)


def _json(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"runs: {path} cannot be read ({error}); run its command again") from error
    if not isinstance(told, dict):
        raise ValueError(f"runs: {path} is no JSON object; run its command again")
    # A label may hold half of a surrogate pair, which neither a plot nor a file can.
    whole: dict[str, Any] = json.loads(json.dumps(told, ensure_ascii=False).encode(errors="replace"))
    return whole


def studies_of(evaluations: Sequence[Evaluation]) -> list[Study]:
    """Evaluations of the same systems are one study, in the order of the first of each.

    Systems of the same names may be others with each seed, as where there is one training for each: these are one study
    too. With one and the same seed they are different systems, and different studies.

    Raises:
        ValueError: naming two folders that have the same seed and cases, or other references, or other cases of the
            same name, or whose systems could be of more than one study.
    """
    _check_cases(evaluations)
    same: dict[str, list[Evaluation]] = {}
    for one in evaluations:
        same.setdefault(json.dumps(one.systems, sort_keys=True), []).append(one)
    named: dict[tuple[str, ...], list[list[Evaluation]]] = {}
    for group in same.values():
        named.setdefault(tuple(sorted(group[0].systems)), []).append(group)
    together = [study for groups in named.values() for study in _over_seeds(groups)]
    for study in together:
        _check(study)
    together.sort(key=lambda study: evaluations.index(study[0]))
    return [Study(sorted(study, key=lambda one: one.seed)) for study in together]


def _over_seeds(groups: Sequence[list[Evaluation]]) -> list[list[Evaluation]]:
    """Groups of like-named systems that share no seed are taken together, where there is one way to do it."""
    seeds = [{one.seed for one in group} for group in groups]
    places = range(len(groups))
    fits = [tuple(other for other in places if other == own or seeds[own].isdisjoint(seeds[other])) for own in places]
    for own in places:
        if apart := [other for other in fits[own] if fits[other] != fits[own]]:
            several = ", ".join(str(groups[place][0].folder) for place in sorted({*fits[own], *fits[apart[0]]}))
            raise ValueError(
                f"runs: {several} name their systems alike, but these differ, and which are seeds of one cannot be "
                "told; give only folders of one, or name the systems apart (rl.evaluate --systems) and evaluate again"
            )
    return [[one for place in together for one in groups[place]] for together in dict.fromkeys(fits)]


def choice(about: Mapping[str, Any]) -> dict[str, Any]:
    """Which cases these are, as far as it is known; a benchmark is the same from the hub and from a local copy."""
    told = {name: about[name] for name in ("source", "split", "free_text", "limit") if name in about}
    if is_benchmark(told["source"]):
        told["source"] = told["source"].partition(":")[0]
        if "split" in told:
            told["split"] = told["split"] or next(iter(BENCHMARKS[told["source"]].splits))
    elif told["source"] != CLINIC:
        told["source"] = str(Path(told["source"]).resolve())
    return told


def _check_cases(evaluations: Sequence[Evaluation]) -> None:
    """A column of a table is of the same cases."""
    known: dict[tuple[str, str], tuple[Path, Any]] = {}
    for one in evaluations:
        for cases, about in one.cases.items():
            for name, value in choice(about).items():
                folder, other = known.setdefault((cases, name), (one.folder, value))
                if other != value:
                    raise ValueError(
                        f"runs: {cases} in {folder} and {cases} in {one.folder} are different cases: {name} {other!r} "
                        f"and {value!r}; make a report of each, or evaluate one again under another name"
                    )


def _check(group: Sequence[Evaluation]) -> None:
    measured: dict[tuple[int, str], Path] = {}
    for one in group:
        if one.reference != (reference := group[0].reference):
            raise ValueError(
                f"runs: {group[0].folder} compares with {reference!r}, and {one.folder} with {one.reference!r}; "
                "evaluate one of them again, with the --reference of the other"
            )
        for cases in one.cases:
            if (other := measured.setdefault((one.seed, cases), one.folder)) is not one.folder:
                raise ValueError(
                    f"runs: {other} and {one.folder} both hold seed {one.seed} of {cases}, of the same systems; "
                    "give one of them"
                )
