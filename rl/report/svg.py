"""A matplotlib figure as SVG that can stand in a page.

Invariant: it carries no style of its own, which the page's policy would forbid, no identifier that another figure might
have, and its ink is the page's, in the light and in the dark.
"""

import contextlib
import hashlib
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

from rl.curves import INK

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
LOOK: Any = {
    "svg.fonttype": "none",  # text stays text: found, read aloud, in the page's typeface
    "text.parse_math": False,  # a name may have a dollar in it
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
REFERENCE = re.compile(r"(?:^#|url\(#)([^)]+)")
ET.register_namespace("", SVG.strip("{}"))


@contextlib.contextmanager
def drawing(width: float, height: float, **how: Any) -> Iterator[tuple[Any, Any]]:
    """A figure of so many inches, and its axes, to be drawn on and turned to SVG inside."""
    with plt.rc_context(LOOK):
        figure, axis = plt.subplots(figsize=(width, height), layout="constrained", **how)
        try:
            yield figure, axis
        finally:
            plt.close(figure)


def svg_of(figure: Any, title: str, description: str) -> str:
    """The figure as an `<svg>` element.

    Args:
        figure: matplotlib's.
        title: what a reader is told that it is.
        description: what it shows, for who cannot see it; no two figures of a page show the same.
    """
    name = "p" + hashlib.sha256(f"{title}\n{description}".encode()).hexdigest()[:12]
    drawn = io.StringIO()
    with plt.rc_context({"svg.hashsalt": name}):  # the same figure is the same text
        figure.savefig(drawn, format="svg", transparent=True)
    root = ET.fromstring(drawn.getvalue())
    _strip(root)
    _rename(root, name)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    label, about = f"{name}-title", f"{name}-about"
    root.attrib |= {"role": "img", "aria-labelledby": f"{label} {about}", "stroke-linejoin": "round"}
    for place, (kind, id, text) in enumerate((("title", label, title), ("desc", about, description))):
        told = ET.Element(f"{SVG}{kind}", {"id": id})
        told.text = text
        root.insert(place, told)
    return ET.tostring(root, encoding="unicode").replace(INK, "currentColor")


def _strip(root: ET.Element) -> None:
    """Drop what is about the file, and turn styles into attributes."""
    for element in root.iter():
        for child in [child for child in element if child.tag in (f"{SVG}metadata", f"{SVG}style")]:
            element.remove(child)
        for name, value in (part.split(":", 1) for part in element.attrib.pop("style", "").split(";") if part.strip()):
            if name.strip() != "font-family":
                element.set(name.strip(), value.strip())
        if f"{XLINK}href" in element.attrib:
            element.set("href", element.attrib.pop(f"{XLINK}href"))
        if element.tag != f"{SVG}text":
            element.text = element.text and element.text.strip()
        element.tail = None


def _rename(root: ET.Element, name: str) -> None:
    """Keep the identifiers that are referred to, under names that begin with the figure's."""
    values = [value for element in root.iter() for value in element.attrib.values()]
    named = {match[1] for value in values if (match := REFERENCE.match(value))}  # and colours, which look the same
    used = named & {element.get("id") for element in root.iter()}
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in used:
            element.set("id", f"{name}-{own}")
        for key, value in element.attrib.items():
            if (match := REFERENCE.match(value)) and match[1] in used:
                element.set(key, value.replace(f"#{match[1]}", f"#{name}-{match[1]}"))
