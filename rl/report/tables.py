"""The report's tables: accuracy in the papers' layout, and what became of the specialists and what it cost.

Invariant: rows that the papers print are marked as quoted, and stand only under the benchmarks that they are of.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rl.cohort import CLINIC
from rl.curriculum import TIERS
from rl.datasets import BENCHMARKS, is_benchmark
from rl.report.numbers import Cell, p_value, percent, plain
from rl.report.runs import Study, choice
from rl.statistics import CONFIDENCE, DRAWS, Figure

PAPER = {
    "vqa_rad": "VQA-RAD",
    "slake": "SLAKE",
    "path_vqa": "PathVQA",
    "omnimedvqa": "OmniMedVQA",
    "mmmu_medical": "MMMU-Med",
    "medxpertqa": "MedXpertQA-MM",
}
"""The papers' columns, in their order, by the names that `--cases` takes."""
ATTENDING = {
    "majority right": "majority",
    "right → wrong": "right_to_wrong",
    "wrong → right": "wrong_to_right",
    "conforms": "conformity",
    "conforms to the wrong": "conformity_when_wrong",
    "suppresses a minority": "minority_suppression",
}
MAJORITY_NOTE = (
    "Majority right: of the cases in which most specialists gave one answer, the share where it is the key. "
    "Right → wrong: where it is, the share that the attending decides wrongly; wrong → right: where it is not, the "
    "share that it decides rightly. Conforms: its decision is that majority. Suppresses a minority: some specialist is "
    "right, the majority is not, and nor is the decision."
)
BEST_NOTE = (
    "Best single specialist: the doctor whose opinion is right most often on one half of the images, and its accuracy "
    "on the other half."
)
COST_NOTE = (
    "Seconds are of all calls together, whether or not they ran at the same time, and waiting in a queue counts: more "
    "consultations at a time make them more. Calls that a cache has spared count as if they were made."
)
SEEDS_NOTE = (
    "A figure that one seed alone knows has that seed's interval. Those of what a case costs are by Student's t over "
    "the seeds. Where all seeds are of the same cases, that test asks whether other runs would differ, too, on these "
    "cases, and knows nothing of others: where it and the interval of a difference disagree, believe the interval."
)
GROUPS = 10
"""At most so many columns of groups."""
GROUPED = {
    "specialty": "by labelled specialty",
    "referred": "by whom the reference referred to",
    "specialists": "of each specialist's opinion, by its number",
}
"""How a table says by what it is broken down, where the name does not."""


@dataclasses.dataclass(frozen=True)
class Column:
    """What stands above a column."""

    title: str
    about: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row: a system that was measured, or one that is quoted."""

    label: str
    cells: Sequence[Cell]
    mark: str = ""
    """Of the note that says whence it is quoted; empty: it was measured."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table, as every format shows it."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = ()

    @property
    def apart(self) -> list[bool]:
        """Of each column whether any of its figures has an interval."""
        return [any(row.cells[place].low for row in self.rows) for place in range(len(self.columns))]


@dataclasses.dataclass(frozen=True)
class Measured:
    """A system of a study, by the name that the whole report knows it by."""

    label: str
    study: Study
    system: str

    def figure(self, cases: str, *path: str) -> Figure:
        """A figure of it; see `Study.figure`."""
        return self.study.figure(cases, self.system, *path)


def measured(studies: Sequence[Study]) -> list[Measured]:
    """All systems, named; where two studies have one of the same name, with the folder that it is of."""
    names = [system for study in studies for system in study.systems]
    folders = [study.evaluations[0].folder for study in studies]
    known = [folder.name if len({one.name for one in folders}) == len(folders) else str(folder) for folder in folders]
    return [
        Measured(f"{system} ({folder})" if names.count(system) > 1 else system, study, system)
        for study, folder in zip(studies, known, strict=True)
        for system in study.systems
    ]


