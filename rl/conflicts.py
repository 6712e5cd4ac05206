"""Where experts pull a weight in opposite directions, told in numbers, in words and as a heat map.

The paper's (MMedExpert-R1): a conflict is a sign disagreement between task vectors. The measures are ours. Each is of
the entries that are left after TIES' trimming to the density:

- `conflict` of a pair: the share of the entries nonzero in both whose signs differ. Two random task vectors differ on
  one half.
- `divided`: the share of the entries nonzero in two or more experts where not all signs agree. Of n random task vectors
  that are nonzero everywhere, it is 1 - 2^(1-n).
- `discarded`: the share of the magnitude of all entries that TIES throws away, as its sign was not elected.

Invariant: they are counted, and shares are only taken at the end, so that those of a kind of module, or of the whole
model, are of its entries, not of its modules.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import isnan, nan
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import torch
from peft.utils.merge_utils import calculate_majority_sign_mask, prune

from rl.printed import markdown

RANDOM = 0.5
"""The conflict of two random task vectors."""
LAYER = re.compile(r"(?:model\.)?(.+?)\.(\d+)\.(.+)")
"""A module of one of many layers: the tower and what it calls its layers, the layer's number, what it is there."""
ROOM = 14
"""Layers up to which a heat map also has its figures."""


@dataclasses.dataclass(frozen=True)
class Conflict:
    """What was counted of some entries."""

    pairs: tuple[tuple[int, int], ...]
    """Of each pair of experts: entries whose signs differ, and entries nonzero in both."""
    divided: int
    shared: int
    """Entries that are nonzero in two experts or more; `divided` are those where not all signs agree."""
    discarded: float
    magnitude: float
    """Summed over all entries; `discarded` is the part that TIES' election throws away."""

    @classmethod
    def of(cls, deltas: Sequence[torch.Tensor], density: float) -> "Conflict":
        """Count what the experts have added to one weight, trimmed to the density."""
        trimmed = torch.stack([trim(delta, density) for delta in deltas])
        signs = trimmed.sign()
        products = [one * other for one, other in combinations(signs, 2)]
        divided = (signs > 0).any(0) & (signs < 0).any(0)
        lost = trimmed.abs() * ~calculate_majority_sign_mask(trimmed)
        return cls(
            tuple((int((product < 0).sum()), int((product != 0).sum())) for product in products),
            int(divided.sum()),
            int(((signs != 0).sum(0) > 1).sum()),
            float(lost.sum(dtype=torch.float64)),
            float(trimmed.abs().sum(dtype=torch.float64)),
        )

    def __add__(self, other: "Conflict") -> "Conflict":
        """What was counted of both."""
        pairs = zip(self.pairs, other.pairs, strict=True)
        return Conflict(
            tuple((mine[0] + theirs[0], mine[1] + theirs[1]) for mine, theirs in pairs),
            self.divided + other.divided,
            self.shared + other.shared,
            self.discarded + other.discarded,
            self.magnitude + other.magnitude,
        )

    def shares(self) -> dict[str, float | None]:
        """The measures, with the conflict of all pairs together; None where there is nothing to measure one on."""
        differ, both = (sum(column) for column in zip(*self.pairs, strict=True))
        return {
            "conflict": _share(differ, both),
            "divided": _share(self.divided, self.shared),
            "discarded": _share(self.discarded, self.magnitude),
        }

    def told(self, names: Sequence[str]) -> dict[str, Any]:
        """All of it, for a file."""
        pairs = zip(combinations(names, 2), self.pairs, strict=True)
        found = [{"experts": list(two), "conflict": _share(*counts), "entries": counts[1]} for two, counts in pairs]
        return {**self.shares(), "pairs": found}


def trim(delta: torch.Tensor, density: float) -> torch.Tensor:
    """What TIES leaves of a task vector, by PEFT: its largest entries, of each weight the same share."""
    return delta if density == 1 else prune(delta, density, "magnitude")


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def place_of(weight: str) -> tuple[str, int | None]:
    """The kind of a weight, and its layer; None outside the layers.

    `model.language_model.layers.3.mlp.up_proj.weight` is a `language_model mlp.up_proj` of layer 3.
    """
    name = weight.removesuffix(".weight")
    if (found := LAYER.fullmatch(name)) is None:
        return name.removeprefix("model."), None
    return f"{found[1].rpartition('.')[0] or found[1]} {found[3]}", int(found[2])


