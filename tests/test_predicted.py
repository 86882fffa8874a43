import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mammomil.files import InputError
from mammomil.predicted import read_predictions, with_map
from mammomil.report import Failure, Row, write_tables
from mammomil.types import FINDINGS, Prediction


def forge(image_id, boxes, scores, model="m", parts=(), seed=0):
    prob = np.random.default_rng(seed).random(2)
    told = dict.fromkeys(parts, prob / 2)
    p_normal = float(np.prod(1 - prob))
    return Prediction(
        image_id, "x.png", model, "L", "CC", prob, p_normal, told, None, None, np.array(boxes, float),
        np.array(scores, float), np.ones(len(boxes)) if parts else None,
    )  # fmt: skip


def random_regions(m, seed=0):
    rng = np.random.default_rng(seed)
    low = rng.random((m, 2)) * 100
    return np.concatenate([low, low + rng.random((m, 2)) * 50], 1), rng.random((m, 2))


def write(folder, *predictions, failures=()):
    write_tables(folder, [Row(p) for p in predictions], failures)
    return folder


def test_what_was_written_comes_back_up_to_six_digits(tmp_path):
    many, few = forge("many", *random_regions(30), seed=1), forge("few", *random_regions(5, 1), seed=2)
    gmic = forge("few", *random_regions(6, 2), "gmic", ("loc", "mil"), seed=3)
    failures = [Failure("y.png", "lost", "is no image")]
    stored = read_predictions(write(tmp_path, many, few, gmic, failures=failures))
    assert {name: list(found) for name, found in stored.models.items()} == {
        "m": ["many", "few"],
        "gmic": ["few"],
    }
    assert stored.reasons == {"lost": "is no image"}
    for p in (many, few, gmic):
        back = stored.models[p.model][p.image_id]
        assert (back.laterality, back.view, back.path) == ("L", "CC", "x.png")
        np.testing.assert_allclose(back.prob, p.prob, rtol=1e-5)
        assert back.ranks_regions == p.ranks_regions == (p.model == "m")
        assert set(back.parts) == set(p.parts)
        for c in range(2):
            order = np.argsort(-p.scores[:, c])[:20]
            again = np.argsort(-back.scores[:, c])
            listed = again[np.isfinite(back.scores[again, c])]
            np.testing.assert_allclose(back.scores[listed, c], p.scores[order, c], rtol=1e-5)
            np.testing.assert_allclose(back.boxes[listed], p.boxes[order], rtol=1e-5)
    assert len(stored.models["m"]["few"].boxes) == 5  # a region that both findings list is one


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=15),
    st.lists(st.integers(0, 14), min_size=1, max_size=25),
)
def test_the_region_a_model_trusts_most_is_the_same_also_among_ties(values, drawn):
    which = np.array(drawn) % len(values)  # GMIC may take a window twice, with the same scores
    scores = np.array(values, float)[which]
    boxes = np.stack([which, which, which + 10, which + 10], 1).astype(float)
    with tempfile.TemporaryDirectory() as folder:
        back = read_predictions(write(folder, forge("a", boxes, scores))).models["m"]["a"]
    for c in range(2):
        np.testing.assert_array_equal(back.boxes[back.scores[:, c].argmax()], boxes[scores[:, c].argmax()])


BAD_CELLS = {
    "nan": ("predictions.csv", "p_benign", "nan", "'nan'"),
    "empty": ("predictions.csv", "p_malignant", "", "''"),
    "large": ("predictions.csv", "p_benign", "1.2", "'1.2'"),
    "negative": ("predictions.csv", "p_benign", "-0.1", "numbers from 0 to 1"),
    "text": ("predictions.csv", "p_malignant", "high", "'high'"),
    "score": ("regions.csv", "score", "nan", "regions.csv, line 2"),
    "box": ("regions.csv", "x1", "-5", "regions.csv, line 2"),
    "finding": ("regions.csv", "finding", "both", "regions.csv, line 2"),
    "rank": ("regions.csv", "rank", "2", "regions.csv, line"),
}


