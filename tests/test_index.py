import csv
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mammomil.files import InputError
from mammomil.index import (
    FINDING_COLUMNS,
    IMAGE_COLUMNS,
    make_index,
    read_index,
    select,
    split_patients,
    subset,
    write_index,
)

HEADER = "image_id,patient_id,path,benign,malignant,laterality,split,width,height,spacing_mm"
GOOD = "a,p,a.png,0,1,L,train,100,50,0.07"


def folder_with(tmp_path, images: str | bytes, findings: str | None = None):
    raw = images if isinstance(images, bytes) else images.encode()
    (tmp_path / "index.csv").write_bytes(raw)
    if findings is not None:
        (tmp_path / "findings.csv").write_text(findings)
    return tmp_path


def test_reads_types_and_fills_what_is_optional(tmp_path):
    rows = f"{HEADER}\n{GOOD}\nb,p,b.png,,nan,,,,,\n"
    index = read_index(folder_with(tmp_path, "\ufeff" + rows))  # spreadsheets write a byte order mark
    assert tuple(index.images.columns) == IMAGE_COLUMNS
    assert tuple(index.findings.columns) == FINDING_COLUMNS
    assert index.root == tmp_path
    assert read_index(tmp_path / "index.csv").images.equals(index.images)
    first, second = index.images.to_dict("records")
    assert (first["benign"], first["malignant"], first["spacing_mm"]) == (0.0, 1.0, 0.07)
    assert first["exam_id"] == "p"
    assert first["density"] == ""
    # Unknown labels are NaN, never 0.
    assert all(math.isnan(second[name]) for name in ("benign", "malignant", "width", "spacing_mm"))
    assert (second["laterality"], second["split"]) == ("", "")


BAD_IMAGES = {
    "b,p,b.png,2,0,L,,,,": r"line 3, column benign, value '2': write 0, 1, or nothing",
    "b,p,b.png,yes,0,L,,,,": "line 3, column benign, value 'yes': write a number",
    "b,p,b.png,inf,0,L,,,,": "line 3, column benign, value 'inf'",
    "a,p,b.png,0,0,L,,,,": "line 2, column image_id, value 'a': give each image its own",
    "b,p,b.png,0,0,left,,,,": "line 3, column laterality, value 'left': write L, R",
    "b,p,b.png,0,0,L,test,,,": "line 3, column patient_id, value 'p': she is in two splits",
    "b,q,b.png,0,0,L,holdout,,,": "line 3, column split, value 'holdout': write train, val, test",
    "b,,b.png,0,0,L,,,,": "line 3, column patient_id, value '': name the patient",
    ",p,b.png,0,0,L,,,,": "line 3, column image_id, value '': write 1 to 150",
    "../b,p,b.png,0,0,L,,,,": "line 3, column image_id, value '../b': write 1 to 150",
    "b,p,/data/b.png,0,0,L,,,,": "line 3, column path, value '/data/b.png': write the path relative",
    r"b,p,C:\b.png,0,0,L,,,,": r"line 3, column path, value 'C:.*': write the path relative",
    "b,p,,0,0,L,,,,": "line 3, column path, value '': name the image file",
    "b,p,b.png,0,0,L,,1.5,10,": "line 3, column width, value '1.5': write a whole number",
    "b,p,b.png,0,0,L,,10,0,": "line 3, column height, value '0': write a whole number",
    "b,p,b.png,0,0,L,,,,70": "line 3, column spacing_mm, value '70': write millimetres",
    "b,p,b.png,0,0": "line 3, column .all., value '5 cells': the header has 10 cells",
}


@pytest.mark.parametrize(("row", "message"), BAD_IMAGES.items())
def test_names_line_column_value_and_fix(tmp_path, row, message):
    with pytest.raises(InputError, match=message) as caught:
        read_index(folder_with(tmp_path, f"{HEADER}\n{GOOD}\n{row}\n"))
    assert str(tmp_path / "index.csv") in str(caught.value)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("birads", "7", "write 0 to 6, 4a"),
        ("density", "E", "write A, B, C, D"),
        ("view", "mlo", "write the view in capitals"),
    ],
)
def test_codes_of_optional_columns(tmp_path, column, value, message):
    with pytest.raises(InputError, match=f"line 2, column {column}, value '{value}': {message}"):
        read_index(folder_with(tmp_path, f"{HEADER},{column}\n{GOOD},{value}\n"))


