"""Several trainings as jobs: each a process with a folder and a log of its own, some at a time.

Invariant: what is finished is not done again. The same flags go on from wherever a job was stopped; other flags under
the same name are refused.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm


def train(folder: Path, module: str, flags: Sequence[str], threads: int | None = None) -> None:
    """Run a training command into a folder, or let one that was broken off go on.

    Args:
        folder: of the run.
        module: of the command, as in `python -m`.
        flags: its own; the run's folder is told besides.
        threads: of its arithmetic. Default: all there are.

    Raises:
        ValueError: if the folder was made with other flags.
        RuntimeError: as `call`.
    """
    named = ["--runs", str(folder.parent), "--name", folder.name]
    asked, started = [*named, *flags], folder / "arguments.json"
    if started.exists() and json.loads(started.read_text())["arguments"] != asked:
        raise ValueError(f"out: {folder} was made with other flags; remove it, or give another --out")
    if not (folder / "summary.json").exists():
        call(folder, module, [*named, "--resume"] if started.exists() else asked, threads)


def once(folder: Path, module: str, flags: Sequence[str], threads: int | None = None) -> None:
    """Run a command that is no training, and that goes on by itself, unless it has come to its end with these flags.

    Raises:
        ValueError: if the folder was made with other flags.
        RuntimeError: as `call`.
    """
    told = folder.with_name(f"{folder.name}.arguments.json")
    known = json.loads(told.read_text()) if told.exists() else {"arguments": [module, *flags], "done": False}
    if known["arguments"] != [module, *flags]:
        raise ValueError(f"out: {folder} was made with other flags; remove it and {told.name}, or give another --out")
    if not known["done"]:
        folder.parent.mkdir(parents=True, exist_ok=True)
        told.write_text(json.dumps(known))
        call(folder, module, flags, threads)
        told.write_text(json.dumps(known | {"done": True}))


def call(folder: Path, module: str, flags: Sequence[str], threads: int | None = None) -> None:
    """Run a command to its end, with a log beside its folder.

    Raises:
        RuntimeError: if it fails, naming the log.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    own = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    with folder.with_name(f"{folder.name}.log").open("a") as log:
        code = subprocess.run([sys.executable, "-m", module, *flags], stdout=log, stderr=log, env=os.environ | own)
    if code.returncode:
        raise RuntimeError(f"{module} failed with {code.returncode}; {log.name} says why")


def at_once(work: Callable[..., Any], items: Sequence[tuple[Any, ...]], jobs: int, title: str) -> list[Any]:
    """Do the work on all items, so many at a time; the first failure stops what has not begun."""
    with ThreadPoolExecutor(jobs) as pool:
        begun = [pool.submit(work, *item) for item in items]
        try:
            for ended in tqdm(as_completed(begun), title, len(begun), unit="run"):
                ended.result()
            return [one.result() for one in begun]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
