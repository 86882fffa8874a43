"""Reading files: grey values against naive loops of the DICOM formulas, and every refusal by its sentence."""

import io
import math
import struct
import subprocess
import sys
import time
import zlib
from contextlib import suppress

import numpy as np
import pandas as pd
import pydicom
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from mammomil.dicom import MIN_SIDE, name_hints, read_image
from mammomil.files import InputError

SHAPE = (40, 48)


def stored_values(seed=0, low=500, high=3000):
    """A breast of random values, chest wall on the left, in air of exactly 0."""
    stored = np.random.default_rng(seed).integers(low, high, SHAPE).astype(np.uint16)
    stored[:, 30:] = 0
    return stored


def mammogram(stored=None, bits=12, **tags):
    """A small FOR PRESENTATION mammogram; `tags` replace or add elements, None removes one."""
    stored = stored_values() if stored is None else np.asarray(stored)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    values = {
        "SOPClassUID": uid.DigitalMammographyXRayImageStorageForPresentation,
        "SOPInstanceUID": "1.2.3.4",
        "Modality": "MG",
        "PresentationIntentType": "FOR PRESENTATION",
        "ImageType": ["ORIGINAL", "PRIMARY", ""],
        "PatientName": "Secret^Person",
        "PatientID": "SECRET-17",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8 * stored.dtype.itemsize,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        **tags,
    }
    with pydicom.config.disable_value_validation():
        for keyword, value in values.items():
            if value is not None:
                setattr(dataset, keyword, value)
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def save(folder, dataset, name="image.dcm"):
    path = folder / name
    with pydicom.config.disable_value_validation():
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
        dataset.save_as(path, enforce_file_format=True)
    return path


def read(folder, stored=None, **tags):
    return read_image(save(folder, mammogram(stored, **tags)))


def lut(entries, first, bits=12, explanation="NORMAL"):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    item.LUTExplanation = explanation
    item.add_new("LUTData", "US", [int(value) for value in entries])
    return item


def linear(value, centre, width, top):
    """PS3.3 C.11.2.1.2.1, one value."""
    if value <= centre - 0.5 - (width - 1) / 2:
        return 0.0
    if value > centre - 0.5 + (width - 1) / 2:
        return float(top)
    return ((value - (centre - 0.5)) / (width - 1) + 0.5) * top


def sigmoid(value, centre, width, top):
    """PS3.3 C.11.2.1.3.1, one value."""
    return top / (1 + math.exp(-4 * (value - centre) / width))


def pixelwise(function, stored):
    return np.array([[function(int(value)) for value in row] for row in stored])


# -- grey values


@pytest.mark.parametrize(("name", "formula"), [("LINEAR", linear), ("SIGMOID", sigmoid), (None, linear)])
def test_first_window_follows_the_standard_and_air_is_zero(tmp_path, name, formula):
    stored = stored_values()
    windows = {"WindowCenter": [1700, 9], "WindowWidth": [2200, 9], "VOILUTFunction": name}
    result = read(tmp_path, stored, **windows)
    expected = pixelwise(lambda value: formula(value, 1700, 2200, 4095), stored)
    expected[stored == 0] = 0
    np.testing.assert_allclose(result.pixels, expected, rtol=1e-6, atol=1e-3)
    assert result.pixels.dtype == np.float32
    assert result.notes[0] == f"Grey values: window 1 of 2, {name or 'LINEAR'}, centre 1700, width 2200."


def test_a_sigmoid_window_lifts_air_and_air_is_zeroed_again(tmp_path):
    stored = stored_values()
    stored[:5, 30:] = 25  # noise of the air, declared as padding
    tags = {"WindowCenter": 1700, "WindowWidth": 2200, "VOILUTFunction": "SIGMOID"}
    assert sigmoid(0, 1700, 2200, 4095) > 1
    undeclared = read(tmp_path, stored, **tags).pixels
    assert (undeclared[5:, 30:] == 0).all()
    assert (undeclared[:5, 30:] > 1).all()
    declared = read(tmp_path, stored, **tags, PixelPaddingValue=0, PixelPaddingRangeLimit=30).pixels
    assert (declared[:, 30:] == 0).all()
    assert (declared[:, :30] > 1).all()


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_first_voi_lut_goes_before_a_window(tmp_path, bits):
    stored = stored_values()
    entries = (np.arange(2000) * (2**bits - 1) // 1999) ^ 1  # no multiple, no offset: a table of its own
    windows = {"WindowCenter": 1700, "WindowWidth": 300}
    luts = [lut(entries, 700, bits), lut([1, 2, 3], 0)]
    result = read(tmp_path, stored, VOILUTSequence=luts, **windows)
    expected = pixelwise(lambda value: entries[min(max(value - 700, 0), 1999)], stored)
    expected[stored == 0] = 0
    np.testing.assert_array_equal(result.pixels, expected)
    assert result.notes[0] == "Grey values: VOI LUT 1 of 2 NORMAL."


def test_without_voi_the_stored_values_are_kept(tmp_path):
    result = read(tmp_path)
    np.testing.assert_array_equal(result.pixels, stored_values())
    assert result.notes[0] == "Grey values: as stored; the file has no VOI LUT or window."


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 1700, "WindowWidth": 0},
        {"WindowCenter": 60000, "WindowWidth": 10},  # every pixel below the window
        {"VOILUTSequence": [lut(range(50), 0, 9)]},  # 9 bits do not exist
        {"WindowCenter": 1700, "WindowWidth": 100, "VOILUTFunction": "CUBIC"},
    ],
)
def test_a_useless_voi_is_left_out_and_said(tmp_path, tags):
    result = read(tmp_path, **tags)
    np.testing.assert_array_equal(result.pixels, stored_values())
    assert "cannot be used" in result.notes[0]


