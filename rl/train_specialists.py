"""Specialists of one's own: an adapter for each specialty on one base, and the hospital that they make.

    python -m rl.train_specialists                                         # the clinic's seven, by SFT
    python -m rl.train_specialists --grpo rl/configs/clinic_specialist.yaml                     # and then by GRPO
    python -m rl.train_specialists --traces traces/slake --cases slake --split train --eval_split validation \
        --model Qwen/Qwen2.5-VL-3B-Instruct --sft sft.yaml --jobs 1

DSA of MMedExpert-R1 (arXiv 2601.10949): one LoRA module for each specialty, by SFT on that specialty's traces (of
`rl.build_traces`), which may be the start of GRPO. Where there are no traces, it is the recipe that says what is
imitated: answer keys, or the base's own right answers, as the clinic's does. Which specialties there are the traces
say, or else the cases. Rank, targets and rates are not published; those of the recipes are ours.

`--out` holds `sft/<specialty>` and `grpo/<specialty>`, each a run of its own; `hospital.json`, for `build_graph`,
`rl.serve` and `rl.evaluate`; and `specialists.json` and `.md`: the base and each specialist on the held-out cases of
its own specialty. What is finished is not done again: the same command goes on from wherever it was stopped. Flags that
are not listed go to the SFT.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from mmedagent_graph.hospital import slug
from mmedagent_graph.prompts import SPECIALTIES
from rl import printed
from rl.cohort import own_cohort
from rl.expert_traces import specialties_of
from rl.jobs import at_once, train
from rl.serve import make
from rl.settings import CONFIGS, read_settings
from rl.train_sft import COMMAND as SFT
from rl.train_specialist import COMMAND as GRPO

OWN = CONFIGS / "clinic_specialist_sft.yaml"
MADE_UP, OTHERS = ("cases", "eval_size"), ("cases", "split", "eval_split", "free_text", "holdout")
"""What decides which cases are held out, of the clinic's and of others: the same for the SFT and for GRPO."""


class Specialists:
    """The trainings of all specialists.

    Args:
        given: the flags.
        more: flags for the SFT.
    """

    def __init__(self, given: argparse.Namespace, more: Sequence[str]) -> None:
        self.out: Path = given.out
        self._given, self._more = given, list(more)

    def check(self) -> list[str]:
        """Read the settings of all trainings; the specialties.

        Raises:
            ValueError: naming the option that one of them does not take.
        """
        given = self._given
        settings = read_settings(SFT, self._sft(None))
        if not settings.model.use_peft or settings.recipe.output != "adapter":
            raise ValueError(f"sft: {given.sft} does not make adapters; give use_peft: true and output: adapter")
        if given.grpo:
            then = read_settings(GRPO, self._grpo(None, Path("model"))).recipe
            for field in MADE_UP if settings.recipe.made_up else OTHERS:
                if (first := getattr(settings.recipe, field)) != (second := getattr(then, field)):
                    raise ValueError(
                        f"{field}: {first!r} in the SFT and {second!r} in GRPO, which hold out other cases then; give "
                        "both recipes the same"
                    )
        known = self._known(settings.recipe)
        taught = self._taught(settings.recipe) or known
        if unknown := sorted(set(given.specialties or taught) - set(known)):
            raise ValueError(f"specialties: no case is of {', '.join(unknown)}; there are {', '.join(known)}")
        if untaught := sorted(set(given.specialties or taught) - set(taught)):
            raise ValueError(f"specialties: no trace is of {', '.join(untaught)}; there are {', '.join(taught)}")
        return list(given.specialties or taught)

    def _taught(self, recipe: Any) -> list[str]:
        """Those of the traces; none where there are no traces."""
        given = self._given
        if given.traces is None:
            return []
        if given.cases is None and recipe.cases is None:
            raise ValueError("cases: traces teach, and cases measure what is learned; name them, as in --cases faint")
        return specialties_of(given.traces)

    def _known(self, recipe: Any) -> list[str]:
        """Those of the cases, in the paper's order or that of the alphabet."""
        if recipe.made_up:
            return list(SPECIALTIES)
        cases = own_cohort(recipe.cases, recipe.split, recipe.free_text, recipe.without_keys()).cases
        return sorted({case.specialty for case in cases if case.specialty})

    def train(self, specialty: str) -> dict[str, Any]:
        """One specialist; what its runs found, and where its adapter is."""
        threads = 1 if self._given.jobs > 1 else None
        last = self.out / "sft" / slug(specialty)
        train(last, SFT.module, self._sft(specialty), threads)
        before = _summary(last)["before"]
        if self._given.grpo:
            start, last = last, self.out / "grpo" / slug(specialty)
            train(last, GRPO.module, self._grpo(specialty, start / "model"), threads)
        return {"adapter": str((last / "model").resolve()), "before": before, "after": _summary(last)["after"]}

    def _sft(self, specialty: str | None) -> list[str]:
        given = self._given
        own = _flags(traces=given.traces, model=given.model)
        return [*self._flags(given.sft, specialty), *own, *self._more]

    def _grpo(self, specialty: str | None, start: Path) -> list[str]:
        own = _flags(model=start, use_peft="true", output="adapter")
        return [*self._flags(self._given.grpo, specialty), *own]

    def _flags(self, recipe: Path, specialty: str | None) -> list[str]:
        given = self._given
        these = _flags(cases=given.cases, split=given.split, eval_split=given.eval_split)
        return [*_flags(config=recipe, nodes="specialist", seed=given.seed, specialty=specialty), *these]


