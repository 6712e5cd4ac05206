"""The paper's ablations, over seeds: what triage, specialists, the stages, their order and gamma are worth.

    python -m rl.ablate                                                  # the clinic, five seeds, within an hour
    python -m rl.ablate --rows full "gamma off" --seeds 0 1 2 --jobs 1
    python -m rl.ablate --cases slake --split train --eval_split validation --model Qwen/Qwen2.5-VL-3B-Instruct \
        --triage vllm:MODEL --specialists vllm:MODEL vllm:MODEL vllm:MODEL \
        --config rl/configs/one_24gb.yaml --sft_config sft.yaml --jobs 1

Trainings are runs in `--out`, `--jobs` at a time, and every row is then measured on the same held-out cases by
`rl.evaluate`'s own trials. What is finished is not done again: the same command goes on from wherever it was stopped.
Flags that are not listed go to the GRPO trainings of the attending.

What the paper does not define is ours: without triage the specialty is drawn at random, and without specialists the
trained attending decides alone; neither is trained anew. Instead of the curriculum's RL stands nothing (the base),
SFT on the gold answers, or GRPO for as many steps on the tiers as they come (`mixed`).
"""

import argparse
import dataclasses
import json
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rl import printed
from rl.clinic.doctors import DOCTOR_NAMES
from rl.cohort import CLINIC
from rl.curriculum import TIERS
from rl.jobs import at_once, call, train
from rl.models import model_string
from rl.settings import ignore_renamed, parse
from rl.statistics import NOTHING, Figure, over_seeds
from rl.train_attending import COMMAND as ATTENDING
from rl.train_sft import COMMAND as SFT
from rl.train_triage import COMMAND as TRIAGE

COMMANDS = {command.module: command for command in (ATTENDING, SFT, TRIAGE)}
BASE = "base"
SPECIAL = ("random", "label", "nobody")
CLINICS = ("--train_size", "1000", "--eval_size", "100")
"""Of the clinic's trainings, so that all of the table is made in an hour; what is held out is measured afterwards."""
GRPO = (*CLINICS, "--stage_steps", "60", "90", "90")
"""Of its attendings."""
CASES = 500
"""The clinic's held-out cases of each seed."""


@dataclasses.dataclass(frozen=True)
class Training:
    """A training, and whether it hears the trained triage."""

    module: str
    flags: tuple[str, ...] = ()
    """What sets it apart."""
    clinic: tuple[str, ...] = ()
    """Its size, where the cases are the clinic's."""
    hears: bool = True


TRAININGS = {
    "triage": Training("rl.train_triage", clinic=CLINICS, hears=False),
    "curriculum": Training("rl.train_attending", clinic=GRPO),
    "mixed": Training("rl.train_attending", ("--stages", "mixed", "mixed", "mixed"), GRPO),
    "reversed": Training("rl.train_attending", ("--stages", "hard", "medium", "easy"), GRPO),
    "no-gamma": Training("rl.train_attending", ("--gammas", "0", "0", "0"), GRPO),
    "sft": Training("rl.train_sft", clinic=CLINICS),
}
"""By the name of the run."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table."""

    group: str
    name: str
    attending: str = "curriculum"
    """The run whose attending decides; `base` is the one that no run has trained."""
    stage: str | None = None
    """That of the run after this stage. Default: after its last one."""
    triage: str = "triage"
    """The run whose triage refers, or one of the special ones of `rl.systems`."""
    votes: int | None = None

    @property
    def slug(self) -> str:
        """As the name of a system."""
        return re.sub(r"\W+", "-", self.name)


ROWS = [
    Row("", "full"),
    Row("who is asked", "w/o triage", triage="random"),
    Row("who is asked", "w/o specialists", triage="nobody"),
    Row("w/o curriculum RL", "untrained attending", attending=BASE),
    Row("w/o curriculum RL", "SFT on gold answers", attending="sft"),
    Row("w/o curriculum RL", "GRPO on mixed tiers", attending="mixed"),
    Row("stages", "easy only", stage="1-easy"),
    Row("stages", "easy + medium", stage="2-medium"),
    Row("order", "hard, medium, easy", attending="reversed"),
    Row("entropy", "gamma off", attending="no-gamma"),
    Row("inference", "9 votes", votes=9),
]
"""The paper's, then those that its readers asked for. `easy + medium + hard` is `full`."""


