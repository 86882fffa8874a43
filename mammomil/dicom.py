"""From a file to the pixels of one mammogram: DICOM, PNG, PGM, TIFF or JPEG; the rest is refused.

Grey values of a DICOM are made in this order, and `Mammogram.notes` says what was applied:

1. modality LUT or rescale;
2. VOI: the first VOI LUT, else the first window (pydicom's order), else nothing; nothing for raw images;
3. negative values are lifted to 0; MONOCHROME1 is mirrored, after the VOI and not before;
4. air becomes exactly 0. It is found in the stored values: 0, or PixelPaddingValue..PixelPaddingRangeLimit,
   or the top of the range where the image is mirrored. A window lifts air above 0, so that a later
   `pixels > 0` would cover the whole image.
"""

import math
import re
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from mammomil.files import InputError

Dataset = Any  # a pydicom Dataset; pydicom takes a second to import, so only functions that need it do
MIN_SIDE = 32  # pixels
MAX_PIXELS = 120_000_000  # the largest film scans have about 30 million; more is damage or an attack
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"P2", b"P5", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\xff\xd8\xff")
_VIEWS = "XCCL|XCCM|XCC|CC|LMO|MLO|ML|LM|FB|SIO|ISO|AT|CV"
_VIEW_CODES = {  # DICOM CID 4014, each view by its code in SNOMED CT and in the older SNOMED RT
    "399162004": "CC", "R-10242": "CC", "399368009": "MLO", "R-10226": "MLO", "399260004": "ML",
    "R-10224": "ML", "399352003": "LM", "R-10228": "LM", "399099002": "LMO", "R-10230": "LMO",
    "399196006": "FB", "R-10244": "FB", "399192008": "XCCL", "R-1024A": "XCCL", "399101009": "XCCM",
    "R-1024B": "XCCM", "399188001": "SIO", "R-102D0": "SIO", "441555000": "ISO", "R-40AAA": "ISO",
    "127457009": "SPECIMEN", "G-8310": "SPECIMEN",
}  # fmt: skip
_BIOPSY = ("STEREO", "PREFIRE", "POSTFIRE", "POSTBIOPSY", "POSTMARKER", "TOMO_SCOUT")  # Image Type, value 3


class Mammogram(NamedTuple):
    """One mammogram as it is stored, not yet oriented or scaled.

    Attributes:
        pixels: grey values >= 0, brighter means denser tissue; air is exactly 0 where it is known.
        laterality: `L`, `R`, or empty where unknown.
        view: `CC`, `MLO`, another view, or empty where unknown.
        spacing_mm: side of a pixel in the plane of the breast in mm, NaN where unknown.
        notes: what a person should know about how the file was read.
    """

    pixels: Float32[np.ndarray, "h w"]
    laterality: str
    view: str
    spacing_mm: float
    notes: tuple[str, ...]


