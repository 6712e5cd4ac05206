"""The graph as a drawing: nodes in layers from top to bottom, and whoever is at work in it.

Mermaid needs JavaScript to be seen; this is an SVG, made of the same `graph.get_graph()`. A layer is the longest way
from the start. Ways back to the layer above share its line, with a head at both ends; longer ones go around outside.
"""

import dataclasses
import html
from collections.abc import Collection, Mapping

from langchain_core.runnables.graph import Graph

START, END = "__start__", "__end__"
WIDTH, HEIGHT = 90, 36
ACROSS, DOWN = 102, 68
LANE = 16
"""How far outside the boxes a long way goes around, and how far from the next."""
LONGEST = 12
"""Characters of a name that a box has room for."""


@dataclasses.dataclass(frozen=True)
class Way:
    """A line of the drawing."""

    source: str
    target: str
    conditional: bool
    back: bool
    """It leads upwards."""
    both: bool = False
    """There is a way back on the same line."""


class Picture:
    """A graph, laid out once, to be drawn as often as something happens in it.

    Args:
        graph: what `get_graph()` of a compiled graph returns.
    """

    def __init__(self, graph: Graph) -> None:
        self.names = list(graph.nodes)
        edges = {(edge.source, edge.target): edge.conditional for edge in graph.edges}
        back = _back(self.names, list(edges))
        self.layers = _layers(self.names, [edge for edge in edges if edge not in back])
        self.ways: list[Way] = []
        for (source, target), conditional in edges.items():
            near = abs(self.layers[source] - self.layers[target]) == 1
            if near and (target, source) in edges:
                if (source, target) not in back:
                    self.ways.append(Way(source, target, conditional, back=False, both=True))
            else:
                self.ways.append(Way(source, target, conditional, back=(source, target) in back))
        self.at, self.width = self._places()
        self.height = max(self.layers.values(), default=0) * DOWN + HEIGHT

    def svg(self, at_work: Mapping[str, int], done: Collection[str]) -> str:
        """The drawing.

        Args:
            at_work: how many tasks each node is at now.
            done: the nodes that have been at work.
        """
        working = [name for name in self.names if at_work.get(name)]
        said = "The consultation as a graph. " + (
            f"At work: {', '.join(working)}." if working else "Nobody is at work."
        )
        lines = "".join(self._line(way) for way in self.ways)
        boxes = "".join(self._box(name, at_work.get(name, 0), name in done) for name in self.names)
        margin = 2
        return (
            f'<svg class="picture" role="img" aria-label="{html.escape(said)}" '
            f'viewBox="{-self.width / 2 - margin:g} {-HEIGHT / 2 - margin:g} '
            f'{self.width + 2 * margin:g} {self.height + 2 * margin:g}" style="max-width:{self.width * 1.1:g}px">'
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto-start-reverse"><path d="M1 1 7 4 1 7" class="head"/></marker></defs>'
            f"{lines}{boxes}</svg>"
        )

    def _places(self) -> tuple[dict[str, tuple[float, float]], float]:
        """Where the middle of each box is, and how wide all is; x is 0 in the middle."""
        outside = dict.fromkeys(self.names, 0)
        for way in self.ways:
            if self._is_long(way):  # on the side where its lane is
                outside[way.source if way.back else way.target] += -1 if way.back else 1
        at: dict[str, tuple[float, float]] = {}
        for layer in set(self.layers.values()):
            row = [name for name in self.names if self.layers[name] == layer]
            for i, name in enumerate(sorted(row, key=outside.__getitem__)):
                at[name] = ((i - (len(row) - 1) / 2) * ACROSS, layer * DOWN)
        widest = max((abs(x) for x, _ in at.values()), default=0) + WIDTH / 2
        long = [sum(1 for way in self.ways if self._is_long(way) and way.back == back) for back in (True, False)]
        return at, 2 * (widest + LANE * max(long))

    def _is_long(self, way: Way) -> bool:
        return abs(self.layers[way.source] - self.layers[way.target]) != 1

    def _line(self, way: Way) -> str:
        (x1, y1), (x2, y2) = self.at[way.source], self.at[way.target]
        if self._is_long(way):
            path = self._around(way)
        else:
            down = 1 if y2 > y1 else -1
            y1, y2 = y1 + down * self._half(way.source), y2 - down * (self._half(way.target) + 2)
            y1 += down * 2 * way.both
            middle = (y1 + y2) / 2
            path = f"M{x1:g} {y1:g}C{x1:g} {middle:g} {x2:g} {middle:g} {x2:g} {y2:g}"
        dashed = " may" if way.conditional else ""
        start = ' marker-start="url(#arrow)"' if way.both else ""
        return f'<path class="way{dashed}" d="{path}" marker-end="url(#arrow)"{start}/>'

    def _around(self, way: Way) -> str:
        """Out at the side, along a lane outside the boxes that it passes, and in at the side."""
        (x1, y1), (x2, y2) = self.at[way.source], self.at[way.target]
        side = -1 if way.back else 1
        passed = [x for x, y in self.at.values() if min(y1, y2) <= y <= max(y1, y2)]
        lane = side * (max(side * x for x in passed) + WIDTH / 2 + LANE)
        x1 += side * self._wide(way.source)
        x2 += side * (self._wide(way.target) + 2)
        turn, down = min(10.0, abs(lane - x1), abs(lane - x2)), 1 if y2 > y1 else -1
        y1, y2 = y1 + down * self._beside(way.source), y2 - down * self._beside(way.target)
        return (
            f"M{x1:g} {y1:g}H{lane - side * turn:g}Q{lane:g} {y1:g} {lane:g} {y1 + down * turn:g}"
            f"V{y2 - down * turn:g}Q{lane:g} {y2:g} {lane - side * turn:g} {y2:g}H{x2:g}"
        )

    def _box(self, name: str, at_work: int, done: bool) -> str:
        x, y = self.at[name]
        if name in (START, END):
            return f'<circle class="end" cx="{x:g}" cy="{y:g}" r="5"/>'
        state = "working" if at_work else "done" if done else "idle"
        shown = html.escape(name if len(name) <= LONGEST else name[: LONGEST - 1] + "…")
        count = f'<tspan class="count"> ×{at_work}</tspan>' if at_work > 1 else ""
        return (
            f'<g class="node {state}" data-node="{html.escape(name)}">'
            f'<rect x="{x - WIDTH / 2:g}" y="{y - HEIGHT / 2:g}" width="{WIDTH}" height="{HEIGHT}" rx="9"/>'
            f'<text x="{x:g}" y="{y + 5:g}">{shown}{count}</text></g>'
        )

    def _half(self, name: str) -> float:
        return 6 if name in (START, END) else HEIGHT / 2

    def _beside(self, name: str) -> float:
        """How far from the middle of a side a way begins or ends, so that ways in and out do not meet."""
        return 0 if name in (START, END) else HEIGHT / 5

    def _wide(self, name: str) -> float:
        return 6 if name in (START, END) else WIDTH / 2


def _back(names: list[str], edges: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """The edges that lead back to where one came from, looking into the nodes in the order in which they were added."""
    back: set[tuple[str, str]] = set()
    seen: set[str] = set()
    way: list[str] = []

    def visit(name: str) -> None:
        seen.add(name)
        way.append(name)
        for target in names:
            if (name, target) in edges and target in way:
                back.add((name, target))
            elif (name, target) in edges and target not in seen:
                visit(target)
        way.pop()

    for name in names:
        if name not in seen:
            visit(name)
    return back


def _layers(names: list[str], edges: list[tuple[str, str]]) -> dict[str, int]:
    """The longest way to each node from where nothing leads to it; the end is below all."""
    layers = dict.fromkeys(names, 0)
    for _ in names:  # without circles, no way is longer
        for source, target in edges:
            layers[target] = max(layers[target], layers[source] + 1)
    if END in layers:
        layers[END] = max(layers.values())
        if any(layer == layers[END] for name, layer in layers.items() if name != END):
            layers[END] += 1
    return layers