def columns_of(studies: Sequence[Study]) -> dict[str, str]:
    """The titles of all cases by their names: the papers' benchmarks in the papers' order, then the others."""
    found: dict[str, str] = {}
    for study in studies:
        for name, about in study.cases.items():
            found.setdefault(name, PAPER[name] if name in PAPER and is_benchmark(about["source"]) else name)
    ours = [name for name in PAPER if found.get(name) == PAPER[name]]
    return {name: found[name] for name in (*ours, *found)}


def accuracy_table(studies: Sequence[Study]) -> Table:
    """Accuracy in %: a row for each system, a column for each benchmark."""
    columns = columns_of(studies)
    systems = measured(studies)
    told = [[one.figure(cases, "accuracy") for cases in columns] for one in systems]
    rows = [Row(one.label, [percent(figure) for figure in row]) for one, row in zip(systems, told, strict=True)]
    papers = {name: unlike_papers(studies, name) for name, title in columns.items() if title == PAPER.get(name)}
    quoted, sources = _quoted([name for name, why in papers.items() if not why], list(columns))
    unlike = [
        f"Of {columns[name]} no paper is quoted: here it is {why}, and the papers' figures are of the closed questions "
        "of the whole test split."
        for name, why in papers.items()
        if why
    ]
    heads = [Column(title, _sizes(studies, name)) for name, title in columns.items()]
    notes = [*interval_notes(systems), *pooling_notes(systems), *failures(systems, columns), *unlike, *sources]
    return Table("Accuracy in %", heads, [*rows, *quoted], notes)


def _sizes(studies: Sequence[Study], cases: str) -> str:
    """How many cases a column is of."""
    sizes = {
        result["accuracy"]["n"] for study in studies for name in study.systems for result in study.results(cases, name)
    }
    return _size(sorted(sizes) or [0])


def _quoted(benchmarks: Sequence[str], columns: Sequence[str]) -> tuple[list[Row], list[str]]:
    """The papers' rows that say something of these benchmarks, and their sources."""
    rows, sources = [], []
    for paper in yaml.safe_load(Path(__file__).with_name("quoted.yaml").read_text(encoding="utf-8")):
        printed = {
            label: [Figure(told[name] / 100, None, None, 0) if name in benchmarks and name in told else None
                    for name in columns]
            for label, told in paper["rows"].items()
        }  # fmt: skip
        kept = {label: figures for label, figures in printed.items() if any(figures)}
        for label, figures in kept.items():
            rows.append(Row(label, [percent(figure) if figure else Cell() for figure in figures], paper["mark"]))
        if kept:
            sources.append(
                f"{paper['mark']} Quoted from {paper['source']}, not measured here: other models, other prompts and "
                "perhaps other cases. Not comparable with the rows above."
            )
    return rows, sources


def unlike_papers(studies: Sequence[Study], benchmark: str) -> str:
    """How the cases are chosen, where it is not as the papers do it; what is not known counts as if it were."""
    chosen = [choice(study.cases[benchmark]) for study in studies if benchmark in study.cases]
    default = next(iter(BENCHMARKS[benchmark].splits))
    told = [
        *(f"split {one['split']}" for one in chosen if one.get("split", default) != default),
        *("open questions, too" for one in chosen if one.get("free_text", "skip") != "skip"),
        *(f"the first {one['limit']} cases" for one in chosen if one.get("limit")),
    ]
    return ", ".join(dict.fromkeys(told))


def interval_notes(systems: Sequence[Measured]) -> list[str]:
    """What the intervals are."""
    known = [
        (one.study, cases, len(one.study.known(cases, one.system, "accuracy")))
        for one in systems
        for cases in one.study.cases
    ]
    several = [(study, cases) for study, cases, seeds in known if seeds > 1]
    level = f"{CONFIDENCE:.0%}"
    resampled = f"by bootstrap over images ({DRAWS:,} resamples): questions about one image stand and fall together."
    notes = []
    if several:
        seeds = ", ".join(map(str, sorted({seed for study, _ in several for seed in study.seeds})))
        notes.append(f"Each figure is the mean over all seeds ({seeds}) with its {level} interval. {_over(several)}")
    if any(seeds == 1 for *_, seeds in known):
        once = f"ntervals are at {level}, {resampled}"
        notes.append(f"Where there is one seed: i{once}" if several else f"I{once}")
    return notes


