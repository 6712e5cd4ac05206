"""A run's folder: what it was asked, how long its parts took, and what it found.

Invariant: nothing finished is lost or done twice. A run's arguments are written before it starts, and `--resume`
reads them from there, so a resumed run cannot differ from the one that was interrupted.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rl.recipe import read_recipe, recipe_name


class Run:
    """One run of a training command in `runs/<name>`."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        self.folder = folder
        self.arguments = arguments
        """Flags that the recipe is read from."""
        self.recipe = recipe_name(arguments)
        times = folder / "seconds.json"
        self.seconds: dict[str, float] = json.loads(times.read_text()) if times.exists() else {}
        self._made_folder = False

    @classmethod
    def open(cls, arguments: list[str]) -> "Run":
        """A new run, or with `--resume` the one that was interrupted.

        Raises:
            ValueError: if a new run's name is taken, if there is no run to resume, or if a resumed run is given other
            settings.
        """
        recipe, settings = read_recipe(arguments)
        runs = Path(recipe.runs)
        if recipe.resume:
            return cls._resumed(runs, recipe.name, arguments)
        folder = runs / recipe.name if recipe.name else _unused(runs, f"{recipe_name(arguments)}-seed{settings.seed}")
        if folder.name == "latest":
            raise ValueError("name: 'latest' always points to the last run; choose another name")
        if (folder / "arguments.json").exists():
            go_on = f"go on with it by --resume --name {folder.name}"
            raise ValueError(f"name: {str(folder)!r} holds a run; {go_on}, or choose another name")
        made_folder = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "arguments.json").write_text(json.dumps(arguments) + "\n")
        run = cls(folder, arguments)
        run._made_folder = made_folder
        _point(runs / "latest", folder.name)
        return run

    @classmethod
    def _resumed(cls, runs: Path, name: str | None, arguments: Sequence[str]) -> "Run":
        folder = runs / (name or "latest")
        if not (folder / "arguments.json").exists():
            known = ", ".join(sorted(path.parent.name for path in runs.glob("*/arguments.json"))) or "none"
            raise ValueError(f"resume: no run in {str(folder)!r}; runs there are {known}")
        flags = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
        if other := sorted(flags - {"--resume", "--name", "--runs"}):
            raise ValueError(f"resume: a resumed run keeps its settings; leave out {', '.join(other)}")
        return cls(folder.resolve(), json.loads((folder / "arguments.json").read_text()))

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a part of the run; the seconds of an interrupted part and its resumption add up."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 1)
            if self.folder.exists():
                (self.folder / "seconds.json").write_text(json.dumps(self.seconds) + "\n")

    @contextlib.contextmanager
    def abandoned_if_refused(self) -> Iterator[None]:
        """Free the name again if the settings are refused after all, before anything was found."""
        try:
            yield
        except ValueError:
            if not (self.folder / "upstream-train.jsonl").exists():
                (self.folder / "arguments.json").unlink()
                if self._made_folder:
                    shutil.rmtree(self.folder)
            raise

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, kept as JSON in the run's folder and read from there the next time."""
        path = self.folder / name
        if not path.exists():
            part = path.with_suffix(".part")
            part.write_text(json.dumps(make()) + "\n")
            part.replace(path)
        return json.loads(path.read_text())

    def link(self, name: str, target: str) -> None:
        """Let `<run>/<name>` stand for a folder of the run."""
        _point(self.folder / name, os.path.relpath(target, self.folder))

    def collect_metrics(self, stages: Sequence[str]) -> None:
        """The stages' logs, one after the other, as the run's `metrics.jsonl`."""
        logs = [self.folder / "stages" / stage / "metrics.jsonl" for stage in stages]
        (self.folder / "metrics.jsonl").write_text("".join(log.read_text() for log in logs if log.exists()))

    def finish(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`."""
        (self.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def _unused(runs: Path, name: str) -> Path:
    taken = {path.name for path in runs.iterdir()} if runs.is_dir() else set()
    return runs / next(n for n in [name, *(f"{name}-{i}" for i in range(2, len(taken) + 3))] if n not in taken)


def _point(link: Path, target: str) -> None:
    """A relative symbolic link, replaced in one step."""
    part = link.with_name(f".{link.name}.{os.getpid()}")
    part.symlink_to(target)
    part.replace(link)
