"""Tables, as a terminal and as Markdown show them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from rl.statistics import Figure

WIDTH = 150
"""Characters of a table at least, also where its reader is no terminal."""


def show(*tables: Table) -> None:
    """Print tables, wide enough to be read in a log, too."""
    console = Console()
    console.width = max(console.width, WIDTH)
    for table in tables:
        console.print(table)


def percent(figure: Mapping[str, Any], interval: bool = True) -> str:
    """A share in %, with its interval (`rl.statistics.Figure`, as JSON has it); `-` where it is not known."""
    if figure["value"] is None:
        return "-"
    said = f"{100 * figure['value']:.1f}"
    return f"{said} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]" if interval else said


def plus_minus(figure: Figure, sign: str = "") -> str:
    """A mean with half the width of its interval, as it is; `-` where it is not known."""
    if figure.value is None:
        return "-"
    half = "" if figure.high is None else f" ± {figure.high - figure.value:.1f}"
    return f"{figure.value:{sign}.1f}{half}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """A table in Markdown, so many of its last columns flush right."""
    lines = [head, ["---"] * (len(head) - numbers) + ["---:"] * numbers, *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
