import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mammomil.files import InputError, read_json
from mammomil.index import read_index, write_index
from mammomil.jobs import run_training
from mammomil.metrics import auc_score
from mammomil.protocols import mean_std, over_folds, patient_folds, write_folds
from mammomil.recipes import preset
from mammomil.weights import SHIPPED


def table(patients: int, seed: int, images: int = 4) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(patients):
        density = rng.choice(list("ABCD"), p=[0.2, 0.48, 0.27, 0.05])
        kind = rng.choice(3, p=[0.4, 0.35, 0.25])
        for image in range(images):
            sick = image < 2
            rows.append(
                {"image_id": f"{number}-{image}", "patient_id": f"p{number:03d}", "density": density}
                | {"benign": float(kind == 1 and sick), "malignant": float(kind == 2 and sick)}
            )
    return pd.DataFrame(rows)


@settings(max_examples=8)
@given(st.integers(40, 90), st.integers(2, 5), st.integers(0, 99))
def test_folds_keep_patients_whole_and_deal_every_kind_evenly(patients, folds, seed):
    images = table(patients, seed)
    fold = patient_folds(images, folds, seed)
    assert set(fold) == set(range(folds))
    assert (pd.Series(fold).groupby(images["patient_id"]).nunique() == 1).all()
    per_patient = pd.DataFrame({"fold": fold, **images[["patient_id", "benign", "malignant", "density"]]})
    per_patient = per_patient.groupby("patient_id").max()
    for label in ("benign", "malignant"):  # at most the rounding of each kind's density classes apart
        counts = (
            per_patient[per_patient[label] == 1].groupby("fold").size().reindex(range(folds), fill_value=0)
        )
        assert counts.max() - counts.min() <= 5
    for k in range(folds):
        assert {0.0, 1.0} <= set(images["malignant"][fold == k])


def test_folds_do_not_depend_on_the_order_of_rows_and_do_on_the_seed():
    images = table(60, 1)
    shuffled = images.sample(frac=1, random_state=0)
    first = dict(zip(images["patient_id"], patient_folds(images, 5, 3), strict=True))
    assert first == dict(zip(shuffled["patient_id"], patient_folds(shuffled, 5, 3), strict=True))
    assert first != dict(zip(images["patient_id"], patient_folds(images, 5, 4), strict=True))


def test_density_is_matched_better_than_by_chance():
    images = table(300, 2)
    fold = patient_folds(images, 5, 0)
    dense = images["density"].isin(["C", "D"]).to_numpy(float)
    share = [dense[fold == k].mean() for k in range(5)]
    assert max(share) - min(share) < 0.05  # by chance the deviation of each is about .06


def test_folds_without_both_classes_or_without_patients_are_refused():
    images = table(30, 0)
    one = images.assign(malignant=0.0)
    one.loc[0, "malignant"] = 1.0
    with pytest.raises(InputError, match=r"fold \d of 3: 0 images with and \d+ without a malignant finding"):
        patient_folds(one, 3)
    with pytest.raises(InputError, match="31 folds of 30 patients"):
        patient_folds(images, 31)
    unknown = images.assign(benign=np.nan)  # a finding nobody labelled has no classes to lack
    assert len(patient_folds(unknown, 3)) == len(images)


def test_written_folds_judge_every_image_once_and_by_other_patients(tmp_path):
    index = read_index(SHIPPED)
    seen = []
    for folder in write_folds(index, tmp_path, 4, seed=5):
        part = read_index(folder)
        assert set(part.images["split"]) == {"train", "val", "test"}
        assert (part.images.groupby("patient_id")["split"].nunique() == 1).all()
        assert all((folder / path).exists() for path in part.images["path"])
        seen += part.images.loc[part.images["split"] == "test", "image_id"].tolist()
    assert sorted(seen) == sorted(index.images["image_id"])


