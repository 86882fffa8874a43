"""The phantoms of the dual-branch chapters: what a batch of them holds, and that a head learns from them."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from mammomil.dual_branch import DualBranchConfig
from mammomil.metrics import auc_score
from mammomil.practice import practice, train_head
from mammomil.regions import iom

EXAMS = 12


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("MAMMOMIL_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield practice(EXAMS)
    patch.undo()


@pytest.mark.slow
def test_splits_hold_whole_patients_and_all_images(small):
    images = small.regions.index.images
    rows = {split: small.rows(split) for split in ("train", "val", "test")}
    assert sorted(np.concatenate(list(rows.values()))) == list(range(4 * EXAMS)) == list(range(len(images)))
    patients = [set(images["patient_id"].iloc[r]) for r in rows.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == EXAMS
    assert len(rows["train"]) > len(rows["test"]) > len(rows["val"])


@pytest.mark.slow
def test_a_batch_holds_the_codes_labels_and_region_labels_of_its_rows(small):
    chosen = small.annotated(1.0)
    images = small.regions.index.images
    train = images.iloc[small.rows("train")]
    assert chosen == set(train.loc[train["malignant"] == 1, "image_id"])
    rows = small.rows("train")
    batch = small.batch("train", chosen, alpha=0.6)
    for i, row in enumerate(rows):
        codes = small.regions.codes[row]
        n = len(codes)
        assert batch.valid[i].sum() == n
        torch.testing.assert_close(batch.codes[i, :n], codes, rtol=0, atol=0)
        assert batch.label[i].tolist() == images[["benign", "malignant"]].iloc[row].tolist()
        overlap = small.regions.malignant[row]
        for m in range(n):
            largest = max(overlap[m], default=0.0)
            want = 1 if largest >= 0.6 else 0 if largest == 0 else -1
            if images["image_id"].iloc[row] not in chosen:
                want = -1
            assert batch.region_label[i, m] == want
    assert small.batch(rows[:2]).region_label.max() == -1


@pytest.mark.slow
def test_the_overlaps_belong_to_the_windows_of_the_same_image(small):
    """A lesion without a mask counts by its box; of these phantoms, boxes hold their masks."""
    index = small.regions.index
    for row in small.rows("train"):
        overlap = small.regions.malignant[row]
        name = index.images["image_id"].iloc[row]
        mine = index.findings[
            (index.findings["image_id"] == name) & (index.findings["finding"] == "malignant")
        ]
        assert overlap.shape == (len(small.regions.codes[row]), len(mine))
        if len(mine):
            assert (overlap.max(0) > 0.3).all()  # some window sees each lesion
    assert iom(torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[2.0, 2, 6, 6]])).item() == 0.25


@pytest.mark.slow
def test_the_second_call_makes_nothing_anew(small):
    def stamps():
        return {p: p.stat().st_mtime_ns for p in small.codes.rglob("*") if p.is_file()}

    before = stamps()
    again = practice(EXAMS)
    assert stamps() == before
    assert len(before) == 4 * EXAMS
    assert all(torch.equal(a, b) for a, b in zip(again.regions.codes, small.regions.codes, strict=True))


@pytest.mark.slow
def test_a_head_learns_the_training_images_by_heart_and_the_same_each_time(small):
    config = DualBranchConfig(dropout=0.0)
    trained = train_head(small, config, epochs=60, learning_rate=1e-2, progress=False)
    rows = small.rows("train")
    label = small.regions.label[rows]
    assert trained.loss[-1] < 0.6 * trained.loss[0]
    assert auc_score(label[:, 1], trained.prob[-1][rows, 1]) > 0.9
    assert trained.prob.shape == (60, 4 * EXAMS, 2)
    with torch.inference_mode():
        batch = small.batch(rows)
        now = trained.head(batch.codes, batch.valid).y.numpy()
    np.testing.assert_allclose(now, trained.prob[-1][rows], atol=1e-6)
    state = torch.get_rng_state()
    again = train_head(small, config, epochs=2, learning_rate=1e-2, progress=False)
    np.testing.assert_array_equal(again.prob, trained.prob[:2])
    assert torch.equal(state, torch.get_rng_state())
    other = train_head(small, config, annotated=1.0, epochs=1, learning_rate=1e-2, progress=False)
    assert not np.array_equal(other.prob[0], trained.prob[0])


SECOND = """
from mammomil.practice import practice
if __name__ == "__main__":
    print(len(practice(2).regions.codes))
"""


@pytest.mark.slow
def test_two_processes_may_ask_at_once(tmp_path):
    script = tmp_path / "second.py"
    script.write_text(SECOND)
    environment = os.environ | {"MAMMOMIL_CACHE": str(tmp_path / "cache"), "TQDM_DISABLE": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen([sys.executable, str(script)], env=environment, **pipes) for _ in range(2)]
    for process in running:
        out, err = process.communicate(timeout=240)
        assert out == "8\n", err