def test_rescale_comes_before_the_window(tmp_path):
    stored = stored_values()
    tags = {"RescaleSlope": 2, "RescaleIntercept": 100, "WindowCenter": 3500, "WindowWidth": 4000}
    expected = pixelwise(lambda value: linear(2 * value + 100, 3500, 4000, 4095), stored) * 2 + 100
    expected[stored == 0] = 0  # the output range of the window is that of the rescaled values
    np.testing.assert_allclose(read(tmp_path, stored, **tags).pixels, expected, rtol=1e-6)


def test_negative_values_are_lifted(tmp_path):
    stored = stored_values()
    result = read(tmp_path, stored, RescaleSlope=1, RescaleIntercept=-1000).pixels
    tissue = stored > 0
    np.testing.assert_array_equal(result[tissue], stored[tissue].astype(float) - stored[tissue].min())
    assert (result[~tissue] == 0).all()
    signed = stored.astype(np.int16) - 2048  # air is the bottom of the range
    np.testing.assert_array_equal(read(tmp_path, signed).pixels, result)


def test_negative_window_output_is_lifted(tmp_path):
    signed = stored_values().astype(np.int16) - 2048
    result = read(tmp_path, signed, WindowCenter=0, WindowWidth=3000)
    expected = pixelwise(lambda value: linear(value, 0, 3000, 4095), signed)
    tissue = signed > -2048
    np.testing.assert_allclose(result.pixels[tissue], expected[tissue] - expected[tissue].min(), atol=1e-3)


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), voi=st.sampled_from(["none", "sigmoid", "lut"]))
def test_monochrome1_equals_the_monochrome2_original(tmp_path_factory, seed, voi):
    folder = tmp_path_factory.mktemp("mono")
    stored = stored_values(seed)
    entries = np.sort(np.random.default_rng(seed).integers(0, 4096, 4096))
    entries[-1] = 4095
    window = {"WindowWidth": 1500, "VOILUTFunction": "SIGMOID"}
    tags = {
        "none": ({}, {}),
        "sigmoid": ({"WindowCenter": 1800, **window}, {"WindowCenter": 4095 - 1800, **window}),
        "lut": (
            {"VOILUTSequence": [lut(entries, 0)]},
            {"VOILUTSequence": [lut(4095 - entries[::-1], 0)]},
        ),
    }[voi]
    original = read(folder, stored, **tags[0]).pixels
    inverse = read(folder, 4095 - stored, PhotometricInterpretation="MONOCHROME1", **tags[1])
    np.testing.assert_allclose(inverse.pixels, original, atol=2e-3)
    assert (inverse.pixels[:, 30:] == 0).all()  # padding at the top, not declared


def test_monochrome1_is_mirrored_after_the_window_not_before(tmp_path):
    stored = 4095 - stored_values()
    window = {"WindowCenter": 3000, "WindowWidth": 2000}  # one-sided: mirroring first would give other values
    result = read(tmp_path, stored, PhotometricInterpretation="MONOCHROME1", **window).pixels
    expected = 4095 - pixelwise(lambda value: linear(value, 3000, 2000, 4095), stored)
    expected[stored == 4095] = 0
    np.testing.assert_allclose(result, expected, atol=1e-3)


def test_monochrome1_padding_range_may_be_given_from_the_top(tmp_path):
    stored = 4095 - stored_values()
    stored[:5, 30:] = 4070
    tags = {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 4095}
    result = read(tmp_path, stored, PixelPaddingRangeLimit=4065, **tags).pixels
    assert (result[:, 30:] == 0).all()
    np.testing.assert_array_equal(result[:, :30], stored_values()[:, :30])