class Ablation:
    """The trainings and measurements of an ablation, each made when it is first asked for.

    Args:
        rows: of the table.
        given: the flags; `out` is the folder of all.
        more: flags that all GRPO trainings of an attending are given.
    """

    def __init__(self, rows: Sequence[Row], given: argparse.Namespace, more: Sequence[str]) -> None:
        self.out: Path = given.out
        self.rows, self._given, self._more = rows, given, list(more)
        self._locks: dict[str, threading.Lock] = {}

    @property
    def trainings(self) -> list[str]:
        """Those that the rows need, triage first."""
        needed = {name for row in self.rows for name in (row.triage, row.attending)}
        return [name for name in TRAININGS if name in needed and not (name == "triage" and self._given.triage)]

    def check(self) -> None:
        """Read the settings of all trainings.

        Raises:
            ValueError: naming the option that one of them does not take.
        """
        for name in self.trainings:
            command = COMMANDS[TRAININGS[name].module]
            parse(command, self._flags(name))

    def train(self, name: str, seed: int) -> Path:
        """The folder of a finished training; one that was broken off goes on.

        Raises:
            ValueError: if it was made with other flags.
            RuntimeError: if it fails, naming its log, which is beside the folder.
        """
        training, folder = TRAININGS[name], self.out / "trainings" / f"{name}-seed{seed}"
        with self._locks.setdefault(folder.name, threading.Lock()):
            flags = ["--seed", str(seed), *self._flags(name)]
            if training.hears:
                flags += ["--triage", self._triage(seed)]
            train(folder, training.module, flags, self._threads)
        return folder

    @property
    def _threads(self) -> int | None:
        return 1 if self._given.jobs > 1 else None

    def _triage(self, seed: int) -> str:
        return str(self._given.triage or model_string(str(self.train("triage", seed) / "model")))

    def _flags(self, name: str) -> list[str]:
        given, training = self._given, TRAININGS[name]
        flags = list(training.flags)
        if given.cases == CLINIC:
            flags += training.clinic
        else:
            flags += ["--cases", given.cases, "--split", given.split, "--eval_split", given.eval_split]
            flags += ["--specialists", *given.specialists] if given.specialists and training.hears else []
        flags += ["--model", given.model] if given.model else []
        if training.module == "rl.train_sft":
            return flags + (["--config", str(given.sft_config)] if given.sft_config else [])
        flags += self._more if training.module == "rl.train_attending" else []
        return flags + (self._backwards() if name == "reversed" else [])

    def _backwards(self) -> list[str]:
        """Every tier with the steps, the shares and the KL weight of its stage in the usual order.

        Gammas and rates stay where they are: they belong to the first stage and the last, whatever these are of.
        """
        recipe = parse(COMMANDS["rl.train_attending"], self._flags("curriculum")).recipe
        flags = ["--stage_steps", *map(str, reversed(recipe.stage_steps)), "--betas", *map(str, reversed(recipe.betas))]
        if len(recipe.rehearsal) == 1:  # one share for all: what was trained before it, whatever that is
            return flags
        rows = [recipe.rehearsal[place : place + 3] for place in range(0, len(recipe.rehearsal), 3)]
        return [*flags, "--rehearsal", *(str(share) for row in reversed(rows) for share in row)]

    def measure(self, seed: int) -> dict[str, Any]:
        """The figures of all rows on one seed's held-out cases, by the names of their systems."""
        folder = self.out / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        systems = {row.slug: self._system(row, seed) for row in self.rows}
        (folder / "systems.yaml").write_text(yaml.safe_dump({"systems": systems}, sort_keys=False))
        flags = ["--systems", str(folder / "systems.yaml"), "--out", str(folder), "--seed", str(seed)]
        flags += ["--cases", self._given.cases, "--reference", self.rows[0].slug, "--size", str(CASES)]
        flags += ["--split", self._given.eval_split] if self._given.eval_split else []
        call(folder, "rl.evaluate", flags, self._threads)
        (told,) = json.loads((folder / "evaluation.json").read_text())["results"].values()
        if short := {name: row["failed"] + row["left"] for name, row in told.items() if row["failed"] or row["left"]}:
            names = ", ".join(f"{name} ({count})" for name, count in short.items())
            raise RuntimeError(f"seed {seed}: cases without a result: {names}; the same command tries them again")
        return dict(told)

    def _system(self, row: Row, seed: int) -> dict[str, Any]:
        base = model_string(self._given.model or "clinic:base")
        triage = row.triage if row.triage in SPECIAL else self._triage(seed)
        attending = base
        if row.attending != BASE:
            trained = self.train(row.attending, seed)
            attending = model_string(str((trained / "stages" / row.stage if row.stage else trained) / "model"))
        specialists = self._given.specialists or ([*DOCTOR_NAMES] if self._given.cases == CLINIC else [base] * 3)
        votes = {"votes": row.votes} if row.votes else {}
        return {
            "system": "mmedagent",
            "triage": triage,
            "specialists": specialists,
            "attending": attending,
            **votes,
        }


