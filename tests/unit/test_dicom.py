"""Tests of DICOM files, written here by pydicom: what is shown, and that nothing but pixels leaves them."""

import ast
import io
import logging
import struct
import sys
import threading
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pydicom
import pytest
from fakes import data_url
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import config
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import convert_color_space
from pydicom.uid import (
    MPEG4HP41,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLSLossless,
    RLELossless,
)

from mmedagent_graph import dicom as dicom_module
from mmedagent_graph import images, metadata, pictures, sources
from mmedagent_graph.dicom import dicom_picture, is_dicom
from mmedagent_graph.images import ImageStore
from mmedagent_graph.pictures import quiet

NAME = "Doe^Jane"
SOP = "1.2.840.10008.5.1.4.1.1.7"
RAMP = np.arange(0, 256, dtype="uint8").reshape(16, 16)


@pytest.fixture(autouse=True)
def _anything_can_be_written() -> Iterator[None]:
    """Clinics have files that pydicom would rather not write."""
    before = config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.IGNORE
    yield
    config.settings.writing_validation_mode = before


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


def dataset(syntax: str = ExplicitVRLittleEndian) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID, ds.SOPInstanceUID = SOP, "1.2.3"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = NAME, f"{NAME}-7", "19501231"
    ds.add_new(0x00091001, "LO", NAME)
    return ds


