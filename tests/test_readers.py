import math
from collections import Counter

import numpy as np
import pydicom
import pytest
from PIL import Image

from mammomil.files import InputError
from mammomil.index import read_index, write_index
from mammomil.readers import folder, mini_mias

INFO = """1st column: MIAS database reference number.
mdb001 G CIRC B 535 425 197
mdb002 D NORM
mdb003 F CIRC B
mdb004 D CALC M *NOTE 3*
mdb005 F SPIC M 100 0 30
mdb005 F ASYM B 500 168 26
mdb006 F ARCH M 500 500 10
"""


def films(tmp_path, info=INFO, numbers=(1, 2, 3, 4, 5), size=(1024, 1024)):
    (tmp_path / "Info.txt").write_text(info)
    for number in numbers:
        Image.new("L", size).save(tmp_path / f"mdb{number:03d}.pgm")
    return tmp_path


def test_mini_mias_labels_boxes_and_patients(tmp_path):
    index = mini_mias.read(films(tmp_path))
    images = index.images.set_index("image_id")
    assert images.index.to_list() == [f"mdb{n:03d}" for n in range(1, 6)]  # 006 is not there
    labels = images[["benign", "malignant"]].to_numpy().tolist()
    assert labels == [[1, 0], [0, 0], [1, 0], [0, 1], [1, 1]]
    assert images["patient_id"].to_list() == ["mias001", "mias001", "mias002", "mias002", "mias003"]
    assert set(images["view"]) == {"MLO"}
    assert set(images["spacing_mm"]) == {0.2}
    assert set(images["density"]) == {""}
    assert images.groupby("patient_id")["laterality"].nunique().to_list() == [2, 2, 1]
    found = index.findings
    assert found["kind"].to_list() == ["mass", "mass", "calcification", "mass", "asymmetry"]
    assert found["x0"].isna().to_list() == [False, True, True, False, False]
    assert found["finding"].to_list() == ["benign", "benign", "malignant", "malignant", "benign"]
    # Row 0 of a file is y = 1023, so y = 0 is the last row and the circle is cut at the bottom.
    assert found.loc[3, ["x0", "y0", "x1", "y1"]].to_list() == [70.5, 993.5, 130.5, 1024.0]


def test_mini_mias_draws_the_circle_where_the_pixels_are(tmp_path):
    """A bright disc painted by numpy in rows counted from the bottom lies in the middle of its box."""
    films(tmp_path, "mdb001 G CIRC B 300 200 50\n", (1,))
    from_bottom = np.zeros((1024, 1024), np.uint8)
    y, x = np.mgrid[:1024, :1024]
    from_bottom[(x - 300) ** 2 + (y - 200) ** 2 <= 50**2] = 255
    Image.fromarray(from_bottom[::-1].copy()).save(tmp_path / "mdb001.pgm")
    index = mini_mias.read(tmp_path)
    rows, columns = np.nonzero(np.asarray(Image.open(tmp_path / index.images["path"][0])))
    drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(index.findings.loc[0, ["x0", "y0", "x1", "y1"]].to_list(), drawn, atol=0.51)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ("mdb001 G CIRC B 535 425\n", r"Info.txt, line 1: 'mdb001 G CIRC B 535 425' is no film"),
        ("\nmdb001 G WART B 5 4 3\n", "Info.txt, line 2"),
        ("mdb001 G CIRC Q 5 4 3\n", "Info.txt, line 1"),
        ("mdbXYZ G NORM\n", "Info.txt, line 1"),
        ("mdb001 G\n", "Info.txt, line 1"),
        ("", "none of the 0 films of Info.txt is here"),
        ("mdb009 G NORM\n", "none of the 1 films of Info.txt is here. Unpack"),
    ],
)
def test_mini_mias_refuses_other_tables(tmp_path, info, message):
    with pytest.raises(InputError, match=message):
        mini_mias.read(films(tmp_path, info))