def _flags(**told: Any) -> list[str]:
    return [word for name, value in told.items() if value is not None for word in (f"--{name}", str(value))]


def _summary(run: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return summary


def table(found: dict[str, dict[str, Any]]) -> str:
    """Accuracy in % of the base and of each specialist on its own specialty, as Markdown."""
    rows = []
    for specialty, told in found.items():
        figures = [told[when]["overall"] for when in ("before", "after")]
        cells = [printed.percent({**figure, "value": figure["accuracy"]}) for figure in figures]
        rows.append([specialty, *cells, f"{100 * _gain(told):+.1f}"])
    mean = fmean(_gain(told) for told in found.values())
    return printed.markdown(["", "base", "specialist", "gain"], [*rows, ["mean", "", "", f"{100 * mean:+.1f}"]])


def _gain(told: dict[str, Any]) -> float:
    return float(told["after"]["overall"]["accuracy"]) - float(told["before"]["overall"]["accuracy"])


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """The command line; returns what was found of each specialist."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=Path("runs/specialists"), help="folder (runs/specialists)")
    parser.add_argument("--specialties", nargs="+", help="only these; default: all that the cases have")
    parser.add_argument("--model", help="the base; default: the recipe's")
    parser.add_argument("--cases", help="JSONL file, a benchmark, or faint: the clinic's faint images (the default)")
    parser.add_argument("--split", help="rows to train on, of other cases than the clinic's")
    parser.add_argument("--eval_split", help="rows to measure on; default: some of the others, by image")
    parser.add_argument("--traces", help="folder of rl.build_traces to imitate; default: what the recipe says")
    parser.add_argument("--sft", type=Path, default=OWN, help=f"recipe of the SFT ({OWN.name})")
    parser.add_argument("--grpo", type=Path, help="recipe of GRPO after it; default: none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time (2), each with one thread then")
    given, more = parser.parse_known_args(arguments)
    specialists = Specialists(given, more)
    try:
        names = specialists.check()
    except ValueError as error:
        parser.error(str(error))
    told = at_once(specialists.train, [(name,) for name in names], given.jobs, "specialists")
    found = dict(zip(names, told, strict=True))
    base = read_settings(SFT, specialists._sft(names[0])).recipe.model
    file = make(given.out, base, None, None, [f"{name}={told['adapter']}" for name, told in found.items()])
    (given.out / "specialists.json").write_text(json.dumps(found, indent=2) + "\n")
    (given.out / "specialists.md").write_text(table(found) + "\n")
    print(f"\n{table(found)}\n\nhospital: {file}")
    return found


if __name__ == "__main__":
    main()