def pictured(array: np.ndarray, *, frames: int = 0, syntax: str = ExplicitVRLittleEndian, **elements: Any) -> Dataset:
    """A data set with pixels: (rows, columns[, 3]) or, with `frames`, as many of them."""
    ds = dataset(syntax)
    shape = array.shape[1:] if frames else array.shape
    ds.Rows, ds.Columns = shape[:2]
    ds.SamplesPerPixel = shape[2] if len(shape) > 2 else 1
    if frames:
        ds.NumberOfFrames = frames
    if ds.SamplesPerPixel == 3:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = "RGB" if ds.SamplesPerPixel == 3 else "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = array.dtype.itemsize * 8
    ds.PixelRepresentation = int(array.dtype.kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    data = array.astype(array.dtype.newbyteorder(order)).tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OW" if ds.BitsAllocated > 8 else "OB"
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    ds.HighBit = ds.BitsStored - 1
    return ds


def written(ds: Dataset) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def dicom(array: np.ndarray, **more: Any) -> bytes:
    return written(pictured(array, **more))


def shown(data: bytes, frame: Any = None) -> np.ndarray:
    """The pixels, as signed numbers, so that they can be subtracted."""
    picture = dicom_picture(data, frame, max_bytes=images.MAX_BYTES, max_pixels=images.MAX_PIXELS)
    assert picture.info == {}
    return np.asarray(picture).astype(int)


def stretched(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return np.round((values.astype(float) - low) / (high - low) * 255).astype(int)


def linear(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """The standard's formula (PS3.3 C.11.2.1.2.1), to 0-255."""
    grey = ((values - (center - 0.5)) / max(width - 1, 1e-9) + 0.5) * 255
    grey = np.where(values <= center - 0.5 - (width - 1) / 2, 0, grey)
    return np.where(values > center - 0.5 + (width - 1) / 2, 255, grey)


# --- grey values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
def test_without_a_window_the_frame_is_stretched(dtype: str) -> None:
    array = np.array([[0, 30, 60], [90, 100, 110]], dtype) - np.array(40 if dtype.startswith("int") else 0, dtype)
    assert (shown(dicom(array)) == stretched(array)).all()


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_every_way_of_writing_is_the_same_picture(syntax: str, dtype: str) -> None:
    array = (RAMP.astype(int) * 3 // (4 if dtype == "uint8" else 1) - (0 if dtype == "uint8" else 99)).astype(dtype)
    assert (
        shown(of_floats(array, syntax) if dtype == "float32" else dicom(array, syntax=syntax)) == stretched(array)
    ).all()


def of_floats(array: np.ndarray, syntax: str = ExplicitVRLittleEndian, **elements: Any) -> bytes:
    ds = pictured(np.zeros(array.shape, "uint16"), syntax=syntax)
    del ds.PixelData, ds.BitsStored, ds.HighBit, ds.PixelRepresentation
    ds.BitsAllocated = array.dtype.itemsize * 8
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    pixels = array.astype(array.dtype.newbyteorder(order)).tobytes()
    setattr(ds, "FloatPixelData" if array.dtype == "float32" else "DoubleFloatPixelData", pixels)
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return written(ds)


def test_floats() -> None:
    array = np.array([[-1.5, 0.0, 0.5, 2.5]], "float64")
    assert shown(of_floats(array)).tolist() == stretched(array).tolist()
    assert shown(of_floats(array, WindowCenter=0.5, WindowWidth=2)).tolist() == [[0, 128, 255, 255]]


def test_floats_that_are_no_numbers() -> None:
    array = np.array([[np.nan, 0, 1, 2, np.inf, -np.inf]], "float32")
    assert shown(of_floats(array)).tolist() == [[0, 0, 128, 255, 255, 0]]
    assert shown(of_floats(np.full((2, 2), np.nan, "float32"))).tolist() == [[0, 0], [0, 0]]


def test_floats_that_are_no_numbers_in_a_table() -> None:
    data = of_floats(np.array([[np.nan, 1, np.inf]], "float32"), VOILUTSequence=[item(3, 0, 16, [0, 100, 255])])
    assert shown(data).tolist() == [[0, 100, 255]]


def test_numbers_that_are_too_large() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown(
            dicom(
                np.array([[-9, 0, 9]], "int16"),
                RescaleSlope="4e303",
                RescaleIntercept="0",
                WindowCenter="0",
                WindowWidth="1e303",
            )
        )


def test_a_frame_of_one_value_is_black() -> None:
    assert shown(dicom(np.full((2, 3), 7, "uint8"))).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_bits_that_are_not_stored_are_not_seen() -> None:
    array = np.array([[0xF000, 0xA7FF, 0x0FFF]], "uint16")
    assert shown(dicom(array, BitsStored=12)).tolist() == [[0, 127, 255]]
    signed = np.array([[0x0800, 0x0000, 0x07FF]], "uint16").view("int16")  # -2048, 0, 2047 in twelve bits
    assert shown(dicom(signed, BitsStored=12)).tolist() == [[0, 128, 255]]


@given(
    st.lists(st.integers(-2000, 3000), min_size=4, max_size=30),
    st.sampled_from([(1, 0), (1, -1024), (2, 5), (0.5, 10.25), (-1, 100)]),
    st.integers(-1500, 2500),
    st.integers(1, 4000),
    st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_a_window_is_the_standards(
    values: list[int], rescale: tuple[float, float], center: int, width: int, inverted: bool
) -> None:
    array = np.array([values], "int16")
    slope, intercept = rescale
    data = dicom(
        array,
        RescaleSlope=slope,
        RescaleIntercept=intercept,
        WindowCenter=center,
        WindowWidth=width,
        PhotometricInterpretation="MONOCHROME1" if inverted else "MONOCHROME2",
    )
    expected = linear(array * slope + intercept, center, width)
    assert np.abs(shown(data) - (255 - expected if inverted else expected)).max() <= 0.51


def test_the_first_of_several_windows() -> None:
    several = dicom(RAMP, WindowCenter=[60, 200], WindowWidth=[40, 10])
    assert (shown(several) == shown(dicom(RAMP, WindowCenter=60, WindowWidth=40))).all()
    assert not (shown(several) == shown(dicom(RAMP, WindowCenter=200, WindowWidth=10))).all()


def test_windows_of_other_shapes() -> None:
    exact = shown(dicom(RAMP, WindowCenter=100, WindowWidth=50, VOILUTFunction="LINEAR_EXACT"))
    expected = ((RAMP.astype(float) - 100) / 50 + 0.5).clip(0, 1) * 255
    assert np.abs(exact - expected).max() <= 0.51
    sigmoid = shown(dicom(RAMP, WindowCenter=100, WindowWidth=50, VOILUTFunction="SIGMOID"))
    assert np.abs(sigmoid - 255 / (1 + np.exp(-4 * (RAMP.astype(float) - 100) / 50))).max() <= 0.51


def test_a_window_narrower_than_one_value() -> None:
    """Against the standard, and met where values are rescaled to small numbers."""
    data = dicom(RAMP, RescaleSlope="0.001", RescaleIntercept="0", WindowCenter="0.1", WindowWidth="0.05")
    assert np.abs(shown(data) - ((RAMP * 0.001 - 0.1) / 0.05 + 0.5).clip(0, 1) * 255).max() <= 0.51


@pytest.mark.parametrize(
    "window", [("", ""), (None, None), (100, 0), (100, ""), ("", 10), (100, -5), (["", 100], ["", 50])]
)
def test_a_window_that_means_nothing_is_none(window: tuple[Any, Any]) -> None:
    data = dicom(RAMP // 2, WindowCenter=window[0], WindowWidth=window[1])
    assert (shown(data) == stretched(RAMP // 2)).all()


def test_a_window_without_a_function() -> None:
    data = dicom(RAMP, WindowCenter=60, WindowWidth=40, VOILUTFunction="")
    assert (shown(data) == shown(dicom(RAMP, WindowCenter=60, WindowWidth=40))).all()


@pytest.mark.parametrize("shape", [None, "INVERSE"])
def test_monochrome1_is_inverted_once(shape: str | None) -> None:
    """A presentation shape INVERSE says the same once more: the standard has it beside MONOCHROME1."""
    more = {"PresentationLUTShape": shape} if shape else {}
    assert (shown(dicom(RAMP, PhotometricInterpretation="MONOCHROME1", **more)) == 255 - RAMP.astype(int)).all()


def item(entries: int, first: int, bits: int, data: list[int], dtype: str = "<u2") -> Dataset:
    table = Dataset()
    table.add_new("LUTDescriptor", "SS" if first < 0 else "US", [entries % 2**16, first, bits])
    table.add_new("LUTData", "OW", np.array(data, dtype).tobytes())
    return table


def test_a_table_of_values_of_interest() -> None:
    array = np.array([[0, 9, 10, 11, 12, 99]], "uint16")
    data = dicom(array, VOILUTSequence=[item(3, 10, 16, [0, 65535, 13107])], WindowCenter=5, WindowWidth=2)
    assert shown(data).tolist() == [[0, 0, 0, 255, 51, 51]]


def test_a_table_of_eight_bits_for_twelve() -> None:
    """pydicom's own lookup counts in the table's eight bits, and takes value 256 for 0."""
    array = np.array([[0, 255, 256, 4095]], "uint16")
    table = item(4096, 0, 8, [i // 16 for i in range(4096)])
    assert shown(dicom(array, BitsStored=12, VOILUTSequence=[table])).tolist() == [[0, 15, 16, 255]]


def test_a_table_whose_entries_are_packed_in_bytes() -> None:
    array = np.array([[0, 1, 2, 3]], "uint8")
    assert shown(dicom(array, VOILUTSequence=[item(4, 0, 8, [0, 51, 102, 255], "u1")])).tolist() == [[0, 51, 102, 255]]


def test_a_table_of_as_many_entries_as_there_are() -> None:
    """Which sixteen bits cannot say: the standard writes 0."""
    array = np.array([[0, 255, 65535]], "uint16")
    table = item(2**16, 0, 16, list(range(2**16)))
    assert table.LUTDescriptor[0] == 0
    assert shown(dicom(array, VOILUTSequence=[table])).tolist() == [[0, 1, 255]]


def test_what_fills_a_table_up_is_no_entry() -> None:
    array = np.array([[0, 1, 2, 3]], "uint8")
    table = item(3, 0, 8, [0, 51, 255, 0], "u1")
    assert shown(dicom(array, VOILUTSequence=[table])).tolist() == [[0, 51, 255, 255]]


def test_a_table_that_says_sixteen_bits_and_uses_twelve() -> None:
    array = np.array([[0, 1, 2]], "uint16")
    assert shown(dicom(array, VOILUTSequence=[item(3, 0, 16, [0, 819, 4095])])).tolist() == [[0, 51, 255]]


def test_a_table_after_a_rescale() -> None:
    array = np.array([[0, 1, 2]], "int16")
    data = dicom(array, RescaleSlope=1, RescaleIntercept=-1, VOILUTSequence=[item(3, -1, 16, [0, 100, 255])])
    assert shown(data).tolist() == [[0, 100, 255]]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_modality_table_comes_before_the_window(syntax: str) -> None:
    array = np.array([[0, 1, 2, 3]], "uint8")
    order = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
    data = dicom(
        array,
        syntax=syntax,
        ModalityLUTSequence=[item(4, 0, 16, [1000, 2000, 3000, 4000], order)],
        WindowCenter=2500.5,
        WindowWidth=1001,
    )
    assert shown(data).tolist() == [[0, 0, 255, 255]]


def test_padding_does_not_count() -> None:
    array = np.array([[-2000, 0, 50, 100]], "int16")
    assert shown(dicom(array, PixelPaddingValue=-2000)).tolist() == [[0, 0, 128, 255]]
    assert shown(dicom(array)).tolist() == stretched(array).tolist()


def test_signed_padding_written_as_unsigned() -> None:
    ds = pictured(np.array([[-2000, 0, 50, 100]], "int16"))
    ds.add_new("PixelPaddingValue", "US", 63536)
    assert shown(written(ds)).tolist() == [[0, 0, 128, 255]]


def test_nothing_but_padding() -> None:
    assert shown(dicom(np.array([[5, 5]], "uint8"), PixelPaddingValue=5)).tolist() == [[0, 0]]


def test_one_bit() -> None:
    """Frames of a segmentation need not begin with a byte."""
    ds = pictured(np.zeros((2, 1, 3), "uint8"), frames=2, BitsAllocated=1, BitsStored=1)
    ds.PixelData = bytes([0b00_011_010, 0])  # the first frame is 0 1 0, the second 1 1 0
    assert [shown(written(ds), frame).tolist() for frame in (0, 1)] == [[[0, 255, 0]], [[255, 255, 0]]]


# --- colours ------------------------------------------------------------------------------------------------------

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [200, 100, 50]]], "uint8")


def test_rgb() -> None:
    assert (shown(dicom(COLOURS)) == COLOURS).all()
    planes = np.ascontiguousarray(COLOURS.transpose(2, 0, 1)).tobytes()
    assert (shown(dicom(COLOURS, PlanarConfiguration=1, PixelData=planes)) == COLOURS).all()


def test_ybr() -> None:
    ybr = convert_color_space(COLOURS, "RGB", "YBR_FULL")
    assert np.abs(shown(dicom(ybr, PhotometricInterpretation="YBR_FULL")) - COLOURS).max() <= 2


def test_ybr_with_every_second_colour() -> None:
    y1, y2, cb, cr = 76, 150, 85, 255
    ds = pictured(np.zeros((1, 2, 3), "uint8"), PhotometricInterpretation="YBR_FULL_422")
    ds.PixelData = bytes([y1, y2, cb, cr])
    full = convert_color_space(np.array([[[y1, cb, cr], [y2, cb, cr]]], "uint8"), "YBR_FULL", "RGB")
    assert (shown(written(ds)) == full).all()


@pytest.mark.parametrize(("stored", "top"), [(16, 65535), (12, 4095)])
def test_colours_of_more_bits(stored: int, top: int) -> None:
    array = np.array([[[0, top, top // 2]]], "uint16")
    assert shown(dicom(array, BitsStored=stored)).tolist() == [[[0, 255, 127]]]


def palette(red: list[int], green: list[int], blue: list[int], bits: int, first: int = 0) -> dict[str, Any]:
    elements: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, entries in (("Red", red), ("Green", green), ("Blue", blue)):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [len(entries), first, bits]
        elements[f"{colour}PaletteColorLookupTableData"] = np.array(entries, "<u2" if bits == 16 else "u1").tobytes()
    return elements


def test_a_palette_of_eight_bits() -> None:
    array = np.array([[0, 1, 2, 3, 9]], "uint8")
    data = dicom(array, **palette([255, 0, 0, 9], [0, 255, 0, 8], [0, 0, 255, 7], 8, first=1))
    assert shown(data).tolist() == [[[255, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]]]


def test_a_palette_of_sixteen_bits() -> None:
    """Blue is all but black: what is small in sixteen bits is not bright in eight."""
    array = np.array([[0, 1]], "uint8")
    assert shown(dicom(array, **palette([0xFF00, 0], [0x8080, 0xFFFF], [200, 0], 16))).tolist() == [
        [[255, 128, 0], [0, 255, 0]]
    ]
    assert shown(dicom(array, **palette([255, 0], [128, 255], [200, 0], 16))).tolist() == [
        [[255, 128, 200], [0, 255, 0]]
    ]


def test_a_palette_of_signed_values() -> None:
    ds = pictured(np.array([[-1, 0]], "int16"), **palette([255, 0], [0, 255], [0, 0], 8))
    for colour in ("Red", "Green", "Blue"):
        ds.add_new(f"{colour}PaletteColorLookupTableDescriptor", "SS", [2, -1, 8])
    assert shown(written(ds)).tolist() == [[[255, 0, 0], [0, 255, 0]]]


def test_a_palette_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="palette is missing, or in segments"):
        shown(dicom(RAMP, PhotometricInterpretation="PALETTE COLOR"))


BARS = [
    *("SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_dcmtk_+eb+cy+n1.dcm", "SC_rgb_dcmtk_+eb+cy+s2.dcm", "SC_rgb_gdcm_KY.dcm"),
    *("SC_rgb_rle.dcm", "SC_rgb_rle_16bit.dcm", "SC_rgb_rle_32bit.dcm", "SC_rgb_jpeg_dcmtk.dcm"),
    *("SC_ybr_full_422_uncompressed.dcm", "SC_rgb_jpeg_lossy_gdcm.dcm"),
]


@pytest.mark.parametrize("name", BARS)
def test_bars_of_colour_however_they_are_coded(name: str) -> None:
    """Files of pydicom's, by other programs: red, pale red, green, ... black, dark grey, light grey, white."""
    bars = shown(Path(str(get_testdata_file(name, download=False))).read_bytes())[5::10, 50]
    expected = [[255, 0, 0], [255, 128, 128], [0, 255, 0], [128, 255, 128], [0, 0, 255], [128, 128, 255]]
    expected += [[grey] * 3 for grey in (0, 64, 192, 255)]
    assert np.abs(bars - expected).max() <= 5


@pytest.mark.parametrize("name", ["MR_small_RLE", "MR_small_bigendian", "MR_small_implicit", "MR_small_jp2klossless"])
def test_a_scanners_file_however_it_is_coded(name: str) -> None:
    plain, other = (Path(str(get_testdata_file(f"{n}.dcm", download=False))).read_bytes() for n in ("MR_small", name))
    assert (shown(plain) == shown(other)).all()


# --- frames -------------------------------------------------------------------------------------------------------

CLIP = np.stack([RAMP, RAMP[::-1], RAMP.T])


@pytest.mark.parametrize("coded", [False, True])
def test_a_frame_by_its_number(coded: bool, store: ImageStore) -> None:
    data = rle(CLIP, frames=3) if coded else dicom(CLIP, frames=3)
    for frame in range(3):
        assert (shown(data, frame) == CLIP[frame]).all()
        kept = store.put({"image": data, "frame": frame})
        assert (np.asarray(store.open(kept))[..., 0] == CLIP[frame]).all()


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (None, r"the file has 3 frames; give one, from 0 to 2: \{'image': ..., 'frame': 0\}"),
        (3, "no such frame; give a whole number from 0 to 2"),
        (-1, "no such frame; give a whole number from 0 to 2"),
        (True, "cannot use a bool; give a whole number from 0 to 2"),
        ("0", "cannot use a str; give a whole number from 0 to 2"),
        (1.0, "cannot use a float; give a whole number from 0 to 2"),
    ],
)
def test_a_frame_that_is_not_there(frame: Any, said: str, store: ImageStore) -> None:
    with pytest.raises(ValueError, match=said):
        store.put({"image": dicom(CLIP, frames=3), "frame": frame})


def test_a_file_of_one_frame_needs_none() -> None:
    assert (shown(dicom(RAMP), 0) == shown(dicom(RAMP[None], frames=1))).all()
    with pytest.raises(ValueError, match="there is one frame: give 0, or no frame"):
        shown(dicom(RAMP), 1)


def test_frames_that_are_said_to_be_there() -> None:
    data = dicom(CLIP, frames=3, NumberOfFrames=2_000_000_000)
    with pytest.raises(ValueError, match="cannot be decoded and may be damaged"):
        shown(data, 1_999_999_999)


def test_only_the_frame_that_is_asked_for_is_decoded() -> None:
    ds = pictured(CLIP, frames=3, syntax=RLELossless)
    good = rle_frame(CLIP[2])
    ds.PixelData = encapsulate([b"\xff" * 64, b"\xff" * 64, good])
    ds["PixelData"].is_undefined_length = True
    assert (shown(written(ds), 2) == CLIP[2]).all()
    with pytest.raises(ValueError, match="cannot be decoded"):
        shown(written(ds), 0)


def test_an_enhanced_file_says_it_for_each_frame() -> None:
    def groups(**macros: dict[str, Any]) -> Dataset:
        group = Dataset()
        for macro, elements in macros.items():
            inner = Dataset()
            for keyword, value in elements.items():
                setattr(inner, keyword, value)
            setattr(group, macro, [inner])
        return group

    ds = pictured(CLIP, frames=3)
    ds.SharedFunctionalGroupsSequence = [
        groups(
            PixelValueTransformationSequence={"RescaleSlope": 2, "RescaleIntercept": -100},
            FrameVOILUTSequence={"WindowCenter": 0, "WindowWidth": 1000},
        )
    ]
    ds.PerFrameFunctionalGroupsSequence = [
        groups(FrameVOILUTSequence={"WindowCenter": center, "WindowWidth": 101}) for center in (0, 50)
    ] + [groups()]
    data = written(ds)
    for frame, window in enumerate([(0, 101), (50, 101), (0, 1000)]):
        assert np.abs(shown(data, frame) - linear(CLIP[frame] * 2.0 - 100, *window)).max() <= 0.51
    ds.WindowCenter, ds.WindowWidth = 10, 51  # what is said of the file holds
    assert np.abs(shown(written(ds), 1) - linear(CLIP[1] * 2.0 - 100, 10, 51)).max() <= 0.51


# --- compression and limits ---------------------------------------------------------------------------------------


def rle(array: np.ndarray, **more: Any) -> bytes:
    ds = pictured(array, **more)
    ds.compress(RLELossless, encoding_plugin="pydicom")
    return written(ds)


def rle_frame(array: np.ndarray) -> bytes:
    """A frame of 8-bit grey in run lengths that run over nothing."""
    segment = b"".join(bytes([len(row) - 1]) + row.tobytes() for row in array)
    return struct.pack("<16L", 1, 64, *[0] * 14) + segment


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_run_lengths(dtype: str) -> None:
    array = np.repeat(np.arange(-7 if dtype == "int16" else 0, 25), 40).reshape(-1, 20).astype(dtype)
    assert (shown(rle(array)) == stretched(array)).all()
    assert (shown(rle(COLOURS)) == COLOURS).all()


@pytest.mark.parametrize("runs", [b"\x81\0" * 1000, (b"\x7f" + bytes(128)) * 8, b"\xff\0" * 300])
def test_run_lengths_that_never_end(runs: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are counted first: pydicom would write out as much as they say."""
    monkeypatch.setattr("pydicom.pixels.decoders.rle._rle_decode_segment", lambda _: pytest.fail("decoded"))
    ds = pictured(RAMP, syntax=RLELossless)
    ds.PixelData = encapsulate([struct.pack("<16L", 1, 64, *[0] * 14) + runs])
    ds["PixelData"].is_undefined_length = True
    with pytest.raises(ValueError, match=r"RLE Lossless.* decode to more than its picture"):
        shown(written(ds))


def test_run_lengths_with_padding_are_read() -> None:
    ds = pictured(RAMP, syntax=RLELossless)
    ds.PixelData = encapsulate([rle_frame(RAMP) + b"\x03\0\0\0\0\x80"])
    ds["PixelData"].is_undefined_length = True
    assert (shown(written(ds)) == RAMP).all()


def compressed(picture: bytes, syntax: str, array: np.ndarray = RAMP) -> bytes:
    ds = pictured(array, syntax=syntax, WindowCenter=128, WindowWidth=256)
    ds.PixelData = encapsulate([picture])
    ds["PixelData"].is_undefined_length = True
    return written(ds)


def coded(form: str, **more: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RAMP).save(buffer, form, **more)
    return buffer.getvalue()


def test_jpeg() -> None:
    assert np.abs(shown(compressed(coded("JPEG", quality=100), JPEGBaseline8Bit)) - RAMP).max() <= 3


def test_jpeg_2000() -> None:
    for boxes in (False, True):  # the standard wants none, and writers put some
        data = compressed(coded("JPEG2000", no_jp2=not boxes), JPEG2000Lossless)
        assert (b"jp2c" in data) is boxes
        assert np.abs(shown(data) - linear(RAMP, 128, 256)).max() <= 0.51


def test_jpeg_2000_in_a_box_without_end() -> None:
    """pydicom would go round in circles."""
    boxes = coded("JPEG2000")
    at = boxes.index(b"jp2h") - 4
    for head in (boxes[:12], b"\0\0\0\x0cjP  ...."):
        data = compressed(head + boxes[12:at] + bytes(4) + boxes[at + 4 :], JPEG2000Lossless)
        raised: list[str] = []

        def work(data: bytes = data, raised: list[str] = raised) -> None:
            try:
                shown(data)
            except ValueError as error:
                raised.append(str(error))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(10)
        assert raised == ["the DICOM file's pixels (JPEG 2000) are in a box of no length"]


@pytest.mark.parametrize(
    ("syntax", "said"),
    [
        (
            JPEGLossless,
            r"compressed \(JPEG Lossless.*no decoder is installed; pip install 'pylibjpeg\[all\]' or python-g",
        ),
        (JPEGLSLossless, r"compressed \(JPEG-LS Lossless.*no decoder is installed; pip install"),
        (MPEG4HP41, r"transfer syntax \(MPEG-4 AVC/H.264 High Profile / Level 4.1\) is not one"),
        ("1.2.3.4.5.19501231", r"transfer syntax \(unknown\) is not one"),
    ],
)
def test_a_compression_that_cannot_be_read(syntax: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JPEGLosslessDecoder", "JPEGLSLosslessDecoder"):
        monkeypatch.setattr(getattr(sys.modules["pydicom.pixels.decoders.base"], name), "_available", {})
    ds = pictured(RAMP, syntax=ExplicitVRLittleEndian if syntax.startswith("1.2.3") else syntax)
    ds.PixelData = encapsulate([b"\0" * 20])
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = syntax
    with pytest.raises(ValueError, match=said):
        shown(written(ds) if not syntax.startswith("1.2.3") else with_syntax(ds, syntax))


def with_syntax(ds: Dataset, syntax: str) -> bytes:
    """A file of a syntax that pydicom does not write: what it says of itself is as long as what is put there."""
    ds.file_meta.TransferSyntaxUID = JPEGLossless
    data = written(ds)
    plain = str(JPEGLossless).encode()
    return data.replace(plain, syntax.encode().ljust(len(plain), b"\0")[: len(plain)])


@pytest.mark.parametrize(("form", "syntax"), [("JPEG2000", JPEG2000Lossless), ("JPEG", JPEGBaseline8Bit)])
def test_a_small_frame_of_a_huge_picture(form: str, syntax: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few hundred bytes of JPEG 2000 decode to more than a gigabyte, whatever size the file says that they have."""
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.as_array", lambda *_, **__: pytest.fail("decoded"))
    buffer = io.BytesIO()
    Image.new("L", (1200, 1200)).save(buffer, form)
    with pytest.raises(ValueError, match="decode to another size than its picture"):
        shown(compressed(buffer.getvalue(), syntax))


@pytest.mark.parametrize("undefined", [False, True])
def test_a_file_of_countless_items(undefined: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight bytes each, and pydicom makes a data set of every one: minutes, and gigabytes."""
    monkeypatch.setattr(pydicom, "dcmread", lambda *_, **__: pytest.fail("parsed"))
    items = b"\xfe\xff\x00\xe0\0\0\0\0" * 100_001
    length = 0xFFFFFFFF if undefined else len(items)
    sequence = struct.pack("<HH2sHL", 0x5200, 0x9230, b"SQ", 0, length) + items
    data = dicom(RAMP)
    at = data.rindex(b"\xe0\x7f\x10\x00")
    with pytest.raises(ValueError, match="more than the 100000 items"):
        shown(data[:at] + sequence + data[at:])


def test_too_many_pixels_are_not_decoded(monkeypatch: pytest.MonkeyPatch, store: ImageStore) -> None:
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.as_array", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="60000 x 50000 pixels, where 1 to 100000000"):
        store.put(dicom(RAMP, Rows=50_000, Columns=60_000))
    monkeypatch.setattr(images, "MAX_PIXELS", 255)
    with pytest.raises(ValueError, match="16 x 16 pixels, where 1 to 255"):
        store.put(dicom(RAMP))


def test_a_file_that_inflates_without_end(monkeypatch: pytest.MonkeyPatch, store: ImageStore) -> None:
    data = dicom(np.zeros((300, 300), "uint8"), syntax=DeflatedExplicitVRLittleEndian)
    assert len(data) < 5_000
    assert store.put(data)
    monkeypatch.setattr(images, "MAX_BYTES", 50_000)
    monkeypatch.setattr("zlib.decompress", lambda *_: pytest.fail("inflated"))
    with pytest.raises(ValueError, match="inflates to more than the 50000 bytes"):
        store.put(data)


def test_a_file_that_hides_that_it_is_deflated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its header says that it is shorter than it is; pydicom reads it to its end all the same."""
    monkeypatch.setattr("zlib.decompress", lambda *_: pytest.fail("inflated"))
    data = bytearray(dicom(RAMP, syntax=DeflatedExplicitVRLittleEndian))
    data[140:144] = struct.pack("<L", 20)
    with pytest.raises(ValueError, match="DICOM"):
        shown(bytes(data))


def test_a_file_that_is_deflated_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is inflated goes on with the header, and says there that it is deflated."""
    monkeypatch.setattr("zlib.decompress", lambda *_: pytest.fail("inflated"))

    def element(number: int, uid: bytes) -> bytes:
        return struct.pack("<HH2sH", 2, number, b"UI", len(uid)) + uid

    deflated = str(DeflatedExplicitVRLittleEndian).encode()
    first = element(3, deflated)
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    second = deflate.compress(element(16, deflated) + b"anything") + deflate.flush()
    header = bytes(128) + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(first)) + first
    with pytest.raises(ValueError, match="DICOM"):
        shown(header + second)


def test_what_is_needed_in_between_is_not_as_large_as_the_picture() -> None:
    """One float a pixel would be four times the file."""
    data = dicom(
        np.tile(np.arange(4096, dtype="uint16"), (1000, 1)), BitsStored=12, WindowCenter=2048, WindowWidth=4096
    )
    shown(dicom(RAMP))  # what is imported is not counted
    tracemalloc.start()
    try:
        dicom_picture(data, None, max_bytes=images.MAX_BYTES, max_pixels=images.MAX_PIXELS)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data)
    finally:
        tracemalloc.stop()


# --- what is no picture -------------------------------------------------------------------------------------------


def without(ds: Dataset, *keywords: str) -> bytes:
    for keyword in keywords:
        delattr(ds, keyword)
    return written(ds)


def test_a_file_without_a_picture() -> None:
    report = dataset()
    report.ContentSequence = []
    pdf = dataset()
    pdf.EncapsulatedDocument = b"%PDF-1.7"
    for data in (written(report), written(pdf), without(pictured(RAMP), "PixelData"), without(pictured(RAMP), "Rows")):
        with pytest.raises(ValueError, match="holds no picture, and may be a report, a PDF"):
            shown(data)


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ({"Rows": 0}, "holds no pixels"),
        ({"NumberOfFrames": -3}, "holds no pixels"),
        ({"Rows": 17}, "cannot be decoded and may be damaged"),
        ({"PhotometricInterpretation": "HSV"}, "photometric interpretation is not grey, a palette, RGB or YBR"),
        ({"BitsAllocated": 7}, "cannot be decoded"),
        ({"SamplesPerPixel": 2}, "cannot be decoded"),
        (
            {"WindowCenter": 1, "WindowWidth": 2, "VOILUTFunction": "CUBIC"},
            "window is of a shape that the standard does not have",
        ),
    ],
)
def test_a_header_that_is_wrong(elements: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        shown(dicom(RAMP, **elements))


def test_a_file_that_does_not_say_how_it_is_written() -> None:
    data = dicom(RAMP).replace(b"\x02\0\x10\0UI", b"\x02\0\x11\0UI")
    with pytest.raises(ValueError, match="transfer syntax"):
        shown(data)


def test_what_is_dicom() -> None:
    data = dicom(RAMP)
    assert is_dicom(data)
    assert not is_dicom(data[128:])
    assert not is_dicom(b"")
    assert not is_dicom(b"DICM")


@pytest.mark.parametrize("module", ["pydicom", "numpy"])
def test_without_the_extra(module: str, monkeypatch: pytest.MonkeyPatch, store: ImageStore) -> None:
    data = dicom(RAMP)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"needs {module}; pip install 'mmedagent-graph\[dicom\]'"):
        store.put(data)


@pytest.mark.parametrize("module", [dicom_module, images, pictures, sources, metadata])
def test_what_is_not_always_there_is_imported_when_it_is_needed(module: ModuleType) -> None:
    top = ast.parse(Path(str(module.__file__)).read_text()).body
    names = [alias.name for node in top if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in top if isinstance(node, ast.ImportFrom)]
    assert names
    assert not {name.partition(".")[0] for name in names} & {"pydicom", "numpy", "httpx"}


# --- patients -----------------------------------------------------------------------------------------------------


def chunks(png: bytes) -> list[bytes]:
    kinds, at = [], 8
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        kinds.append(kind)
        at += 12 + length
    return kinds


def test_pixels_are_all_that_is_kept(store: ImageStore) -> None:
    for data in (dicom(RAMP), dicom(COLOURS), data_url(dicom(RAMP), "application/dicom")):
        kept = store.get(store.put(data))
        assert set(chunks(kept)) == {b"IHDR", b"IDAT", b"IEND"}
    assert b"Doe" not in b"".join(path.read_bytes() for path in store.folder.iterdir())


def chained(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


LEAKS = {
    **dict.fromkeys(["WindowCenter", "WindowWidth", "RescaleSlope"], "DS"),
    **dict.fromkeys(["PhotometricInterpretation", "VOILUTFunction"], "CS"),
    **dict.fromkeys(["Rows", "BitsAllocated", "PixelRepresentation", "SamplesPerPixel", "PlanarConfiguration"], "LO"),
    **{"NumberOfFrames": "IS", "PixelPaddingValue": "LO", "PixelData": "OW"},
}


def named(ds: Dataset, **elements: str) -> bytes:
    """A file with the patient's name where there should be something else, in elements of such a type."""
    for keyword, vr in elements.items():
        ds.add_new(keyword, vr, b"77777777" if vr == "OW" else "77777777")
    return written(ds).replace(b"77777777", NAME.encode())


@pytest.mark.parametrize("keyword", LEAKS)
def test_no_error_warning_or_log_quotes_the_header(
    keyword: str, caplog: pytest.LogCaptureFixture, store: ImageStore, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level(logging.DEBUG)
    ds = pictured(RAMP, WindowCenter=1, WindowWidth=2, RescaleSlope=1, RescaleIntercept=0)
    data = named(ds, **{keyword: LEAKS[keyword]})
    assert data.count(NAME.encode()) == 4
    recwarn.clear()
    caplog.clear()
    try:
        store.put(data)
    except ValueError as error:
        said = [f"{link} {link.args}" for link in chained(error)]
    else:
        assert keyword in ("PixelPaddingValue", "PlanarConfiguration")  # are not looked at in such a file
        said = []
    said += [record.getMessage() + str(record.exc_info) for record in caplog.records]
    said += [str(warning.message) for warning in recwarn.list]
    assert "Jane" not in "".join(said)
    assert caplog.records == []
    assert recwarn.list == []


def test_patients_elements_are_not_even_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Dataset] = []
    dcmread = pydicom.dcmread

    def spied(*args: Any, **kwargs: Any) -> Dataset:
        read.append(dcmread(*args, **kwargs))
        return read[-1]

    monkeypatch.setattr(pydicom, "dcmread", spied)
    shown(dicom(RAMP))
    assert {element.tag.group for element in read[0]} <= {0x0028, 0x7FE0}


GOOD = [dicom(RAMP), rle(CLIP, frames=3), dicom(COLOURS, syntax=DeflatedExplicitVRLittleEndian)]


@given(
    st.sampled_from(GOOD),
    st.lists(st.tuples(st.integers(132, 5000), st.integers(0, 255)), max_size=4),
    st.integers(0, 5000),
)
@settings(deadline=None, max_examples=300)
def test_a_damaged_file_is_a_picture_or_a_plain_error(data: bytes, flips: list[tuple[int, int]], cut: int) -> None:
    damaged = bytearray(data)
    for at, value in flips:
        damaged[132 + at % (len(damaged) - 132)] = value
    end = len(damaged) - cut if cut < len(damaged) - 132 else len(damaged)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            shown(bytes(damaged[:end]), 0)
        except ValueError as error:
            said = "".join(str(link) for link in chained(error))
        else:
            said = ""
    assert "Doe" not in said
    assert caught == []


# --- quiet --------------------------------------------------------------------------------------------------------


def test_quiet_is_over_when_the_last_thread_is_out() -> None:
    filters = list(warnings.filters)
    data = named(pictured(RAMP), WindowCenter="DS", WindowWidth="DS")
    failures: list[str] = []

    def work() -> None:
        for _ in range(20):
            try:
                shown(data)
            except ValueError as error:
                failures.append(str(error))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(warnings.filters) == before
    assert len(failures) == 160
    assert caught == []
    assert list(warnings.filters) == filters
    assert all(logging.getLogger(name).propagate for name in ("pydicom", "PIL"))


def test_quiet_is_over_after_an_error() -> None:
    with pytest.raises(KeyError), quiet, quiet:
        raise KeyError
    assert logging.getLogger("pydicom").propagate
    with pytest.warns(UserWarning, match="heard"):
        warnings.warn("heard", UserWarning, stacklevel=1)


def test_quiet_in_quiet_is_over_with_the_outer_one() -> None:
    with quiet:
        with quiet:
            pass
        assert not logging.getLogger("pydicom").propagate
    assert logging.getLogger("pydicom").propagate


def test_other_warnings_are_heard_meanwhile() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet:
            warnings.warn("heard", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["heard"]
