"""Systems on benchmarks: accuracy with intervals, what the attending makes of its specialists, cost.

    python -m rl.evaluate --model clinic:base                                    # one consultation, on the clinic
    python -m rl.evaluate --model transformers:runs/latest/model --cases cases.jsonl --split test
    python -m rl.evaluate --systems systems.yaml --cases vqa_rad slake:/data/SLAKE --out runs/evaluation
    python -m rl.evaluate --systems systems.yaml --cases path_vqa --out runs/evaluation --shard 0/4   # on each machine

The same graph, prompts and reader as at inference. `--out` keeps all: the same command goes on from wherever it was
stopped, and no finished call is made again. `python -m rl.report` makes tables, plots and pages of it.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from langgraph.types import RetryPolicy
from rich.console import Console
from rich.table import Table
from transformers import set_seed

from mmedagent_graph.images import ImageStore
from rl.answers import answers_at
from rl.cohort import CLINIC, measured
from rl.curriculum import TIERS
from rl.datasets import LabeledCase, is_benchmark
from rl.figures import Outcome, Prices, figures, outcome_of
from rl.models import model_string
from rl.provenance import commit, versions
from rl.statistics import compare
from rl.systems import Models, System, read_systems
from rl.traces import Trace
from rl.trials import Budget, Shard, Trial

WIDTH = 150
"""Characters of a table, also where its reader is no terminal."""
ATTENDING = {
    "majority right": "majority",
    "right to wrong": "right_to_wrong",
    "wrong to right": "wrong_to_right",
    "conforms": "conformity",
    "conforms to the wrong": "conformity_when_wrong",
    "suppresses a minority": "minority_suppression",
}
"""The columns of the second table."""
CONSULTATION = "mmedagent"
"""The name of the system that flags describe."""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    who = whole.add_argument_group("who is measured")
    who.add_argument("--systems", type=Path, help="YAML file of systems, see rl.systems")
    who.add_argument("--model", help="or one consultation: a policy's folder, hub id or model string, as the attending")
    who.add_argument("--triage", default="clinic:base", help="its triage doctor (clinic:base)")
    who.add_argument(
        "--specialists", nargs="+", help="its doctors; default: the clinic's, or clinic:base sampled for other cases"
    )
    who.add_argument("--votes", type=int, default=1, help="how often its attending is asked (1)")
    cases = whole.add_argument_group("on what")
    cases.add_argument("--cases", nargs="+", default=[CLINIC], help="clinic (default), JSONL files, benchmarks")
    cases.add_argument("--split", help="only the rows of this split")
    cases.add_argument("--free_text", choices=["skip", "grade"], default="skip", help="rows without options")
    cases.add_argument("--size", type=int, default=1000, help="how many of the clinic's cases (1000)")
    cases.add_argument("--limit", type=int, help="only so many cases of each, from the first")
    how = whole.add_argument_group("how")
    how.add_argument("--out", type=Path, help="folder for all that comes of it; default: only the table is printed")
    how.add_argument("--seed", type=int, default=0, help="of the clinic's cases, of sampling, of the bootstrap (0)")
    how.add_argument("--concurrency", type=int, default=64, help="consultations at a time (64)")
    how.add_argument("--shard", type=Shard.parse, default=Shard(), help="work off only this part, such as 0/4")
    how.add_argument("--cache", help="SQLite file, or postgresql:// URL, of answers (answers.db in --out)")
    how.add_argument("--retries", type=int, default=2, help="of calls that may work later (2)")
    how.add_argument("--timeout", type=float, help="seconds of every call")
    how.add_argument("--per_minute", type=float, help="at most so many requests a minute to each model")
    how.add_argument("--prices", type=Path, help="YAML file: MODEL: [dollars for 1M tokens read, and written]")
    how.add_argument("--max_dollars", type=float, help="begin no further case once this is spent")
    how.add_argument("--by", nargs="+", default=["modality", "question_type"], help="also the accuracy in these groups")
    how.add_argument("--reference", help="the system that others are compared with (the first mmedagent)")
    return whole


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line."""
    commands = parser()
    given = commands.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        if given.out is None:
            given.out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mmedagent-evaluation-")))
        try:
            return asyncio.run(evaluate(given))
        except ValueError as error:
            commands.error(str(error))