def read_image(path: str | Path, *, allow_processing: bool = False) -> Mammogram:
    """Read one mammogram; the content of the file decides what it is, not its name.

    Laterality comes from ImageLaterality, else Laterality, else PatientOrientation, else the file name; the
    view from ViewPosition, else ViewCodeSequence, else the file name; the spacing from ImagerPixelSpacing
    divided by EstimatedRadiographicMagnificationFactor, else PixelSpacing, else NominalScannedPixelSpacing,
    never DetectorElementSpacing. Pictures have none; Pillow stretches other PGM maxima to 255 or 65535.

    Args:
        path: a DICOM, PNG, PGM, TIFF or JPEG file.
        allow_processing: read raw (FOR PROCESSING) images too; their grey values follow the detector.

    Raises:
        InputError: the file is missing, damaged, undecodable, or not one two-dimensional mammogram.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError as error:
        raise InputError(f"{path}: cannot read this file ({error.strerror}). Check the name.") from error
    # Old exports lack preamble and magic word and start with an element of group 0002 or 0008.
    if head[128:132] == b"DICM" or head[:2] in (b"\x02\0", b"\x08\0"):
        return _read_dicom(path, allow_processing)
    if head.startswith(_PICTURES):
        return _read_picture(path, head)
    what = "not DICOM, PNG, PGM, TIFF or JPEG, whatever its name says" if head else "empty (0 bytes)"
    raise InputError(f"{path}: this file is {what}. Copy the image again from its source.")


def name_hints(path: str | Path) -> tuple[str, str]:
    """Read side and view from a file name: `0_L-CC.png`, `B_3629_1.LEFT_MLO.png`, `x_MG_R_ML_ANON.dcm`.

    Returns:
        laterality and view; each is empty where the name does not give it, or gives two different ones.
    """
    name = re.sub(r"([a-z])([A-Z])", r"\1 \2", Path(path).name).upper()  # leftMlo -> LEFT MLO
    sides, views = map(set, zip(*map(_split_view, re.split(r"[^A-Z0-9]+", name)), strict=True))
    side, view = sides - {""}, views - {""}
    return side.pop() if len(side) == 1 else "", view.pop() if len(view) == 1 else ""


def _split_view(word: str) -> tuple[str, str]:
    """Split `LCC` into (`L`, `CC`); but `LM` and `LMO` are views of their own."""
    match = re.fullmatch(rf"(LMO?)|(LEFT|RIGHT|L|R)?({_VIEWS})?", word)
    lateral, side, view = match.groups("") if match else ("", "", "")
    return side[:1], lateral or view


def _read_dicom(path: Path, allow_processing: bool) -> Mammogram:
    import pydicom

    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
            raw = _refuse(path, header, allow_processing)  # before a gigabyte of tomosynthesis is read
            dataset = pydicom.dcmread(path, force=True)
            pixels = _grey_values(dataset, _decode(path, dataset), raw, notes)
            row, column = [*_codes(dataset, "PatientOrientation"), ""][:2]
            sides = [_codes(dataset, key)[0] for key in ("ImageLaterality", "Laterality")]
            view, spacing = _view(dataset), _spacing(dataset, max(pixels.shape), notes)
            if "GENERATED_2D" in _codes(dataset, "ImageType"):
                notes.append("This view was synthesised from tomosynthesis.")
        except InputError:
            raise
        except Exception as error:
            # Damage makes pydicom raise anything, and quote tags of the patient: so no `from error` here.
            raise InputError(f"{path}: damaged header ({type(error).__name__}). Copy it again.") from None
    if caught:  # the texts may quote tags of the patient
        notes.append(f"The file is irregular: pydicom gave {len(caught)} warnings.")
    # `preprocess.orient` measures the side; here a tag that contradicts the pixels is only noted.
    left, _, right = (part.sum(dtype=np.float64) for part in np.array_split(pixels, 3, axis=1))
    wall = "left" if left > 2 * right else "right" if right > 2 * left else ""
    tag = {"A": "left", "P": "right"}.get(row[:1], "")
    if wall and tag and tag != wall:
        notes.append(f"PatientOrientation puts the chest wall {tag}, the pixels {wall}; the pixels count.")
    # Mammograms hang lateral side up, so that down a column is towards the other breast.
    sides += ["L"] * ("R" in column) + ["R"] * ("L" in column) + [tag[:1].upper(), name_hints(path)[0]]
    side = next((side for side in sides if side in ("L", "R")), "")
    return _checked(path, pixels, side, view or name_hints(path)[1], spacing, notes)


def _refuse(path: Path, dataset: Dataset, allow_processing: bool) -> bool:
    """Refuse what is not one two-dimensional mammogram; return whether it is a raw image."""
    from pydicom.uid import UID_dictionary

    def refuse(condition: bool, reason: str) -> None:
        if condition:
            raise InputError(f"{path}: {reason}")

    kind = UID_dictionary.get(str(dataset.get("SOPClassUID")), ("unknown SOP class",))[0]
    modality, types = _codes(dataset, "Modality")[0], _codes(dataset, "ImageType")
    height, width, frames = (_numbers(dataset, key)[0] for key in ("Rows", "Columns", "NumberOfFrames"))
    refuse(not (height > 0 and width > 0), f"this DICOM holds no image ({kind}). Give the image itself.")
    stack = frames > 1 or kind.startswith(("Breast Tomosynthesis", "Breast Projection"))
    refuse(stack, f"this is multi-frame or tomosynthesis ({kind}). Give the 2D or synthesised 2D view.")
    # A digitised film (Secondary Capture) has the modality of its scanner; only the body part tells.
    film = modality in ("RG", "CR", "DX") and "BREAST" in _codes(dataset, "BodyPartExamined")[0]
    mammogram = film or modality == "MG" or kind.startswith("Digital Mammography")
    raw = kind.endswith("For Processing") or "FOR PROCESSING" in _codes(dataset, "PresentationIntentType")
    kind = f"Modality {modality or 'missing'}, {kind}"
    refuse(not mammogram, f"this is no mammogram ({kind}). If it is one after all, save it as a 16-bit PNG.")
    fix = "Give the FOR PRESENTATION image, or set allow_processing=True."
    refuse(raw and not allow_processing, f"this is a raw image (FOR PROCESSING): other grey values. {fix}")
    special = _BIOPSY if "GENERATED_2D" in types else (*_BIOPSY, "TOMO")
    special = _view(dataset) == "SPECIMEN" or any(text.startswith(special) for text in types)
    refuse(special, "this is a stereo, biopsy, specimen or tomosynthesis image. Give a standard 2D view.")
    quality = [_codes(dataset, key)[0] for key in ("QualityControlImage", "QualityControlSubject")]
    refuse("YES" in quality, "this is a test pattern or quality-control image, no breast. Leave it out.")
    colour = not _codes(dataset, "PhotometricInterpretation")[0].startswith("MONOCHROME")
    refuse(colour, "this DICOM is a colour image. Give the original grey image.")
    _check_size(path, int(height), int(width))
    return raw


def _decode(path: Path, dataset: Dataset) -> np.ndarray:
    """Stored values; errors name the transfer syntax and, where one is missing, the decoder to install."""
    from pydicom import uid

    if "TransferSyntaxUID" not in dataset.file_meta:  # no preamble; implicit VR stores pixels the same way
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    syntax = dataset.file_meta.TransferSyntaxUID
    name = syntax.name if syntax in uid.UID_dictionary else "unknown"
    if syntax in uid.JPEG2000TransferSyntaxes and find_spec("openjpeg"):
        dataset.pixel_array_options(decoding_plugin="pylibjpeg")  # damaged files make GDCM kill the process
    try:
        stored = dataset.pixel_array
    except Exception as error:  # every decoder raises kinds of its own
        fix = "The pixels are cut off, damaged or of a kind no decoder here reads. Export them uncompressed."
        if name != "unknown" and syntax.is_compressed and not all(map(find_spec, ("gdcm", "openjpeg"))):
            fix = 'A decoder is not installed. Run: pip install "mammomil[dicom]".'
        raise InputError(f"{path}: cannot decode its transfer syntax, {name}. {fix}") from error
    if stored.ndim != 2 or stored.dtype.kind not in "iu" or stored.dtype.itemsize > 2:
        raise InputError(f"{path}: expected 8- or 16-bit grey values, found {stored.dtype}. Export it so.")
    return stored


def _grey_values(dataset: Dataset, stored: np.ndarray, raw: bool, notes: list[str]) -> np.ndarray:
    """Turn stored values into grey values, steps 1 to 4 of the module's docstring."""
    from pydicom.pixels import apply_modality_lut

    sign = _numbers(dataset, "PixelIntensityRelationshipSign")[0] if raw else math.nan
    # Sign 1: more X-rays, and so less tissue, give larger values.
    mirrored = dataset.PhotometricInterpretation == "MONOCHROME1" if math.isnan(sign) else sign == 1
    bottom = -(2 ** (dataset.BitsStored - 1)) if dataset.PixelRepresentation == 1 else 0
    air = stored == (bottom + 2**dataset.BitsStored - 1 if mirrored else bottom)
    padding = [_numbers(dataset, key)[0] for key in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    # MONOCHROME1 gives the larger end first. NaN, for a tag that is missing, loses in fmin and fmax.
    air |= (stored >= np.fmin(*padding)) & (stored <= np.fmax(*padding))
    # Every step acts on single values: transform each possible value once, then look the pixels up.
    low = int(stored.min())
    values = np.arange(low, int(stored.max()) + 1)
    table = _apply_voi(dataset, apply_modality_lut(values, dataset), raw, notes)
    return _finish(table.astype(np.float32)[stored.astype(np.int32) - low], air, mirrored)


def _apply_voi(dataset: Dataset, values: np.ndarray, raw: bool, notes: list[str]) -> np.ndarray:
    from pydicom.pixels import apply_voi, apply_windowing

    centres, widths = _numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth")
    try:
        if raw:
            table, note = values, "as stored in a raw (FOR PROCESSING) image, which depend on the detector"
        elif luts := dataset.get("VOILUTSequence"):
            count, first, depth = luts[0].LUTDescriptor
            # pydicom 3.0 counts the entries of an 8-bit LUT in 8 bits, too few for 12-bit pixels.
            luts[0].LUTDescriptor = [count, first, 16 if depth == 8 else depth]
            table = apply_voi(np.rint(values).astype(np.int64), dataset)
            note = f"VOI LUT 1 of {len(luts)} {_codes(luts[0], 'LUTExplanation')[0]}"
        elif not math.isnan(centres[0] + widths[0]):
            table = apply_windowing(values, dataset)
            shape = _codes(dataset, "VOILUTFunction")[0] or "LINEAR"
            note = f"window 1 of {len(centres)}, {shape}, centre {centres[0]:g}, width {widths[0]:g}"
        else:
            table, note = values, "as stored; the file has no VOI LUT or window"
        if not np.isfinite(table).all() or np.ptp(table) == 0 < np.ptp(values):
            raise ValueError(note)
    except Exception:  # a window of width 0 or beside the pixels, a LUT shorter than it says, ...
        table, note = values, "as stored; the VOI LUT or window of the file cannot be used"
    notes.append(f"Grey values: {note.strip()}.")
    return table


def _finish(pixels: np.ndarray, air: np.ndarray, mirrored: bool) -> np.ndarray:
    """Lift negative values to zero, mirror, and set air to exactly 0."""
    pixels = pixels - pixels[~air].min(initial=0)
    if mirrored:  # in the bit depth in use; the declared one may be larger (12 bits in 16)
        bits = math.ceil(math.log2(float(pixels[~air].max(initial=0)) + 1))
        pixels = 2**bits - 1 - pixels
    pixels[air] = 0
    return pixels


def _view(dataset: Dataset) -> str:
    item = (dataset.get("ViewCodeSequence") or [{}])[0]
    coded = _VIEW_CODES.get(str(item.get("CodeValue", "")).strip(), "")
    # CBIS-DDSM writes the view into PatientOrientation.
    position, misplaced = (_codes(dataset, key)[0] for key in ("ViewPosition", "PatientOrientation"))
    return _split_view(position)[1] or coded or _split_view(misplaced)[1]


def _spacing(dataset: Dataset, longest: int, notes: list[str]) -> float:
    """Side of a pixel in the plane of the breast, in mm; NaN where unknown or impossible."""
    magnification = _numbers(dataset, "EstimatedRadiographicMagnificationFactor")[0]
    for key in ("ImagerPixelSpacing", "PixelSpacing", "NominalScannedPixelSpacing"):
        height, width = (_numbers(dataset, key) * 2)[:2]
        if key == "ImagerPixelSpacing" and magnification >= 1:
            height, width = height / magnification, width / magnification
        # No breast is a metre long, and one number cannot describe oblong pixels.
        if 0.01 <= height <= 1000 / longest and abs(width / height - 1) < 0.01:
            if key == "PixelSpacing" and not _codes(dataset, "PixelSpacingCalibrationType")[0]:
                notes.append("The pixel size comes from PixelSpacing, which is not calibrated.")
            return height
        if not math.isnan(height):
            notes.append(f"{key} of {height:g} x {width:g} mm is impossible or not square, so not used.")
    notes.append("The pixel size is unknown.")
    return math.nan


def _read_picture(path: Path, head: bytes) -> Mammogram:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata; and large pictures, whose size is checked below
        try:
            with Image.open(path, formats=("PNG", "PPM", "TIFF", "JPEG")) as image:
                _check_size(path, image.height, image.width)
                if getattr(image, "n_frames", 1) > 1:
                    raise InputError(f"{path}: the file has several pages. Save each view as its own file.")
                # Pillow mirrors 8-bit "white is zero" TIFFs itself, but no others.
                mirrored = getattr(image, "tag_v2", {}).get(262) == 0 and image.mode not in ("1", "L")
                grey = image.mode in ("L", "F") or image.mode.startswith("I")
                array = np.asarray(image if grey else image.convert("RGBA"))
        except InputError:
            raise
        except Exception as error:  # Pillow raises many kinds on damage, and one on claims of huge size
            reason = f"the picture is cut off, damaged or far too large ({type(error).__name__})"
            raise InputError(f"{path}: {reason}. Copy it again from its source.") from error
    notes = ["JPEG compression may have removed fine detail."] if head[:1] == b"\xff" else []
    if not grey:
        red, green, blue, alpha = np.moveaxis(array.astype(np.int16), -1, 0)
        array = np.where(alpha > 0, green, 0)  # transparent pixels are air
        # The rounding of JPEG makes channels differ by a few values.
        if (np.maximum(abs(red - green), abs(green - blue)) * (alpha > 0)).max() > 8:
            raise InputError(f"{path}: this is a colour picture, no mammogram. Give one without colours.")
        if head[:1] == b"\x89" and head[24] == 16:
            notes.append("Of these 16-bit colour channels only the upper 8 bits are read.")
    if bad := int((~np.isfinite(array)).sum()):
        raise InputError(f"{path}: {bad} pixels are NaN or infinite. Replace them, air by 0, and save again.")
    pixels = _finish(array.astype(np.float32), np.zeros(array.shape, bool), mirrored)
    return _checked(path, pixels, *name_hints(path), math.nan, notes)


def _check_size(path: Path, height: int, width: int) -> None:
    if min(height, width) < MIN_SIDE or height * width > MAX_PIXELS:
        what = f"{height} x {width} pixels are too {'few' if min(height, width) < MIN_SIDE else 'many'}"
        raise InputError(f"{path}: {what} for a mammogram. Give the original file.")


def _checked(path: Path, pixels: np.ndarray, side: str, view: str, spacing: float, notes: list) -> Mammogram:
    low, high = float(pixels.min()), float(pixels.max())
    if low == high:
        raise InputError(f"{path}: all pixels have the same value ({low:g}). Give an image of a breast.")
    if ((pixels == low) | (pixels == high)).all():
        notes.append("The image has only two grey values, like a mask.")
    return Mammogram(pixels, side, view, spacing, tuple(notes))


def _values(dataset: Dataset, keyword: str) -> list:
    """Values of a tag; empty where it is missing, empty or damaged."""
    try:
        value = dataset.get(keyword)
        return list(value) if value and not isinstance(value, str | bytes | int | float) else [value]
    except Exception:  # pydicom converts on access, and each kind of damage raises another error
        return []


def _codes(dataset: Dataset, keyword: str) -> list[str]:
    """Coded values in capitals, at least one; free text becomes empty, so that none reaches a message."""
    codes = [value.strip().upper() for value in _values(dataset, keyword) if isinstance(value, str)]
    return [code if re.fullmatch(r"[A-Z0-9_ ]{0,16}", code) else "" for code in codes] or [""]


def _numbers(dataset: Dataset, keyword: str) -> list[float]:
    """Values as finite numbers, at least one; NaN where one is missing or damaged."""
    try:
        numbers = [float(value) for value in _values(dataset, keyword)]
        return numbers if numbers and np.isfinite(numbers).all() else [math.nan]
    except (TypeError, ValueError):
        return [math.nan]