def test_monochrome1_mirrors_in_the_bits_in_use(tmp_path):
    """12-bit values declared as 16 bits must not end up above 61000."""
    stored = 4095 - stored_values()
    result = read(tmp_path, stored, bits=16, PhotometricInterpretation="MONOCHROME1").pixels
    np.testing.assert_array_equal(result, stored_values())


def test_raw_images_only_on_request_and_dense_is_bright(tmp_path):
    raw = uid.DigitalMammographyXRayImageStorageForProcessing
    stored = 4095 - stored_values()  # many X-rays in air
    path = save(tmp_path, mammogram(stored, SOPClassUID=raw, PixelIntensityRelationshipSign=1))
    with pytest.raises(InputError, match="allow_processing=True"):
        read_image(path)
    result = read_image(path, allow_processing=True)
    np.testing.assert_array_equal(result.pixels, stored_values())
    assert "raw" in result.notes[0]
    intent = save(tmp_path, mammogram(PresentationIntentType="FOR PROCESSING"))
    with pytest.raises(InputError, match="FOR PROCESSING"):
        read_image(intent)
    np.testing.assert_array_equal(read_image(intent, allow_processing=True).pixels, stored_values())


# -- spacing, laterality, view


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"ImagerPixelSpacing": [0.1, 0.1]}, 0.1),
        ({"ImagerPixelSpacing": [0.1, 0.1], "PixelSpacing": [0.2, 0.2]}, 0.1),
        ({"ImagerPixelSpacing": [0.1, 0.1], "EstimatedRadiographicMagnificationFactor": 1.25}, 0.08),
        ({"ImagerPixelSpacing": [0.1, 0.1], "EstimatedRadiographicMagnificationFactor": 0}, 0.1),
        ({"PixelSpacing": [0.2, 0.2], "EstimatedRadiographicMagnificationFactor": 2}, 0.2),
        ({"PixelSpacing": [0.2, 0.2], "NominalScannedPixelSpacing": [0.05, 0.05]}, 0.2),
        ({"NominalScannedPixelSpacing": [0.05, 0.05]}, 0.05),
        ({"DetectorElementSpacing": [0.1, 0.1]}, math.nan),
        ({}, math.nan),
        ({"ImagerPixelSpacing": [0, 0]}, math.nan),
        ({"ImagerPixelSpacing": [0, 0], "PixelSpacing": [0.2, 0.2]}, 0.2),
        ({"ImagerPixelSpacing": [0.1, 0.2]}, math.nan),
        ({"ImagerPixelSpacing": [100, 100]}, math.nan),
    ],
)
def test_spacing(tmp_path, tags, expected):
    np.testing.assert_allclose(read(tmp_path, **tags).spacing_mm, expected)


def test_spacing_notes(tmp_path):
    uncalibrated = read(tmp_path, PixelSpacing=[0.2, 0.2])
    assert "not calibrated" in uncalibrated.notes[-1]
    calibrated = read(tmp_path, PixelSpacing=[0.2, 0.2], PixelSpacingCalibrationType="FIDUCIAL")
    assert len(calibrated.notes) == 1
    assert "not square" in read(tmp_path, ImagerPixelSpacing=[0.1, 0.2]).notes[1]
    assert "unknown" in read(tmp_path).notes[-1]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"ImageLaterality": "L", "Laterality": "R", "PatientOrientation": ["P", "L"]}, "L"),
        ({"Laterality": "R", "PatientOrientation": ["A", "R"]}, "R"),
        ({"ImageLaterality": "B", "Laterality": "R"}, "R"),
        ({"PatientOrientation": ["A", "R"]}, "L"),
        ({"PatientOrientation": ["P", "FL"]}, "R"),
        ({"PatientOrientation": ["P", "R"]}, "L"),  # a left breast, flipped: the column decides
        ({"PatientOrientation": ["A", "F"]}, "L"),
        ({"PatientOrientation": ["P", "F"]}, "R"),
        ({"PatientOrientation": "CC"}, ""),
        ({}, ""),
    ],
)
def test_laterality(tmp_path, tags, expected):
    assert read(tmp_path, **tags).laterality == expected


