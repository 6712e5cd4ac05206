"""Guideline-based advantages beside GRPO, at the same number of generated tokens: five seeds, none of them chosen.

    python benchmarks/guidelines.py                  # 13 minutes on two cores; what is finished is not done again
    python benchmarks/guidelines.py --seeds 0 --steps 100 --out runs/one-seed

For each seed the clinic's teacher writes traces of ordinary images by `rl/guidelines/clinic.yaml` (`rl.build_traces`),
a specialist imitates them (`rl.train_sft`: DSA), and goes on from there, with faint images, by

- `GBA`: two answers from each of the four perspectives of a case, paid for format, accuracy and their checks;
- `GRPO, as many answers`: eight answers to the plain prompt of a case, paid for format and accuracy;
- `GRPO, as many tokens`: the same for as many steps as it takes to have written as many tokens as GBA.

All are measured on the plain prompt and faint images. Prints accuracy over the seeds with 95 % intervals (Student's
t), and GBA's lead over each of the others, paired by seed.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl.clinic.doctors import GUIDELINE
from rl.jobs import at_once, once, train
from rl.printed import markdown, plus_minus
from rl.settings import CONFIGS
from rl.statistics import over_seeds

SPECIALTY = "Dermatologist"
DSA, GBA, ANSWERS, TOKENS = "DSA", "GBA", "GRPO, as many answers", "GRPO, as many tokens"
CASES = "1050"
"""Of all specialties, a seventh of them of the one that learns."""
ROOM = ["--max_completion_length", "48"]
GUIDED = [
    "--guideline",
    str(GUIDELINE),
    "--graders",
    "format=0.5",
    "accuracy=1",
    "checks=0.5",
    "--num_generations",
    "2",
]
Runs = dict[str, dict[str, Any]]


def one_seed(seed: int, out: Path, steps: int) -> Runs:
    """The summaries of a seed's runs."""
    traces = out / "traces"
    made = ["--teacher", "clinic:teacher", "--guideline", str(GUIDELINE), "--samples", "1"]
    cases = ["--cases", "clinic", "--size", CASES, "--seed", str(seed)]
    once(traces, "README.md", "rl.build_traces", [*made, *cases, "--out", str(traces)], 1)
    common = ["--specialty", SPECIALTY, "--seed", str(seed)]
    imitation = ["--config", str(CONFIGS / "clinic_traces_sft.yaml"), "--num_train_epochs", "10"]
    sft = [*imitation, *common, "--traces", str(traces)]
    found = {DSA: run(out / "dsa", "rl.train_sft", sft)}
    start = [*common, "--model", str(out / "dsa" / "model"), "--use_peft", "true", "--output", "adapter", *ROOM]

    def learned(name: str, number: int, more: Sequence[str] = ()) -> dict[str, Any]:
        return run(out / name, "rl.train_specialist", [*start, "--stage_steps", str(number), *more])

    found[GBA] = learned("gba", steps, GUIDED)
    found[ANSWERS] = learned("grpo-answers", steps)
    found[TOKENS] = learned("grpo-tokens", round(steps * written(found[GBA]) / written(found[ANSWERS])))
    return found


def run(folder: Path, module: str, flags: Sequence[str]) -> dict[str, Any]:
    """The summary of a run, which is trained if it is not there yet."""
    train(folder, module, flags, 1)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def written(summary: dict[str, Any]) -> int:
    """Tokens that a training has generated."""
    return sum(summary["tokens"].values())


def accuracy(summary: dict[str, Any]) -> float:
    """In %, after training."""
    return 100 * float(summary["after"]["overall"]["accuracy"])


def table(seeds: Sequence[Runs]) -> str:
    """A row for each way, in Markdown."""
    rows = []
    for name in (DSA, GBA, ANSWERS, TOKENS):
        tokens = "" if name == DSA else f"{sum(written(runs[name]) for runs in seeds) / len(seeds) / 1000:.1f}"
        lead = [accuracy(runs[GBA]) - accuracy(runs[name]) for runs in seeds]
        rows.append(
            [
                name,
                plus_minus(over_seeds([accuracy(runs[name]) for runs in seeds])),
                tokens,
                plus_minus(over_seeds([100 * runs[name]["unparsed"]["after"] for runs in seeds])),
                "" if name == GBA else plus_minus(over_seeds(lead), "+"),
            ]
        )
    return markdown(["", "right, %", "1000 tokens", "unreadable, %", "GBA's lead, points"], rows, 4)


def main() -> None:
    """Train, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="(0 to 4)")
    parser.add_argument("--steps", type=int, default=40, help="of GBA (40)")
    parser.add_argument("--out", type=Path, default=Path("runs/guidelines"), help="folder (runs/guidelines)")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time (2)")
    given = parser.parse_args()
    work = [(seed, given.out / f"seed{seed}", given.steps) for seed in given.seeds]
    print(table(at_once(one_seed, work, given.jobs, "seeds")))


if __name__ == "__main__":
    main()