def write_conflicts(folder: Path, names: Sequence[str], density: float, found: Mapping[str, Conflict]) -> None:
    """Write `conflicts.json`, `conflicts.md` and `conflicts.png`.

    Args:
        folder: where to.
        names: of the experts.
        density: that they were trimmed to.
        found: what was counted of each weight.
    """
    kinds: dict[str, Conflict] = {}
    for name, conflict in found.items():
        kind, _ = place_of(name)
        kinds[kind] = kinds[kind] + conflict if kind in kinds else conflict
    overall = _sum(found.values())
    told = {
        "experts": list(names),
        "density": density,
        "random": RANDOM,
        "overall": overall.told(names),
        "kinds": {kind: conflict.told(names) for kind, conflict in kinds.items()},
        "modules": {name: conflict.told(names) for name, conflict in found.items()},
    }
    (folder / "conflicts.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    (folder / "conflicts.md").write_text(_table(told), encoding="utf-8")
    draw(folder / "conflicts.png", found, density)


def _sum(some: Iterable[Conflict]) -> Conflict:
    first, *rest = some
    for conflict in rest:
        first += conflict
    return first


def _table(told: Mapping[str, Any]) -> str:
    columns = ("conflict", "divided", "discarded")
    rows = {"**all**": told["overall"], **told["kinds"]}
    kinds = [[name, *(_percent(row[column]) for column in columns)] for name, row in rows.items()]
    names = told["experts"]
    short, pairs = shortened(names), told["overall"]["pairs"]
    places = combinations(range(len(names)), 2)
    cells = {place: _percent(pair["conflict"]) for place, pair in zip(places, pairs, strict=True)}
    square = [
        [short[row], *(cells.get((min(row, column), max(row, column)), "") for column in range(len(names)))]
        for row in range(len(names))
    ]
    lines = [
        "# Conflicts of the experts",
        "",
        f"Shares in %, of what is left of the task vectors at density {told['density']:g}. Two random ones are in "
        f"conflict on {100 * RANDOM:g} %.",
        "",
        markdown(["", *columns], kinds, len(columns)),
        "",
        markdown(["conflict of", *short], square, len(names)),
    ]
    return "\n".join(lines) + "\n"


def shortened(names: Sequence[str]) -> list[str]:
    """What tells folders apart: their paths without the parts that all begin with, or end with."""
    paths = [Path(name).parts for name in names]
    if len(set(paths)) < len(paths):
        return list(names)
    while all(len(path) > 1 for path in paths) and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    while all(len(path) > 1 for path in paths) and len({path[-1] for path in paths}) == 1:
        paths = [path[:-1] for path in paths]
    return ["/".join(path) for path in paths]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def draw(path: Path, found: Mapping[str, Conflict], density: float) -> None:
    """Draw the conflict of all pairs by kind of weight and layer: red where they disagree more than random ones."""
    places = {place_of(name): conflict.shares()["conflict"] for name, conflict in found.items()}
    kinds = list(dict.fromkeys(kind for kind, _ in places))
    layers = sorted({layer for _, layer in places}, key=lambda layer: (layer is None, layer))
    grid = [[_number(places.get((kind, layer))) for layer in layers] for kind in kinds]
    far = max((abs(share - RANDOM) for row in grid for share in row if not isnan(share)), default=0.0)
    reach = min(RANDOM, max(0.05, far))
    figure, axis = plt.subplots(figsize=(4.5 + 0.42 * len(layers), 1.6 + 0.3 * len(kinds)), layout="constrained")
    axis.set_facecolor("#dddddd")
    drawn = axis.pcolormesh(grid, cmap="RdBu_r", vmin=RANDOM - reach, vmax=RANDOM + reach, edgecolor="white")
    for y, row in enumerate(grid):
        for x, share in enumerate(row):
            if len(layers) <= ROOM and not isnan(share):
                ink = "white" if abs(share - RANDOM) > 0.6 * reach else "#33415c"
                axis.text(x + 0.5, y + 0.5, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=8)
    axis.set_xticks([x + 0.5 for x in range(len(layers))], ["-" if layer is None else str(layer) for layer in layers])
    axis.set_yticks([y + 0.5 for y in range(len(kinds))], kinds)
    axis.invert_yaxis()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("layer (grey: nothing to compare)")
    title = f"Entries whose signs differ,\nover all pairs of experts at density {density:g}"
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    bar = figure.colorbar(drawn, ax=axis, ticks=[RANDOM + reach * step / 2 for step in range(-2, 3)])
    bar.ax.set_yticklabels(_tick(tick) for tick in bar.get_ticks())
    bar.ax.axhline(RANDOM, color="black", linewidth=1.5)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _tick(share: float) -> str:
    return f"{100 * share:.1f} %" + (" random" if share == RANDOM else "")


def _number(share: float | None) -> float:
    return nan if share is None else share
