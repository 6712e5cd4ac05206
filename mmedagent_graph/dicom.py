"""DICOM: one frame of a file, as a screen would show it.

Invariant: pixels leave the file and nothing else does. Of the data set only the elements of `READ` are parsed, no value
of it gets into an error, and pydicom's warnings and logs, which quote values, are kept quiet. What is burned into the
pixels, such as a name on an ultrasound, is pixels.
"""

import math
import re
import struct
import zlib
from collections.abc import Callable, MutableSequence
from io import BytesIO
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from PIL import Image

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
    *("BitsAllocated", "BitsStored", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("ModalityLUTSequence", *SHOWING, *chain(*PALETTE), *GROUPS),
    *PIXELS,
)
DEFLATED, PLAIN = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"
JP2 = b"\0\0\0\x0cjP  "
RLE = "1.2.840.10008.1.2.5"
T = TypeVar("T")


class Shape(NamedTuple):
    """What is known of the pixels before any is decoded."""

    columns: int
    rows: int
    frames: int


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
    shape = _safely("not a readable DICOM file", lambda: _shape(dataset))
    within((shape.columns, shape.rows), max_pixels)
    index = which_frame(frame, shape.frames)
    decoder, said = _safely("the DICOM file's transfer syntax is unknown", lambda: _decoder(dataset))
    array, colours = _safely(said, lambda: _decoded(decoder, dataset, index, shape))
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
    raise ImageError(f"{said} ({kind})")


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

    return pydicom.dcmread(BytesIO(data), specific_tags=list(READ))


def _shape(dataset: "Dataset") -> Shape:
    if not any(name in dataset for name in PIXELS) or None in (dataset.get("Rows"), dataset.get("Columns")):
        raise ImageError("the DICOM file holds no picture; it may be a report, a PDF, a waveform or a plan")
    frames = int(dataset.get("NumberOfFrames") or 1)
    shape = Shape(int(dataset.Columns), int(dataset.Rows), frames)
    if min(shape) < 1:
        raise ImageError("the DICOM file says that it holds no pixels")
    return shape


def _decoder(dataset: "Dataset") -> tuple[Any, str]:
    """The decoder of the file's pixels, and what to say if it fails."""
    from pydicom.pixels.decoders.base import get_decoder  # type: ignore[import-not-found, unused-ignore]

    syntax = dataset.file_meta.TransferSyntaxUID
    name = syntax.name if syntax.name != syntax else "unknown"  # of the standard's list, or whatever the file says
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    if decoder is None:
        raise ImageError(f"the DICOM file's transfer syntax ({name}) is not one whose pixels can be read")
    needs = [re.sub(r">=[\d.]+| and", "", text.partition("requires ")[2]) for text in decoder.missing_dependencies]
    install = f"pip install {', or '.join(needs)}".replace(" gdcm", " python-gdcm")  # as the index has it
    if not decoder.is_available:
        raise ImageError(f"the DICOM file's pixels are compressed ({name}), and no decoder is installed; {install}")
    damaged = f"are damaged, or need another decoder ({install})" if needs else "are damaged"
    return decoder, f"the DICOM file's pixels ({name}) cannot be decoded; they {damaged}"


def _decoded(decoder: Any, dataset: "Dataset", index: int, shape: Shape) -> tuple["Array", str]:
    """The frame's stored values, and what they mean (the photometric interpretation) once they are decoded."""
    if decoder.UID.is_encapsulated:
        from pydicom.encaps import get_frame  # type: ignore[import-not-found, unused-ignore]

        source = get_frame(dataset.PixelData, index, number_of_frames=shape.frames)
        if decoder.UID == RLE:
            _check_runs(source, shape.rows * shape.columns)
        if source.startswith(JP2):
            _check_boxes(source)
    array, properties = decoder.as_array(dataset, index=index)
    return array, str(properties["photometric_interpretation"])


