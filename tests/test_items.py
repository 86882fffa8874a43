import os
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mammomil.files import InputError
from mammomil.index import make_index, write_index
from mammomil.items import collect, safe_name


def touch(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def dicom(path):
    return touch(path, bytes(128) + b"DICM")


def ids(items):
    return [item.image_id for item in items]


def index_in(folder, image_ids=("e1_L-CC", "e1_R-CC")):
    images = pd.DataFrame(
        {
            "image_id": image_ids,
            "exam_id": "exam1",
            "patient_id": "patient1",
            "laterality": [i[3:4] for i in image_ids],
            "view": "CC",
            "path": [f"images/{i}.png" for i in image_ids],
            "benign": 0,
            "malignant": [1, *[0] * (len(image_ids) - 1)],
            "spacing_mm": 0.5,
        }
    )
    findings = pd.DataFrame(
        {"image_id": image_ids[:1], "finding": "malignant", "x0": 3, "y0": 4, "x1": 10, "y1": 12}
    )
    for name in images["path"]:
        touch(folder / name)
    touch(folder / "masks" / "m.png")
    write_index(make_index(images, findings, folder), folder)
    return folder


def test_a_folder_gives_its_images_sorted_and_nothing_else(tmp_path):
    for name in (
        "b.png",
        "a.PGM",
        "sub/c.tif",
        "notes.txt",
        "table.json",
        ".hidden.png",
        ".git/d.png",
        "README",
    ):
        touch(tmp_path / name)
    for name in ("1.2.840.10", "IM0001", "DICOMDIR"):
        dicom(tmp_path / name)
    os.symlink(tmp_path, tmp_path / "sub" / "circle")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    items = collect(tmp_path)
    assert [item.path.relative_to(tmp_path).as_posix() for item in items] == [
        "1.2.840.10", "IM0001", "a.PGM", "b.png", "sub/c.tif",
    ]  # fmt: skip
    assert ids(items) == ["1.2.840.10", "IM0001", "a", "b", "c"]


def test_named_files_are_never_passed_over_and_come_once(tmp_path):
    hidden, text = touch(tmp_path / ".x.png"), touch(tmp_path / "notes.txt")
    image = touch(tmp_path / "d" / "a.png")
    missing = tmp_path / "missing.dcm"
    items = collect([hidden, text, missing, str(image), tmp_path / "d"])
    assert [item.path for item in items] == [hidden, text, missing, image]
    assert len(set(ids(items))) == 4


def test_an_empty_folder_is_named(tmp_path):
    touch(tmp_path / "notes.txt")
    with pytest.raises(InputError, match=r"no image in this folder"):
        collect(tmp_path)


def test_the_own_panels_are_left_out(tmp_path):
    touch(tmp_path / "a.png")
    touch(tmp_path / "out" / "panels" / "a.m.png")
    assert ids(collect(tmp_path, skip=tmp_path / "out" / "panels")) == ["a"]


@pytest.mark.parametrize("what", ["folder", "index.csv", "above"])
def test_an_index_gives_ids_hints_and_known_boxes(tmp_path, what):
    folder = index_in(tmp_path / "data")
    items = collect({"folder": folder, "index.csv": folder / "index.csv", "above": tmp_path}[what])
    assert ids(items) == ["e1_L-CC", "e1_R-CC"]  # and neither masks nor files that the index does not name
    left, right = items
    assert left.path.resolve() == (folder / "images" / "e1_L-CC.png").resolve()
    assert left[2:7] == ("L", "CC", 0.5, "exam1", "patient1")
    np.testing.assert_array_equal(left.truth["malignant"], [[3, 4, 10, 12]])
    assert len(left.truth["benign"]) == 0
    assert right.truth == {}


def test_a_csv_that_is_no_index_is_refused(tmp_path):
    with pytest.raises(InputError, match="image_id"):
        collect(touch(tmp_path / "other.csv", b"a,b\n1,2\n"))


def test_equal_names_get_their_folder_and_then_a_number(tmp_path):
    paths = [
        touch(tmp_path / name)
        for name in ("p1/a.png", "p2/a.png", "p2/A.dcm", "x/p1/a.png", "b.png", "p1__a.png", "c.png", "c.tif")
    ]
    names = ids(collect(paths))
    assert names[0] == "p1__a"
    assert names[1:3] == ["p2__a", "p2__A__2"]  # one file name on systems that ignore case
    assert names[4] == "b"
    assert len({name.casefold() for name in names}) == len(names)


def test_images_of_an_index_keep_their_ids_beside_files_of_that_name(tmp_path):
    folder = index_in(tmp_path / "data")
    twin = touch(tmp_path / "other" / "e1_L-CC.png")
    assert ids(collect([twin, folder])) == ["other__e1_L-CC", "e1_L-CC", "e1_R-CC"]
    copy = shutil.copytree(folder, tmp_path / "copy")
    names = ids(collect([folder, copy]))
    assert names[:2] == ["e1_L-CC", "e1_R-CC"]
    assert len(set(names)) == 4


@example("x" * 240)
@example("é" * 240)
@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=300))
def test_safe_names_are_file_names(text):
    name = safe_name(text)
    assert 0 < len(name.encode()) <= 120
    assert not set(name) & set('<>:"/\\|?*\0\n\r\t\x7f')
    assert name[0] != "."
    assert name[-1] not in ". "
    assert safe_name(name) == name


def test_safe_names_keep_good_names_and_tell_bad_ones_apart():
    assert safe_name("MLO links – Befund 3") == "MLO links – Befund 3"
    assert safe_name("a/b") != safe_name("a?b") != safe_name("a_b")
    assert safe_name("x" * 400) != safe_name("x" * 401)


def test_names_that_are_no_text_still_get_an_id(tmp_path):
    path = os.fsencode(tmp_path) + b"/bad\xff<name>.png"
    open(path, "wb").close()
    (item,) = collect(tmp_path)
    item.image_id.encode()
    assert os.fsencode(item.path) == path
