"""A run's folder: what it was told, how long its parts took, and what it found.

Invariant: nothing finished is lost or done twice. All that a run was told is written before it starts: the recipe
file's options as they were, the folders that `latest` stood for, and how many processes there are. `--resume` reads it
from there, so a resumed run cannot differ from the one that was interrupted. Of several processes the first alone
writes.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from rl.launch import launcher, processes, read_launch
from rl.settings import Command, Consultations, config_name, flags_of, launch_file, pins, read_early, read_settings


@dataclasses.dataclass(frozen=True)
class Told:
    """What a run was told: `arguments.json`."""

    command: str
    """As in `python -m <command>`."""
    recipe: str
    """The recipe file's name, without its ending."""
    arguments: list[str]
    """The command line, as it was given."""
    flags: list[str]
    """All that was said, by the recipe file and by the command line."""
    processes: int
    launch: str | None
    """The file that the recipe is launched by, if it names one."""

    def line(self) -> str:
        """How the command is started, without its flags."""
        return f"{launcher(self.processes, self.launch)} -m {self.command}"


class Run:
    """One run of a training command in `runs/<name>`."""

    def __init__(self, folder: Path, command: Command, told: Told) -> None:
        self.folder, self.told = folder, told
        self.command = command._replace(config=None)
        """With `flags`, what all settings of the run are read from; no recipe file is read again."""
        self.flags = told.flags
        self.settings = read_settings(self.command, self.flags)
        self.main = PartialState().is_main_process  # after the settings, which say how processes talk to each other
        times = folder / "seconds.json"
        self.seconds: dict[str, float] = json.loads(times.read_text()) if times.exists() else {}
        self._new = self._made_folder = False

    @classmethod
    def open(cls, command: Command, arguments: list[str]) -> "Run":
        """A new run, or with `--resume` the one that was interrupted; the same one in every process.

        Raises:
            ValueError: if a new run's name is taken or its recipe is for another number of processes, if there is no
            run to resume, or if a resumed run is given other settings or processes, or was another command's.
        """
        asked, others = read_early(arguments, ["name", "runs"], ["resume"])
        if asked.resume:
            return cls._resumed(command, asked, others)
        settings = read_settings(command, arguments)
        if settings.recipe.resume:
            raise ValueError("resume: true in a recipe; it is for the command line, --resume")
        told = _told(command, arguments, settings.recipe)
        made: list[Any] = [None]
        if PartialState().is_main_process:
            made = [(*cls._new_folder(settings.recipe, settings.trainer.seed, told), told)]
        broadcast_object_list(made)
        folder, made_folder, told = made[0]
        run = cls(folder, command, told)
        run._new, run._made_folder = True, made_folder
        return run

    @staticmethod
    def _new_folder(recipe: Consultations, seed: int, told: Told) -> tuple[Path, bool]:
        """A new run's folder, and whether it was made."""
        runs = Path(recipe.runs)
        folder = runs / recipe.name if recipe.name else _unused(runs, f"{told.recipe}-seed{seed}")
        if folder.name == "latest":
            raise ValueError("name: 'latest' always points to the last run; choose another name")
        if (folder / "arguments.json").exists():
            go_on = f"go on with it by --resume --name {folder.name}"
            raise ValueError(f"name: {str(folder)!r} holds a run; {go_on}, or choose another name")
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "arguments.json").write_text(json.dumps(dataclasses.asdict(told)) + "\n")
        return folder, made

    @classmethod
    def _resumed(cls, command: Command, asked: Namespace, others: Sequence[str]) -> "Run":
        runs = Path(asked.runs or Consultations.runs)
        folder = runs / (asked.name or "latest")
        if not (folder / "arguments.json").exists():
            known = ", ".join(sorted(path.parent.name for path in runs.glob("*/arguments.json"))) or "none"
            raise ValueError(f"resume: no run in {str(folder)!r}; runs there are {known}")
        if other := sorted({argument.partition("=")[0] for argument in others if argument.startswith("--")}):
            raise ValueError(f"resume: a resumed run keeps its settings; leave out {', '.join(other)}")
        told = Told(**json.loads((folder / "arguments.json").read_text()))
        if told.command != command.module:
            raise ValueError(f"resume: {str(folder)!r} is a run of {told.command}; go on with python -m that")
        if (there := processes()) != told.processes:
            raise ValueError(
                f"resume: {str(folder)!r} is a run of {told.processes} processes, and there is {there}; start it by: "
                f"{told.line()} --resume ..."
            )
        return cls(folder.resolve(), command, told)

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
    def acceptance(self) -> Iterator[None]:
        """What is refused inside, before anything was found, leaves nothing; the rest is the latest run from then on.

        Until then `latest` stands for the run before: it may be what this one starts from.
        """
        try:
            yield
        except ValueError:
            if self.main and self._new:
                (self.folder / "arguments.json").unlink()
                if self._made_folder:
                    shutil.rmtree(self.folder)
            raise
        if self.main:
            _point(self.folder.parent / "latest", self.folder.name)

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
        return f"{self.told.line()} --resume --runs {self.folder.parent} --name {self.folder.name}"


def _told(command: Command, arguments: list[str], recipe: Consultations) -> Told:
    """All that a new run is told.

    Raises:
        ValueError: if the recipe is for so many processes, and there are others: the batch, and what is learned, would
        silently change.
    """
    there, file = processes(), launch_file(command, arguments)
    told = Told(
        command=command.module,
        recipe=config_name(command, arguments),
        arguments=arguments,
        flags=[*flags_of(command, arguments), *pins(recipe)],
        processes=read_launch(file).processes if file else there,
        launch=str(file) if file else None,
    )
    if told.processes != there:
        raise ValueError(
            f"accelerate: {file} is for {told.processes} processes, and there is {there}; start it by: "
            f"{told.line()} ..."
        )
    return told


def _unused(runs: Path, name: str) -> Path:
    taken = {path.name for path in runs.iterdir()} if runs.is_dir() else set()
    return runs / next(n for n in [name, *(f"{name}-{i}" for i in range(2, len(taken) + 3))] if n not in taken)


def _point(link: Path, target: str) -> None:
    """A relative symbolic link, replaced in one step."""
    part = link.with_name(f".{link.name}.{os.getpid()}")
    part.symlink_to(target)
    part.replace(link)
