"""DICOM: one frame of a file, as a screen would show it.

Invariant: pixels leave the file and nothing else does. Of the data set only the elements of `READ` are parsed, no value
of it gets into an error, and pydicom's warnings and logs, which quote values, are kept quiet. What is burned into the
pixels, such as a name on an ultrasound, is pixels.
"""

import contextlib
import math
import struct
import sys
import zlib
from collections.abc import Callable, MutableSequence
from io import BytesIO
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image, UnidentifiedImageError

from mmedagent_graph.pictures import ImageError, quiet, which_frame, within

if TYPE_CHECKING:
    import numpy as np  # type: ignore[import-not-found, unused-ignore]
    from pydicom import Dataset  # type: ignore[import-not-found, unused-ignore]

    Array = np.ndarray[Any, np.dtype[Any]]

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
SHOWING = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence")
"""How stored values become grey; enhanced files say it for each frame, or once for all, in functional groups."""
PALETTE = tuple(
    (f"{colour}PaletteColorLookupTableDescriptor", f"{colour}PaletteColorLookupTableData")
    for colour in ("Red", "Green", "Blue")
)
GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
READ = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation", "PixelPaddingValue", "ModalityLUTSequence"),
    *(*SHOWING, *chain(*PALETTE), *GROUPS, *PIXELS),
)
DEFLATED, PLAIN = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"
RLE = "1.2.840.10008.1.2.5"
ITEM = b"\xfe\xff\x00\xe0"
MAX_ITEMS = 100_000
"""Items of a file's sequences. pydicom takes 40 microseconds for each, and a file has room for millions."""
DECODERS = "pip install 'pylibjpeg[all]' or python-gdcm"
T = TypeVar("T")


def is_dicom(data: bytes) -> bool:
    """Whether a file is DICOM, by its content. One without the preamble, which no longer is in use, is not guessed."""
    return data[128:132] == b"DICM"


def dicom_picture(data: bytes, frame: Any, *, max_bytes: int, max_pixels: int) -> Image.Image:
    """One frame of a DICOM file, in eight bits: grey or RGB.

    Grey values are rescaled, then shown through the VOI table or else the first window there is; without either, from
    the least to the greatest of the frame, padding aside. MONOCHROME1 is inverted. Only the one frame is decoded.

    Args:
        data: the file.
        frame: which frame, from 0; None for a file that has one.
        max_bytes: to how many bytes a deflated file is inflated at most.
        max_pixels: how many pixels a frame may have at most.

    Raises:
        ImageError: in fixed words that quote nothing of the file.
    """
    try:
        import numpy  # noqa: F401
        import pydicom  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImageError(f"a DICOM file needs {error.name}; pip install 'mmedagent-graph[dicom]'") from error
    dataset = _safely("not a readable DICOM file", lambda: _parsed(_inflated(data, max_bytes)))
    size, frames = _safely("not a readable DICOM file", lambda: _shape(dataset))
    within(size, max_pixels)
    index = which_frame(frame, frames)
    decoder, failed = _decoder(dataset)
    array, colours = _safely(failed, lambda: _decoded(decoder, dataset, index, size, frames))
    return _safely("the DICOM file's pixels cannot be shown", lambda: _shown(array, colours, dataset, index))


def _safely(said: str, step: Callable[[], T]) -> T:
    """What a step returns. Its error becomes `said`: pydicom's quote the header, so not even its chain holds them."""
    try:
        with quiet:
            return step()
    except ImageError:
        raise
    except Exception as error:
        kind = type(error).__name__
    what, semicolon, advice = said.partition("; ")
    raise ImageError(f"{what} ({kind}){semicolon}{advice}")


def _inflated(data: bytes, max_bytes: int) -> bytes:
    """A deflated file in plain form. pydicom would inflate it itself, to whatever size."""
    if DEFLATED not in data:
        return data
    body = 144 + int(struct.unpack_from("<L", data, 140)[0])  # the header's first element is its length
    head = data[:body].replace(DEFLATED, PLAIN)
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = head + inflate.decompress(data[body:], max_bytes)
    if not inflate.eof or DEFLATED in plain:
        raise ImageError(f"the DICOM file is cut off, or inflates to more than the {max_bytes} bytes that are taken")
    return plain


def _parsed(data: bytes) -> "Dataset":
    import pydicom

    if max(data.count(ITEM), data.count(b"\xff\xfe\xe0\x00")) > MAX_ITEMS:  # of either byte order
        raise ImageError(f"the DICOM file has more than the {MAX_ITEMS} items that are taken")
    return pydicom.dcmread(BytesIO(data), specific_tags=list(READ))


