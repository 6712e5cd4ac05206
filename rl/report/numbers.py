"""Figures as text. Invariant: what is shown is rounded here, once, for the page, the CSV and the LaTeX alike."""

from typing import NamedTuple

from rl.statistics import Figure


class Cell(NamedTuple):
    """A figure as it is shown; the empty string where there is none."""

    value: str = ""
    low: str = ""
    high: str = ""

    @property
    def interval(self) -> str:
        """Its interval."""
        return f"[{self.low}, {self.high}]" if self.low else ""

    @property
    def text(self) -> str:
        """All of it, in one line."""
        return f"{self.value} {self.interval}".strip() or "-"


def rounded(value: float | None, digits: int) -> str:
    """With so many decimals, and no minus before zero."""
    said = "" if value is None else f"{value:.{digits}f}"
    return said.removeprefix("-") if said and float(said) == 0 else said


def percent(figure: Figure) -> Cell:
    """A share, or a difference of shares, in %."""
    return plain(figure, 1, 100)


def plain(figure: Figure, digits: int, factor: float = 1) -> Cell:
    """A mean such as tokens a case."""
    ends = (figure.value, figure.low, figure.high)
    return Cell(*(rounded(None if end is None else end * factor, digits) for end in ends))


def p_value(p: float | None) -> Cell:
    """A p-value; one that is small is not told to the last digit."""
    return Cell("<0.001" if p is not None and p < 0.001 else rounded(p, 3))
