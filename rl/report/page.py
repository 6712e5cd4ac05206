"""The page itself: everything is put into the template, and nothing is fetched from anywhere."""

import base64
import dataclasses
import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rl.report import tables
from rl.report.browser import as_json, browser
from rl.report.exports import csv_of, latex_of
from rl.report.plots import shelves, training_shelf
from rl.report.runs import Evaluation, Study, Training

HERE = Path(__file__).parent
DISCLAIMER = "This is research software and no medical device: nothing here is advice on anybody's health."


@dataclasses.dataclass(frozen=True)
class Written:
    """The files of a report."""

    html: Path
    csv: Path | None
    """None where nothing was evaluated."""
    latex: Path | None


def write_report(studies: Sequence[Study], trainings: Sequence[Training], out: Path, limit: int) -> Written:
    """Write the page, and beside it the table as CSV and LaTeX.

    Args:
        studies: the evaluations.
        trainings: training runs, for their curves.
        out: the page's file.
        limit: at most so many traces.
    """
    files: dict[str, str] = {}
    if studies:
        table = tables.accuracy_table(studies)
        files = {"csv": csv_of(table), "tex": latex_of(table)}
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = {end: out.with_suffix(f".{end}") for end in files}
    _write(out, page(studies, trainings, limit, {path.name: files[end] for end, path in beside.items()}))
    for end, path in beside.items():
        _write(path, files[end])
    return Written(out, beside.get("csv"), beside.get("tex"))


def _write(path: Path, text: str) -> None:
    """All of it, or what was there before stays; half of a surrogate pair, of which there is no UTF-8, becomes `?`."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text, encoding="utf-8", errors="replace")
    unfinished.replace(path)


def page(studies: Sequence[Study], trainings: Sequence[Training], limit: int, downloads: Mapping[str, str]) -> str:
    """The page's HTML."""
    columns, systems = tables.columns_of(studies), tables.measured(studies)
    css, script = ((HERE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    found = browser(systems, columns, limit)
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=_title(studies, trainings, columns),
        disclaimer=DISCLAIMER,
        policy=_policy(css, script),
        css=Markup(css),
        script=Markup(script),
        runs=[_about(study) for study in studies],
        trainings=[_training(training) for training in trainings],
        made={"mmedagent-graph": version("mmedagent-graph"), "Python": platform.python_version()},
        table_of=tables.accuracy_table(studies) if studies else None,
        downloads={name: _link(text) for name, text in downloads.items()},
        details=_details(systems, columns),
        notes=tables.detail_notes(studies),
        shelves=[*shelves(systems, columns), *(training_shelf(training) for training in trainings)],
        svg=Markup,
        browser=found if found.shown else None,
        references=tables.references_of(systems),
        traces=Markup(as_json(found.data)),
    )


def _link(text: str) -> str:
    """What saves a text as a file."""
    return f"data:text/plain;charset=utf-8,{quote(text, errors='replace')}"


def _policy(css: str, script: str) -> str:
    """What the page may load: its own style and script, and images that lie in it."""
    told = {"style-src": css, "script-src": script}
    hashes = {name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for name, text in told.items()}
    own = "; ".join(f"{name} 'sha256-{digest}'" for name, digest in hashes.items())
    return f"default-src 'none'; img-src data:; {own}; base-uri 'none'; form-action 'none'"


def _title(studies: Sequence[Study], trainings: Sequence[Training], columns: Mapping[str, str]) -> str:
    if not studies:
        return f"Training of {', '.join(training.name for training in trainings)}"
    return f"Consultations on {', '.join(columns.values())}"


def _details(systems: Sequence[tables.Measured], columns: Mapping[str, str]) -> list[tables.Table]:
    """The further tables of all cases."""
    told = []
    for cases, title in columns.items():
        there = [one for one in systems if one.study.results(cases, one.system)]
        told += [table(there, cases, title) for table in (tables.attending_table, tables.cost_table)]
        told += tables.group_tables(there, cases, title)
    return [table for table in told if table.rows]


def _about(study: Study) -> dict[str, Any]:
    """What was run in a study."""
    ours = study.evaluations
    return {
        "seeds": ", ".join(map(str, study.seeds)),
        "systems": {name: _specs(study, name) for name in study.systems},
        "cases": {name: _cases(about) for name, about in study.cases.items()},
        "paces": list(dict.fromkeys(pace for one in ours if (pace := _pace(one)))),
        "folders": [str(one.folder) for one in ours],
        "commits": sorted({one.commit or "not known" for one in ours}),
        "packages": _packages([one.versions for one in ours]),
    }


def _pace(one: Evaluation) -> str:
    """How fast an evaluation was allowed to be, on which its seconds depend."""
    told = [f"{one.concurrency} consultations at a time"] if one.concurrency else []
    told += [f"at most {one.per_minute:g} requests a minute of a process to each model"] if one.per_minute else []
    return ", ".join(told)


def _cases(about: Mapping[str, Any]) -> str:
    """Which cases they are."""
    told = [f"{about['cases']} cases, {about['skipped']} rows left out; from {about['source']}"]
    told += [f"split {about['split']}"] if about.get("split") else []
    told += ["open questions, too"] if about.get("free_text") == "grade" else []
    told += [f"only the first {about['limit']}"] if about.get("limit") else []
    return "; ".join(told)


def _specs(study: Study, system: str) -> list[str]:
    """What a system is; where seeds have others, each with its seeds."""
    seeds: dict[str, list[int]] = {}
    for seed, spec in study.specs(system).items():
        told = ", ".join(f"{name} {tables.value_of(value)}" for name, value in spec.items() if name != "system")
        seeds.setdefault(f"{spec['system']}: {told}", []).append(seed)
    if len(seeds) == 1:
        return list(seeds)
    return [f"seed {', '.join(map(str, known))}: {spec}" for spec, known in seeds.items()]


def _packages(told: Sequence[Mapping[str, str]]) -> str:
    known = dict.fromkeys(f"{name} {number}" for versions in told for name, number in versions.items())
    return ", ".join(known) or "not known"


def _training(training: Training) -> dict[str, Any]:
    """What was run in a training run."""
    summary = training.summary
    return {
        "name": training.name,
        "seed": summary.get("seed"),
        "recipe": summary.get("recipe"),
        "arguments": " ".join(summary.get("arguments", [])),
        "packages": _packages([summary.get("versions", {})]),
        "commit": summary.get("commit") or "not known",
        "folder": str(training.folder),
    }
