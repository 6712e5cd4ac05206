"""What a picture's file says beside the picture (who, where, when, with which camera), taken out without re-encoding.

Invariant: every byte of the picture stays as it was, and a file that says nothing more comes back byte for byte.
"""

import re
import struct
from collections.abc import Callable, Iterator

PNG_CHUNKS = frozenset(
    b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP cICP mDCV cLLI sBIT bKGD hIST pHYs acTL fcTL fdAT".split()
)
"""What a decoder needs, and colours. Text, EXIF, times and whatever programs invent are not among them."""
OURS = b"mmedagent-"
"""How the keywords of the text begin that this project itself writes into the pictures that it makes (the clinic's)."""
WEBP_CHUNKS = frozenset([b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"])
WEBP_SAYS = 0x0C
"""The two bits of a WebP's flags by which it says that it has EXIF and XMP."""
JPEG_TABLES = frozenset([*range(0xC0, 0xD0), *range(0xDA, 0xE0)])
"""The markers of frames, scans and tables."""
JPEG_STANDALONE = frozenset([0x01, *range(0xD0, 0xD8)])
END_OF_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def bare(data: bytes, form: str) -> bytes:
    """The file without its metadata.

    Args:
        data: a file that decodes.
        form: Pillow's name for its format; MPO (several JPEGs in one, as phones write them) gives its first picture.

    Raises:
        ValueError, struct.error: if the file is not built as its format says, though a decoder may forgive it.
    """
    return WALKS[form](data)


def _bare_png(data: bytes) -> bytes:
    kept, at = [data[:8]], 8
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = _within(data, at + 12 + length)
        if kind in PNG_CHUNKS or (kind == b"tEXt" and data.startswith(OURS, at + 8)):
            kept.append(data[at:end])
        at = len(data) if kind == b"IEND" else end
    return b"".join(kept)


def _bare_webp(data: bytes) -> bytes:
    kept, at = [], 12
    riff = _within(data, 8 + int(struct.unpack_from("<I", data, 4)[0]))
    while at < riff:
        kind, size = struct.unpack_from("<4sI", data, at)
        end = _within(data, at + 8 + size)
        chunk = data[at : end + size % 2]
        if kind == b"VP8X":
            chunk = chunk[:8] + bytes([chunk[8] & ~WEBP_SAYS]) + chunk[9:]
        if kind in WEBP_CHUNKS:
            kept.append(chunk)
        at = end + size % 2
    body = b"".join(kept)
    return data[:4] + struct.pack("<I", 4 + len(body)) + data[8:12] + body


def _bare_jpeg(data: bytes) -> bytes:
    return data[:2] + b"".join(data[at:end] for at, end in _jpeg_segments(data) if _is_picture(data[at : at + 18]))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Where each segment begins and ends; a scan's includes what is compressed. Nothing after the first picture's end.

    A picture without an end, which decoders take, just ends.
    """
    at = 2
    while at < len(data):
        if data[at] != 0xFF:
            raise ValueError("no marker where one must be")
        marker = data[_within(data, at + 2) - 1]
        if marker in JPEG_STANDALONE or marker in (0xFF, 0xD9):
            end = at + (1 if marker == 0xFF else 2)  # 0xFF: a filler before the marker
        else:
            end = _within(data, at + 2 + int(struct.unpack_from(">H", data, at + 2)[0]))
        if marker == 0xDA:
            found = END_OF_SCAN.search(data, end)
            end = found.start() if found else len(data)
        yield at, end
        at = len(data) if marker == 0xD9 else end


def _is_picture(head: bytes) -> bool:
    """Whether a segment is needed to see the picture, by its first bytes: a marker, a length and a name."""
    marker, length, name = head[1], head[2:4], head[4:]
    if marker == 0xE0:
        return name.startswith(b"JFIF\0") and length == b"\0\x10"  # a longer one holds a thumbnail
    if marker == 0xE2:
        return name.startswith(b"ICC_PROFILE\0")
    if marker == 0xEE:
        return name.startswith(b"Adobe") and length == b"\0\x0e"  # how the colours are coded
    return marker in JPEG_TABLES or marker in JPEG_STANDALONE or marker in (0xFF, 0xD9)


def _within(data: bytes, end: int) -> int:
    if end > len(data):
        raise ValueError("the file is cut off")
    return end


WALKS: dict[str, Callable[[bytes], bytes]] = {
    "PNG": _bare_png,
    "WEBP": _bare_webp,
    "JPEG": _bare_jpeg,
    "MPO": _bare_jpeg,
}
