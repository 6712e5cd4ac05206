"""What calls cost, and what may be spent.

Prices are dollars for a million tokens, by the model's name as its provider tells it (`gpt-4o`, which is also that of
`gpt-4o-2024-08-06`). A model whose name is a folder of this machine, and the clinic's own, cost none.

Invariant: a ledger beside the results knows the dollars of every call that was answered, also of a case that failed
afterwards, whatever stops the run.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from rl.traces import NodeCall

Prices = Mapping[str, tuple[float, float]]
"""Of a model: dollars for a million tokens that it reads, and that it writes."""
DATED = re.compile(r"-(?:\d{4}-?\d{2}-?\d{2}|\d{4}|latest)$")
FREE = (0.0, 0.0)


def read_prices(path: Path | None) -> Prices:
    """The price table of a YAML file.

    Raises:
        ValueError: naming the file, if it is none.
    """
    if path is None:
        return {}
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {str(model): (float(read), float(written)) for model, (read, written) in told.items()}
    except (AttributeError, OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"prices: {str(path)!r} has no line `MODEL: [1.5, 6.0]` for each model ({error})") from error


def price_of(model: str | None, prices: Prices) -> tuple[float, float] | None:
    """The price of a model; None if it is not known."""
    name = str(model)
    if name in prices:
        return prices[name]
    if name.startswith("clinic:") or Path(name).is_dir():
        return FREE
    return prices.get(DATED.sub("", name))


def dollars_of(calls: Sequence[NodeCall], prices: Prices | None) -> float | None:
    """What calls cost, cached or not; None where a model's price, or its tokens, are not known."""
    total = 0.0
    for call in calls:
        price = None if prices is None else price_of(call.model, prices)
        if price is None:
            return None
        if price != FREE:
            if call.input_tokens is None or call.output_tokens is None:
                return None
            total += (call.input_tokens * price[0] + call.output_tokens * price[1]) / 1e6
    return total


@dataclasses.dataclass
class Budget:
    """What may be spent by all trials of a run.

    Raises:
        ValueError: if there is a ceiling, and no prices.
    """

    ceiling: float | None = None
    """Dollars; None: whatever it costs."""
    prices: Prices | None = None
    ledger: Path | None = None
    """The dollars of each call, a line each; each shard has its own, and a ceiling of its own. Default: nothing is
    remembered."""
    spent: float = 0.0
    unknown: set[str] = dataclasses.field(default_factory=set)
    """The models of calls whose cost is not known."""

    def __post_init__(self) -> None:
        if self.ceiling is not None and not self.prices:
            raise ValueError("max_dollars: what calls cost is not known; give --prices FILE.yaml")
        if self.ledger is not None and self.ledger.exists():
            whole, newline, _ = self.ledger.read_text().rpartition("\n")  # a kill may have torn the last line
            self.ledger.write_text(whole + newline)
            self.spent = sum(map(float, whole.split()))

    def add(self, call: NodeCall) -> None:
        """What a call has cost, unless it came out of a cache."""
        if call.cached or self.prices is None:
            return
        dollars = dollars_of([call], self.prices)
        if dollars is None:
            self.unknown.add(str(call.model))
        elif dollars:
            self.spent += dollars
            if self.ledger is not None:
                with self.ledger.open("a") as file:
                    file.write(f"{dollars!r}\n")

    def check(self) -> None:
        """Stop where a ceiling cannot be kept.

        Raises:
            ValueError: if there is one, and what a call has cost is not known.
        """
        if self.ceiling is not None and self.unknown:
            raise ValueError(
                f"max_dollars: what {', '.join(sorted(self.unknown))} costs is not known: its price must be in "
                "--prices, and it must tell how many tokens it reads and writes"
            )

    @property
    def gone(self) -> bool:
        """Whether no further case may begin."""
        return self.ceiling is not None and self.spent >= self.ceiling
