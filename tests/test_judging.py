import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mammomil.files import InputError
from mammomil.judging import cut_to_box, judge_answer, judge_map
from mammomil.types import Prediction

IMAGE = {"image_id": "a", "patient_id": "p", "exam_id": "e", "split": "", "source": "", "laterality": "",
         "view": "MLO", "benign": np.nan, "malignant": 1.0, "height": 12.0, "width": 10.0}  # fmt: skip


def predict(saliency, box, boxes=()):
    boxes = np.array(boxes, float).reshape(-1, 4)
    return Prediction(
        "a", "a.png", "m", "L", "CC", np.array([0.3, 0.6]), 0.28, {}, saliency, box, boxes,
        np.zeros((len(boxes), 2)), None,
    )  # fmt: skip


def lesions(*rows):
    columns = ["finding", "x0", "y0", "x1", "y1", "mask"]
    return pd.DataFrame(rows, columns=columns)


@given(st.tuples(*[st.integers(-8, 15)] * 2), st.tuples(*[st.integers(1, 12)] * 2), st.floats(-0.4, 0.4))
def test_a_mask_is_cut_to_a_box_pixel_by_pixel(corner, size, shift):
    mask = np.random.default_rng(0).random((7, 5)) < 0.5
    box = np.array([*corner, corner[0] + size[0], corner[1] + size[1]], float) + shift
    cut = cut_to_box(mask, box)
    assert cut.shape == size[::-1]
    for (row, column), value in np.ndenumerate(cut):
        y, x = row + corner[1], column + corner[0]
        assert value == (0 <= y < 7 and 0 <= x < 5 and mask[y, x])


def test_a_map_is_compared_with_the_masks_of_its_finding_over_its_box(tmp_path):
    mask = np.zeros((12, 10), np.uint8)
    mask[4:8, 2:6] = 255
    Image.fromarray(mask).save(tmp_path / "one.png")
    Image.fromarray(255 - mask).save(tmp_path / "rest.png")
    box = np.array([-2.0, 0, 10, 12])  # the map reaches 2 pixels past the image; a cell is 2 x 2 pixels
    perfect = np.zeros((2, 6, 6))
    perfect[1, 2:4, 2:4] = 1
    found = lesions(("malignant", 2, 4, 6, 8, "one.png"))
    columns = judge_map(predict(perfect, box), IMAGE, found, tmp_path)
    assert columns == {
        **dict.fromkeys(("precision_benign", "recall_benign", "f1_benign")),
        "precision_malignant": 1.0, "recall_malignant": 1.0, "f1_malignant": 1.0,
    }  # fmt: skip
    half = perfect / 2
    half[1, 0, 0] = 1  # two cells' worth of half, and one beside
    columns = judge_map(predict(half, box), IMAGE, found, tmp_path)
    assert columns["precision_malignant"] == pytest.approx(2 / 3)
    assert columns["recall_malignant"] == pytest.approx(1 / 2)
    both = lesions(("malignant", 2, 4, 6, 8, "one.png"), ("malignant", 0, 0, 10, 12, "rest.png"))
    columns = judge_map(predict(np.ones((2, 6, 6)), box), IMAGE, both, tmp_path)
    assert columns["recall_malignant"] == 1
    assert columns["precision_malignant"] == pytest.approx(10 / 12)  # what lies past the image is wrong
    lacking = lesions(("malignant", 2, 4, 6, 8, "one.png"), ("malignant", 0, 0, 2, 2, ""))
    assert judge_map(predict(perfect, box), IMAGE, lacking, tmp_path)["f1_malignant"] is None
    assert judge_map(predict(None, None), IMAGE, found, tmp_path)["f1_malignant"] is None


def test_the_index_goes_before_the_file_and_masks_before_boxes(tmp_path):
    mask = np.zeros((12, 10), np.uint8)
    mask[0:4, 0:1] = 1
    Image.fromarray(mask).save(tmp_path / "one.png")
    found = lesions(("malignant", 0.0, 0.0, 4.0, 4.0, "one.png"), ("benign", *[np.nan] * 4, ""))
    p = predict(None, None, [[2, 0, 4, 4], [0, 0, 1, 4]])
    row, places = judge_answer(p, IMAGE, found, tmp_path)
    assert (row["laterality"], row["view"]) == ("L", "MLO")
    assert (row["benign"], row["malignant"], row["lesions_benign"], row["iom_malignant"]) == (None, 1, 0, 1)
    np.testing.assert_array_equal(places.iom, [[1], [1]])
    np.testing.assert_array_equal(places.finding, [1])
    row, places = judge_answer(p, IMAGE, found, tmp_path, mask_iom=True)
    np.testing.assert_array_equal(places.iom, [[0], [1]])
    assert row["region_hit_malignant"] == 0  # of equal scores the first
    Image.new("L", (9, 12)).save(tmp_path / "one.png")
    with pytest.raises(InputError, match=r"the mask is \(12, 9\)"):
        judge_answer(p, IMAGE, found, tmp_path, mask_iom=True)