@dataclasses.dataclass(frozen=True)
class Work:
    """How systems are run: what all of them share."""

    images: ImageStore
    models: Models
    budget: Budget
    concurrency: int
    common: Mapping[str, Any]
    """Of every graph: cache, retries, timeout."""

    async def run(
        self, trial: Trial, system: System, cases: Sequence[LabeledCase], title: str, samples: int | None = None
    ) -> dict[str, int]:
        """The counts of a trial, once it has been run."""
        graph = system.build(cases, self.images, self.models, samples, **self.common)
        return await trial.run(graph, cases, self.images, self.concurrency, self.budget, title)


async def evaluate(given: argparse.Namespace) -> dict[str, Any]:
    """Run the evaluation that the flags ask for; prints a table for each `--cases`, and writes `evaluation.json`.

    Raises:
        ValueError: naming the flag, the value and what is valid.
    """
    set_seed(given.seed)
    systems, prices = _systems(given), _prices(given.prices)
    reference = _reference(given.reference, systems)
    if given.max_dollars is not None and not prices:
        raise ValueError("max_dollars: what calls cost is not known; give --prices FILE.yaml")
    names = [short(cases) for cases in given.cases]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"cases: {', '.join(twice)} is named twice; give each a folder (--out) of its own")
    work = _work(given, prices)
    report: dict[str, Any] = {
        "seed": given.seed,
        "reference": reference,
        "systems": {name: system.model_dump(exclude_none=True) for name, system in systems.items()},
        "cases": {},
        "results": {},
        "versions": versions(),
        "commit": commit(),
    }
    for name, cases in zip(names, given.cases, strict=True):
        cohort = measured(cases, work.images, given.split, given.free_text, given.size, given.seed)
        chosen = list(cohort.cases[: given.limit])
        trials = {system: Trial(given.out / "trials" / name / system, given.shard) for system in systems}
        counts = await _run(work, name, chosen, systems, trials)
        report["cases"][name] = {"source": cases, "cases": len(chosen), "skipped": cohort.skipped}
        report["results"][name] = _results(trials, counts, reference, prices, given)
        print_results(name, report["results"][name])
    (given.out / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n")
    if work.budget.gone:
        print(f"note: {work.budget.spent:.2f} dollars are spent; a larger --max_dollars goes on from here")
    return report


def _work(given: argparse.Namespace, prices: Prices) -> Work:
    budget = Budget(given.max_dollars, prices)
    for trial in (given.out / "trials").glob("*/*"):
        for trace in Trial(trial).traces():
            budget.add(trace)
    common = {
        "cache": answers_at(given.cache or given.out / "answers.db", given.seed),
        "retry_policy": RetryPolicy(max_attempts=given.retries + 1),
        "timeout": given.timeout,
    }
    return Work(ImageStore(given.out / "images"), Models(given.per_minute), budget, given.concurrency, common)


async def _run(
    work: Work, cases: str, chosen: Sequence[LabeledCase], systems: Mapping[str, System], trials: Mapping[str, Trial]
) -> dict[str, dict[str, int]]:
    """The counts of every system on some cases; last come those that must know what others cost."""
    counts = {}
    for name in sorted(systems, key=lambda name: systems[name].match_tokens is not None):
        system, trial = systems[name], trials[name]
        if not system.match_tokens:
            counts[name] = await work.run(trial, system, chosen, f"{cases}: {name}")
        elif samples := await _samples(work, trial, system, trials[system.match_tokens], chosen):
            counted = await work.run(trial, system, chosen, f"{cases}: {name}", samples)
            counts[name] = {**counted, "samples": samples}
        else:
            waits = f"note: {name} must know what {system.match_tokens} costs on all cases, and not all are done"
            print(f"{waits}; once they are (in all shards), the same command goes on")
            counts[name] = {"done": 0, "failed": 0, "left": sum(map(trial.shard.holds, (case.id for case in chosen)))}
    return counts


def _results(
    trials: Mapping[str, Trial],
    counts: Mapping[str, dict[str, int]],
    reference: str,
    prices: Prices,
    given: argparse.Namespace,
) -> dict[str, Any]:
    """Of every system: its counts, its figures, and how it compares with the reference on the cases of both.

    The reference's opinions say the tiers for all, so that a column is of the same cases.
    """
    outcomes: dict[str, dict[str, Outcome]] = {
        name: {trace.case: outcome_of(trace, prices) for trace in trial.traces() if trace.answer is not None}
        for name, trial in trials.items()
    }
    tiers = {case: outcome.tier for case, outcome in outcomes[reference].items()}
    told = {}
    for name, found in outcomes.items():
        placed = [dataclasses.replace(outcome, tier=tiers.get(case)) for case, outcome in sorted(found.items())]
        told[name] = {
            **counts[name],
            "failed_cases": trials[name].failed(),
            **figures(placed, given.by, given.seed),
            "against_reference": None if name == reference else _against(placed, outcomes[reference], given.seed),
        }
    return told


def _against(some: Sequence[Outcome], reference: Mapping[str, Outcome], seed: int) -> dict[str, Any]:
    both = [(outcome, reference[outcome.case]) for outcome in some if outcome.case in reference]
    compared = compare(
        [one.right for one, _ in both], [other.right for _, other in both], [one.image for one, _ in both], seed
    )
    return dataclasses.asdict(compared)


def print_results(title: str, told: Mapping[str, Any]) -> None:
    """Tables of all systems: accuracy in % by tier and what it cost, and what became of the specialists' majority."""
    accuracy = _table(title, ("n", "accuracy", *TIERS, "unparsed", "calls", "tokens", "p"))
    attending = _table(f"{title}: the attending", tuple(ATTENDING))
    for name, row in told.items():
        tiers = [row["by"]["tier"].get(tier, {"value": None}) for tier in TIERS]
        cost, compared = row["cost"], row["against_reference"]
        tokens = None if cost["calls"] is None else cost["input_tokens"] + cost["output_tokens"]
        accuracy.add_row(
            name,
            str(row["accuracy"]["n"]),
            _percent(row["accuracy"], interval=True),
            *(_percent(figure) for figure in (*tiers, row["unparsed"])),
            *("-" if spent is None else f"{spent:.1f}" for spent in (cost["calls"], tokens)),
            "" if compared is None else f"{compared['p']:.3g}",
        )
        attending.add_row(name, *(_percent(row["attending"][figure], interval=True) for figure in ATTENDING.values()))
        if failed := row["failed_cases"]:
            print(f"note: {len(failed)} cases of {name} failed, {', '.join(failed):.200}; the same command tries again")
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(accuracy)
    console.print(attending)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _percent(figure: Mapping[str, Any], interval: bool = False) -> str:
    if figure["value"] is None:
        return "-"
    said = f"{100 * figure['value']:.1f}"
    return f"{said} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]" if interval else said


def _systems(given: argparse.Namespace) -> dict[str, System]:
    if (given.systems is None) == (given.model is None):
        raise ValueError("systems: give either --systems FILE.yaml, or --model for one consultation")
    if given.systems:
        return read_systems(given.systems)
    own = [f"clinic:doctor-{number}" for number in (1, 2, 3)] if given.cases == [CLINIC] else ["clinic:base"] * 3
    specialists = given.specialists or own
    votes = None if given.votes == 1 else given.votes
    attending = given.model if re.match(r"\w+:", given.model) else model_string(given.model)
    return {
        CONSULTATION: System(
            system="mmedagent", triage=given.triage, specialists=specialists, attending=attending, votes=votes
        )
    }


def _reference(named: str | None, systems: Mapping[str, System]) -> str:
    if named is not None and named not in systems:
        raise ValueError(f"reference: no system {named!r}; choose one of {', '.join(systems)}")
    consultations = [name for name, system in systems.items() if system.system == "mmedagent"]
    return named or (*consultations, *systems)[0]


def _prices(path: Path | None) -> Prices:
    """The price table of a YAML file."""
    if path is None:
        return {}
    told = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        return {str(model): (float(read), float(written)) for model, (read, written) in told.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"prices: {str(path)!r} has no line `MODEL: [1.5, 6.0]` for each model ({error})") from error


def short(cases: str) -> str:
    """What a table calls some cases, and their folder: the benchmark, or the file's name."""
    name = cases.partition(":")[0] if is_benchmark(cases) else Path(cases).stem
    return re.sub(r"[^\w.+-]", "_", name)


async def _samples(work: Work, own: Trial, system: System, against: Trial, chosen: Sequence[LabeledCase]) -> int | None:
    """How many samples cost as many tokens a case, read and written, as another system does.

    None where that one, or a single sample, is not known for all cases.
    """
    one = Trial(own.folder / "one", own.shard)
    await work.run(one, System(system="single", model=system.model), chosen, f"{own.folder.name}: one sample")
    matched, each = ([_tokens(trace) for trace in trial.traces()] for trial in (against, one))
    if min(len(matched), len(each)) < len(chosen):
        return None
    return max(1, round(sum(matched) / max(1, sum(each))))


def _tokens(trace: Trace) -> int:
    return sum((call.input_tokens or 0) + (call.output_tokens or 0) for call in trace.calls)


if __name__ == "__main__":
    main()
