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
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from langgraph.types import RetryPolicy
from rich.table import Table
from transformers import set_seed

from mmedagent_graph.images import ImageStore
from rl.answers import answers_at
from rl.clinic.doctors import DOCTOR_NAMES
from rl.cohort import CLINIC, FAINT, hospital_among, measured
from rl.contest import Contest, Entry, Means
from rl.curriculum import TIERS
from rl.datasets import is_benchmark
from rl.figures import Outcome, figures, outcome_of
from rl.models import model_string
from rl.prices import Budget, Prices, read_prices
from rl.printed import percent, show
from rl.provenance import commit, versions
from rl.statistics import compare
from rl.systems import Models, System, read_systems
from rl.trials import Shard, Trial

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
        "--specialists",
        nargs="+",
        help="its doctors, or a hospital's folder or address; default: the clinic's, else clinic:base sampled",
    )
    who.add_argument("--votes", type=at_least(1), default=1, help="how often its attending is asked (1)")
    cases = whole.add_argument_group("on what")
    cases.add_argument(
        "--cases",
        nargs="+",
        default=[CLINIC],
        help="clinic (default), faint (its faint images), JSONL, benchmarks",
    )
    cases.add_argument("--split", help="only the rows of this split")
    cases.add_argument("--free_text", choices=["skip", "grade"], default="skip", help="rows without options")
    cases.add_argument("--size", type=at_least(1), default=1000, help="how many of the clinic's cases (1000)")
    cases.add_argument("--limit", type=at_least(1), help="only so many cases of each, from the first")
    how = whole.add_argument_group("how")
    how.add_argument("--out", type=Path, help="folder for all that comes of it; default: only the table is printed")
    add_means(how)
    how.add_argument(
        "--by",
        nargs="+",
        default=["answer_type", "modality", "question_type", "body_system"],
        help="also the accuracy in these groups",
    )
    how.add_argument("--reference", help="the system that others are compared with (the first mmedagent)")
    return whole


def add_means(how: Any) -> None:
    """Add the flags that `means_of` reads: how models are asked, and what may be spent."""
    how.add_argument("--seed", type=int, default=0, help="of the clinic's cases, of sampling, of the bootstrap (0)")
    how.add_argument("--concurrency", type=at_least(1), default=64, help="consultations at a time (64)")
    how.add_argument("--shard", type=Shard.parse, default=Shard(), help="work off only this part, such as 0/4")
    how.add_argument("--cache", help="SQLite file, or postgresql:// URL, of answers (answers.db in --out)")
    how.add_argument("--retries", type=at_least(0), default=2, help="of calls that may work later (2)")
    how.add_argument("--timeout", type=float, help="seconds of every call")
    how.add_argument("--per_minute", type=float, help="requests a minute of this process to each model")
    how.add_argument("--prices", type=Path, help="YAML file: MODEL: [dollars for 1M tokens read, and written]")
    how.add_argument("--max_dollars", type=float, help="begin no further case once this process has spent so much")


