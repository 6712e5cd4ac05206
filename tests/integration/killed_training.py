"""A training run that is killed at random moments: `python -m tests.integration.killed_training FOLDER KILLS`.

Everything is imported once; each attempt is a fork of this process, which SIGKILL ends wherever it is. A run that ends
before all kills are done is followed by another. Prints a JSON line for each run: its kills, and where they came.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from rl.train_attending import main

FLAGS = ["--nodes", "triage", "attending", "--reroll_steps", "2", "--stage_steps", "4", "4", "3", "--train_size", "24"]
FLAGS += ["--eval_size", "16", "--per_device_train_batch_size", "8", "--num_generations", "4"]
FLAGS += ["--logging_steps", "1", "--save_steps", "2"]


def attempt(flags: list[str]) -> int:
    """Train in a fork; returns its process id."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        try:
            main(flags)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def ended(child: int, seconds: float) -> bool:
    """Whether the fork ends by itself within so many seconds; otherwise it is killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            if status:
                raise SystemExit(f"a resumed run ended with status {status}")
            return True
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def flags_of(folder: Path, name: str) -> list[str]:
    """The flags of a run that is new, or goes on."""
    named = ["--runs", str(folder), "--name", name]
    return [*named, "--resume"] if (folder / name / "arguments.json").exists() else [*named, *FLAGS]


def run(folder: Path, kills: int) -> None:
    """An uninterrupted run, then killed ones until there have been enough kills."""
    torch.set_num_threads(1)
    start = time.monotonic()
    if not ended(attempt(flags_of(folder, "whole")), 3600):
        raise SystemExit("the uninterrupted run took an hour")
    whole = time.monotonic() - start
    print(json.dumps({"run": "whole", "seconds": whole}), flush=True)
    chance, done, number = random.Random(), 0, 0
    while done < kills:
        number += 1
        moments: list[float] = []
        while True:
            # a run without checkpoints yet would never end if it were always killed so early
            moment = chance.uniform(0, 0.4 * whole) if done < kills else 3600.0
            if ended(attempt(flags_of(folder, f"killed-{number}")), moment):
                break
            done += 1
            moments.append(round(moment, 2))
        print(json.dumps({"run": f"killed-{number}", "kills": moments}), flush=True)


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