def test_figures_over_folds_are_mean_deviation_and_pooled():
    rng = np.random.default_rng(0)
    fold, patients = np.repeat(np.arange(5), 40), np.repeat(np.arange(100), 2)
    y = (rng.random(200) < 0.4).astype(float)
    s = rng.normal(size=200) + y + 0.5 * fold
    found = over_folds(auc_score, y, s, fold, patients, n_resamples=200)
    each = [roc_auc_score(y[fold == k], s[fold == k]) for k in range(5)]
    assert found.folds == pytest.approx(each)
    assert found.mean == pytest.approx(sum(each) / 5)
    assert found.std == pytest.approx((sum((v - sum(each) / 5) ** 2 for v in each) / 4) ** 0.5)
    assert found.pooled == pytest.approx(roc_auc_score(y, s))
    assert found.interval[0] < found.pooled < found.interval[1]
    assert str(found) == f"{found.mean:.3f} ± {found.std:.3f}"


def test_a_fold_without_a_figure_is_left_out():
    values, mean, std = mean_std([0.5, None, 0.7])
    assert np.isnan(values[1])
    assert (mean, std) == (pytest.approx(0.6), pytest.approx(0.02**0.5))
    assert np.isnan(mean_std([None])[1])
    assert np.isnan(mean_std([0.5])[2])


def _train(folder: Path, out: Path) -> bytes:
    """Train on a fold and return the bytes of the weights."""
    run = preset("dual-branch", "quick", folder, out)
    train = dataclasses.replace(run.train, epochs=1, batch_size=8)
    run_training(dataclasses.replace(run, train=train, annotated=0.5), progress=False)
    return (out / "model" / "weights.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*annotated images? ha.* no region")
def test_nothing_of_a_test_patient_is_seen_in_training(tmp_path):
    """The leak probe: whatever the test patients' images and labels are, the weights are the same bits."""
    index = read_index(SHIPPED)
    index = index._replace(images=index.images.iloc[:40])
    index = index._replace(findings=index.findings[index.findings["image_id"].isin(index.images["image_id"])])
    clean = write_folds(index, tmp_path / "clean", 2, seed=0)[0]
    fold = read_index(clean)
    honest = _train(clean, tmp_path / "a")

    wrecked = tmp_path / "wrecked"
    images, test = fold.images.copy(), fold.images["split"] == "test"
    (wrecked / "other").mkdir(parents=True)
    sources = images.loc[test, "path"].tolist()
    for name, source in zip(images.loc[test, "image_id"], sources[1:] + sources[:1], strict=True):
        shutil.copy(clean / source, wrecked / "other" / f"{name}.png")
    images.loc[test, "path"] = [f"../wrecked/other/{name}.png" for name in images.loc[test, "image_id"]]
    images["path"] = [p if p.startswith("../wrecked") else f"../clean/fold-1/{p}" for p in images["path"]]
    images.loc[test, ["benign", "malignant"]] = 1 - images.loc[test, ["benign", "malignant"]]
    findings = fold.findings[~fold.findings["image_id"].isin(images.loc[test, "image_id"])].copy()
    findings["mask"] = [f"../clean/fold-1/{m}" if m else "" for m in findings["mask"]]
    write_index(fold._replace(images=images, findings=findings, root=wrecked), wrecked)
    assert _train(wrecked, tmp_path / "b") == honest
    # The probe has teeth: test figures did change, and a training patient's labels change the weights.
    results = [read_json(tmp_path / name / "result.json") for name in "ab"]
    assert results[0]["val"] == results[1]["val"]
    assert results[0]["test"]["auc_malignant"] != results[1]["test"]["auc_malignant"]
    taught = fold.images["split"] == "train"
    images = fold.images.copy()
    images.loc[taught, "malignant"] = 1 - images.loc[taught, "malignant"]
    findings = fold.findings[~fold.findings["image_id"].isin(images.loc[taught, "image_id"])]
    images.loc[taught, "benign"] = 0.0
    write_index(fold._replace(images=images, findings=findings), tmp_path / "taught")
    run = preset("dual-branch", "quick", tmp_path / "taught", tmp_path / "c")
    train = dataclasses.replace(run.train, epochs=1, batch_size=8)
    run_training(dataclasses.replace(run, train=train), progress=False)
    assert (tmp_path / "c" / "model" / "weights.safetensors").read_bytes() != honest
