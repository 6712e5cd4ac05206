"""Images by reference: bytes live in a content-addressed folder, everything else carries `sha256:<hex>`.

Invariant: a reference is the hash of the bytes it names, so the same image is kept once and can never change under it.
"""

import base64
import functools
import hashlib
import os
import re
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from mmedagent_graph.dicom import dicom_picture, is_dicom
from mmedagent_graph.pictures import FORMATS, ImageError, checked, opened, png, png_of, to_rgb, which_frame
from mmedagent_graph.sources import SHOWN, Sources

MAX_BYTES = 50 * 1024 * 1024
MAX_PIXELS = 100_000_000
PREFIX = "sha256:"


class ImageStore:
    """A content-addressed folder of images.

    What is kept is pixels and colours: what a file says of people (EXIF, XMP, IPTC, text, every DICOM element) is not.

    Args:
        folder: where the images are kept. None: a private temporary folder that is removed when the process ends,
            so that no patient's image outlives it.
        paths: which files `put` may read when it is given a path or a `file://` URL. True: any, for one's own code.
            False: none. A list of folders: those really in them, wherever links lead (not on Windows). Give False or
            a list where input comes from outside.
        hosts: whose images may be fetched when `put` is given an address: `name` (the usual port) or `name:port`, by
            https, and by http from this machine itself. No redirect is followed. Empty: nobody's.

    Raises:
        ValueError: if `paths` or `hosts` is of another form, or a folder of `paths` is not there.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        paths: bool | Collection[str | os.PathLike[str]] = True,
        hosts: Collection[str] = (),
    ) -> None:
        self._sources = Sources(paths, hosts)
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="mmedagent-images-")
            folder = self._temporary.name
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def put(self, image: Any) -> str:
        """Keep an image and return its reference.

        PNG and JPEG are kept as they are, less their metadata; other pictures and DICOM become PNG, and so does what
        is transparent (on white), on its side, or of more than eight bits. A DICOM file is shown as on a screen:
        rescaled, by its first window, MONOCHROME1 inverted.

        Args:
            image: a path, bytes, a PIL image, a base64 data URL, a reference that the store already holds, an address
                at one of `hosts`; or `{"image": <one of these>, "frame": <from 0>}`, which a file of several needs.

        Raises:
            ValueError: if it cannot be read as an image, may not be read, is too large, is of another type, or has
                several frames and none is named.
            OSError: if the store's folder cannot be written.
        """
        image, frame = _with_frame(image)
        if isinstance(image, str) and image.startswith(PREFIX):
            which_frame(frame, 1)
            return self._known(image)
        data = self._kept(image, frame)
        ref = PREFIX + hashlib.sha256(data).hexdigest()
        path = self.path(ref)
        if not path.exists():
            part = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
            try:
                part.write_bytes(data)
                part.replace(path)  # another process may have written the same bytes: either copy will do
            finally:
                part.unlink(missing_ok=True)  # of a disk that is full
        return ref

    def get(self, ref: str) -> bytes:
        """The bytes of a reference, as they were kept."""
        return self.path(self._known(ref)).read_bytes()

    def open(self, ref: str) -> Image.Image:
        """The image as RGB, decoded."""
        with opened(self.get(ref)) as image:
            return to_rgb(image)

    def path(self, ref: str) -> Path:
        """Where a reference's bytes lie (whether or not they are there)."""
        return self.folder / ref.removeprefix(PREFIX)

    def block(self, ref: str) -> dict[str, str]:
        """The LangChain content block that shows the image to a model."""
        data = self.get(ref)
        with opened(data) as image:
            mime = Image.MIME[image.format or ""]
        return {"type": "image", "base64": base64.b64encode(data).decode(), "mime_type": mime}

    def _known(self, ref: str) -> str:
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", ref) or not self.path(ref).exists():
            raise ImageError(f"no image {ref[:SHOWN]!r} in the store; {self._sources.valid}")
        return ref

    def _kept(self, image: Any, frame: Any) -> bytes:
        """The bytes to keep of what was given."""
        try:
            if isinstance(image, Image.Image):
                image, frame = png_of(image, frame, MAX_PIXELS), None
            data = self._sources.read(image, MAX_BYTES)
            if is_dicom(data):
                return png(dicom_picture(data, frame, max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS))
            return checked(data, frame, MAX_PIXELS)
        except ImageError:
            raise
        except Exception as error:  # decoders of hostile files raise whatever they run into
            unknown = isinstance(error, UnidentifiedImageError)
            what = f"none of {', '.join(FORMATS)}, DICOM" if unknown else f"damaged or cut off: {type(error).__name__}"
            raise ImageError(f"not a readable image ({what}); {self._sources.valid}") from error


@functools.cache
def default_store() -> ImageStore:
    """The store of every graph that was given none: one temporary folder a process."""
    return ImageStore()


def _with_frame(given: Any) -> tuple[Any, Any]:
    """The image and the frame in what was given; None where no frame is named."""
    if not isinstance(given, Mapping):
        return given, None
    if unknown := [key for key in given if key not in ("image", "frame")]:
        raise ImageError(f"the image has unknown keys {unknown!r:.200}; give {{'image': ..., 'frame': 0}}")
    if "image" not in given:
        raise ImageError("there is no image; give {'image': ..., 'frame': 0}")
    return given["image"], given.get("frame")