def view_code(value, scheme="SCT"):
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, "view"
    return [item]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"ViewPosition": "MLO", "ViewCodeSequence": view_code("399162004")}, "MLO"),
        ({"ViewPosition": "RCC"}, "CC"),
        ({"ViewPosition": "LM"}, "LM"),
        ({"ViewPosition": "LLM"}, "LM"),
        ({"ViewPosition": "AP", "ViewCodeSequence": view_code("399162004")}, "CC"),
        ({"ViewCodeSequence": view_code("R-10226", "SNM3")}, "MLO"),
        ({"ViewCodeSequence": view_code("1234567")}, ""),
        ({"PatientOrientation": "MLO"}, "MLO"),  # CBIS-DDSM
        ({"PatientOrientation": ["A", "R"]}, ""),
        ({}, ""),
    ],
)
def test_view(tmp_path, tags, expected):
    assert read(tmp_path, **tags).view == expected


def test_view_codes_agree_with_pydicom(tmp_path):
    names = {
        "CranioCaudal": "CC",
        "MedioLateralObliqueProjection": "MLO",
        "MedioLateralProjection": "ML",
        "LateroMedial": "LM",
        "LateroMedialOblique": "LMO",
        "CaudoCranial": "FB",
        "CranioCaudalExaggeratedLaterally": "XCCL",
        "CranioCaudalExaggeratedMedially": "XCCM",
        "SuperolateralToInferomedialOblique": "SIO",
        "InferomedialToSuperolateralOblique": "ISO",
    }
    assert {*names, "TissueSpecimenFromBreast"} == set(codes.cid4014.concepts)
    older = ["R-10242", "R-10226", "R-10224", "R-10228", "R-10230"]
    older += ["R-10244", "R-1024A", "R-1024B", "R-102D0", "R-40AAA"]
    for (name, view), srt in zip(names.items(), older, strict=True):
        code = getattr(codes.cid4014, name)
        assert Code(srt, "SRT", "") == code  # pydicom knows that the old and the new code are one
        assert read(tmp_path, ViewCodeSequence=view_code(code.value)).view == view
        assert read(tmp_path, ViewCodeSequence=view_code(srt, "SRT")).view == view


def test_file_name_is_the_last_resort(tmp_path):
    path = save(tmp_path, mammogram(ImageLaterality="R"), "x_L_MLO.dcm")
    assert read_image(path)[1:3] == ("R", "MLO")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0_L-CC.png", ("L", "CC")),
        ("B_3629_1.LEFT_MLO.png", ("L", "MLO")),
        ("A_0016_1.RIGHT_MLO_LI.png", ("R", "MLO")),
        ("20586908_6c613a14b80a8591_MG_R_ML_ANON.dcm", ("R", "ML")),
        ("Mass-Test_P_01719_RIGHT_CC.png", ("R", "CC")),
        ("folder_L_CC/mdb028.pgm", ("", "")),
        ("rcc.png", ("R", "CC")),
        ("LMLO.tif", ("L", "MLO")),
        ("leftMlo.png", ("L", "MLO")),
        ("patient 7 left cc", ("L", "CC")),
        ("x_LM.png", ("", "LM")),
        ("x_L_LM.png", ("L", "LM")),
        ("RLMO.png", ("R", "LMO")),
        ("L_CC_vs_R_CC.png", ("", "CC")),
        ("accident_clml.png", ("", "")),
    ],
)
def test_name_hints(name, expected):
    assert name_hints(name) == expected


def test_a_tag_that_contradicts_the_pixels_is_noted(tmp_path):
    right = stored_values()[:, ::-1].copy()
    assert any("chest wall" in note for note in read(tmp_path, right, PatientOrientation=["A", "R"]).notes)
    for stored, row in ((stored_values(), "A"), (right, "P")):
        notes = read(tmp_path, stored, PatientOrientation=[row, "F"]).notes
        assert not any("chest wall" in note for note in notes)


# -- what is refused


@pytest.mark.parametrize(
    ("tags", "sentence"),
    [
        ({"SOPClassUID": uid.BreastTomosynthesisImageStorage}, "tomosynthesis"),
        ({"NumberOfFrames": 4}, "multi-frame"),
        (
            {"SOPClassUID": uid.CTImageStorage, "Modality": "CT"},
            r"no mammogram \(Modality CT, CT Image Storage",
        ),
        ({"SOPClassUID": uid.SecondaryCaptureImageStorage, "Modality": "RG"}, "no mammogram"),
        (
            {"SOPClassUID": uid.UltrasoundImageStorage, "Modality": "US", "BodyPartExamined": "BREAST"},
            "Modality US",
        ),
        ({"SOPClassUID": "1.2.3", "Modality": None}, "Modality missing, unknown SOP class"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "STEREO_MINUS"]}, "stereo, biopsy"),
        ({"ImageType": ["DERIVED", "PRIMARY", "TOMO_PROJ"]}, "tomosynthesis image"),
        ({"ImageType": ["DERIVED", "PRIMARY", "POSTMARKER"]}, "biopsy"),
        ({"ViewCodeSequence": view_code("127457009")}, "specimen"),
        ({"QualityControlImage": "YES"}, "test pattern"),
        ({"PhotometricInterpretation": "RGB"}, "colour"),
        ({"Rows": 16}, r"16 x 48 pixels are too few"),
        ({"Rows": 60000, "Columns": 60000}, "too many"),
        ({"Rows": None}, "holds no image"),
        ({"Rows": 41}, "cannot decode"),
        ({"BitsStored": None, "HighBit": None}, "cannot decode"),
        ({"RescaleSlope": [1, 2], "RescaleIntercept": 0}, "damaged header"),
    ],
)
def test_refused_dicom(tmp_path, tags, sentence):
    path = save(tmp_path, mammogram(**tags))
    with pytest.raises(InputError, match=sentence) as error:
        read_image(path)
    assert str(error.value).startswith(f"{path}: ")