def test_mini_mias_refuses_other_files(tmp_path):
    with pytest.raises(InputError, match=r"Info.txt: cannot read the list of films .*PGM files of mini-MIAS"):
        mini_mias.read(tmp_path)
    films(tmp_path, size=(512, 512))
    with pytest.raises(InputError, match=r"mdb00\d.pgm: 512 x 512 pixels, but mini-MIAS has 1024 x 1024"):
        mini_mias.read(tmp_path)
    for file in tmp_path.glob("*.pgm"):
        file.write_bytes(b"P5\n")
    with pytest.raises(InputError, match=r"mdb00\d.pgm: this is no PGM image"):
        mini_mias.read(tmp_path)


def test_mini_mias_as_distributed(real_data, tmp_path):
    src = real_data / "mini-mias" / "all-mias"
    index = mini_mias.read(src, seed=1)
    images, findings = index.images, index.findings
    files = {file.stem for file in src.glob("*.pgm")}
    assert set(images["image_id"]) == files
    # Counted another way: the words of each line of Info.txt whose file is there.
    lines = [line.split() for line in (src / "Info.txt").read_text().splitlines() if line[:6] in files]
    classes = Counter(word for line in lines for word in line[3:4])
    assert Counter(findings["finding"]) == {"benign": classes["B"], "malignant": classes["M"]}
    normal = {line[0] for line in lines if line[2] == "NORM"}
    assert set(images.loc[(images["benign"] == 0) & (images["malignant"] == 0), "image_id"]) == normal
    both = images.loc[(images["benign"] == 1) & (images["malignant"] == 1), "image_id"]
    assert both.to_list() == ["mdb144"]
    assert (
        set(findings.loc[findings["x0"].isna(), "image_id"])
        == {"mdb059", "mdb216", "mdb233", "mdb245"} & files
    )
    assert (images.groupby("patient_id")["image_id"].count() == 2).all()
    assert (images.groupby("patient_id")["split"].nunique() == 1).all()
    assert set(images["split"]) == {"train", "val", "test"}
    # Lesions are denser than what surrounds them; boxes that are upside down would miss them.
    brighter = []
    for image_id, x0, y0, x1, y1 in findings.loc[
        findings["descriptor"] == "circumscribed", ["image_id", "x0", "y0", "x1", "y1"]
    ].itertuples(index=False):
        if x1 - x0 > 0:
            pixels = np.asarray(Image.open(src / f"{image_id}.pgm"), float)
            w, h = (x1 - x0) / 4, (y1 - y0) / 4
            inner = pixels[int(y0 + h) : int(y1 - h), int(x0 + w) : int(x1 - w)].mean()
            upside_down = pixels[::-1][int(y0 + h) : int(y1 - h), int(x0 + w) : int(x1 - w)].mean()
            brighter.append(inner > upside_down)
    assert np.mean(brighter) > 0.8, brighter
    write_index(index, tmp_path)
    assert (tmp_path / read_index(tmp_path).images["path"][0]).is_file()