def test_an_exam_has_one_patient(tmp_path):
    rows = f"{HEADER},exam_id\na,p,a.png,0,1,,,,,,1\nb,q,b.png,0,1,,,,,,1\n"
    with pytest.raises(InputError, match="line 2, column exam_id, value '1': an exam has one patient"):
        read_index(folder_with(tmp_path, rows))


BAD_FINDINGS = {
    "zz,malignant,1,1,9,9,": "column image_id, value 'zz': no such image",
    "a,cancer,1,1,9,9,": "column finding, value 'cancer': write benign or malignant",
    "a,benign,1,1,9,9,": "column finding, value 'benign': the image is labelled 0",
    "a,malignant,9,1,9,9,": "column x1, value '9': x1 must be larger than x0",
    "a,malignant,1,9,9,8,": "column y1, value '8': y1 must be larger than y0",
    "a,malignant,-1,1,9,9,": "column x0, value '-1': cut the box at the border",
    "a,malignant,1,1,101,9,": "column x1, value '101': the width of the image is less",
    "a,malignant,1,1,9,50.5,": "column y1, value '50.5': the height of the image is less",
    "a,malignant,1,1,,9,": "column x0, value '1': fill x0, y0, x1, y1, or leave all four empty",
    "a,malignant,,,,,m.png": "column mask, value 'm.png': give a finding with a mask its box",
    "a,malignant,1,1,9,9,/m.png": "column mask, value '/m.png': write the path relative",
}


@pytest.mark.parametrize(("row", "message"), BAD_FINDINGS.items())
def test_bad_findings(tmp_path, row, message):
    findings = f"image_id,finding,x0,y0,x1,y1,mask\na,malignant,0,0,100,50,\n{row}\n"
    with pytest.raises(InputError, match=f"findings.csv: .*\n  line 3, {message}"):
        read_index(folder_with(tmp_path, f"{HEADER}\n{GOOD}\n", findings))


def test_findings_get_numbers_and_may_lack_a_place(tmp_path):
    findings = "image_id,finding,kind,x0,y0,x1,y1\na,malignant,mass,0,0,9.25,9\na,malignant,,,,,\n"
    found = read_index(folder_with(tmp_path, f"{HEADER}\n{GOOD}\n", findings)).findings
    assert found["finding_id"].to_list() == ["1", "2"]
    assert found["x1"].to_list()[0] == 9.25
    assert found["x1"].isna().to_list() == [False, True]


def test_all_bad_rows_at_once_and_a_count_of_the_rest(tmp_path):
    rows = "\n".join(f"i{n},p{n},x.png,{3 if n % 2 else 0},0,L,,,," for n in range(50))
    findings = "image_id,finding\ni0,cancer\n"
    with pytest.raises(InputError) as caught:
        read_index(folder_with(tmp_path, f"{HEADER}\n{rows}\n", findings))
    text = str(caught.value)
    assert "cells to correct: 25" in text
    assert "and 15 more." in text
    assert [f"line {line}," in text for line in (3, 5, 21, 23)] == [True, True, True, False]
    assert "line 2, column finding, value 'cancer'" in text