def test_accepted_neighbours_of_the_refused(tmp_path):
    film = {"SOPClassUID": uid.SecondaryCaptureImageStorage, "Modality": "RG", "BodyPartExamined": "Breast"}
    assert read(tmp_path, **film, PresentationIntentType=None).pixels.max() > 0
    cbis = {"SOPClassUID": uid.SecondaryCaptureImageStorage, "Modality": "MG"}
    assert read(tmp_path, **cbis, NumberOfFrames=1).pixels.max() > 0
    synthetic = read(tmp_path, ImageType=["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "GENERATED_2D"])
    assert any("synthesised" in note for note in synthetic.notes)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "empty"),
        (b"only text, renamed", "not DICOM"),
        (b"\0" * 200, "not DICOM"),
        (b"GIF89a" + b"\0" * 200, "not DICOM"),
        (b"\0" * 128 + b"DICM", "holds no image"),
        (b"\x08\0 looks like an element", "DICOM"),
    ],
)
def test_refused_content(tmp_path, content, sentence):
    path = tmp_path / "image.dcm"
    path.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read_image(path)


def test_unknown_value_representation(tmp_path):
    path = save(tmp_path, mammogram())
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\x28\0\x10\0US", b"\x28\0\x10\0ZZ"))  # Rows
    with pytest.raises(InputError, match=r"damaged header|holds no image"):
        read_image(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="cannot read this file"):
        read_image(tmp_path)


def test_constant_images_are_refused(tmp_path):
    for value in (0, 700):
        with pytest.raises(InputError, match="same value"):
            read(tmp_path, np.full(SHAPE, value, np.uint16))
    Image.fromarray(np.zeros(SHAPE, np.uint8)).save(tmp_path / "black.png")
    with pytest.raises(InputError, match="same value"):
        read_image(tmp_path / "black.png")


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.9, 0.99])
@pytest.mark.parametrize(
    "syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless, uid.DeflatedExplicitVRLittleEndian]
)
def test_truncated_dicom(tmp_path, keep, syntax):
    dataset = mammogram()
    if syntax == uid.RLELossless:
        dataset.compress(syntax)
    dataset.file_meta.TransferSyntaxUID = syntax
    path = save(tmp_path, dataset)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(InputError, match=r"cut off|damaged|cannot decode|holds no image"):
        read_image(path)


@pytest.mark.parametrize("implicit", [True, False])
def test_dicom_without_preamble(tmp_path, implicit):
    dataset = mammogram(ImageLaterality="L")
    path = tmp_path / "bare"
    del dataset.file_meta
    dataset.save_as(path, implicit_vr=implicit, little_endian=True)
    assert path.read_bytes()[:2] == b"\x08\0"
    result = read_image(path)
    np.testing.assert_array_equal(result.pixels, stored_values())
    assert result.laterality == "L"


def test_compressed_dicom_is_read(tmp_path):
    for syntax in (uid.RLELossless, uid.JPEG2000Lossless):
        if syntax == uid.JPEG2000Lossless:
            pytest.importorskip("openjpeg")
        dataset = mammogram()
        dataset.compress(syntax)
        np.testing.assert_array_equal(read_image(save(tmp_path, dataset)).pixels, stored_values())