def summarize(rows: Sequence[Row], measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each row, in %: means over the seeds with Student's t, and the difference to the first, by pairs."""

    def percent(told: dict[str, Any], row: Row) -> float:
        return 100 * float(told[row.slug]["accuracy"]["value"])

    def in_tier(row: Row, tier: str) -> Figure:
        found = [told[row.slug]["by"]["tier"].get(tier, {"value": None})["value"] for told in measured]
        known = [100 * float(value) for value in found if value is not None]
        return over_seeds(known) if known else NOTHING  # cases of one's own may have none of a tier

    lines = []
    for row in rows:
        accuracies = [percent(told, row) for told in measured]
        paired = [percent(told, row) - percent(told, rows[0]) for told in measured]
        tiers = {tier: in_tier(row, tier) for tier in TIERS}
        lines.append(
            {
                "group": row.group,
                "name": row.name,
                "accuracy": over_seeds(accuracies),
                "difference": None if row is rows[0] else over_seeds(paired),
                **tiers,
            }
        )
    return lines


def markdown(lines: Sequence[dict[str, Any]]) -> str:
    """The table."""
    head = ["", "accuracy", *TIERS, "against full"]
    cells = [
        [
            line["name"] if not line["group"] else f"{line['group']}: {line['name']}",
            *(printed.plus_minus(line[column]) for column in ("accuracy", *TIERS)),
            "" if line["difference"] is None else printed.plus_minus(line["difference"], sign="+"),
        ]
        for line in lines
    ]
    return printed.markdown(head, cells)


def draw(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """The figure: each row's accuracy with its interval, and the first one's as a line."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 0.42 * len(lines) + 1.2), layout="constrained")
    for place, line in enumerate(reversed(lines)):
        told: Figure = line["accuracy"]
        color = "#2a9d8f" if not line["group"] else "#33415c"
        assert told.value is not None
        if told.low is not None and told.high is not None:
            axis.plot([told.low, told.high], [place, place], color=color, linewidth=2)
        axis.plot(told.value, place, "o", color=color)
    full = lines[0]["accuracy"].value
    axis.axvline(full, color="#2a9d8f", linewidth=1, linestyle=":")
    axis.set_yticks(range(len(lines)), [line["name"] for line in reversed(lines)])
    axis.set_xlabel("accuracy on held-out cases, %: mean over the seeds, 95 % interval")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The command line; flags that it does not know go to the GRPO trainings of the attending."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="folder (runs/ablation)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time (2), each with one thread then")
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], help="default: all")
    parser.add_argument("--cases", default=CLINIC, help="JSONL file, or a benchmark; default: the clinic's own")
    parser.add_argument("--split", help="rows to train on, of other cases than the clinic's")
    parser.add_argument("--eval_split", help="rows to measure on")
    parser.add_argument("--model", help="the base; default: the clinic's")
    parser.add_argument("--triage", help="model string of a triage that refers; default: one that is trained first")
    parser.add_argument("--specialists", nargs="+", help="model strings, one for each doctor")
    parser.add_argument("--sft_config", type=Path, help="recipe of SFT; default: the clinic's")
    given, more = parser.parse_known_args(arguments)
    if given.cases != CLINIC and not (given.split and given.eval_split):
        parser.error("split: other cases than the clinic's need --split and --eval_split")
    if given.cases == CLINIC and given.specialists:
        parser.error("specialists: the clinic has its own; give them with --cases")
    rows = [row for row in ROWS if given.rows is None or row.name in given.rows or row is ROWS[0]]
    ignore_renamed()
    ablation = Ablation(rows, given, more)
    try:
        ablation.check()
    except ValueError as error:
        parser.error(str(error))
    at_once(
        ablation.train, [(name, seed) for name in ablation.trainings for seed in given.seeds], given.jobs, "trainings"
    )
    measured = at_once(ablation.measure, [(seed,) for seed in given.seeds], given.jobs, "measurements")
    lines = summarize(rows, measured)
    plain = [{key: dataclasses.asdict(v) if isinstance(v, Figure) else v for key, v in line.items()} for line in lines]
    (given.out / "ablation.json").write_text(json.dumps({"seeds": given.seeds, "rows": plain}, indent=2) + "\n")
    (given.out / "ablation.md").write_text(markdown(lines) + "\n")
    draw(lines, given.out / "ablation.png")
    print(f"\n{markdown(lines)}\n\nfigure: {given.out / 'ablation.png'}   table: {given.out / 'ablation.md'}")
    return plain


if __name__ == "__main__":
    main()
