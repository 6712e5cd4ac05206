"""Tests of ImageStore: every way in, what is refused, and that a reference is the hash of its bytes."""

import base64
import errno
import gc
import hashlib
import io
import logging
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fakes import data_url, encoded, image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageCms

from mmedagent_graph import images
from mmedagent_graph.images import ImageStore, default_store

PNG = encoded(image("red"))


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


def kept(store: ImageStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def written(folder: Path, data: bytes) -> Path:
    path = folder / "scan"
    path.write_bytes(data)
    return path


KINDS: dict[str, Callable[[Path], Any]] = {
    "path as str": lambda folder: str(written(folder, PNG)),
    "Path": lambda folder: written(folder, PNG),
    "file URL": lambda folder: written(folder, PNG).as_uri(),
    "mapping": lambda folder: {"image": PNG},
    "mapping with a frame": lambda folder: {"image": data_url(PNG), "frame": 0},
    "mapping with no frame": lambda folder: {"image": written(folder, PNG), "frame": None},
    "bytes": lambda _: PNG,
    "bytearray": lambda _: bytearray(PNG),
    "memoryview": lambda _: memoryview(PNG),
    "data URL": lambda _: data_url(PNG),
    "data URL in capitals": lambda _: data_url(PNG).replace("data:image/png;base64", "DATA:IMAGE/PNG;BASE64"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_in_is_the_same_image(kind: str, store: ImageStore, tmp_path: Path) -> None:
    ref = store.put(KINDS[kind](tmp_path))
    assert ref == "sha256:" + hashlib.sha256(PNG).hexdigest()
    assert store.get(ref) == PNG
    assert kept(store) == [ref.removeprefix("sha256:")]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK", "YCbCr", "HSV", "LAB"])
def test_a_pil_image_of_any_mode(mode: str, store: ImageStore) -> None:
    opened = store.open(store.put(Image.new(mode, (8, 6))))
    assert (opened.mode, opened.size) == ("RGB", (8, 6))


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_a_pil_image_keeps_its_pixels(mode: str, store: ImageStore) -> None:
    picture = image("orange", mode)
    assert store.open(store.put(picture)).tobytes() == picture.convert("RGB").tobytes()


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_what_chat_models_take_is_kept_byte_for_byte(form: str, store: ImageStore) -> None:
    data = encoded(image(), form)
    ref = store.put(data)
    assert store.get(ref) == data
    assert store.block(ref) == {
        "type": "image",
        "base64": base64.b64encode(data).decode(),
        "mime_type": f"image/{form.lower()}",
    }


@pytest.mark.parametrize("form", ["WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_become_png(form: str, store: ImageStore) -> None:
    ref = store.put(encoded(image("orange"), form))
    assert store.block(ref)["mime_type"] == "image/png"
    assert ImageChops.difference(store.open(ref), image("orange")).getextrema() <= ((2, 2),) * 3


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_do_not_end_in_white(form: str, store: ImageStore) -> None:
    scan = Image.new("I;16", (4, 1))
    for x, grey in enumerate([0, 8_000, 30_000, 65_535]):
        scan.putpixel((x, 0), grey)
    opened = store.open(store.put(encoded(scan, form)))
    greys = [opened.getpixel((x, 0))[0] for x in range(4)]  # type: ignore[index]
    assert greys == sorted(set(greys))


def test_the_same_image_is_kept_once(store: ImageStore) -> None:
    assert store.put(PNG) == store.put(PNG) == store.put(store.put(PNG))
    assert store.put(encoded(image("blue"))) != store.put(PNG)
    assert len(kept(store)) == 2


@given(st.binary(min_size=3, max_size=3))
def test_a_reference_is_the_hash_of_its_bytes(color: bytes) -> None:
    store = default_store()
    ref = store.put(Image.new("RGB", (1, 1), tuple(color)))
    assert ref == "sha256:" + hashlib.sha256(store.get(ref)).hexdigest()
    assert store.put(store.get(ref)) == ref
    assert store.open(ref).getpixel((0, 0)) == tuple(color)


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"scan.png"


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no such path": (lambda folder: folder / "none.png", "cannot read .*none.png"),
    "a folder": (lambda folder: str(folder), "cannot read"),
    "empty string": (lambda _: "", "cannot read"),
    "NUL in the path": (lambda _: "a\0.png", ""),
    "text file": (lambda folder: written(folder, b"hello"), r"not a readable image \(none of PNG, JPEG, .*, DICOM\)"),
    "no bytes": (lambda _: b"", "not a readable image"),
    "cut off": (
        lambda _: encoded(Image.effect_noise((64, 64), 9))[:900],
        r"not a readable image \(damaged or cut off: OSError\)",
    ),
    "drawn by another program": (lambda _: encoded(image(), "EPS"), "not a readable image"),
    "a format of no clinic": (lambda _: encoded(image(), "DDS"), "not a readable image"),
    "http": (lambda _: "http://example.org/scan.png", "'http://example.org/scan.png' is a remote address"),
    "https, upper case": (lambda _: "HTTPS://example.org/scan.png", "remote address, which is never fetched"),
    "another scheme": (lambda _: "s3://bucket/scan.png", "remote address, which is never fetched"),
    "a pair": (lambda _: (PNG, 0), "cannot use a tuple"),
    "a path in bytes of its own": (lambda _: BytesPath(), "cannot use a BytesPath"),
    "data URL without base64": (lambda _: "data:image/png,abc", "not a base64 data URL"),
    "data URL without data": (lambda _: "data:image/png;base64", "not a base64 data URL"),
    "broken base64": (lambda _: "data:image/png;base64,@@@", "base64 is broken"),
    "base64 not in ASCII": (lambda _: "data:image/png;base64,\u00e9", "base64 is broken"),
    "data URL of no image": (lambda _: data_url(b"hello"), "not a readable image"),
    "unknown reference": (lambda _: "sha256:" + "0" * 64, "no image 'sha256:0+' in the store"),
    "not a reference": (lambda _: "sha256:../../etc/passwd", "no image"),
    "a number": (lambda _: 5, "cannot use a int"),
    "None": (lambda _: None, "cannot use a NoneType"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(kind: str, store: ImageStore, tmp_path: Path) -> None:
    make, said = REFUSED[kind]
    with pytest.raises(ValueError, match=rf"{said}.*give a path, bytes, a PIL image, a data URL .* or a reference"):
        store.put(make(tmp_path))
    assert kept(store) == []


def test_too_many_bytes(store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", len(PNG) - 1)
    for given_ in (PNG, written(tmp_path, PNG), data_url(PNG)):
        with pytest.raises(ValueError, match=f"{len(PNG) - 1}"):
            store.put(given_)
    assert kept(store) == []


def test_too_many_pixels(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 47)
    with pytest.raises(ValueError, match="8 x 6 pixels, where 1 to 47 are taken"):
        store.put(PNG)
    monkeypatch.setattr(images, "MAX_PIXELS", 48)
    assert store.put(PNG)


def test_a_decompression_bomb(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(ValueError, match="DecompressionBombError"):
        store.put(PNG)


@pytest.mark.parametrize("ref", ["sha256:" + "0" * 64, "sha256:../scan", "sha256:", "scan", "SHA256:" + "0" * 64])
def test_an_unknown_reference_is_not_read(ref: str, store: ImageStore) -> None:
    written(store.folder.parent, PNG)
    with pytest.raises(ValueError, match="no image"):
        store.get(ref)


def test_errors_do_not_tell_where_the_store_is(store: ImageStore) -> None:
    with pytest.raises(ValueError, match="no image") as raised:
        store.put("sha256:" + "x" * 1_000_000)
    assert str(store.folder) not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_an_image_of_no_pixels(store: ImageStore) -> None:
    with pytest.raises(ValueError, match="the image has 0 x 5 pixels, where 1 to 100000000 are taken"):
        store.put(Image.new("RGB", (0, 5)))


def test_a_full_disk_leaves_nothing_behind(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes = Path.write_bytes

    def half(path: Path, data: bytes) -> int:
        write_bytes(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", half)
        with pytest.raises(OSError, match="No space left"):
            store.put(PNG)
    assert kept(store) == []
    assert store.get(store.put(PNG)) == PNG


def test_many_write_the_same_image_at_once(store: ImageStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        refs = set(pool.map(lambda _: ImageStore(store.folder).put(PNG), range(64)))
    assert kept(store) == [ref.removeprefix("sha256:") for ref in refs]


def test_a_folder_outlives_its_store(store: ImageStore) -> None:
    ref = store.put(PNG)
    assert ImageStore(store.folder).get(ref) == PNG


def test_a_temporary_folder_is_removed() -> None:
    store = ImageStore()
    store.put(PNG)
    folder = store.folder
    assert folder.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del store
        gc.collect()
    assert not folder.exists()


def test_one_default_store() -> None:
    assert default_store() is default_store()


@pytest.fixture
def on_its_side(tmp_path):
    """A photograph that says it lies on its side: 20 x 10 as stored, 10 x 20 as it should be seen."""
    picture = Image.new("RGB", (20, 10), "white")
    picture.paste("black", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "side.jpg", exif=exif, quality=100)
    return tmp_path / "side.jpg"


def test_a_picture_on_its_side_is_kept_upright(store, on_its_side):
    """Or training, whose reader turns pictures, and inference, whose reader does not, would see different pixels."""
    with Image.open(on_its_side) as opened:
        refs = [store.put(image) for image in (on_its_side, on_its_side.read_bytes(), opened)]
    for ref in refs:
        with Image.open(io.BytesIO(store.get(ref))) as raw:
            assert raw.size == (10, 20)
            assert raw.getexif().get(0x0112, 1) == 1
        assert store.open(ref).getpixel((5, 3))[0] < 60
        assert store.open(ref).getpixel((5, 16))[0] > 200


def test_what_is_kept_has_eight_bits(store):
    deep = Image.new("I;16", (8, 8), 128 * 257)
    with Image.open(io.BytesIO(store.get(store.put(deep)))) as kept:
        assert kept.mode == "RGB"
        assert kept.getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("form", "code", "values"),
    [
        ("h", 2, [-1000, 0, 1000, 3000]),
        ("i", 2, [-1000, 0, 1000, 3000]),
        ("f", 3, [-0.25, 0.0, 0.25, 0.75]),
        ("f", 3, [0.5, 0.5, 0.5, 0.5]),
    ],
)
def test_values_that_have_no_white_of_their_own_are_stretched(
    form: str, code: int, values: list[float], store: ImageStore
) -> None:
    """Signed values, 32 bits and floats; Pillow alone would clip them to black and white."""
    data = struct.pack(f"<4{form}", *values)
    entries = [(256, 4), (257, 1), (258, len(data) * 2), (259, 1), (262, 1), (273, 134), (277, 1), (278, 1)]
    entries += [(279, len(data)), (339, code)]
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    tiff = b"II*\0" + struct.pack("<IH", 8, len(entries)) + tags + bytes(4) + data
    opened = store.open(store.put(tiff))
    shown = [opened.getpixel((x, 0))[0] for x in range(4)]  # type: ignore[index]
    assert shown == ([0, 0, 0, 0] if values[0] == 0.5 else [0, 63, 127, 255])


def test_what_is_transparent_is_white_to_every_reader(store: ImageStore) -> None:
    """Some lay it on black, some on white, and some show the colour that somebody hid."""
    hidden = Image.new("RGBA", (3, 1), (0, 200, 0, 0))
    hidden.putpixel((1, 0), (255, 0, 0, 255))
    hidden.putpixel((2, 0), (0, 0, 0, 128))
    webp = io.BytesIO()
    hidden.save(webp, "WEBP", lossless=True)
    kinds: list[Any] = [hidden, encoded(hidden), encoded(hidden, "TIFF"), webp.getvalue()]
    for given_ in kinds:
        with Image.open(io.BytesIO(store.get(store.put(given_)))) as kept:
            assert kept.mode == "RGB"
            assert [kept.getpixel((x, 0))[x == 1] for x in range(3)] == [255, 0, 127]  # type: ignore[index]
    for mode, clear in (("P", 0), ("L", 0), ("RGB", (0, 0, 0)), ("1", 0)):
        buffer = io.BytesIO()
        Image.new(mode, (1, 1)).save(buffer, "PNG", transparency=clear)
        kept = store.get(store.put(buffer.getvalue()))
        assert b"tRNS" not in png_chunks(kept)
        assert decoded(kept) == b"\xff\xff\xff"
    buffer = io.BytesIO()
    Image.new("I;16", (1, 1), 257).save(buffer, "PNG", transparency=1)
    assert b"tRNS" not in png_chunks(store.get(store.put(buffer.getvalue())))


@pytest.mark.parametrize(("mode", "form"), [("I;16", "PNG"), ("CMYK", "JPEG")])
def test_what_not_every_reader_takes_is_not_kept_as_it_is(mode: str, form: str, store: ImageStore) -> None:
    with Image.open(io.BytesIO(store.get(store.put(encoded(Image.new(mode, (8, 6)), form))))) as kept:
        assert (kept.format, kept.mode) == ("PNG", "RGB")


# --- frames -------------------------------------------------------------------------------------------------------

SHADES = (0, 90, 250)


def frames(form: str, shades: Sequence[int] = SHADES, size: tuple[int, int] = (8, 6)) -> bytes:
    pictures = [Image.new("RGB", size, (shade, shade, shade)) for shade in shades]
    buffer = io.BytesIO()
    more = {"lossless": True} if form == "WEBP" else {}
    pictures[0].save(buffer, form, save_all=True, append_images=pictures[1:], **more)
    return buffer.getvalue()


MOVING = ["GIF", "PNG", "WEBP", "TIFF", "AVIF"]


@pytest.mark.parametrize("form", MOVING)
def test_a_frame_by_its_number(form: str, store: ImageStore) -> None:
    for number, shade in enumerate(SHADES):
        ref = store.put({"image": frames(form), "frame": number})
        assert abs(store.open(ref).getpixel((3, 3))[0] - shade) <= 2  # type: ignore[index]
        assert store.block(ref)["mime_type"] == "image/png"
        with Image.open(io.BytesIO(store.get(ref))) as kept:
            assert getattr(kept, "n_frames", 1) == 1


@pytest.mark.parametrize("form", MOVING)
def test_several_frames_are_never_a_silent_first(form: str, store: ImageStore) -> None:
    with pytest.raises(ValueError, match=r"the file has 3 frames; give one, from 0 to 2: \{'image': ..., 'frame': 0\}"):
        store.put(frames(form))
    with Image.open(io.BytesIO(frames(form))) as opened, pytest.raises(ValueError, match="the file has 3 frames"):
        store.put(opened)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (3, "no such frame; give a whole number from 0 to 2"),
        (-1, "no such frame; give a whole number from 0 to 2"),
        pytest.param(10**5000, "no such frame; give a whole number from 0 to 2", id="huge"),
        (True, "cannot use a bool; give a whole number from 0 to 2"),
        ("1", "cannot use a str; give a whole number from 0 to 2"),
        (1.0, "cannot use a float; give a whole number from 0 to 2"),
    ],
)
def test_a_frame_that_is_not_there(frame: Any, said: str, store: ImageStore) -> None:
    for form in ("GIF", "TIFF"):
        with pytest.raises(ValueError, match=f"frame: .*{said}"):
            store.put({"image": frames(form), "frame": frame})


@pytest.mark.parametrize("kind", ["bytes", "PIL image", "reference"])
def test_of_one_frame_there_is_no_second(kind: str, store: ImageStore) -> None:
    given_ = {"bytes": PNG, "PIL image": image(), "reference": store.put(PNG)}[kind]
    assert store.put({"image": given_, "frame": 0}) == store.put(given_)
    for frame, said in ((1, "there is one frame: give 0"), (False, "cannot use a bool"), ("0", "cannot use a str")):
        with pytest.raises(ValueError, match=said):
            store.put({"image": given_, "frame": frame})


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"image": PNG, "page": 1, "Frame": 2}, r"unknown keys \['page', 'Frame'\]; give \{'image': ..., 'frame': 0\}"),
        ({"frame": 0}, "there is no image; give"),
        ({}, "there is no image; give"),
        ({"image": {"image": PNG}}, "cannot use a dict"),
        ({"image": None}, "cannot use a NoneType"),
    ],
)
def test_a_mapping_that_is_wrong(given_: Any, said: str, store: ImageStore) -> None:
    with pytest.raises(ValueError, match=said):
        store.put(given_)


def test_somebodys_pil_image_stays_where_it_was(store: ImageStore, tmp_path: Path) -> None:
    path = written(tmp_path, frames("GIF"))
    with Image.open(path) as opened:
        opened.seek(1)
        ref = store.put({"image": opened, "frame": 2})
        assert opened.tell() == 1
        assert store.put({"image": opened, "frame": 2}) == ref
        assert opened.convert("RGB").getpixel((0, 0)) == (90, 90, 90)
        copy = opened.copy()
    assert store.open(ref).getpixel((0, 0)) == (250, 250, 250)
    assert store.open(store.put(copy)).getpixel((0, 0)) == (90, 90, 90)  # a copy is one picture


def test_a_pil_image_of_a_tiff_that_was_read_already(store: ImageStore, tmp_path: Path) -> None:
    with Image.open(written(tmp_path, encoded(image("orange"), "TIFF"))) as opened:
        opened.load()
        assert store.open(store.put(opened)).getpixel((0, 0)) == (255, 165, 0)


def test_an_animation_is_not_decoded_without_end(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 2 * 48)
    for form in ("GIF", "PNG", "WEBP"):
        assert store.put({"image": frames(form), "frame": 1})
        with pytest.raises(ValueError, match="more than 96 pixels up to this frame; give"):
            store.put({"image": frames(form), "frame": 2})
    assert store.put({"image": frames("TIFF"), "frame": 2})  # whose pages do not need each other


def test_an_animation_that_grows(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GIF's frames may be larger than it says that it is."""
    monkeypatch.setattr(images, "MAX_PIXELS", 5_000)
    data = frames("GIF", (0, 50, 100, 150), (40, 40))
    data = data[:6] + struct.pack("<HH", 1, 1) + data[10:]
    assert store.put({"image": data, "frame": 2})
    with pytest.raises(ValueError, match="more than 5000 pixels up to"):
        store.put({"image": data, "frame": 3})


def test_each_page_has_its_own_size(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("L", (2, 2)).save(buffer, "TIFF", save_all=True, append_images=[Image.new("L", (20, 20))])
    monkeypatch.setattr(images, "MAX_PIXELS", 399)
    assert store.put({"image": buffer.getvalue(), "frame": 0})
    with pytest.raises(ValueError, match="20 x 20 pixels, where 1 to 399"):
        store.put({"image": buffer.getvalue(), "frame": 1})


def test_pages_are_not_counted_without_end(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmedagent_graph.pictures.MAX_FRAMES", 3)
    assert store.put({"image": frames("TIFF"), "frame": 2})
    monkeypatch.setattr("mmedagent_graph.pictures.MAX_FRAMES", 2)
    with pytest.raises(ValueError, match="more than 2 frames"):
        store.put({"image": frames("TIFF"), "frame": 0})


# --- what files say of people -------------------------------------------------------------------------------------

NAME = b"Jane Doe"


def jpeg(**more: Any) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((40, 30), 60).convert("RGB").save(buffer, "JPEG", **more)
    return buffer.getvalue()


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def after_start(data: bytes, *segments: bytes) -> bytes:
    return data[:2] + b"".join(segments) + data[2:]


def exif() -> bytes:
    tags = Image.Exif()
    tags[0x9C9D], tags[0x010E], tags[0x0112] = NAME, NAME.decode(), 1
    return tags.tobytes()


EXIF = segment(0xE1, exif())
JPEGS: dict[str, Callable[[bytes], bytes]] = {
    "EXIF": lambda plain: after_start(plain, EXIF),
    "XMP": lambda plain: after_start(plain, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x>" + NAME)),
    "IPTC": lambda plain: after_start(plain, segment(0xED, b"Photoshop 3.0\x008BIM" + NAME)),
    "comment": lambda plain: after_start(plain, segment(0xFE, NAME)),
    "a vendor's": lambda plain: after_start(plain, segment(0xE5, NAME), segment(0xEF, NAME), segment(0xEE, NAME)),
    "thumbnail": lambda plain: after_start(plain, segment(0xE0, b"JFXX\0\x10" + NAME)),
    "thumbnail in its JFIF": lambda plain: after_start(
        plain[:2] + plain[20:], segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\3\1" + NAME + b"\0")
    ),
    "more pictures": lambda plain: after_start(plain, segment(0xE2, b"FPXR\0" + NAME)),
    "after its end": lambda plain: plain + NAME,
    "another after its end": lambda plain: plain + after_start(plain, EXIF),
    "between its scans": lambda plain: between_scans(plain, segment(0xFE, NAME)),
    "all": lambda plain: after_start(plain, EXIF, segment(0xFE, NAME), segment(0xED, NAME)) + NAME,
}


def between_scans(data: bytes, comment: bytes) -> bytes:
    at = data.rindex(b"\xff\xda")
    return data[:at] + comment + data[at:]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_says_nothing_of_people(kind: str, progressive: bool, store: ImageStore) -> None:
    """And is otherwise the file that it would have been without it."""
    plain = jpeg(
        progressive=progressive, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    )
    data = JPEGS[kind](plain)
    assert NAME in data
    kept = store.get(store.put(data))
    assert NAME not in kept
    assert kept == (plain if kind != "thumbnail in its JFIF" else plain[:2] + plain[20:])
    assert store.get(store.put(plain)) == plain


@given(
    st.lists(st.sampled_from(["exif", "xmp", "comment", "iptc", "fill"]), max_size=4),
    st.sampled_from(["L", "RGB", "RGB as it is", "CMYK"]),
    st.sampled_from([0, 1, 2]),
    st.booleans(),
    st.integers(0, 7),
)
@settings(deadline=None, max_examples=60)
def test_a_jpeg_keeps_every_pixel(said: list[str], mode: str, sampling: int, progressive: bool, restart: int) -> None:
    buffer = io.BytesIO()
    more: dict[str, Any] = {"progressive": progressive, "restart_marker_blocks": restart}
    more |= {"L": {}, "RGB": {"subsampling": sampling}, "RGB as it is": {"keep_rgb": True}, "CMYK": {}}[mode]
    Image.effect_noise((37, 21), 80).convert(mode[:4].strip()).save(buffer, "JPEG", **more)
    parts = {
        "exif": EXIF,
        "xmp": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + NAME),
        "comment": segment(0xFE, NAME),
        "iptc": segment(0xED, NAME),
        "fill": b"\xff",
    }
    store = default_store()
    ref = store.put(after_start(buffer.getvalue(), *(parts[name] for name in said)))
    assert store.open(ref).tobytes() == decoded(buffer.getvalue())
    assert NAME not in store.get(ref)
    if mode != "CMYK" and "fill" not in said:  # which decoders forgive, and is drawn anew
        assert store.get(ref) == buffer.getvalue()


def test_a_phones_photograph_of_two_pictures_is_its_first(store: ImageStore) -> None:
    buffer = io.BytesIO()
    image("orange").save(buffer, "MPO", save_all=True, append_images=[image("blue")])
    with Image.open(buffer) as opened:
        assert (opened.format, opened.n_frames) == ("MPO", 2)  # type: ignore[attr-defined]
    ref = store.put(buffer.getvalue())
    assert store.block(ref)["mime_type"] == "image/jpeg"
    assert store.open(ref).getpixel((0, 0))[2] < 60  # type: ignore[index]
    assert len(store.get(ref)) < len(buffer.getvalue())
    assert store.put({"image": buffer.getvalue(), "frame": 0}) == ref


def chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


PNGS = {
    "tEXt": chunk(b"tEXt", b"Author\0" + NAME),
    "iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + NAME),
    "zTXt": chunk(b"zTXt", b"Jane Doe\0\0" + zlib.compress(NAME)),
    "eXIf": chunk(b"eXIf", exif()[6:]),
    "a program's own": chunk(b"prVt", NAME),
    "tIME": chunk(b"tIME", b"Jane Doe"[:7]),
}


@pytest.mark.parametrize("kind", PNGS)
def test_a_png_says_nothing_of_people(kind: str, store: ImageStore) -> None:
    colours = chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"pHYs", struct.pack(">IIB", 1, 2, 0))
    plain = PNG[:33] + colours + PNG[33:]
    for data in (plain[:33] + PNGS[kind] + plain[33:], plain[:-12] + PNGS[kind] + plain[-12:], plain + NAME):
        assert store.get(store.put(data)) == plain


def test_an_animation_of_one_frame_is_one_picture(store: ImageStore) -> None:
    """Or some would show the picture and others the animation, which nobody has looked at."""
    moving = [
        chunk(b"acTL", struct.pack(">II", 1, 0)),
        chunk(b"fcTL", struct.pack(">5IHHBB", 0, 8, 6, 0, 0, 1, 1, 0, 0)),
    ]
    data = PNG[:33] + b"".join(moving) + PNG[33:]
    assert store.get(store.put(data)) == PNG


def webp(*more: tuple[bytes, bytes], flags: int) -> bytes:
    """A WebP in its long form, with more chunks after the picture."""
    short = encoded(image("orange"), "WEBP")
    start = (b"VP8X", struct.pack("<I", flags) + b"\7\0\0\5\0\0")
    parts = [start, (short[12:16], short[20:]), *more]
    body = b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in parts)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


@pytest.mark.parametrize(
    "data",
    [
        webp((b"EXIF", exif()), flags=8),
        webp((b"XMP ", NAME + b"!"), flags=4),
        webp((b"prvt", NAME), flags=0),
        encoded(image("orange"), "WEBP") + NAME,
    ],
)
def test_a_webp_says_nothing_of_people(data: bytes, store: ImageStore) -> None:
    assert NAME in data
    kept = store.get(store.put(data))
    assert png_chunks(kept) == {b"IHDR", b"IDAT", b"IEND"}
    assert decoded(kept) == decoded(encoded(image("orange"), "WEBP"))


def test_a_file_that_only_a_decoder_understands_is_drawn_anew(store: ImageStore) -> None:
    """After the last pixel decoders look no further, and what is there, nobody knows."""
    data = jpeg()[:-2] + b"\xff\xfe\xff\xff" + NAME
    kept = store.get(store.put(data))
    assert png_chunks(kept) == {b"IHDR", b"IDAT", b"IEND"}
    assert store.open(store.put(data)).tobytes() == decoded(data)


def test_what_is_kept_is_checked_as_it_is_kept(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmedagent_graph.pictures.bare", lambda data, _: data[:-30])
    with pytest.raises(ValueError, match="not a readable image"):
        store.put(PNG)


def decoded(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as opened:
        return opened.convert("RGB").tobytes()


@pytest.mark.parametrize("form", ["TIFF", "GIF", "JPEG2000", "AVIF"])
def test_other_formats_say_nothing_of_people(form: str, store: ImageStore) -> None:
    buffer = io.BytesIO()
    more: dict[str, Any] = {"comment": NAME} if form in ("GIF", "JPEG2000") else {"exif": exif()}
    if form == "TIFF":
        more = {"tiffinfo": {270: NAME.decode(), 315: NAME.decode(), 700: NAME}}
    image("orange").save(buffer, form, **more)
    assert NAME in buffer.getvalue()
    assert png_chunks(store.get(store.put(buffer.getvalue()))) == {b"IHDR", b"IDAT", b"IEND"}


def png_chunks(png: bytes) -> set[bytes]:
    kinds, at = set(), 8
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        kinds.add(kind)
        at += 12 + length
    return kinds


def test_a_pil_image_says_nothing_of_people(store: ImageStore) -> None:
    for data in (after_start(jpeg(), EXIF), PNG[:33] + PNGS["tEXt"] + PNGS["eXIf"] + PNG[33:]):
        with Image.open(io.BytesIO(data)) as opened:
            opened.info["comment"] = NAME
            assert png_chunks(store.get(store.put(opened))) == {b"IHDR", b"IDAT", b"IEND"}


def test_a_profile_of_other_colours_is_not_kept(store: ImageStore) -> None:
    """Four colours' profile on three is an error to some readers."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for mode, has in (("CMYK", False), ("RGB", True)):
        buffer = io.BytesIO()
        image("orange", mode).save(buffer, "TIFF", icc_profile=profile)
        assert (b"iCCP" in png_chunks(store.get(store.put(buffer.getvalue())))) is has


# --- hostile files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(9_990, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1), (0, 5)])
def test_a_small_file_of_a_huge_picture(width: int, height: int, store: ImageStore) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"not a readable image|pixels, where 1 to"):
            store.put(data)


def test_a_picture_of_one_endless_row(store: ImageStore) -> None:
    """Of a few bytes and few enough pixels, and Pillow would take minutes for it."""
    data = frames("WEBP")
    at = data.index(b"VP8X") + 12
    with pytest.raises(
        ValueError, match="8000001 x 6 pixels, where 1 to 100000000 are taken, and at most 65535 a side"
    ):
        store.put({"image": data[:at] + (8_000_000).to_bytes(3, "little") + data[at + 3 :], "frame": 0})
    assert store.put(encoded(Image.new("L", (65_535, 1))))


def test_a_large_picture_is_taken_without_a_warning(store: ImageStore) -> None:
    """Pillow warns of more than 89 megapixels; 100 are taken here."""
    data = encoded(Image.new("1", (9_900, 10_000)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.block(store.put(data))["mime_type"] == "image/png"


def test_a_tiff_of_huge_tiles_warns_of_nothing(store: ImageStore) -> None:
    entries = [(256, 4, 8), (257, 4, 8), (258, 3, 8), (259, 3, 1), (262, 3, 1), (277, 3, 1)]
    entries += [(322, 4, 9_500), (323, 4, 9_500), (324, 4, 200), (325, 4, 64)]
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, kind, 1, v) for tag, kind, v in entries
    )
    data = (b"II*\0" + struct.pack("<I", 8) + directory + bytes(4)).ljust(264, b"\0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="not a readable image"):
            store.put(data)


def test_what_a_tiff_says_is_not_logged(
    store: ImageStore, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    buffer = io.BytesIO()
    image().save(buffer, "TIFF", tiffinfo={270: NAME.decode()})
    caplog.clear()
    store.open(store.put(buffer.getvalue()))
    assert "Jane" not in caplog.text
    samples = buffer.getvalue().replace(struct.pack("<HHI", 277, 3, 1), struct.pack("<HHI", 277, 3, 1) + b"\x11\x01", 1)
    with pytest.raises(ValueError, match="not a readable image"):
        store.put(samples)
    assert caplog.records == []
    assert capfd.readouterr().err == ""


SOUND = [
    *(encoded(image(), form) for form in ("PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000")),
    *(JPEGS[kind](jpeg()) for kind in ("EXIF", "all")),
    *(frames(form) for form in ("PNG", "GIF", "WEBP", "TIFF")),
    PNG[:33] + PNGS["eXIf"] + PNG[33:],
    webp((b"EXIF", exif()), flags=8),
]


@given(
    st.sampled_from(SOUND),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=3),
    st.integers(0, 5000),
)
@settings(deadline=None, max_examples=150)
def test_a_damaged_file_is_a_picture_or_an_error(data: bytes, flips: list[tuple[int, int]], cut: int) -> None:
    """And what is kept always opens."""
    damaged = bytearray(data)
    for at, value in flips:
        damaged[at % len(damaged)] = value
    store = default_store()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            ref = store.put({"image": bytes(damaged[: max(1, len(damaged) - cut)]), "frame": 0})
        except ValueError:
            return
        assert store.open(ref).mode == "RGB"
        assert store.block(ref)["mime_type"] in ("image/png", "image/jpeg", "image/webp")


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a readable image"):
        default_store().put(data)
