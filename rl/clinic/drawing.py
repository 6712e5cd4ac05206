"""The clinic's images: seven looks, four findings, and noise that sometimes hides them.

Invariant: an image is a pure function of its arguments and its random generator, so a seed makes the same pixels.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 112
"""Side of an image in pixels; the tiny model looks at half of it (56)."""
FINDINGS = ("nodule", "cyst", "scar", "normal")
"""What an image can show: a disc, a ring, a line, or nothing."""

Pixels = NDArray[np.float64]  # (SIZE, SIZE, 3), 0 to 255
GRID: NDArray[np.float64] = np.mgrid[0:SIZE, 0:SIZE].astype(float)
Y, X = GRID[0], GRID[1]
MIDDLE = (SIZE - 1) / 2
RADIUS: NDArray[np.float64] = np.hypot(X - MIDDLE, Y - MIDDLE)


def draw(specialty: str, finding: str, clear: bool, rng: np.random.Generator, contrast: float = 1.0) -> Image.Image:
    """One image.

    Args:
        specialty: whose kind of image it is, a key of `LOOKS`.
        finding: one of `FINDINGS`.
        clear: whether the finding can be seen; otherwise noise covers it, and only the tint of the modality is left.
        rng: the source of position, size and noise.
        contrast: how much of its ink the finding has.
    """
    background, ink = LOOKS[specialty]
    pixels = background(rng)
    mark = contrast * _mark(finding, rng)[..., None]
    pixels = pixels * (1 - mark) + np.array(ink, float) * mark
    if not clear:
        tint = background(rng).mean(axis=(0, 1))
        pixels = tint + rng.normal(0, 70, (SIZE // 4, SIZE // 4, 3)).repeat(4, 0).repeat(4, 1)
    pixels += rng.normal(0, 6, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _mark(finding: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Where the finding is, 0 to 1, (SIZE, SIZE)."""
    x, y = rng.uniform(0.36, 0.64, 2) * SIZE
    size = rng.uniform(0.15, 0.21) * SIZE
    distance = np.hypot(X - x, Y - y)
    if finding == "nodule":
        inside = size - distance
    elif finding == "cyst":
        inside = 0.24 * size - np.abs(distance - 1.1 * size)
    elif finding == "scar":
        angle = rng.uniform(0, np.pi)
        along = (X - x) * np.cos(angle) + (Y - y) * np.sin(angle)
        across = (Y - y) * np.cos(angle) - (X - x) * np.sin(angle)
        inside = np.minimum(0.24 * size - np.abs(across), 1.8 * size - np.abs(along))
    else:
        return np.zeros((SIZE, SIZE))
    soft: NDArray[np.float64] = (inside + 0.5).clip(0, 1)
    return soft


def _flat(color: tuple[int, int, int]) -> Pixels:
    return np.broadcast_to(np.array(color, float), (SIZE, SIZE, 3)).copy()


def _slide(rng: np.random.Generator) -> Pixels:
    """A histology slide: pink, with violet nuclei."""
    pixels = _flat((236, 178, 208))
    for x, y in rng.uniform(0, SIZE, (40, 2)):
        pixels[np.hypot(X - x, Y - y) < 2.4] = (176, 120, 190)
    return pixels


def _xray(rng: np.random.Generator) -> Pixels:
    """A radiograph: dark, with ribs."""
    ribs = np.sin((Y + 0.004 * (X - MIDDLE) ** 2) / 5.5 + rng.uniform(0, 6)) > 0.55
    pixels = _flat((38, 38, 42))
    pixels[ribs] += 34
    return pixels


def _endoscopy(rng: np.random.Generator) -> Pixels:
    """An endoscope's view: a red disc in a black field."""
    pixels = _flat((186, 62, 54)) - 0.9 * RADIUS[..., None]
    pixels += 10 * np.sin((RADIUS + rng.uniform(0, 20)) / 4)[..., None]
    pixels[RADIUS > 0.48 * SIZE] = (8, 4, 4)
    return pixels


def _pet(rng: np.random.Generator) -> Pixels:
    """A PET slice: a pale body on white, organs a little darker."""
    pixels = _flat((250, 250, 250))
    pixels[((X - MIDDLE) / 50) ** 2 + ((Y - MIDDLE) / 40) ** 2 < 1] = (206, 210, 216)
    x, y = MIDDLE + rng.uniform(-24, 24, 2)
    pixels[np.hypot(X - x, Y - y) < 7] = (178, 184, 194)
    return pixels


def _ultrasound(rng: np.random.Generator) -> Pixels:
    """An ultrasound sector: a grey speckled fan on black."""
    speckle = rng.gamma(4, 18, (SIZE // 2, SIZE // 2)).repeat(2, 0).repeat(2, 1)[..., None]
    pixels: Pixels = np.ones((SIZE, SIZE, 3)) * speckle * np.array((0.95, 1.0, 1.05))
    pixels[np.abs(X - MIDDLE) > 0.25 * SIZE + 0.35 * Y] = 0
    return pixels


def _fundus(rng: np.random.Generator) -> Pixels:
    """A fundus photograph: an orange disc with vessels."""
    pixels = _flat((222, 128, 44)) - 0.5 * RADIUS[..., None]
    for slope in rng.uniform(-1.4, 1.4, 4):
        pixels[np.abs(Y - MIDDLE - slope * (X - MIDDLE) - 6 * np.sin(X / 9)) < 1.3] = (164, 62, 30)
    pixels[RADIUS > 0.49 * SIZE] = (12, 6, 2)
    return pixels


def _skin(rng: np.random.Generator) -> Pixels:
    """A photograph of skin: beige, with fine hairs."""
    pixels: Pixels = _flat((226, 184, 154)) + rng.normal(0, 9, (SIZE, 1, 1))
    for x in rng.uniform(0, SIZE, 5):
        pixels[np.abs(X - x - 0.3 * Y) < 0.7] = (150, 104, 80)
    return pixels


LOOKS = {
    "Pathologist": (_slide, (86, 22, 120)),
    "Radiologist": (_xray, (232, 232, 236)),
    "Surgeon": (_endoscopy, (250, 226, 180)),
    "Oncologist": (_pet, (24, 24, 36)),
    "Endocrinologist": (_ultrasound, (236, 240, 246)),
    "Ophthalmologist": (_fundus, (252, 238, 160)),
    "Dermatologist": (_skin, (92, 40, 30)),
}
"""By specialty: how the background is drawn, and the colour a finding has on it."""