def test_undecodable_dicom_names_syntax_and_extra(tmp_path, monkeypatch):
    dataset = mammogram()
    dataset.compress(uid.RLELossless)
    dataset.file_meta.TransferSyntaxUID = uid.JPEGLosslessSV1
    path = save(tmp_path, dataset)
    with pytest.raises(InputError, match=r"JPEG Lossless.*Export them uncompressed"):
        read_image(path)
    monkeypatch.setattr("mammomil.dicom.find_spec", lambda name: None if name == "gdcm" else name)
    with pytest.raises(InputError, match=r'JPEG Lossless.*pip install "mammomil\[dicom\]"'):
        read_image(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2.4.79"))
    with pytest.raises(InputError, match="transfer syntax, unknown"):
        read_image(path)


def test_damaged_jpeg2000_does_not_kill_the_process(tmp_path):
    """GDCM, which pydicom tries first, aborts Python on some headers, such as one of 128 bits a pixel."""
    pytest.importorskip("openjpeg")
    dataset = mammogram()
    dataset.compress(uid.JPEG2000Lossless)
    damaged = bytearray(dataset.PixelData)
    depth = damaged.index(b"\xff\x4f\xff\x51") + 42  # Ssiz, Annex A.5.1 of JPEG 2000
    assert damaged[depth] == 12 - 1
    damaged[depth] = 0xFF
    dataset.PixelData = bytes(damaged)
    path = save(tmp_path, dataset)
    code = f"from mammomil.dicom import read_image; read_image({str(path)!r})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    assert "InputError" in result.stderr


def test_the_pixels_of_refused_files_are_not_read(tmp_path, monkeypatch):
    path = save(tmp_path, mammogram(NumberOfFrames=9))
    calls = []
    original = pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda *a, **k: calls.append(k) or original(*a, **k))
    with pytest.raises(InputError):
        read_image(path)
    assert [call["stop_before_pixels"] for call in calls] == [True]


@pytest.mark.parametrize(
    ("tags", "damage"),
    [
        ({"StudyDate": "20200101"}, (b"20200101", b"Secret99")),
        ({"WindowCenter": 1700, "WindowWidth": 900}, (b"1700", b"Secr")),
        ({"ImagerPixelSpacing": [0.1, 0.1]}, (b"0.1\\0.1", b"Secret!")),
        ({"StationName": "Secret station, far too long"}, (b"", b"")),
        ({"Modality": "Secret?", "SOPClassUID": uid.CTImageStorage}, (b"", b"")),
        ({"VOILUTSequence": [lut(range(4096), 0, explanation="Secret, name")]}, (b"", b"")),
        ({"SOPClassUID": "1.Secret", "Modality": "XX"}, (b"", b"")),
        ({}, (b"Secret^Person", b"\xff\xfe\xfdecret^Pers")),
    ],
)
def test_tags_of_the_patient_stay_inside(tmp_path, capfd, tags, damage):
    """pydicom's warnings and errors quote values; no message or note may, nor anything on the terminal."""
    path = save(tmp_path, mammogram(**tags))
    content = path.read_bytes()
    assert damage[0] in content
    path.write_bytes(content.replace(*damage))
    try:
        text = " ".join(read_image(path).notes)
    except InputError as error:
        text = str(error)
    text += "".join(capfd.readouterr())
    assert "secr" not in text.replace(str(path), "").lower()


def test_warnings_of_pydicom_become_a_note(tmp_path):
    dataset = mammogram()
    dataset.PixelData += bytes(100)
    result = read_image(save(tmp_path, dataset))
    np.testing.assert_array_equal(result.pixels, stored_values())
    assert any("irregular" in note for note in result.notes)


@given(data=st.data())
def test_damage_gives_an_image_or_a_sentence(tmp_path_factory, data):
    """Any bytes changed anywhere: never another error, never a raw warning."""
    folder = tmp_path_factory.mktemp("fuzz")
    kind = data.draw(st.sampled_from(["dicom", "rle", "png", "pgm", "tiff"]))
    if kind in ("dicom", "rle"):
        tags = {"WindowCenter": 1700, "WindowWidth": 900, "ImagerPixelSpacing": [0.1, 0.1]}
        dataset = mammogram(
            **tags, VOILUTSequence=[lut(range(64), 3)], ViewCodeSequence=view_code("399162004")
        )
        if kind == "rle":
            dataset.compress(uid.RLELossless)
        content = bytearray(save(folder, dataset).read_bytes())
    else:
        buffer = io.BytesIO()
        Image.fromarray(stored_values()).save(buffer, "ppm" if kind == "pgm" else kind)
        content = bytearray(buffer.getvalue())
    positions = st.integers(0, min(len(content), 1400) - 1)
    for position, value in data.draw(
        st.lists(st.tuples(positions, st.integers(0, 255)), min_size=1, max_size=6)
    ):
        content[position] = value
    path = folder / "damaged"
    path.write_bytes(content)
    with suppress(InputError):
        result = read_image(path)
        assert result.pixels.min() >= 0
        assert np.isfinite(result.pixels).all()


# -- pictures


sides = st.integers(MIN_SIDE, 40)
arrays = st.one_of(
    [hnp.arrays(dtype, st.tuples(sides, sides)) for dtype in (np.uint8, np.uint16)],
).filter(lambda array: np.ptp(array) > 0)


