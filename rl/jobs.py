"""Several trainings as jobs: each a process with a folder and a log of its own, some at a time.

Invariant: what is finished is not done again, and never mixed. The same flags go on from wherever a job was stopped;
other flags under the same name are refused, and so are other contents of the files and folders that they name.
"""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rl.provenance import digest_of


def train(folder: Path, module: str, flags: Sequence[str], threads: int | None = None) -> None:
    """Run a training command into a folder, or let one that was broken off go on.

    Args:
        folder: of the run.
        module: of the command, as in `python -m`.
        flags: its own; the run's folder is told besides.
        threads: of its arithmetic. Default: all there are.

    Raises:
        ValueError: if the folder was made with other flags, or of other files.
        RuntimeError: as `call`.
    """
    _noted(folder, module, flags)
    if not (folder / "summary.json").exists():
        begun = (folder / "arguments.json").exists()
        named = ["--runs", str(folder.parent), "--name", folder.name]
        call(folder, module, [*named, "--resume"] if begun else [*named, *flags], threads)


def once(folder: Path, module: str, flags: Sequence[str], threads: int | None = None) -> None:
    """Run a command that is no training, and that goes on by itself, unless it has come to its end with these flags.

    Raises:
        ValueError: if the folder was made with other flags, or of other files.
        RuntimeError: as `call`.
    """
    known = _noted(folder, module, flags)
    if not known["done"]:
        call(folder, module, flags, threads)
        _note(folder).write_text(json.dumps(known | {"done": True}))


def _noted(folder: Path, module: str, flags: Sequence[str]) -> dict[str, Any]:
    """What is noted of a job that may have been begun; of a new one what it is made of, for those that come after.

    Raises:
        ValueError: if the folder has come of something else.
    """
    files = {flag: digest_of(Path(flag)) for flag in flags if flag != str(folder)}
    now = {"arguments": [module, *flags], "files": files, "done": False}
    if not (folder.exists() and _note(folder).exists()):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _note(folder).write_text(json.dumps(now))
        return now
    known: dict[str, Any] = json.loads(_note(folder).read_text())
    remedy = "remove it, or give another --out"
    if known["arguments"] != now["arguments"]:
        raise ValueError(f"out: {folder} was made with other flags; {remedy}")
    if changed := [name for name, digest in files.items() if digest != known["files"][name]]:
        raise ValueError(f"out: {folder} was made when {', '.join(changed)} had other contents; {remedy}")
    return known


def _note(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.arguments.json")


def call(folder: Path, module: str, flags: Sequence[str], threads: int | None = None) -> None:
    """Run a command to its end, with a log beside its folder.

    The command holds the log as long as it lives, also when whoever has started it is killed.

    Raises:
        RuntimeError: if it fails, naming the log; or if one from before is still at work.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    own = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    with folder.with_name(f"{folder.name}.log").open("a") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"{folder}: another process is still at work on it; wait for it, or end it") from None
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