def _check_runs(source: bytes, pixels: int) -> None:
    """Count what a frame's run lengths decode to; pydicom decodes them to the end, and 50 MB can hold 3 GB."""
    count, *offsets = struct.unpack_from("<16L", source)
    for begin, end in pairwise([*offsets[: min(count, 15)], len(source)]):
        size = _run_length(source[begin:end], 2 * pixels)
        if size < pixels:
            return  # pydicom refuses it, and decodes no further
        if size > 2 * pixels:  # some writers pad
            raise ImageError("the DICOM file's pixels (RLE Lossless) decode to more than its picture")


def _run_length(segment: bytes, limit: int) -> int:
    size = at = 0
    while at < len(segment) and size <= limit:
        head = segment[at]
        size += 257 - head if head > 128 else (head + 1) % 129
        at += 2 if head > 128 else (head + 1) % 129 + 1
    return size


def _check_boxes(source: bytes) -> None:
    """Check the boxes around a frame's JPEG 2000; pydicom goes round in circles where one has no length."""
    at = 12  # the first is of that length, whatever is in it
    while at < len(source) and source[at + 4 : at + 8] != b"jp2c":
        length = int.from_bytes(source[at : at + 4], "big")
        if length < 8:
            raise ImageError("the DICOM file's pixels (JPEG 2000) are in a box of no length")
        at += length


def _shown(array: "Array", colours: str, dataset: "Dataset", index: int) -> Image.Image:
    if colours == "RGB":
        return Image.fromarray(_by_row(array, _eight_bits(array, int(dataset.BitsStored))))
    if colours == "PALETTE COLOR":
        return Image.fromarray(_by_value(array, lambda stored, _: _palette(stored, dataset)))
    if colours in ("MONOCHROME1", "MONOCHROME2"):
        _take_from_groups(dataset, index)
        return Image.fromarray(_by_value(array, lambda stored, seen: _greys(stored, seen, dataset)))
    raise ImageError("the DICOM file's photometric interpretation is not grey, a palette, RGB or YBR")


def _by_row(array: "Array", step: Callable[["Array"], "Array"]) -> "Array":
    """A step over each row; what it needs in between is never as large as the picture."""
    import numpy as np

    return np.stack([step(row) for row in array])


def _by_value(array: "Array", step: Callable[["Array", "Array"], "Array"]) -> "Array":
    """A step over every value that can be stored, looked up for each pixel: 65,536 at most instead of millions.

    Args:
        array: the stored values of a frame.
        step: from stored values, and which of them the frame has, to what is shown.
    """
    import numpy as np

    if array.dtype.kind not in "iu" or array.dtype.itemsize > 2:
        return step(array, np.ones(array.shape, bool))
    patterns = array.view(f"u{array.dtype.itemsize}")
    seen = np.zeros(256**array.dtype.itemsize, bool)
    for row in patterns:
        seen[row] = True
    table = step(np.arange(seen.size, dtype=patterns.dtype).view(array.dtype), seen)
    return _by_row(patterns, lambda row: table[row])


def _eight_bits(array: "Array", stored: int) -> Callable[["Array"], "Array"]:
    if array.dtype == "uint8" and stored == 8:
        return lambda row: row
    return lambda row: (row * (255 / (2**stored - 1))).round().clip(0, 255).astype("uint8")


def _palette(stored: "Array", dataset: "Dataset") -> "Array":
    import numpy as np

    if not all(name in dataset for name in chain(*PALETTE)):
        raise ImageError("the DICOM file's palette is missing, or in segments, which are not read")
    tables = [_table(dataset[descriptor].value, dataset[data].value, dataset) for descriptor, data in PALETTE]
    shift = 8 if max(table.max() for table in tables) > 255 else 0  # their own: some say 16 bits, and use 8
    channels = [
        _look_up(stored, dataset[descriptor].value, table >> shift)
        for (descriptor, _), table in zip(PALETTE, tables, strict=True)
    ]
    return np.stack(channels, axis=-1).astype("uint8")


