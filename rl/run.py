"""A run's folder: what it was asked, how long its parts took, and what it found.

Invariant: nothing finished is lost or done twice. A run's arguments are written before it starts, and `--resume`
reads them from there, so a resumed run cannot differ from the one that was interrupted. Of several processes the first
alone writes.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from rl.settings import Command, config_name, read_settings


class Run:
    """One run of a training command in `runs/<name>`."""

    def __init__(self, folder: Path, command: Command, arguments: list[str]) -> None:
        self.folder = folder
        self.command = command
        self.arguments = arguments
        """Flags that the recipe is read from."""
        self.recipe = config_name(command, arguments)
        self.main = PartialState().is_main_process
        times = folder / "seconds.json"
        self.seconds: dict[str, float] = json.loads(times.read_text()) if times.exists() else {}
        self._made_folder = False

    @classmethod
    def open(cls, command: Command, arguments: list[str]) -> "Run":
        """A new run, or with `--resume` the one that was interrupted; the same one in every process.

        Raises:
            ValueError: if a new run's name is taken, if there is no run to resume, or if a resumed run is given other
            settings or was another command's.
        """
        recipe, trainer, _ = read_settings(command, arguments)
        runs = Path(recipe.runs)
        if recipe.resume:
            return cls._resumed(command, runs, recipe.name, arguments)
        made: list[Any] = [None]
        if PartialState().is_main_process:
            made = [cls._new(command, runs, recipe.name, arguments, trainer.seed)]
        broadcast_object_list(made)
        folder, is_new = made[0]
        run = cls(folder, command, arguments)
        run._made_folder = is_new
        return run

    @staticmethod
    def _new(command: Command, runs: Path, name: str | None, arguments: list[str], seed: int) -> tuple[Path, bool]:
        """A new run's folder, and whether it was made."""
        folder = runs / name if name else _unused(runs, f"{config_name(command, arguments)}-seed{seed}")
        if folder.name == "latest":
            raise ValueError("name: 'latest' always points to the last run; choose another name")
        if (folder / "arguments.json").exists():
            go_on = f"go on with it by --resume --name {folder.name}"
            raise ValueError(f"name: {str(folder)!r} holds a run; {go_on}, or choose another name")
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        asked = {"command": command.module, "arguments": arguments}
        (folder / "arguments.json").write_text(json.dumps(asked) + "\n")
        _point(runs / "latest", folder.name)
        return folder, made

    @classmethod
    def _resumed(cls, command: Command, runs: Path, name: str | None, arguments: Sequence[str]) -> "Run":
        folder = runs / (name or "latest")
        if not (folder / "arguments.json").exists():
            known = ", ".join(sorted(path.parent.name for path in runs.glob("*/arguments.json"))) or "none"
            raise ValueError(f"resume: no run in {str(folder)!r}; runs there are {known}")
        flags = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
        if other := sorted(flags - {"--resume", "--name", "--runs"}):
            raise ValueError(f"resume: a resumed run keeps its settings; leave out {', '.join(other)}")
        asked = json.loads((folder / "arguments.json").read_text())
        if asked["command"] != command.module:
            raise ValueError(f"resume: {str(folder)!r} is a run of {asked['command']}; go on with python -m that")
        return cls(folder.resolve(), command, asked["arguments"])

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a part of the run; the seconds of an interrupted part and its resumption add up."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 1)
            if self.main and self.folder.exists():
                (self.folder / "seconds.json").write_text(json.dumps(self.seconds) + "\n")

    @contextlib.contextmanager
    def abandoned_if_refused(self) -> Iterator[None]:
        """Free the name again if the settings are refused after all, before anything was found."""
        try:
            yield
        except ValueError:
            if self.main and not list(self.folder.glob("upstream-*")):
                (self.folder / "arguments.json").unlink()
                if self._made_folder:
                    shutil.rmtree(self.folder)
            raise

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, kept as JSON in the run's folder and read from there the next time."""
        path = self.folder / name
        found = json.loads(path.read_text()) if path.exists() else make()
        if self.main and not path.exists():
            part = path.with_suffix(".part")
            part.write_text(json.dumps(found) + "\n")
            part.replace(path)
        return found

    def link(self, name: str, target: str) -> None:
        """Let `<run>/<name>` stand for a folder of the run."""
        if self.main:
            _point(self.folder / name, os.path.relpath(target, self.folder))

    def collect_metrics(self, stages: Sequence[str]) -> None:
        """The stages' logs, one after the other, as the run's `metrics.jsonl`."""
        logs = [self.folder / "stages" / stage / "metrics.jsonl" for stage in stages]
        (self.folder / "metrics.jsonl").write_text("".join(log.read_text() for log in logs if log.exists()))

    def finish(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`."""
        (self.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")

    def go_on(self) -> str:
        """The command that goes on with this run."""
        return f"python -m {self.command.module} --resume --runs {self.folder.parent} --name {self.folder.name}"


def _unused(runs: Path, name: str) -> Path:
    taken = {path.name for path in runs.iterdir()} if runs.is_dir() else set()
    return runs / next(n for n in [name, *(f"{name}-{i}" for i in range(2, len(taken) + 3))] if n not in taken)


def _point(link: Path, target: str) -> None:
    """A relative symbolic link, replaced in one step."""
    part = link.with_name(f".{link.name}.{os.getpid()}")
    part.symlink_to(target)
    part.replace(link)