def _over(several: Iterable[tuple[Study, str]]) -> str:
    """What intervals over seeds are of."""
    kinds = {study.same_cases(cases) for study, cases in several}
    same = (
        "All seeds are of the same cases, so that it is of other runs, by Student's t over the seeds, and of other "
        "cases, by bootstrap over images: the root of the sum of both squares."
    )
    fresh = f"Of {CLINIC} each seed has cases of its own, so that it is by Student's t over the seeds."
    return " ".join([same] * (True in kinds) + [fresh] * (False in kinds))


def pooling_notes(systems: Iterable[Measured]) -> list[str]:
    """Which rows are of another system with each seed, and what differs."""
    notes = []
    for one in systems:
        specs = one.study.specs(one.system)
        found = {
            name: [f"{value_of(spec.get(name))} (seed {seed})" for seed, spec in specs.items()]
            for name in dict.fromkeys(name for spec in specs.values() for name in spec)
            if len({value_of(spec.get(name)) for spec in specs.values()}) > 1
        }
        if found:
            told = "; ".join(f"{name} is {', '.join(values)}" for name, values in found.items())
            notes.append(
                f"{one.label} is another with each seed, such as one training for each, and its row is the mean of "
                f"these: {told}."
            )
    return notes


def value_of(value: Any) -> str:
    """What a system's settings say, such as its doctors."""
    if value is None:
        return "not given"
    return " + ".join(map(str, value)) if isinstance(value, list) else str(value)


def failures(systems: Iterable[Measured], columns: Iterable[str]) -> list[str]:
    """Which figures are of fewer cases than were asked."""
    notes, columns = [], list(columns)
    for one in systems:
        for cases in columns:
            failed, left = one.study.lost(cases, one.system)
            said = [f"{failed} failed"] if failed else []
            said += [f"{left} gave no result, such as those of a shard that is not there"] if left else []
            if said:
                notes.append(
                    f"{one.label} on {cases}: of its cases {', and '.join(said)}; its figures are of the rest."
                )
    return notes


def attending_table(systems: Sequence[Measured], cases: str, title: str) -> Table:
    """What the attending makes of its specialists, in %; systems without any are left out."""
    best = {one.label: best_specialist(one, cases) for one in systems}
    known = any(number.value for _, number in best.values())
    rows = [
        Row(
            one.label,
            [
                *(percent(one.figure(cases, "attending", name)) for name in ATTENDING.values()),
                *(best[one.label] if known else ()),
            ],
        )
        for one in systems
    ]
    heads = [Column(name) for name in (*ATTENDING, *(("best single specialist", "its number") if known else ()))]
    notes = [BEST_NOTE] if known else []
    return Table(f"What the attending makes of its specialists: {title}, in %", heads, _telling(rows), notes)


def best_specialist(one: Measured, cases: str) -> tuple[Cell, Cell]:
    """The accuracy of the best of a system's specialists, and its number; of each seed's, where they differ."""
    told = [result.get("best_specialist") for result in one.study.results(cases, one.system)]
    numbers = dict.fromkeys(str(best["doctor"]) for best in told if best and best["n"])
    return percent(one.figure(cases, "best_specialist")), Cell(", ".join(numbers))


def group_tables(systems: Sequence[Measured], cases: str, title: str) -> list[Table]:
    """Accuracy in %, a table for each way in which the figures are broken down, where there are two groups or more.

    The last is of each specialist's own opinions, by its number.
    """
    results = [result for one in systems for result in one.study.results(cases, one.system)]
    names = dict.fromkeys(name for result in results for name in result["by"])
    paths = [*(("by", name) for name in names), ("specialists",)]
    return [table for path in paths if (table := _group_table(systems, cases, title, path))]


