"""The README's table: the default run with five seeds, none of them chosen.

    python benchmarks/seeds.py                       # seeds 0 to 4, one after the other
    python benchmarks/seeds.py --jobs 2              # two at a time, one core each

Runs go to `runs/seeds/`; a finished one is not run again. Prints the table in Markdown.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

RUNS = Path("runs/seeds")
COLUMNS = ("overall", "easy", "medium", "hard")


def run(seed: int, flags: list[str], threads: int | None) -> dict[str, Any]:
    """The summary of one run, which is trained if it is not there yet."""
    folder = RUNS / f"seed{seed}"
    asked = ["--runs", str(RUNS), "--name", folder.name, "--seed", str(seed), *flags]
    if (folder / "arguments.json").exists() and json.loads((folder / "arguments.json").read_text()) != asked:
        raise SystemExit(f"{folder} was run with other flags; remove it first")
    if not (folder / "summary.json").exists():
        resumed = (folder / "arguments.json").exists()
        how = [*asked[:4], "--resume"] if resumed else asked
        command = [sys.executable, "-m", "rl.train_attending", *how]
        environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        with (RUNS / f"seed{seed}.log").open("a") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log, env=environment)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def table(summaries: list[dict[str, Any]]) -> str:
    """One row for each seed, and the mean with the range."""
    lines = [
        "| seed | " + " | ".join(COLUMNS) + " | way to the ideal | minutes |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    for summary in summaries:
        cells = [
            " → ".join(f"{100 * summary[when][column]['accuracy']:.1f}" for when in ("before", "after"))
            + f" ({100 * summary['ideal'][column]['accuracy']:.1f})"
            for column in COLUMNS
        ]
        minutes = sum(summary["seconds"].values()) / 60
        lines.append(f"| {summary['seed']} | {' | '.join(cells)} | {summary['gap_closed']:.0%} | {minutes:.1f} |")
    gains = [[100 * (s["after"][c]["accuracy"] - s["before"][c]["accuracy"]) for s in summaries] for c in COLUMNS]
    gaps = [summary["gap_closed"] for summary in summaries]
    means = [f"{statistics.mean(gain):+.1f} [{min(gain):+.1f}, {max(gain):+.1f}]" for gain in gains]
    way = f"{statistics.mean(gaps):.0%} [{min(gaps):.0%}, {max(gaps):.0%}]"
    lines.append(f"| gain, mean [least, most] | {' | '.join(means)} | {way} | |")
    return "\n".join(lines)


def main() -> None:
    """The command line; flags that it does not know go to `rl.train_attending`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; with 2 or more, each has one core")
    arguments, flags = parser.parse_known_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        threads = 1 if arguments.jobs > 1 else None
        runs = pool.map(lambda seed: run(seed, flags, threads), arguments.seeds)
        print(table(list(tqdm(runs, "seeds", len(arguments.seeds), unit="run"))))


if __name__ == "__main__":
    main()