def test_lines_are_those_a_person_sees(tmp_path):
    rows = f'{HEADER}\n"a\n",p,a.png,0,1,L,,,,\n\nb,p,b.png,5,1,L,,,,\n'
    with pytest.raises(InputError, match="line 5, column benign, value '5'"):
        read_index(folder_with(tmp_path, rows))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "column image_id, patient_id, path, benign, malignant is missing; the file is empty"),
        (b" \n\n", "the file is empty"),
        (f"{HEADER}\n".encode(), "holds no image"),
        (HEADER.replace("malignant", "cancer").encode(), "column malignant is missing; found image_id"),
        (HEADER.replace(",", ";").encode(), "missing; found image_id;patient.* Separate columns by commas"),
        (f"{HEADER},path\n".encode(), "column path is there twice"),
        (f"{HEADER}\nf\xfcr,".encode("latin-1"), "line 2: byte 0xfc is no text. Save it as CSV UTF-8"),
        (f"{HEADER}\n{GOOD}\n\0".encode(), "line 3: byte 0x00 is no text"),
        (HEADER.encode("utf-16"), "line 1: byte 0xff is no text"),
        (b"\x89PNG\r\n\x1a\n\0\0", "line 1: byte 0x89 is no text"),
        (f'{HEADER}\n"a,p\n'.encode(), "not a CSV .*Close every quote"),
    ],
)
def test_what_is_no_table(tmp_path, raw, message):
    with pytest.raises(InputError, match=message) as caught:
        read_index(folder_with(tmp_path, raw))
    assert str(tmp_path / "index.csv") in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match=r"index.csv: cannot read this table .No such file"):
        read_index(tmp_path)
    with pytest.raises(InputError, match="nowhere: cannot read this table"):
        read_index(tmp_path / "nowhere")


text = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)
label = st.sampled_from([0.0, 1.0, math.nan])


@st.composite
def tables(draw):
    number = draw(st.integers(1, 6))
    side = st.one_of(st.just(math.nan), st.integers(1, 4000).map(float))
    rows = [
        {
            "image_id": f"i{n}" + draw(text).replace("/", "").replace("\\", ""),
            "patient_id": draw(text),
            "path": "images/" + draw(text) + ', "quoted" .png',
            "benign": draw(label),
            "malignant": draw(st.sampled_from([1.0, math.nan])),
            "laterality": draw(st.sampled_from(["", "L", "R"])),
            "birads": draw(st.sampled_from(["", "0", "4a", "6"])),
            "spacing_mm": draw(st.one_of(st.just(math.nan), st.floats(0.005, 10))),
            "height": draw(side),
            "width": draw(side),
            "note": draw(text) + "\nsecond line",
        }
        for n in range(number)
    ]
    corners = st.floats(0, 1, exclude_min=True)
    findings = []
    for n in range(draw(st.integers(0, 4))):
        image = rows[draw(st.integers(0, number - 1))]
        width, height = (1000.0 if math.isnan(image[s]) else image[s] for s in ("width", "height"))
        box = dict.fromkeys(("x0", "y0", "x1", "y1"), math.nan)
        if draw(st.booleans()):
            x1, y1 = draw(corners) * width, draw(corners) * height
            box = {"x0": x1 / 3, "y0": y1 / 7, "x1": x1, "y1": y1}
        name = {"image_id": image["image_id"], "finding_id": f"f{n}", "finding": "malignant", "kind": "mass"}
        findings.append(name | box)
    return pd.DataFrame(rows), pd.DataFrame(findings)


@settings(max_examples=15)
@given(tables())
def test_writing_and_reading_give_the_same_tables(tmp_path_factory, frames):
    folder = tmp_path_factory.mktemp("index")
    images, findings = frames
    index = make_index(images, findings, folder)
    write_index(index, folder)
    again = read_index(folder)
    pd.testing.assert_frame_equal(again.images, index.images, check_exact=True)
    pd.testing.assert_frame_equal(again.findings, index.findings, check_exact=True)
    # Independent of our reader: the csv module and float() give the numbers that went in.
    with (folder / "index.csv").open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    spacings = [float(row["spacing_mm"] or "nan") for row in written]
    np.testing.assert_array_equal(spacings, images["spacing_mm"])
    assert {row["benign"] for row in written} <= {"0", "1", ""}


def test_written_paths_lead_to_the_same_files(tmp_path):
    images = pd.DataFrame(
        [{"image_id": "a", "patient_id": "p", "path": "images/a.png", "benign": 0.0, "malignant": 1.0}]
    )
    findings = pd.DataFrame(
        [{"image_id": "a", "finding": "malignant", "mask": "m.png", "x0": 0, "y0": 0, "x1": 1, "y1": 1}]
    )
    index = make_index(images, findings, tmp_path / "data")
    write_index(index, tmp_path / "out" / "index")
    again = read_index(tmp_path / "out" / "index")
    for table, column in ((0, "path"), (1, "mask")):
        was = (index.root / index[table][column][0]).resolve()
        assert (again.root / again[table][column][0]).resolve() == was


