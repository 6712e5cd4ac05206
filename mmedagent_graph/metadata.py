"""What a picture's file says beside the picture (who, where, when, with which camera), taken out without re-encoding.

Invariant: every byte of the picture stays as it was, and a file that says nothing more comes back byte for byte.
"""

import re
import struct

PNG_CHUNKS = frozenset(b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP cICP mDCV cLLI sBIT bKGD hIST pHYs".split())
"""What a decoder needs of one picture, and colours. Text, EXIF, times and what programs invent are not among them."""
OURS = b"mmedagent-"
"""How the keywords of the text begin that this project itself writes into the pictures that it makes (the clinic's)."""
JPEG_TABLES = frozenset([*range(0xC0, 0xD0), *range(0xDA, 0xDE)])
"""The markers of frames, scans and tables."""
JPEG_SEGMENTS = JPEG_TABLES | frozenset(range(0xDE, 0xFF))
"""The markers that a length follows."""
END_OF_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def bare(data: bytes, form: str) -> bytes:
    """The file without its metadata.

    Args:
        data: a file that decodes.
        form: PNG or JPEG; several JPEGs in one, as phones write them, give the first.

    Raises:
        ValueError, struct.error: if the file is not built as its format says, though a decoder may forgive it.
    """
    return _bare_png(data) if form == "PNG" else _bare_jpeg(data)


def _bare_png(data: bytes) -> bytes:
    kept, at, kind = [data[:8]], 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if kind in PNG_CHUNKS or (kind == b"tEXt" and data.startswith(OURS, at + 8)):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _bare_jpeg(data: bytes) -> bytes:
    kept, at = [data[:2]], 2
    while data[at : at + 2] != b"\xff\xd9":
        mark, marker, length = struct.unpack_from(">BBH", data, at)
        end = at + 2 + length
        if mark != 0xFF or marker not in JPEG_SEGMENTS or length < 2:
            raise ValueError("no segment where one must be")
        if marker == 0xDA:  # what is compressed belongs to it
            scan = END_OF_SCAN.search(data, end)
            end = scan.start() if scan else len(data)
        if _is_picture(marker, data[at + 2 : end]):
            kept.append(data[at:end])
        at = end
    return b"".join(kept) + b"\xff\xd9"


def _is_picture(marker: int, segment: bytes) -> bool:
    """Whether a segment is needed to see the picture; it begins with its length and, often, a name."""
    if marker == 0xE0:
        return segment.startswith(b"\0\x10JFIF\0")  # a longer one holds a thumbnail
    if marker == 0xE2:
        return segment.startswith(b"ICC_PROFILE\0", 2)
    if marker == 0xEE:
        return segment.startswith(b"\0\x0eAdobe")  # how the colours are coded
    return marker in JPEG_TABLES
