"""Pictures: from a file's bytes, which may be anything, to bytes that every reader sees alike.

Invariant: what leaves here decodes, is one picture, upright, opaque, of eight bits a channel, and says nothing but its
pixels and colours.
"""

import io
import logging
import struct
import threading
import warnings
from typing import Any, cast

from PIL import Image, ImageOps

from mmedagent_graph.metadata import bare

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF")
"""What is decoded; JPEG includes MPO. Pillow knows more, some of which start other programs (EPS)."""
WIRE_FORMATS = ("PNG", "JPEG", "MPO")
"""What is kept as it is, where that is what every chat API takes; anything else becomes a PNG."""
WIRE_MODES = ("1", "L", "P", "RGB")
MAX_SIDE = 65_535
"""As many as JPEG and DICOM can have. A WebP of 190 bytes and 8 million columns takes Pillow minutes."""
MAX_FRAMES = 2_000
"""Pages of a TIFF, which are counted one by one: half a millisecond each, and a file can hold half a million."""
ORIENTATION = 0x0112
"""The EXIF tag by which a camera says that a picture lies on its side: every reader must see it upright."""


class ImageError(ValueError):
    """What is wrong with an image, in words for whoever gave it."""


class Quiet:
    """While it is held, no warning and no log of Pillow or pydicom gets out: they quote what files say.

    Warning filters belong to the process and not to a thread, so the threads that hold it share one: the first in sets
    it, the last out takes it away.
    """

    LOGS = (logging.getLogger("PIL"), logging.getLogger("pydicom"))

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._nowhere = logging.NullHandler()  # or Python would print what has nowhere to go

    def __enter__(self) -> None:
        with self._lock:
            self._holders += 1
            if self._holders == 1:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.filterwarnings("ignore", module=r"(PIL|pydicom|mmedagent_graph)\.")
                self._propagated = [log.propagate for log in self.LOGS]
                for log in self.LOGS:
                    log.propagate = False
                    log.addHandler(self._nowhere)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                self._caught.__exit__(None, None, None)
                for log, propagate in zip(self.LOGS, self._propagated, strict=True):
                    log.propagate = propagate
                    log.removeHandler(self._nowhere)


quiet = Quiet()


def which_frame(frame: Any, count: int) -> int:
    """The frame that is meant, from 0.

    Args:
        frame: what was asked for; None if nothing was.
        count: how many frames there are.

    Raises:
        ImageError: if there are several and none was named, or the named one is none of them.
    """
    if frame is None and count > 1:
        raise ImageError(f"the file has {count} frames; give one, from 0 to {count - 1}: {{'image': ..., 'frame': 0}}")
    valid = f"give a whole number from 0 to {count - 1}" if count > 1 else "there is one frame: give 0, or no frame"
    if frame is None:
        return 0
    if isinstance(frame, bool) or not isinstance(frame, int):
        raise ImageError(f"frame: cannot use a {type(frame).__name__}; {valid}")
    if not 0 <= frame < count:
        raise ImageError(f"frame: there is no such frame; {valid}")
    return frame


def within(size: tuple[int, int], max_pixels: int) -> None:
    """Check a picture's size before it is decoded.

    Raises:
        ImageError: if it is too large.
    """
    if not 0 < size[0] * size[1] <= max_pixels or max(size) > MAX_SIDE:
        limits = f"1 to {max_pixels} are taken, and at most {MAX_SIDE} a side"
        raise ImageError(f"the image has {size[0]} x {size[1]} pixels, where {limits}")


def opened(data: bytes) -> Image.Image:
    """The file, opened but not decoded yet."""
    with quiet:
        return Image.open(io.BytesIO(data), formats=FORMATS)


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB, on white where it is transparent.

    Sixteen bits are scaled to eight: Pillow alone would clip them to white. More bits, and floats, have no white of
    their own; they are stretched between the least and the greatest value of the picture.
    """
    mode = image.mode
    if mode.startswith("I;16"):
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    elif mode in ("I", "F"):
        low, high = cast(tuple[float, float], image.getextrema())
        scale = 255 / ((high - low) or 1)
        image = image.convert("F").point(lambda value: value * scale - low * scale).convert("L")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    rgb = image.convert("RGB")
    rgb.info.pop("transparency", None)
    if mode not in ("RGB", "RGBA", "P"):
        rgb.info.pop("icc_profile", None)  # it was for the other mode's colours
    return rgb


def png(image: Image.Image) -> bytes:
    """A PNG of a picture in any mode; one that not every reader sees alike is turned into RGB first."""
    buffer = io.BytesIO()
    (image if _is_plain(image) else to_rgb(image)).save(buffer, "PNG")
    return buffer.getvalue()


def _is_plain(image: Image.Image) -> bool:
    return image.mode in WIRE_MODES and not image.has_transparency_data


def png_of(image: Image.Image, frame: Any, max_pixels: int) -> bytes:
    """The PNG of somebody's PIL image, which is left at the frame where it was."""
    at = image.tell()
    try:
        with quiet:
            _seek(image, frame, max_pixels)
            return png(ImageOps.exif_transpose(image))
    finally:
        image.seek(at)


def checked(data: bytes, frame: Any, max_pixels: int) -> bytes:
    """The bytes to keep: the file's own, without what it says of people, where every reader sees them alike; or a PNG.

    Args:
        data: the file.
        frame: which of its frames, from 0; None for a file that has one.
        max_pixels: how many pixels are decoded at most.

    Raises:
        ImageError: if the picture is too large, or the frame is not there.
        Exception: any other that Pillow raises over a file that is no picture, or a broken one.
    """
    with opened(data) as image:
        with quiet:
            single = _seek(image, frame, max_pixels)
            image.load()
            upright = image.getexif().get(ORIENTATION, 1) == 1
        form = image.format or ""
        if single and upright and form in WIRE_FORMATS and _is_plain(image):
            try:
                kept = bare(data, form)
            except (ValueError, struct.error):
                return png(to_rgb(image))  # it decodes, but nobody can say what else is in it
            return data if kept == data else checked(kept, None, max_pixels)
        return png(to_rgb(ImageOps.exif_transpose(image)))


def _seek(image: Image.Image, frame: Any, max_pixels: int) -> bool:
    """Go to the frame that is meant, and say whether it is the only one."""
    within(image.size, max_pixels)
    count = _frames(image)
    chosen = which_frame(frame, count)
    if image.format == "TIFF":
        image.seek(chosen)
        within(image.size, max_pixels)  # each page has its own
        return count == 1
    if count == 1:
        return True
    decoded = 0
    for step in range(chosen + 1):  # animations are decoded from the first frame on
        image.seek(step)
        decoded += image.width * image.height
        if decoded > max_pixels:
            said = f"the animation has more than {max_pixels} pixels up to this frame"
            raise ImageError(f"{said}; give the frame as a picture of its own")
    return False


def _frames(image: Image.Image) -> int:
    if image.format == "MPO":
        return 1  # a phone's photograph, and beside it the same in another size or from another lens
    if image.format == "TIFF":
        return _pages(image)
    return int(getattr(image, "n_frames", 1))


def _pages(image: Image.Image) -> int:
    for page in range(MAX_FRAMES + 1):
        try:
            image.seek(page)
        except EOFError:
            return page
    raise ImageError(f"the file has more than {MAX_FRAMES} frames; give the frame as a picture of its own")
