"""Several trainings as jobs: each a process with a folder and a log of its own, some at a time.

Invariant: what is finished is not done again, and never mixed. The same flags go on from wherever a job was stopped;
other flags under the same name are refused, and so are other contents of the files and models that they name.
"""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from rl.models import folder_of
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
    with _alone(folder) as log:
        _check_note(folder, module, flags)
        if not (folder / "summary.json").exists():
            begun = (folder / "arguments.json").exists()
            named = ["--runs", str(folder.parent), "--name", folder.name]
            _run(log, module, [*named, "--resume"] if begun else [*named, *flags], threads)


def once(folder: Path, last: str, module: str, flags: Sequence[str], threads: int | None = None) -> None:
    """Run a command that is no training, and that goes on by itself, unless it has come to its end with these flags.

    Args:
        folder: that the command makes.
        last: what it makes last in it.
        module: as in `train`.
        flags: as in `train`, the folder's among them.
        threads: as in `train`.

    Raises:
        ValueError: if the folder was made with other flags, or of other files.
        RuntimeError: as `call`.
    """
    with _alone(folder) as log:
        _check_note(folder, module, flags)
        if not (folder / last).exists():
            _run(log, module, flags, threads)


def call(folder: Path, module: str, flags: Sequence[str], threads: int | None = None) -> None:
    """Run a command to its end, with a log beside its folder.

    The command holds the log as long as it lives, also when whoever has started it is killed.

    Raises:
        RuntimeError: if it fails, naming the log; or if one from before is still at work.
    """
    with _alone(folder) as log:
        _run(log, module, flags, threads)


@contextmanager
def _alone(folder: Path) -> Iterator[IO[str]]:
    """The log of a folder, with nobody else at work on it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.log").open("a") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"{folder}: another process is still at work on it; wait for it, or end it") from None
        yield log


def _check_note(folder: Path, module: str, flags: Sequence[str]) -> None:
    """Note beside a new folder what it is made of; of one that is there, see that it was made of the same.

    Raises:
        ValueError: if it was made of something else, or nobody knows of what.
    """
    note = folder.with_name(f"{folder.name}.arguments.json")
    files = {flag: _digest(flag) for flag in flags if flag != str(folder)}
    arguments, remedy = [module, *flags], "remove it, or give another --out"
    if not folder.exists():
        note.write_text(json.dumps({"arguments": arguments, "files": files}))
        return
    if not note.exists():
        raise ValueError(f"out: {folder} is there without {note.name}, which says how it was made; {remedy}")
    known: dict[str, Any] = json.loads(note.read_text())
    if known["arguments"] != arguments:
        raise ValueError(f"out: {folder} was made with other flags; {remedy}")
    if changed := [name for name, digest in files.items() if digest != known["files"][name]]:
        raise ValueError(f"out: {folder} was made when {', '.join(changed)} had other contents; {remedy}")


def _digest(flag: str) -> str | None:
    try:
        return digest_of(Path(folder_of(flag)))
    except OSError:  # too long a text to name anything
        return None


def _run(log: IO[str], module: str, flags: Sequence[str], threads: int | None) -> None:
    own = {"OMP_NUM_THREADS": str(threads)} if threads else {}
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
