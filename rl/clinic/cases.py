"""The clinic's cases: who comes, what the image shows, and how far the specialists can be relied on.

Each image carries its own key in a PNG text chunk. Nothing that looks at pixels can see it; whoever is sent the file
has it, which is no matter for made-up cases and lets the doctors be simulated. The simulated specialists read the key
(`rl/clinic/doctors.py`), so they work wherever the image goes, with nothing to set up.

How a case comes about: a specialty, a finding, and a *difficulty* (settled, contested, misleading) that fixes how
reliable each of its three doctors is; each doctor then *sees* a finding on its own: the true one with that reliability,
otherwise mostly the case's lure, so that wrong doctors tend to agree. Tiers follow from what the doctors say.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mmedagent_graph.images import ImageStore
from mmedagent_graph.prompts import SPECIALTIES
from rl.clinic.drawing import FINDINGS, draw
from rl.datasets import LabeledCase

KEY = "mmedagent-clinic"
DIFFICULTIES = {"settled": 0.5, "contested": 0.3, "misleading": 0.2}
"""How often each kind of case comes."""
RELIABILITY = {"settled": 0.97, "contested": 0.5, "misleading": 0.04}
"""Chance that a doctor of the right specialty sees the true finding."""
LURE = 0.8
"""Chance that a doctor who is wrong sees the case's lure, rather than one of the other wrong findings."""
OUTSIDER = 0.8
"""A doctor of another specialty has this share of the reliability."""
CLEAR = 0.75
"""Share of the images on which the finding can be seen; on the others it is lost in noise."""
FAINT = {
    "Pathologist": 0.55,
    "Radiologist": 0.55,
    "Surgeon": 0.58,
    "Oncologist": 0.5,
    "Endocrinologist": 0.5,
    "Ophthalmologist": 0.58,
    "Dermatologist": 0.63,
}
"""Contrast of the findings on faint images, by specialty: such that the base, which has only ever seen the whole ink,
is right in six to seven of ten, and with none of the findings never (tried on cases that no seed here draws). A model
that has learned to read one kind of image sees them plainly."""
OPEN = 0.2
"""Share of the questions that have no options."""
QUESTION = "What does the image show?"


@dataclasses.dataclass(frozen=True)
class Key:
    """What is true of an image; written into the file, never shown to a model."""

    finding: str
    specialty: str
    difficulty: str
    lure: str
    clear: bool
    salt: int
    """Tells otherwise equal cases apart, so that their doctors err differently."""

    def seen_by(self, doctor: int, specialty: str) -> str:
        """The finding that a doctor of a specialty sees in the image: the same however often it is asked."""
        digest = hashlib.sha256(f"{dataclasses.astuple(self)}|{doctor}|{specialty}".encode()).digest()
        right, lured, other = (int.from_bytes(digest[i : i + 8], "big") / 2**64 for i in (0, 8, 16))
        reliability = RELIABILITY[self.difficulty] * (1 if specialty == self.specialty else OUTSIDER)
        if right < reliability:
            return self.finding
        if lured < LURE:
            return self.lure
        others = [finding for finding in FINDINGS if finding not in (self.finding, self.lure)]
        return others[int(other * len(others))]


@dataclasses.dataclass(frozen=True)
class ClinicCase(LabeledCase):
    """A case of the clinic, with what its key says."""

    answer: str
    key: Key | None = None


def read_key(data: bytes) -> Key | None:
    """The key in an image's bytes, or None if the image is not the clinic's."""
    with Image.open(io.BytesIO(data)) as image:
        text = getattr(image, "text", {}).get(KEY)
    return Key(**json.loads(text)) if text else None


def make_image(key: Key, rng: np.random.Generator, contrast: float = 1.0) -> bytes:
    """A PNG of what the key says, with the key inside."""
    info = PngInfo()
    info.add_text(KEY, json.dumps(dataclasses.asdict(key)))
    buffer = io.BytesIO()
    draw(key.specialty, key.finding, key.clear, rng, contrast).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def make_cases(
    n: int, seed: int, store: ImageStore, faint: bool = False, specialty: str | None = None
) -> Iterator[ClinicCase]:
    """Cases of the clinic, made as they are asked for.

    Args:
        n: how many.
        seed: the same seed makes the same cases, and the first n of it are the first n of any more.
        store: where the images go.
        faint: whether all findings are faint, and none is lost in noise: what specialists are there for.
        specialty: of all of them. Default: they are drawn.
    """
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        finding = str(rng.choice(FINDINGS))
        drawn = str(rng.choice(list(SPECIALTIES)))
        key = Key(
            finding=finding,
            specialty=specialty or drawn,
            difficulty=str(rng.choice(list(DIFFICULTIES), p=list(DIFFICULTIES.values()))),
            lure=str(rng.choice([other for other in FINDINGS if other != finding])),
            clear=bool(rng.random() < CLEAR) or faint,
            salt=int(rng.integers(2**31)),
        )
        options = [] if rng.random() < OPEN else [str(option) for option in rng.permutation(FINDINGS)]
        image = store.put(make_image(key, rng, FAINT[key.specialty] if faint else 1.0))
        seen = {"image": "faint" if faint else "clear" if key.clear else "noise"}
        name = "-".join(["faint" if faint else "clinic", *([specialty] if specialty else []), str(seed), str(i)])
        yield ClinicCase(name, QUESTION, finding, options, [image], None, key.specialty, seen, key)
