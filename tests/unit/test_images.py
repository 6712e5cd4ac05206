"""Tests of ImageStore: every way in, what is refused, and that a reference is the hash of its bytes."""

import base64
import gc
import hashlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import data_url, encoded, image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

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
    "bytes": lambda _: PNG,
    "bytearray": lambda _: bytearray(PNG),
    "memoryview": lambda _: memoryview(PNG),
    "data URL": lambda _: data_url(PNG),
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


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_what_chat_models_take_is_kept_byte_for_byte(form: str, store: ImageStore) -> None:
    data = encoded(image(), form)
    ref = store.put(data)
    assert store.get(ref) == data
    assert store.block(ref) == {
        "type": "image",
        "base64": base64.b64encode(data).decode(),
        "mime_type": f"image/{form.lower()}",
    }


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_become_png(form: str, store: ImageStore) -> None:
    ref = store.put(encoded(image("orange"), form))
    assert store.block(ref)["mime_type"] == "image/png"
    assert store.open(ref).getpixel((0, 0)) == (255, 165, 0)


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


def unknown_dds() -> bytes:
    data = bytearray(encoded(image(), "DDS"))
    data[80:84] = bytes(4)  # the flags of its pixel format
    return bytes(data)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no such path": (lambda folder: folder / "none.png", "cannot read .*none.png"),
    "a folder": (lambda folder: str(folder), "cannot read"),
    "empty string": (lambda _: "", "cannot read"),
    "NUL in the path": (lambda _: "a\0.png", ""),
    "text file": (lambda folder: written(folder, b"hello"), "not a readable image"),
    "no bytes": (lambda _: b"", "not a readable image"),
    "cut off": (lambda _: encoded(Image.effect_noise((64, 64), 9))[:900], "not a readable image"),
    "unknown to its decoder": (lambda _: unknown_dds(), "not a readable image"),
    "http": (lambda _: "http://example.org/scan.png", "'http://example.org/scan.png' is a remote address"),
    "https, upper case": (lambda _: "HTTPS://example.org/scan.png", "remote address, which is never fetched"),
    "file URL": (lambda _: "file:///etc/hostname", "remote address"),
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


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 47)
    with pytest.raises(ValueError, match="8 x 6 pixels; at most 47"):
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
