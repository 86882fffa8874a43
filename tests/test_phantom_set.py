from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mammomil import phantom_set
from mammomil.files import InputError
from mammomil.index import FINDING_COLUMNS, IMAGE_COLUMNS, read_index
from mammomil.phantom import render_exam
from mammomil.phantom_set import PER_SEED, write_phantoms

HEALTHY = (0.0, 0.0, 0.0)
NAMES = [("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO")]


def test_written_exams_can_be_read_and_say_what_was_drawn(tmp_path):
    table = write_phantoms(tmp_path / "set", exams=5, seed=9, conspicuity=2.0, progress=False)
    index = read_index(table)
    assert tuple(index.images.columns) == IMAGE_COLUMNS
    assert tuple(index.findings.columns[: len(FINDING_COLUMNS)]) == FINDING_COLUMNS
    assert len(index.images) == 20
    split = index.images.groupby("patient_id")["split"].agg(set)
    assert sorted(s for found in split for s in found) == ["test", "train", "train", "train", "val"]
    rows = iter(index.findings.itertuples())
    images = index.images.itertuples()
    for number in range(5):
        e = render_exam(900_000 + number, conspicuity=2.0)
        for view in e.views:
            row = next(images)
            stored = np.asarray(Image.open(index.root / row.path))
            np.testing.assert_array_equal(stored, view.pixels)
            assert stored.dtype == np.uint16
            assert (row.benign, row.malignant) == view.label
            assert (row.laterality, row.view, row.density) == (view.laterality, view.view, e.density)
            assert (row.height, row.width, row.spacing_mm) == (368, 240, 0.56)
            for f in view.findings:
                found = next(rows)
                assert (found.image_id, found.finding, found.kind) == (row.image_id, f.finding, f.kind)
                assert (found.x0, found.y0, found.x1, found.y1) == f.box
                np.testing.assert_array_equal(np.asarray(Image.open(index.root / found.mask)), f.mask)
            for name in ("breast", "pectoral"):
                truth = np.asarray(Image.open(index.root / "truth" / f"{row.image_id}_{name}.png"))
                np.testing.assert_array_equal(truth, getattr(view, name))
            gland = np.asarray(Image.open(index.root / "truth" / f"{row.image_id}_gland.png")) / 255
            np.testing.assert_allclose(gland, view.gland, atol=0.5 / 255 + 1e-6)
    card = (tmp_path / "set" / "README.md").read_text()
    assert "mammomil phantom --exams 5 --scale quick --seed 9 --out set --conspicuity 2" in card
    assert not (tmp_path / "set" / "unfinished").exists()


def test_file_names_tell_laterality_and_view(tmp_path):
    dicom = pytest.importorskip("mammomil.dicom")
    index = read_index(write_phantoms(tmp_path, exams=1, progress=False))
    assert [dicom.name_hints(index.root / path) for path in index.images["path"]] == NAMES


def test_the_same_command_writes_the_same_bytes(tmp_path):
    folders = [write_phantoms(tmp_path / name, exams=1, seed=4, progress=False).parent for name in "ab"]
    files = [sorted(p.relative_to(f) for p in f.rglob("*") if p.is_file()) for f in folders]
    assert files[0] == files[1]
    assert len(files[0]) >= 7
    for name in files[0]:
        if name.name != "README.md":  # it names its folder
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    render, drawn = phantom_set.render_exam, []

    def stop_at_third(seed, *args, **kwargs):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(seed)
        return render(seed, *args, **kwargs)

    monkeypatch.setattr(phantom_set, "render_exam", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path, exams=3, progress=False)
    assert not (tmp_path / "index.csv").exists()
    with pytest.raises(InputError, match="unfinished run"):
        write_phantoms(tmp_path, exams=3, seed=1, progress=False)
    monkeypatch.setattr(
        phantom_set, "render_exam", lambda seed, *args, **kw: drawn.append(seed) or render(seed, *args, **kw)
    )
    write_phantoms(tmp_path, exams=3, progress=False)
    assert drawn == [0, 1, 2]  # no exam was drawn twice
    whole = write_phantoms(tmp_path / "whole", exams=3, progress=False)
    assert (tmp_path / "index.csv").read_text() == whole.read_text()
    assert not list(tmp_path.rglob(".*"))