def _greys(stored: "Array", seen: "Array", dataset: "Dataset") -> "Array":
    """The grey of each stored value; `seen` says which of them the frame has."""
    import numpy as np
    from pydicom.pixels.processing import apply_rescale, apply_windowing  # type: ignore[import-not-found, unused-ignore]

    values = stored
    if items := dataset.get("ModalityLUTSequence"):
        values = _look_up(stored, items[0].LUTDescriptor, _table(items[0].LUTDescriptor, items[0].LUTData, dataset))
    elif None not in (dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")):
        values = apply_rescale(stored, dataset)
    low: float
    high: float
    if items := dataset.get("VOILUTSequence"):
        table = _table(items[0].LUTDescriptor, items[0].LUTData, dataset)
        values = _look_up(values, items[0].LUTDescriptor, table)
        low, high = 0.0, float(table.max())  # its own: writers give the size of an entry as its bits
    elif _has_window(dataset):
        # pydicom's window ends in a range that depends on the file; what is far below and far above it tells which
        ends = np.array([-np.inf, np.inf])
        windowed = apply_windowing(np.concatenate([values.ravel(), ends]), dataset)
        values, (low, high) = windowed[:-2].reshape(stored.shape), windowed[-2:]
    else:
        low, high = _range(values, seen & ~_padding(stored, dataset), seen)
    span = (high - low) or 1.0
    grey = np.nan_to_num((values.astype("float64") - low) / span).clip(0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    return (grey * 255).round().astype("uint8")


def _has_window(dataset: "Dataset") -> bool:
    """Whether there is a window that means something; one narrower than 1 does only in the exact form."""
    center, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if not (math.isfinite(center) and math.isfinite(width) and width > 0):
        return False
    function = dataset.get("VOILUTFunction") or "LINEAR"
    dataset.VOILUTFunction = "LINEAR_EXACT" if function == "LINEAR" and width < 1 else function
    if "BitsStored" not in dataset:  # a file of floats; pydicom asks for them, though it needs them for its range only
        dataset.BitsStored, dataset.PixelRepresentation = 16, 0
    return True


def _first(value: Any) -> float:
    """The first of an element's numbers; NaN if it has none."""
    if isinstance(value, MutableSequence):
        value = value[0] if value else None
    return math.nan if value in (None, "") else float(value)


def _range(values: "Array", of: "Array", otherwise: "Array") -> tuple[float, float]:
    """The least and the greatest finite value of a frame, or 0 where it has none."""
    import numpy as np

    finite = np.isfinite(values)
    some = values[of & finite]
    if not some.size:
        some = values[otherwise & finite]
    return (float(some.min()), float(some.max())) if some.size else (0.0, 0.0)


def _padding(stored: "Array", dataset: "Dataset") -> "Array":
    """Which stored values fill what lies outside of the picture."""
    import numpy as np

    value = dataset.get("PixelPaddingValue")
    if value is None or stored.dtype.kind not in "iu":
        return np.zeros(stored.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    # as the pixels are: writers store a signed value as if it were not
    ends = np.array([value, value if limit is None else limit]).astype(stored.dtype)
    padding: Array = (stored >= ends.min()) & (stored <= ends.max())
    return padding


def _table(descriptor: Any, data: Any, dataset: "Dataset") -> "Array":
    """A lookup table's entries, of 8 or 16 bits."""
    import numpy as np

    entries = descriptor[0] or 2**16  # 0 stands for what 16 bits cannot hold
    if isinstance(data, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        data = np.frombuffer(data, "u1" if len(data) < 2 * entries else f"{order}u2")
    return np.asarray(data).ravel()[:entries].astype("int64")


def _look_up(values: "Array", descriptor: Any, table: "Array") -> "Array":
    """The entry of each value; the first below the table, the last above it.

    pydicom's own lookups count in as many bits as an entry has, so a table of eight bits goes wrong beyond 256 values.
    """
    import numpy as np

    places = np.nan_to_num(values.astype("float64") - descriptor[1]).clip(0, len(table) - 1)
    entries: Array = table[places.astype("int64")]
    return entries


def _take_from_groups(dataset: "Dataset", index: int) -> None:
    """Take over what an enhanced file says of the frame, or else of all of them, unless it says it of the file."""
    for name, place in zip(GROUPS, (index, 0), strict=True):
        groups = dataset.get(name) or []
        for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            items = groups[place].get(macro) if place < len(groups) else None
            for element in items[0] if items else ():
                if element.keyword in SHOWING and element.keyword not in dataset:
                    dataset.add(element)