def _shape(dataset: "Dataset") -> tuple[tuple[int, int], int]:
    """The size (columns and rows) that the file says a frame has, and how many frames there are."""
    if not any(name in dataset for name in PIXELS) or None in (dataset.get("Rows"), dataset.get("Columns")):
        raise ImageError("the DICOM file holds no picture, and may be a report, a PDF, a waveform or a plan")
    columns, rows, frames = int(dataset.Columns), int(dataset.Rows), int(dataset.get("NumberOfFrames") or 1)
    if min(columns, rows, frames) < 1:
        raise ImageError("the DICOM file says that it holds no pixels")
    return (columns, rows), frames


def _decoder(dataset: "Dataset") -> tuple[Any, str]:
    """The decoder of the file's pixels, and what to say if it fails."""
    from pydicom.pixels.decoders.base import get_decoder  # type: ignore[import-not-found, unused-ignore]

    syntax = _safely("the DICOM file does not say its transfer syntax", lambda: dataset.file_meta.TransferSyntaxUID)
    name = syntax.name if syntax.name != syntax else "unknown"  # of the standard's list, or whatever the file says
    unread = f"the DICOM file's transfer syntax ({name}) is not one whose pixels can be read"
    decoder = _safely(unread, lambda: get_decoder(syntax))
    if not decoder.is_available:
        raise ImageError(f"the DICOM file's pixels are compressed ({name}), and no decoder is installed; {DECODERS}")
    failed = f"the DICOM file's pixels ({name}) cannot be decoded and may be damaged"
    return decoder, f"{failed}, or need another decoder; {DECODERS}" if decoder.missing_dependencies else failed


def _decoded(decoder: Any, dataset: "Dataset", index: int, size: tuple[int, int], frames: int) -> tuple["Array", str]:
    """The frame's stored values, and what they mean (the photometric interpretation) once they are decoded."""
    if decoder.UID.is_encapsulated:
        from pydicom.encaps import get_frame  # type: ignore[import-not-found, unused-ignore]

        source = get_frame(dataset.PixelData, index, number_of_frames=frames)
        if decoder.UID == RLE:
            _check_runs(source, math.prod(size))
        else:
            _check_picture(source, size)
    array, properties = decoder.as_array(dataset, index=index)
    return array, str(properties["photometric_interpretation"])


def _check_runs(source: bytes, pixels: int) -> None:
    """Count what a frame's run lengths decode to; pydicom decodes them to the end, and 50 MB can hold 3 GB."""
    count, *offsets = struct.unpack_from("<16L", source)
    for at, end in pairwise([*offsets[: min(count, 15)], len(source)]):
        size = 0
        while at < min(end, len(source)):
            run = source[at] > 128
            length = 257 - source[at] if run else (source[at] + 1) % 129
            size += length
            at += 2 if run else length + 1
            if size > 2 * pixels:  # some writers pad
                raise ImageError("the DICOM file's pixels (RLE Lossless) decode to more than its picture")


def _check_picture(source: bytes, size: tuple[int, int]) -> None:
    """Check what a frame's JPEG or JPEG 2000 says of itself; a few bytes can hold a picture that fills the memory."""
    formats = ("JPEG", "JPEG2000")  # others are for other decoders
    with contextlib.suppress(UnidentifiedImageError), Image.open(BytesIO(source), formats=formats) as picture:
        if picture.size != size:
            raise ImageError("the DICOM file's pixels decode to another size than its picture")
    if source.startswith(b"\0\0\0\x0cjP  "):
        at = 12  # pydicom goes round in circles where a box of a JPEG 2000 has no length
        while at < len(source) and source[at + 4 : at + 8] != b"jp2c":
            length = int.from_bytes(source[at : at + 4], "big")
            if length < 8:
                raise ImageError("the DICOM file's pixels (JPEG 2000) are in a box of no length")
            at += length


def _shown(array: "Array", colours: str, dataset: "Dataset", index: int) -> Image.Image:
    import numpy as np

    step: Callable[[Array], Array]
    if colours == "RGB":
        scale = 255 / (2 ** int(dataset.BitsStored) - 1)
        step = lambda stored: (stored * scale).round().clip(0, 255).astype("uint8")  # noqa: E731
    elif colours == "PALETTE COLOR":
        step = lambda stored: _palette(stored, dataset)  # noqa: E731
    elif colours in ("MONOCHROME1", "MONOCHROME2"):
        _take_from_groups(dataset, index)
        low, high, sigmoid = _ends(array, dataset)
        step = lambda stored: _grey(_values(stored, dataset), low, high, sigmoid)  # noqa: E731
    else:
        raise ImageError("the DICOM file's photometric interpretation is not grey, a palette, RGB or YBR")
    shown = np.concatenate([step(block) for block in _blocks(array)])
    return Image.fromarray(255 - shown if colours == "MONOCHROME1" else shown)