def picture(path, low=0, high=4000, shape=(60, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.linspace(low, high, shape[0] * shape[1]).reshape(shape).astype(np.uint16)
    Image.fromarray(pixels).save(path)


def dicom(path, patient="Doe^Jane 1950", study="1.2.3"):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation, ExplicitVRLittleEndian

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3.4"
    dataset.SOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    dataset.Modality, dataset.PresentationIntentType = "MG", "FOR PRESENTATION"
    dataset.PatientID, dataset.PatientName, dataset.StudyInstanceUID = patient, "Doe^Jane", study
    dataset.ImageLaterality, dataset.ViewPosition = "R", "MLO"
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
    dataset.Rows, dataset.Columns = 60, 40
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.ImagerPixelSpacing = [0.1, 0.1]
    dataset.PixelData = np.linspace(0, 4000, 2400).astype(np.uint16).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def test_folder_reads_what_is_there_and_lists_what_is_not(tmp_path):
    picture(tmp_path / "anna" / "L_CC.png")
    picture(tmp_path / "anna" / "1_R-MLO.tif", shape=(70, 50))
    picture(tmp_path / "berta_LMLO.png")
    picture(tmp_path / "berta_RCC.png")
    dicom(tmp_path / "study" / "IM0001")  # no ending
    dicom(tmp_path / "study2" / "b.dcm", study="1.2.4")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "notes.txt").write_text("no image")
    picture(tmp_path / ".hidden" / "c.png")
    index, failures = folder.read(tmp_path, progress=False)
    images = index.images.set_index("path")
    assert set(images.index) == {
        "anna/L_CC.png", "anna/1_R-MLO.tif", "berta_LMLO.png", "berta_RCC.png", "study/IM0001",
        "study2/b.dcm",
    }  # fmt: skip
    assert [name for name, _ in failures] == ["broken.png"]
    assert "broken.png" in failures[0][1]
    assert images[["benign", "malignant"]].isna().all(axis=None)  # nobody gave labels
    assert images["patient_id"].to_dict() | {"study/IM0001": "", "study2/b.dcm": ""} == {
        "anna/L_CC.png": "anna", "anna/1_R-MLO.tif": "anna", "berta_LMLO.png": "berta",
        "berta_RCC.png": "berta", "study/IM0001": "", "study2/b.dcm": "",
    }  # fmt: skip
    one, two = images.loc["study/IM0001"], images.loc["study2/b.dcm"]
    assert one["patient_id"] == two["patient_id"]
    assert one["exam_id"] != two["exam_id"]
    assert (one["laterality"], one["view"], one["spacing_mm"]) == ("R", "MLO", 0.1)
    assert tuple(images.loc["anna/1_R-MLO.tif", ["laterality", "view", "height", "width"]]) == (
        "R",
        "MLO",
        70,
        50,
    )
    write_index(index, tmp_path / "out")
    written = (tmp_path / "out" / "index.csv").read_text()
    for secret in ("Doe", "Jane", "1950", "1.2.3"):
        assert secret not in written


def test_folder_takes_labels_from_a_table(tmp_path):
    for name in ("a", "b", "c"):
        picture(tmp_path / "images" / f"{name}_L_CC.png")
    table = tmp_path / "labels.csv"
    table.write_text(
        "path,patient_id,malignant,laterality,biopsy\n"
        "images/a_L_CC.png,p1,1,R,yes\n"
        "images\\b_L_CC.png,p2,,,\n"
    )
    images = folder.read(tmp_path, table, progress=False)[0].images.set_index("image_id")
    a, b, c = (images.loc[f"images_{name}_L_CC"] for name in "abc")
    assert (a["malignant"], a["patient_id"], a["exam_id"], a["laterality"]) == (1, "p1", "p1", "R")
    assert a["biopsy"] == "yes"
    assert (b["patient_id"], b["laterality"], c["patient_id"]) == ("p2", "L", "images")
    assert all(math.isnan(v) for v in (a["benign"], b["malignant"], c["malignant"]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("path,malignant\na.png,2\n", "labels.csv: .*\n  line 2, column malignant, value '2': write 0, 1"),
        ("path,malignant\nb.png,1\n", "line 2, column path, value 'b.png': no such image below"),
        (
            "path,malignant\na.png,1\na.png,0\n",
            "line 3, column path, value 'a.png': each image may have one row",
        ),
        ("file,malignant\na.png,1\n", "labels.csv, line 1: column path is missing; found file"),
    ],
)
def test_folder_refuses_bad_labels(tmp_path, rows, message):
    picture(tmp_path / "a.png")
    table = tmp_path / "labels.csv"
    table.write_text(rows)
    with pytest.raises(InputError, match=message):
        folder.read(tmp_path, table, progress=False)


def test_folder_keeps_ids_apart(tmp_path):
    for name in ("1.png", "1.tif", "a/b.png", "a_b.png"):
        picture(tmp_path / name)
    images = folder.read(tmp_path, progress=False)[0].images
    assert images["image_id"].is_unique
    assert len(images) == 4


def test_folder_without_images(tmp_path):
    with pytest.raises(InputError, match="no image here or below"):
        folder.read(tmp_path, progress=False)
    with pytest.raises(InputError, match="this is no folder"):
        folder.read(tmp_path / "x", progress=False)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of 1 files can be read. The first: .*a.png"):
        folder.read(tmp_path, progress=False)


def test_folder_on_real_exams(real_data):
    index, failures = folder.read(real_data / "ddsm-299", progress=False)
    images = index.images
    assert failures == []
    assert (images.groupby("patient_id").size() == 4).all()
    views = images.groupby("patient_id")[["laterality", "view"]].apply(
        lambda t: set(map(tuple, t.to_numpy()))
    )
    assert all(v == {("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO")} for v in views)
