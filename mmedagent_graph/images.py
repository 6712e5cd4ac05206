"""Images by reference: bytes live in a content-addressed folder, everything else carries `sha256:<hex>`.

Invariant: a reference is the hash of the bytes it names, so the same image is kept once and can never change under it.
"""

import base64
import functools
import hashlib
import io
import os
import re
import tempfile
from pathlib import Path
from typing import Any, cast

from PIL import Image, ImageOps, UnidentifiedImageError

MAX_BYTES = 50 * 1024 * 1024
MAX_PIXELS = 100_000_000
SHOWN = 200
"""At most so many characters of what was given are repeated in an error."""
WIRE_FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
"""What chat APIs take as it is; anything else that Pillow reads is kept as an upright PNG of eight bits."""
WIRE_MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}
ORIENTATION = 0x0112
"""The EXIF tag by which a camera says that a picture lies on its side: every reader must see it upright."""
PREFIX = "sha256:"
VALID = "give a path, bytes, a PIL image, a data URL (data:image/png;base64,...) or a reference (sha256:...)"


class ImageStore:
    """A content-addressed folder of images.

    Args:
        folder: where the images are kept. None: a private temporary folder that is removed when the process ends,
            so that no patient's image outlives it.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="mmedagent-images-")
            folder = self._temporary.name
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def put(self, image: Any) -> str:
        """Keep an image and return its reference.

        Args:
            image: a path, bytes, a PIL image, a base64 data URL, or a reference that the store already holds.

        Raises:
            ValueError: if it cannot be read as an image, is too large, or is of another type.
        """
        if isinstance(image, str) and image.startswith(PREFIX):
            return self._known(image)
        data = _checked(_bytes_of(image))
        ref = PREFIX + hashlib.sha256(data).hexdigest()
        path = self.path(ref)
        if not path.exists():
            part = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
            part.write_bytes(data)
            part.replace(path)  # another process may have written the same bytes: either copy will do
        return ref

    def get(self, ref: str) -> bytes:
        """The bytes of a reference, as they were put in."""
        return self.path(self._known(ref)).read_bytes()

    def open(self, ref: str) -> Image.Image:
        """The image as RGB, decoded."""
        with Image.open(io.BytesIO(self.get(ref))) as image:
            return to_rgb(image)

    def path(self, ref: str) -> Path:
        """Where a reference's bytes lie (whether or not they are there)."""
        return self.folder / ref.removeprefix(PREFIX)

    def block(self, ref: str) -> dict[str, str]:
        """The LangChain content block that shows the image to a model."""
        data = self.get(ref)
        with Image.open(io.BytesIO(data)) as image:
            mime = WIRE_FORMATS[cast(str, image.format)]
        return {"type": "image", "base64": base64.b64encode(data).decode(), "mime_type": mime}

    def _known(self, ref: str) -> str:
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", ref) or not self.path(ref).exists():
            raise ValueError(f"no image {ref!r} in the store {str(self.folder)!r}; {VALID}")
        return ref


@functools.cache
def default_store() -> ImageStore:
    """The store of every graph that was given none: one temporary folder a process."""
    return ImageStore()


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB. Sixteen bits are scaled to eight: Pillow alone would clip them to white."""
    if image.mode.startswith("I;16"):
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    return image.convert("RGB")


def _png(image: Image.Image) -> bytes:
    """A PNG of a picture in any mode; one that chat APIs do not take is turned into RGB first."""
    buffer = io.BytesIO()
    try:
        (image if image.mode in WIRE_MODES else to_rgb(image)).save(buffer, "PNG")
    except (OSError, ValueError) as error:
        raise ValueError(f"a PIL image of mode {image.mode!r} cannot be kept ({error}); convert it to RGB") from error
    return buffer.getvalue()


def _bytes_of(image: Any) -> bytes:
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Image.Image):
        return _png(ImageOps.exif_transpose(image))
    if isinstance(image, str) and image.startswith("data:"):
        return _data_url(image)
    if isinstance(image, str) and re.match(r"[a-z]+://", image, re.IGNORECASE):
        raise ValueError(f"{image[:SHOWN]!r} is a remote address, which is never fetched; {VALID}")
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        name = repr(str(path)[:SHOWN])  # it may be an image in base64, which no log should hold
        try:
            size = path.stat().st_size
            data = path.read_bytes() if size <= MAX_BYTES else b""
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read {name} ({getattr(error, 'strerror', error)}); {VALID}") from error
        if size > MAX_BYTES:
            raise ValueError(f"{name} has {size} bytes; at most {MAX_BYTES} are taken")
        return data
    raise ValueError(f"cannot use a {type(image).__name__} as an image; {VALID}")


def _data_url(url: str) -> bytes:
    head, comma, payload = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ValueError(f"{head[:SHOWN]!r} is not a base64 data URL; {VALID}")
    try:
        return base64.b64decode(payload, validate=True)
    except ValueError as error:
        raise ValueError(f"the data URL's base64 is broken ({error}); {VALID}") from error


def _checked(data: bytes) -> bytes:
    """The bytes, once they are known to decode; a format that chat APIs do not take is turned into PNG."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"the image has {len(data)} bytes; at most {MAX_BYTES} are taken")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"the image has {image.width} x {image.height} pixels; at most {MAX_PIXELS} are taken")
            image.load()
            upright = image.getexif().get(ORIENTATION, 1) == 1
            if image.format in WIRE_FORMATS and image.mode in WIRE_MODES and upright:
                return data
            return _png(to_rgb(ImageOps.exif_transpose(image)))
    except (UnidentifiedImageError, OSError, SyntaxError, RuntimeError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable image ({type(error).__name__}); {VALID}") from error