def test_writing_refuses_what_reading_would(tmp_path):
    images = pd.DataFrame([{"image_id": "a", "patient_id": "p", "path": "a", "benign": 2, "malignant": 0}])
    with pytest.raises(InputError, match="line 2, column benign, value '2'"):
        make_index(images, None, tmp_path)
    good = make_index(images.assign(benign=1), None, tmp_path)
    with pytest.raises(InputError, match="line 2, column laterality, value 'left'"):
        write_index(good._replace(images=good.images.assign(laterality="left")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def cohort(kinds: list[tuple[float, float]], views: int = 2) -> pd.DataFrame:
    rows = [
        {
            "image_id": f"i{n}-{view}", "patient_id": f"p{n}", "path": "x",
            "benign": benign if view == 0 else 0.0 * benign, "malignant": malignant,
        }
        for n, (benign, malignant) in enumerate(kinds)
        for view in range(views)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(split="")


kinds_strategy = st.lists(
    st.tuples(label, label), min_size=1, max_size=60
)  # any mixture, strata of every size included


@given(
    kinds_strategy, st.integers(0, 5), st.sampled_from([(0.6, 0.2, 0.2), (0.8, 0.1, 0.1), (0.5, 0.5, 0.0)])
)
def test_splits_hold_whole_patients_and_the_right_share(kinds, seed, shares):
    images = cohort(kinds)
    fractions = dict(zip(("train", "val", "test"), shares, strict=True))
    done = split_patients(images, fractions, seed)
    per_patient = done.groupby("patient_id")["split"]
    assert (per_patient.nunique() == 1).all()
    assert set(done["split"]) <= {name for name, share in fractions.items() if share > 0}
    assert images["split"].eq("").all()  # the table that came in is left alone
    pd.testing.assert_frame_equal(done.drop(columns="split"), images.drop(columns="split"))
    splits = per_patient.first()
    for name, share in fractions.items():
        # Each of the four kinds of patients is off by less than one, or by one it was given on purpose.
        assert abs((splits == name).sum() - share * len(kinds)) <= 4 * 1.01
    # Every split that can show a kind of patient does.
    kind_of = [
        2 if m == 1 else 1 if b == 1 else -1 if math.isnan(b) and math.isnan(m) else 0 for b, m in kinds
    ]
    kind = pd.Series(kind_of, [f"p{n}" for n in range(len(kinds))])
    used = [name for name, share in fractions.items() if share > 0]
    for value, patients in kind.groupby(kind):
        held = set(splits[patients.index])
        assert held == set(used) if len(patients) >= len(used) else "train" in held, value


def test_split_depends_on_ids_and_seed_alone():
    images = cohort([(n % 2, n % 3 == 0) for n in range(40)])
    once = split_patients(images, seed=3)
    shuffled = images.sample(frac=1, random_state=1)
    again = split_patients(shuffled, seed=3).sort_index()
    pd.testing.assert_frame_equal(once, again)
    assert not once["split"].equals(split_patients(images, seed=4)["split"])


@pytest.mark.parametrize("fractions", [{}, {"train": 0.5}, {"train": 2, "val": -1}, {"dev": 1.0}])
def test_fractions_that_make_no_split(fractions):
    with pytest.raises(InputError, match="give shares of train, val, test that sum to 1"):
        split_patients(cohort([(0.0, 1.0)]), fractions)


def test_select_and_subset_keep_findings_of_their_images(tmp_path):
    images = cohort([(1.0, 0.0), (1.0, 0.0), (0.0, 0.0)], views=1).assign(split=["train", "val", "train"])
    findings = pd.DataFrame({"image_id": ["i0-0", "i1-0"], "finding": "benign"})
    index = make_index(images, findings, tmp_path)
    train = subset(index, "train")
    assert train.images["image_id"].to_list() == ["i0-0", "i2-0"]
    assert train.findings["image_id"].to_list() == ["i0-0"]
    assert select(index, [False, True, False]).findings["image_id"].to_list() == ["i1-0"]
    with pytest.raises(InputError, match="no image has split 'test'"):
        subset(index, "test")