@given(array=arrays, kind=st.sampled_from(["png", "ppm", "tiff"]))
@example(array=np.arange(2048, dtype=np.uint16).reshape(32, 64) * 31, kind="tiff")
def test_pictures_are_read_without_loss(tmp_path_factory, array, kind):
    path = tmp_path_factory.mktemp("picture") / "picture.dcm"  # the content counts, not the name
    Image.fromarray(array).save(path, kind)
    result = read_image(path)
    np.testing.assert_array_equal(result.pixels, array)
    assert result.pixels.dtype == np.float32
    assert math.isnan(result.spacing_mm)


def test_ascii_pgm(tmp_path):
    path = tmp_path / "L_CC.pgm"
    array = np.arange(32 * 32).reshape(32, 32) % 256
    path.write_text("P2\n# a comment\n32 32\n255\n" + "\n".join(" ".join(map(str, row)) for row in array))
    result = read_image(path)
    np.testing.assert_array_equal(result.pixels, array)
    assert result[1:3] == ("L", "CC")


def test_grey_pictures_saved_in_colour(tmp_path):
    grey = (stored_values() // 16).astype(np.uint8)
    for mode in ("RGB", "RGBA", "LA", "P"):
        Image.fromarray(grey).convert(mode).save(tmp_path / "x.png")
        np.testing.assert_array_equal(read_image(tmp_path / "x.png").pixels, grey)
    alpha = np.full(SHAPE, 255, np.uint8)
    alpha[:8] = 0
    Image.fromarray(np.dstack([grey, grey, grey, alpha])).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png").pixels, np.where(alpha > 0, grey, 0))


def test_colour_photographs_are_refused(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
    for name in ("x.png", "x.jpg", "x.tif"):
        Image.fromarray(colour).save(tmp_path / name)
        with pytest.raises(InputError, match="colour picture"):
            read_image(tmp_path / name)


def test_jpeg_is_read_with_a_warning(tmp_path):
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    Image.fromarray(np.dstack([smooth] * 3)).save(tmp_path / "x.jpg", quality=95)
    result = read_image(tmp_path / "x.jpg")
    assert abs(result.pixels - smooth).max() < 4
    assert "JPEG" in result.notes[0]


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, depth, colour, rows):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_sixteen_bit_colour_png_says_what_is_lost(tmp_path):
    grey = np.arange(0, 64000, 40, dtype=">u2").reshape(40, 40)
    rows = b"".join(b"\0" + np.repeat(row, 3).tobytes() for row in grey)
    (tmp_path / "x.png").write_bytes(png(40, 40, 16, 2, rows))
    result = read_image(tmp_path / "x.png")
    np.testing.assert_array_equal(result.pixels, grey // 256)
    assert "16-bit" in result.notes[0]


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_decompression_bombs_are_refused_before_decoding(tmp_path, side):
    (tmp_path / "x.png").write_bytes(png(side, side, 8, 0, b"\0" * 1000))
    (tmp_path / "x.pgm").write_bytes(f"P5 {side} {side} 255 ".encode() + b"\0" * 1000)
    for name in ("x.png", "x.pgm"):
        start = time.perf_counter()
        with pytest.raises(InputError, match=r"too many|too large"):
            read_image(tmp_path / name)
        assert time.perf_counter() - start < 1


def test_large_pictures_give_no_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow warns from here to twice as many
    Image.fromarray(stored_values()).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png").pixels, stored_values())


def test_damaged_pictures(tmp_path):
    for kind in ("png", "tiff", "ppm"):
        path = tmp_path / f"x.{kind}"
        Image.fromarray(stored_values()).save(path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match="cut off, damaged"):
            read_image(path)


def test_float_tiff(tmp_path):
    path = tmp_path / "x.tif"
    values = stored_values().astype(np.float32) / 7
    Image.fromarray(values).save(path)
    np.testing.assert_array_equal(read_image(path).pixels, values)
    Image.fromarray(values - 50).save(path)
    np.testing.assert_allclose(read_image(path).pixels, values, atol=1e-4)
    values[3, 4] = np.nan
    values[3, 5] = np.inf
    Image.fromarray(values).save(path)
    with pytest.raises(InputError, match="2 pixels are NaN or infinite"):
        read_image(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero_tiff_is_mirrored(tmp_path, dtype):
    tifffile = pytest.importorskip("tifffile")
    dense = (np.arange(40 * 40).reshape(40, 40) % 250).astype(dtype)
    top = np.iinfo(np.uint8).max
    tifffile.imwrite(tmp_path / "x.tif", (top - dense).astype(dtype), photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif").pixels, dense)


def test_several_pages_are_refused(tmp_path):
    pages = [Image.fromarray(stored_values(seed)) for seed in range(3)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match="several pages"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("shape", [(1, 1), (31, 100), (100, 31)])
def test_tiny_pictures_are_refused(tmp_path, shape):
    Image.fromarray(np.arange(math.prod(shape), dtype=np.uint16).reshape(shape)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match="too few"):
        read_image(tmp_path / "x.png")


def test_masks_are_noted(tmp_path):
    mask = stored_values() > 1700
    for image in (Image.fromarray(mask), Image.fromarray(mask.astype(np.uint8) * 255)):
        image.save(tmp_path / "x.png")
        result = read_image(tmp_path / "x.png")
        np.testing.assert_array_equal(result.pixels > 0, mask)
        assert "two grey values" in result.notes[0]


# -- real files


def test_real_ge_mammogram(real_data):
    start = time.perf_counter()
    result = read_image(real_data / "dicom" / "GH133.dcm")
    assert time.perf_counter() - start < 5
    assert result.pixels.shape == (3062, 2394)
    assert result[1:3] == ("R", "MLO")
    assert result.spacing_mm == pytest.approx(0.0940909)
    assert result.notes == ("Grey values: VOI LUT 1 of 3 NORMAL.",)
    dataset = pydicom.dcmread(real_data / "dicom" / "GH133.dcm")
    stored = dataset.pixel_array
    expected = pydicom.pixels.apply_voi_lut(stored, dataset)
    air = stored <= 30
    np.testing.assert_array_equal(result.pixels[~air], expected[~air])
    assert (result.pixels[air] == 0).all()


def test_real_monochrome1_file_equals_its_original(real_data):
    """The derived file is rows 1200 to 2800 of GH133, inverted, with the first window instead of the LUT."""
    inverse = read_image(real_data / "dicom" / "derived" / "GH133_crop_MONOCHROME1_deflated.dcm")
    dataset = pydicom.dcmread(real_data / "dicom" / "GH133.dcm")
    stored = dataset.pixel_array[1200:2800, -1494:]
    expected = pydicom.pixels.apply_windowing(stored, dataset)
    expected[stored <= 30] = 0
    np.testing.assert_allclose(inverse.pixels, expected, atol=0.05)


def test_other_real_dicom(real_data):
    folder = real_data / "dicom"
    pattern = read_image(folder / "MG_Explicit_Little.dcm")
    assert 200 * pattern.spacing_mm == pytest.approx(66.67, abs=0.01)  # "67 mm: accounts for magnification"
    film = read_image(folder / "MG1_J2KI")
    assert film[1:3] == ("L", "MLO")
    with pytest.raises(InputError, match="tomosynthesis"):
        read_image(folder / "jpeg2k_3d.dcm")
    with pytest.raises(InputError, match="JPEG Extended"):
        read_image(folder / "MG1_JPLY")


def test_real_pictures(real_data):
    patterns = [
        "nyu-gmic-sample/images/*.png",
        "nyu-bcc-sample/images/1_L*.png",
        "cbis-ddsm/full-png/Mass*.png",
        "mini-mias/all-mias/mdb00*.pgm",
        "ddsm-299/cancers/*/*.png",
        "ddsm-mlo-segmentation/images/A*.png",
    ]
    for pattern in patterns:
        paths = list(real_data.glob(pattern))
        assert paths, pattern
        for path in paths:
            result = read_image(path)
            with Image.open(path) as image:
                expected = np.asarray(image)
            np.testing.assert_array_equal(result.pixels, expected[..., 0] if expected.ndim == 3 else expected)
            assert result.notes == ()
            if "mdb" not in path.name:
                assert result.laterality in {"L", "R"}
                assert result.view in {"CC", "MLO"}


def test_real_cmmd_headers(tmp_path, real_data):
    """Side and view of 5,202 images from PatientOrientation and ViewCodeSequence alone."""
    table = pd.read_csv(real_data / "cmmd-annotations" / "cmmd_dicom_headers.csv.gz", dtype=str)
    kinds = table[["laterality", "__PatientOrientation", "__CodeValue", "__CodeMeaning"]].drop_duplicates()
    assert len(kinds) == 4
    for _, row in kinds.iterrows():
        orientation = row["__PatientOrientation"].strip("[]").replace("'", "").split(", ")
        sequence = view_code(row["__CodeValue"])
        result = read(tmp_path, PatientOrientation=orientation, ViewCodeSequence=sequence)
        assert result.laterality == row["laterality"]
        assert result.view == {"cranio-caudal": "CC", "medio-lateral oblique": "MLO"}[row["__CodeMeaning"]]