def _group_table(systems: Sequence[Measured], cases: str, title: str, path: Sequence[str]) -> Table | None:
    sizes: dict[str, list[int]] = {}
    for one in systems:
        for result in one.study.results(cases, one.system):
            groups: Mapping[str, Any] = functools.reduce(lambda told, name: told.get(name, {}), path, result)
            for group, figure in groups.items():
                sizes.setdefault(group, []).append(figure["n"])
    if len(sizes) < 2:
        return None
    name = path[-1]
    fixed = {"tier": TIERS, "specialists": sorted(sizes)}
    order = [group for group in fixed[name] if group in sizes] if name in fixed else _largest(sizes)
    heads = [Column(group, _size(sizes[group])) for group in order[:GROUPS]]
    rows = [Row(one.label, [percent(one.figure(cases, *path, column.title)) for column in heads]) for one in systems]
    left = [f"The {GROUPS} largest of {len(order)}."] if len(order) > GROUPS else []
    broken = GROUPED.get(name, f"by {name.replace('_', ' ')}")
    return Table(f"Accuracy {broken}: {title}, in %", heads, _telling(rows), left)


def _largest(sizes: Mapping[str, Sequence[int]]) -> list[str]:
    return sorted(sizes, key=lambda group: -max(sizes[group]))


def _telling(rows: Sequence[Row]) -> list[Row]:
    """Those that say something."""
    return [row for row in rows if any(cell.value for cell in row.cells)]


def _size(sizes: Sequence[int]) -> str:
    low, high = min(sizes), max(sizes)
    return f"{low} cases" if low == high else f"{low} to {high} cases"


def cost_table(systems: Sequence[Measured], cases: str, title: str) -> Table:
    """Triage, what could not be read, what a case costs, and how a system compares with the reference."""
    withheld = any((one.figure(cases, "abstained").value or 0.0) > 0 for one in systems)
    heads = {
        "triage": "accuracy, %",
        "unparsed": "%",
        **({"abstained": "%"} if withheld else {}),
        "calls": "a case",
        "tokens read": "a case",
        "tokens written": "a case",
        "dollars": "a case",
        "seconds": "a case",
        "difference": "% points",
        "p": "",
    }
    rows = [Row(one.label, _cost(one, cases, withheld)) for one in systems]
    told = f"Triage, cost, and comparison with {references_of(systems)}: {title}"
    return Table(told, [Column(name, about) for name, about in heads.items()], rows)


def _cost(one: Measured, cases: str, withheld: bool) -> list[Cell]:
    spent: dict[str, Any] = {"calls": 1, "input_tokens": 0, "output_tokens": 0, "dollars": 4, "seconds": 2}
    return [
        percent(one.figure(cases, "triage", "accuracy")),
        *(percent(one.figure(cases, name)) for name in ("unparsed", *(["abstained"] if withheld else []))),
        *(plain(one.figure(cases, "cost", name), digits) for name, digits in spent.items()),
        percent(one.figure(cases, "against_reference", "difference")),
        p_value(one.study.p(cases, one.system)),
    ]


def references_of(systems: Sequence[Measured]) -> str:
    """Whom others are compared with."""
    return ", ".join(dict.fromkeys(one.study.reference for one in systems))


def detail_notes(studies: Sequence[Study]) -> list[str]:
    """What the columns of the further tables are."""
    several = any(len(study.results(cases, study.reference)) > 1 for study in studies for cases in study.cases)
    test = "Student's t over the seeds, where there are several, or else by " if several else ""
    difference = f"Difference is of accuracy, on the cases of both; p is by {test}McNemar's exact test."
    return [MAJORITY_NOTE, f"{difference} {COST_NOTE}", *([SEEDS_NOTE] if several else [])]
