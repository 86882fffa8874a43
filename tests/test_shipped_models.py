"""The models in data_samples/weights: what they say must follow from the lesions, and from nothing else."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from mammomil.dataset import FieldDataset
from mammomil.dicom import Mammogram
from mammomil.index import read_index
from mammomil.metrics import auc_score
from mammomil.phantom import render_exam
from mammomil.preprocess import PreprocessConfig, prepare
from mammomil.weights import load_model

SAMPLES = Path(__file__).parents[1] / "data_samples"
WEIGHTS = SAMPLES / "weights"
NAMES = ("gmic-quick", "gmic-quick-half", "region-encoder")


def canvas(view):
    pixels = view.pixels.astype(np.float32)
    return prepare(Mammogram(pixels, view.laterality, view.view, 0.56, ()), PreprocessConfig.quick()).image


@cache
def answers(lesions, seeds=range(700_000, 700_030)):
    """Malignant probability of every view with a malignant finding, drawn with or without its findings."""
    model, scores = load_model(WEIGHTS / "gmic-quick").model.eval(), []
    for seed in seeds:
        sick = render_exam(seed)
        drawn = sick if lesions else render_exam(seed, lesions=False)
        images = [canvas(v) for v, s in zip(drawn.views, sick.views, strict=True) if s.label[1]]
        if images:
            with torch.inference_mode():
                scores += model(torch.from_numpy(np.stack(images))[:, None]).y[:, 1].tolist()
    return np.array(scores)


@cache
def coded_fields():
    """Codes of fields of the shipped phantoms, whether each holds a finding, and its patient."""
    index = read_index(SAMPLES)
    data = FieldDataset(index, PreprocessConfig.quick(), 28, length=1200)
    fields = [data[i] for i in range(len(data))]
    encoder = load_model(WEIGHTS / "region-encoder").model.eval()
    with torch.inference_mode():
        codes = encoder.backbone(torch.stack([f.image for f in fields])).mean((-2, -1))
    label = torch.stack([f.label for f in fields]).numpy()
    patients = data.images["patient_id"].to_numpy(str)[[int(f.row) for f in fields]]
    known = ~np.isnan(label).any(1)
    return codes.numpy()[known], label[known].max(1), patients[known]


def cross_validated_auc(codes, label, patients):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    folds = GroupKFold(5)
    score = cross_val_predict(model, codes, label, groups=patients, cv=folds, method="predict_proba")
    return auc_score(label, score[:, 1])


@pytest.mark.parametrize("name", NAMES)
def test_every_model_says_where_it_comes_from(name):
    loaded = load_model(WEIGHTS / name)
    facts = loaded.card["provenance"]
    assert facts["commit"]
    assert "seed" in facts
    card = (WEIGHTS / name / "README.md").read_text()
    assert "hantom" in card
    assert "AUC" in card
    for path in (WEIGHTS / name).iterdir():
        if path.suffix in (".json", ".md"):
            assert "/tmp" not in path.read_text()
            assert "/work" not in path.read_text()


def test_all_weights_fit_the_budget():
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < 20 * 2**20


def test_the_encoder_gives_codes_of_128_numbers():
    codes, *_ = coded_fields()
    assert codes.shape[1] == 128
    assert (codes >= 0).all()  # after a ReLU, as the paper's are after relu7 (reading A16)
    assert np.linalg.matrix_rank(codes) > 20


@pytest.mark.slow
def test_a_score_drops_when_the_lesion_is_taken_away():
    with_, without = answers(True), answers(False)
    assert len(with_) > 20
    fell = int((without < with_).sum())
    assert binomtest(fell, len(with_), 0.5, alternative="greater").pvalue < 0.001
    called = with_ > 0.5
    assert called.sum() > 5
    assert (without[called] < 0.5).mean() > 0.8  # what was called malignant no longer is


@pytest.mark.slow
def test_shuffled_labels_train_to_chance():
    """Codes tell fields with findings from others by patient-wise folds; with shuffled labels they do not.

    A leak between folds, or a label that can be read off something else, would show in the second figure.
    """
    codes, label, patients = coded_fields()
    assert cross_validated_auc(codes, label, patients) > 0.75
    rng = np.random.default_rng(0)
    shuffled = [cross_validated_auc(codes, rng.permutation(label), patients) for _ in range(5)]
    assert abs(np.mean(shuffled) - 0.5) < 0.05


@pytest.mark.slow
def test_the_shipped_gmic_finds_malignant_lesions_in_phantoms_it_has_never_seen():
    from mammomil.evaluate import evaluate_model

    found = evaluate_model(WEIGHTS / "gmic-quick", SAMPLES, progress=False).findings["malignant"]
    half = evaluate_model(WEIGHTS / "gmic-quick-half", SAMPLES, progress=False).findings["malignant"]
    assert found.auc > 0.7
    assert found.auc > half.auc
    assert found.region_hit > half.region_hit