def _blocks(array: "Array") -> list["Array"]:
    """The picture in pieces: in between, every pixel takes several floats."""
    import numpy as np

    return np.array_split(array, array.size // 2**18 + 1)


def _palette(stored: "Array", dataset: "Dataset") -> "Array":
    import numpy as np

    if not all(name in dataset for name in chain(*PALETTE)):
        raise ImageError("the DICOM file's palette is missing, or in segments, which are not read")
    tables = [_table(dataset[descriptor].value, dataset[data].value, dataset) for descriptor, data in PALETTE]
    shift = 8 if max(entries.max() for _, entries in tables) > 255 else 0  # their own: some say 16 bits, and use 8
    return np.stack([_look_up(stored, *table) >> shift for table in tables], axis=-1).astype("uint8")


def _values(stored: "Array", dataset: "Dataset") -> "Array":
    """Stored values through the modality's table or slope, and then through the VOI table if there is one."""
    if items := dataset.get("ModalityLUTSequence"):
        values = _look_up(stored, *_table(items[0].LUTDescriptor, items[0].LUTData, dataset))
    else:
        values = stored * float(dataset.get("RescaleSlope") or 1) + float(dataset.get("RescaleIntercept") or 0)
    if items := dataset.get("VOILUTSequence"):
        values = _look_up(values, *_table(items[0].LUTDescriptor, items[0].LUTData, dataset))
    return values


def _ends(array: "Array", dataset: "Dataset") -> tuple[float, float, bool]:
    """What is shown as black and what as white, and whether on a curve in between."""
    if items := dataset.get("VOILUTSequence"):
        _, entries = _table(items[0].LUTDescriptor, items[0].LUTData, dataset)
        return 0, float(entries.max()), False  # their own: writers give the size of an entry as its bits
    center, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if not (math.isfinite(center) and math.isfinite(width) and width > 0):
        return *_range(array, dataset), False
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ImageError("the DICOM file's window is of a shape that the standard does not have")
    if function == "LINEAR" and width >= 1:  # a narrower one makes sense in the exact form only
        center, width = center - 0.5, width - 1
    return center - width / 2, center + width / 2, function == "SIGMOID"


def _grey(values: "Array", low: float, high: float, sigmoid: bool) -> "Array":
    """The standard's functions (PS3.3 C.11.2.1.2 and 3). What is no number is black."""
    import numpy as np

    if sigmoid:
        grey = 1 / (1 + np.exp(-4 * (values - (low + high) / 2) / (high - low)))
    else:
        grey = (values - low) / ((high - low) or sys.float_info.min)
    return (np.nan_to_num(grey).clip(0, 1) * 255).round().astype("uint8")


def _first(value: Any) -> float:
    """The first of an element's numbers; NaN if it has none."""
    if isinstance(value, MutableSequence):
        value = value[0] if value else None
    return math.nan if value in (None, "") else float(value)


def _range(array: "Array", dataset: "Dataset") -> tuple[float, float]:
    """The least and the greatest value of a frame, padding and what is no number aside; NaN where nothing is left."""
    import numpy as np

    ends: list[float] = []
    for stored in _blocks(array):
        values = _values(stored, dataset)
        counts = np.isfinite(values)
        if (padding := dataset.get("PixelPaddingValue")) is not None:
            counts &= stored != np.array(padding).astype(stored.dtype)  # writers store a signed one as if it were not
        if counts.any():
            ends += [float(values[counts].min()), float(values[counts].max())]
    return min(ends, default=math.nan), max(ends, default=math.nan)


def _table(descriptor: Any, data: Any, dataset: "Dataset") -> tuple[int, "Array"]:
    """The value that a lookup table begins with, and its entries, of 8 or 16 bits."""
    import numpy as np

    entries = descriptor[0] or 2**16  # 0 stands for what 16 bits cannot hold
    if isinstance(data, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        data = np.frombuffer(data, "u1" if len(data) < 2 * entries else f"{order}u2")
    return int(descriptor[1]), np.asarray(data).ravel()[:entries].astype("int64")


def _look_up(values: "Array", first: int, entries: "Array") -> "Array":
    """The entry of each value; the first below the table, the last above it.

    pydicom's own lookups count in as many bits as an entry has, so a table of eight bits goes wrong beyond 256 values.
    """
    import numpy as np

    places = np.nan_to_num(values.astype("float64") - first).clip(0, len(entries) - 1)
    found: Array = entries[places.astype("int64")]
    return found


def _take_from_groups(dataset: "Dataset", index: int) -> None:
    """Take over what an enhanced file says of the frame, or else of all of them, unless it says it of the file."""
    for name, place in zip(GROUPS, (index, 0), strict=True):
        groups = dataset.get(name) or []
        for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            items = groups[place].get(macro) if place < len(groups) else None
            for element in items[0] if items else ():
                if element.keyword in SHOWING and element.keyword not in dataset:
                    dataset.add(element)