def test_a_finished_set_is_replaced_only_by_force(tmp_path):
    write_phantoms(tmp_path, exams=2, progress=False)
    (tmp_path / "images" / "mine.png").write_bytes(b"keep")
    with pytest.raises(InputError, match="--force"):
        write_phantoms(tmp_path, exams=1, progress=False)
    write_phantoms(tmp_path, exams=1, seed=1, progress=False, force=True)
    assert len(read_index(tmp_path).images) == 4
    assert len(list(tmp_path.glob("images/phantom-*.png"))) == 4
    assert (tmp_path / "images" / "mine.png").exists()


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("exams", {"exams": 0}),
        ("seed", {"exams": 1, "seed": -1}),
        ("conspicuity", {"exams": 1, "conspicuity": 0.0}),
    ],
)
def test_values_out_of_range_are_refused(tmp_path, name, kwargs):
    with pytest.raises(InputError, match=f"^{name} .* give"):
        write_phantoms(tmp_path, progress=False, **kwargs)
    assert not list(tmp_path.iterdir())


def test_a_set_without_findings_is_readable(tmp_path, monkeypatch):
    render = phantom_set.render_exam
    monkeypatch.setattr(
        phantom_set, "render_exam", lambda *args, **kwargs: render(*args, **kwargs, mix=HEALTHY)
    )
    assert read_index(write_phantoms(tmp_path, exams=1, progress=False)).findings.empty


@pytest.mark.slow  # each worker is a process that imports torch
def test_any_number_of_workers_writes_the_same_bytes(tmp_path):
    folders = [
        write_phantoms(tmp_path / str(n) / "set", exams=2, seed=4, progress=False, workers=n, crowd=2).parent
        for n in (1, 2)
    ]
    for path in sorted(p for p in folders[0].rglob("*") if p.is_file()):
        assert path.read_bytes() == (folders[1] / path.relative_to(folders[0])).read_bytes()


def test_the_samples_are_drawn_by_one_command_and_only_where_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom_set, "SAMPLES", (("", "quick", 1, 2026), ("more", "quick", 1, 2027)))
    phantom_set.write_samples(tmp_path, progress=False)
    first = (tmp_path / "index.csv").read_bytes()
    with pytest.raises(InputError, match="--force"):
        phantom_set.write_samples(tmp_path, progress=False)
    (tmp_path / "more" / "index.csv").unlink()
    with pytest.raises(InputError, match=r"more.*exists"):  # its other files are not ours to overwrite
        phantom_set.write_samples(tmp_path, progress=False)
    phantom_set.write_samples(tmp_path, progress=False, force=True)
    assert (tmp_path / "index.csv").read_bytes() == first


@pytest.mark.parametrize(
    ("folder", "scale", "exams", "seed"),
    [pytest.param(*row, marks=() if row[1] == "quick" else pytest.mark.slow) for row in phantom_set.SAMPLES],
)
def test_the_shipped_samples_are_what_the_command_draws(folder, scale, exams, seed):
    """Byte for byte needs the machine and versions they were drawn with; elsewhere a grey level may round."""
    index = read_index(Path(__file__).parents[1] / "data_samples" / folder)
    assert len(index.images) == 4 * exams
    drawn = render_exam(PER_SEED * seed + exams - 1, scale)
    for view, row in zip(drawn.views, index.images.iloc[-4:].itertuples(), strict=True):
        stored = np.asarray(Image.open(index.root / row.path)).astype(int)
        assert np.abs(stored - view.pixels).max() <= 2
        assert (stored != view.pixels).mean() < 0.01
        assert (row.laterality, row.view, row.density) == (view.laterality, view.view, drawn.density)
        boxes = index.findings.loc[index.findings.image_id == row.image_id, ["x0", "y0", "x1", "y1"]]
        assert [tuple(box) for box in boxes.to_numpy()] == [f.box for f in view.findings]


def test_the_shipped_samples_hold_the_cases_the_papers_rules_need():
    index = read_index(Path(__file__).parents[1] / "data_samples")
    images, findings = index.images, index.findings
    assert ((images.benign == 1) & (images.malignant == 1)).any()
    exams = images.groupby("exam_id")[["benign", "malignant"]].max().sum(axis=1)
    assert (exams == 0).any()  # a normal exam
    longest = 0.0
    for name in findings["mask"]:
        spread = np.linalg.eigvalsh(np.cov(np.nonzero(np.asarray(Image.open(index.root / name)))))
        longest = max(longest, float(np.sqrt(spread[1] / max(spread[0], 1e-6))))
    assert longest > 3  # a long thin lesion
    assert set(findings.kind) == {"mass", "calcification", "distortion", "asymmetry"}
    assert set(images.density) == set("ABCD")
    centres = np.ix_(range(14, 368 - 13, 14), range(14, 240 - 13, 14))
    windows = [
        np.asarray(Image.open(index.root / "truth" / f"{name}_breast.png"))[centres].sum()
        for name in images.image_id
    ]
    assert min(windows) < 10  # fewer regions than the dual-branch network ranks (checklist D8)