@pytest.mark.parametrize("case", BAD_CELLS)
def test_a_bad_cell_costs_its_image_and_no_other(tmp_path, case):
    name, column, value, words = BAD_CELLS[case]
    write(tmp_path, *(forge(i, *random_regions(3)) for i in ("first", "second")))
    lines = (tmp_path / name).read_text().splitlines()
    cells = lines[1].split(",")
    assert cells[0] == "first"
    cells[lines[0].split(",").index(column)] = value
    (tmp_path / name).write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]))
    stored = read_predictions(tmp_path)
    assert list(stored.models["m"]) == ["second"]
    assert list(stored.faults["m"]) == ["first"]
    assert words in stored.faults["m"]["first"]


def test_of_two_rows_neither_counts(tmp_path):
    write(tmp_path, *(forge(i, *random_regions(2), seed=n) for n, i in enumerate(("a", "b", "a"))))
    stored = read_predictions(tmp_path)
    assert list(stored.models["m"]) == ["b"]
    assert "several rows of one model" in stored.faults["m"]["a"]


def test_folders_that_cannot_be_used_get_a_sentence(tmp_path):
    with pytest.raises(InputError, match=r"no predictions\.csv here"):
        read_predictions(tmp_path)
    (tmp_path / "predictions.csv").write_text("image_id,model,p_benign\n")
    with pytest.raises(InputError, match="column p_malignant is missing"):
        read_predictions(tmp_path)
    (tmp_path / "predictions.csv").write_text("image_id,model,p_benign,p_malignant\n")
    with pytest.raises(InputError, match="holds no prediction"):
        read_predictions(tmp_path)
    (tmp_path / "predictions.csv").write_text("image_id,model,p_benign,p_malignant\na,own,0.2,1\n")
    found = read_predictions(tmp_path).models["own"]["a"]  # of another program: no regions, no more columns
    assert (found.prob.tolist(), found.boxes.shape, found.ranks_regions) == ([0.2, 1.0], (0, 4), False)
    (tmp_path / "regions.csv").write_text("image_id,model\n")
    with pytest.raises(InputError, match=r"regions\.csv, line 1: column finding"):
        read_predictions(tmp_path)
    (tmp_path / "regions.csv").write_text(
        "image_id,model,finding,rank,score,x0,y0,x1,y1\na,new,benign,1,1,0,0,1,1\n"
    )
    with pytest.raises(InputError, match="model 'new' is not in predictions"):
        read_predictions(tmp_path)


def test_maps_are_read_where_they_are(tmp_path):
    p = forge("a", *random_regions(2))
    assert with_map(p, tmp_path, 1).saliency is None
    maps = {finding: np.full((3, 2), value) for finding, value in zip(FINDINGS, (0.25, 0.5), strict=True)}
    box = np.array([-1.0, 0, 20, 30])
    (tmp_path / "maps").mkdir()
    np.savez(tmp_path / "maps" / "a.npz", **maps, box=box)
    found = with_map(p, tmp_path, 1)
    np.testing.assert_array_equal(found.saliency[:, 0, 0], [0.25, 0.5])
    np.testing.assert_array_equal(found.map_box, box)
    assert with_map(p, tmp_path, 2).saliency is None  # of several models the file would be a.m.npz
    path = tmp_path / "maps" / "a.m.npz"
    for broken in (
        {**maps, "box": box[:3]},
        {**maps, "box": box[::-1]},
        {"benign": maps["benign"], "box": box},
        {"benign": maps["benign"] * np.nan, "malignant": maps["malignant"], "box": box},
        {"benign": maps["benign"] * 9, "malignant": maps["malignant"], "box": box},
        {"benign": maps["benign"][0], "malignant": maps["malignant"], "box": box},
    ):
        np.savez(path, **broken)
        with pytest.raises(InputError, match=r"a\.m\.npz"):
            with_map(p, tmp_path, 2)
    path.write_bytes(b"no archive")
    with pytest.raises(InputError, match="cannot read these maps"):
        with_map(p, tmp_path, 2)
    np.savez(path, **{f: np.array([object()]) for f in FINDINGS}, box=box)
    with pytest.raises(InputError, match="cannot read these maps"):  # what a pickle would hide
        with_map(p, tmp_path, 2)