def at_least(least: int) -> Callable[[str], int]:
    """The type of a flag: a whole number that is not too small."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is too small; give {least} or more")
        return int(text)

    return number


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


async def evaluate(given: argparse.Namespace) -> dict[str, Any]:
    """Run the evaluation that the flags ask for; prints a table for each `--cases`, and writes `evaluation.json`.

    Raises:
        ValueError: naming the flag, the value and what is valid.
    """
    set_seed(given.seed)
    systems, prices = _systems(given), read_prices(given.prices)
    reference = _reference(given.reference, systems)
    means = means_of(given, prices)
    report: dict[str, Any] = {
        "seed": given.seed,
        "reference": reference,
        "systems": {name: system.model_dump(exclude_none=True) for name, system in systems.items()},
        "concurrency": given.concurrency,
        "per_minute": given.per_minute,
        "versions": versions(),
        "commit": commit(),
        "cases": {},
        "results": {},
    }
    contests = [_contest(cases, systems, means, given) for cases in _cases(given.cases)]
    for name, about, contest in contests:
        await contest.run()
        report["cases"][name] = about
        report["results"][name] = _results(contest, reference, prices, given)
        print_results(name, report["results"][name])
        written = given.out / f"evaluation{given.shard}.part"
        written.write_text(json.dumps(report, indent=2) + "\n")
        written.replace(given.out / "evaluation.json")
    if means.budget.gone:
        print(f"note: {means.budget.spent:.2f} dollars are spent; a larger --max_dollars goes on from here")
    return report


def _cases(given: Sequence[str]) -> Sequence[str]:
    names = [short(cases) for cases in given]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"cases: {', '.join(twice)} is named twice; give each a folder (--out) of its own")
    return given


def means_of(given: argparse.Namespace, prices: Prices) -> Means:
    """What the flags of `add_means` say; what comes of it is kept in `given.out`."""
    given.out.mkdir(parents=True, exist_ok=True)
    # machines that share a folder over a network must not share SQLite's file
    answers = f"answers-{socket.gethostname()}.db" if given.shard.of > 1 else "answers.db"
    return Means(
        ImageStore(given.out / "images"),
        Models(given.per_minute),
        Budget(given.max_dollars, prices, given.out / f"dollars{given.shard}.txt"),
        given.concurrency,
        given.seed,
        {
            "cache": answers_at(given.cache or given.out / answers, given.seed),
            "retry_policy": RetryPolicy(max_attempts=given.retries + 1),
            "timeout": given.timeout,
        },
    )


def _contest(
    cases: str, systems: Mapping[str, System], means: Means, given: argparse.Namespace
) -> tuple[str, dict[str, Any], Contest]:
    """The name of some cases, what is to be known of them, and the contest on them."""
    name = short(cases)
    cohort = measured(cases, means.images, given.split, given.free_text, given.size, given.seed)
    chosen = list(cohort.cases[: given.limit])
    entries = {
        system: Entry(
            f"{name}: {system}", told, Trial(given.out / "trials" / name / system, given.shard), chosen, means
        )
        for system, told in systems.items()
    }
    about = {"source": cases, "split": given.split, "free_text": given.free_text, "limit": given.limit}
    return name, {**about, "cases": len(chosen), "skipped": cohort.skipped}, Contest(entries)


def _results(contest: Contest, reference: str, prices: Prices, given: argparse.Namespace) -> dict[str, Any]:
    """Of every system: its counts, its figures, and how it compares with the reference on the cases of both.

    The reference's opinions say the tiers for all, and its triage whom a case was `referred` to, so that a column is of
    the same cases.
    """
    outcomes = {
        name: {trace.case: outcome_of(trace, prices) for trace in entry.traces()}
        for name, entry in contest.entries.items()
    }
    theirs = outcomes[reference]
    told = {}
    for name, found in outcomes.items():
        placed = [_placed(outcome, theirs.get(case)) for case, outcome in sorted(found.items())]
        told[name] = {
            **contest.entries[name].counts(),
            **figures(placed, ["referred", *given.by], given.seed),
            "against_reference": None if name == reference else _against(placed, theirs, given.seed),
        }
    return told


def _placed(outcome: Outcome, reference: Outcome | None) -> Outcome:
    """An outcome in the groups that the reference's consultation on the same case puts it in."""
    if reference is None:
        return dataclasses.replace(outcome, tier=None)
    referred = {"referred": reference.referred} if reference.referred else {}
    return dataclasses.replace(outcome, tier=reference.tier, groups={**outcome.groups, **referred})


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
            percent(row["accuracy"]),
            *(percent(figure, interval=False) for figure in (*tiers, row["unparsed"])),
            *("-" if spent is None else f"{spent:.1f}" for spent in (cost["calls"], tokens)),
            "" if compared is None else f"{compared['p']:.3g}",
        )
        attending.add_row(name, *(percent(row["attending"][figure]) for figure in ATTENDING.values()))
        if failed := row["failed_cases"]:
            print(f"note: {len(failed)} cases of {name} failed, {', '.join(failed):.200}; the same command tries again")
    show(accuracy, attending)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _systems(given: argparse.Namespace) -> dict[str, System]:
    if (given.systems is None) == (given.model is None):
        raise ValueError("systems: give either --systems FILE.yaml, or --model for one consultation")
    if given.systems:
        return read_systems(given.systems)
    made_up = {*given.cases} <= {CLINIC, FAINT}
    own = DOCTOR_NAMES if made_up else ["clinic:base"] * 3
    hospital = hospital_among(given.specialists)
    specialists = None if hospital else given.specialists or own
    votes = None if given.votes == 1 else given.votes
    attending = given.model if re.match(r"\w+:", given.model) else model_string(given.model)
    who = {"hospital": hospital, "triage": given.triage, "specialists": specialists, "attending": attending}
    return {CONSULTATION: System(system="mmedagent", **who, votes=votes)}


def _reference(named: str | None, systems: Mapping[str, System]) -> str:
    if named is not None and named not in systems:
        raise ValueError(f"reference: no system {named!r}; choose one of {', '.join(systems)}")
    consultations = [name for name, system in systems.items() if system.system == "mmedagent"]
    return named or (*consultations, *systems)[0]


def short(cases: str) -> str:
    """What a table calls some cases, and their folder: the benchmark, or the file's name."""
    name = cases.partition(":")[0] if is_benchmark(cases) else Path(cases).stem
    return re.sub(r"[^\w.+-]", "_", name)


if __name__ == "__main__":
    main()
