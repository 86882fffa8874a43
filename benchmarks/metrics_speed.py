"""Speed of the metrics: FROC curve, bootstrap, DeLong and continuous F1, each beside a plain loop.

    python benchmarks/metrics_speed.py    # prints, and writes metrics_speed.md and .json

Machines are noisy: the two run in turn (A B A B ...), and the median of the pairwise ratios is what counts.
The loops are the definitions written down; they must give the same numbers before anything is timed.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mammomil.files import provenance, write_json
from mammomil.metrics import auc_score, bootstrap_rows, continuous_prf, delong, froc_curve

HERE = Path(__file__).parent
IMAGES, REGIONS, SELECTED = 10_000, 300, 10


def in_turn(ours: Callable[[], Any], loop: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Seconds of ours, and the median of ours / loop; one round to warm up."""
    times: list[list[float]] = []
    for _ in range(rounds + 1):
        times.append([])
        for function in (ours, loop):
            start = time.perf_counter()
            function()
            times[-1].append(time.perf_counter() - start)
    return statistics.median(a for a, _ in times[1:]), statistics.median(a / b for a, b in times[1:])


def froc_images(rng: np.random.Generator, selected: int = REGIONS) -> list[dict[str, Any]]:
    """Images with 300 regions each, of which `selected` have a score; a third has one to three lesions."""
    images = []
    for i in range(IMAGES):
        lesions = int(rng.integers(1, 4)) if i % 3 == 0 else 0
        score = rng.random(REGIONS)
        score[rng.permutation(REGIONS)[selected:]] = 0
        iom = np.where(rng.random((REGIONS, lesions)) < 0.02, 1.0, 0.2)
        label = float(lesions > 0)
        images.append({"label": label, "score": rng.random() + label, "region_score": score, "iom": iom})
    return images


def froc_loop(images: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Build the gated curve per image, image by image (mammomil until 2026-11)."""
    positives = np.sort([image["score"] for image in images if image["label"] == 1])[::-1]
    tau = positives[np.argmax(np.arange(1, len(positives) + 1) / len(positives) >= 0.85)]
    classified = [image for image in images if image["score"] >= tau]
    scores, misses, best = [], [], []
    for image in classified:
        if not (image["region_score"] < np.inf).all() or np.isnan(image["score"]):
            raise ValueError
        score, hit = image["region_score"], image["iom"] >= 0.5
        scores.append(score)
        misses.append(score[~hit.any(1)])
        if image["label"] == 1:
            best.append(np.where(hit, score[:, None], 0).max())
    thresholds = np.unique(np.concatenate(scores))[::-1]
    thresholds = np.concatenate([[np.inf], thresholds[thresholds > 0]])
    n_hit, n_false = (
        len(a) - np.searchsorted(np.sort(a), thresholds) for a in (np.array(best), np.concatenate(misses))
    )
    return n_hit / len(best), n_false / len(classified), thresholds


def bootstrap_loop(
    statistic: Callable[[np.ndarray], float], groups: np.ndarray, n_resamples: int
) -> tuple[float, float]:
    """Draw patients one sample at a time (mammomil until 2026-11)."""
    _, codes = np.unique(groups, return_inverse=True)
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    rng = np.random.default_rng(0)
    values = []
    for _ in range(n_resamples):
        drawn = np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
        values.append(statistic(drawn))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def delong_pairs(y: np.ndarray, s: np.ndarray) -> tuple[float, float]:
    """Compare all pairs of a positive and a negative."""
    pos, neg = s[y == 1], s[y == 0]
    psi = (pos[:, None] > neg) + 0.5 * (pos[:, None] == neg)
    variance = psi.mean(1).var(ddof=1) / len(pos) + psi.mean(0).var(ddof=1) / len(neg)
    return float(psi.mean()), float(variance)


def prf_upsampled(saliency: np.ndarray, mask: np.ndarray) -> tuple[float, float, float]:
    """Make the large map."""
    (h, w), (height, width) = saliency.shape, mask.shape
    large = saliency[np.arange(height)[:, None] * h // height, np.arange(width) * w // width]
    p, r = float(large[mask].sum() / large.sum()), float(large[mask].sum() / mask.sum())
    return p, r, 2 * p * r / (p + r)


def measure(rounds: int) -> dict[str, float]:
    rng, figures = np.random.default_rng(0), {}

    def compare(name: str, ours: Callable[[], Any], loop: Callable[[], Any], same: bool = True) -> None:
        for a, b in zip(ours(), loop(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=0 if same else 0.02)
        figures[f"ms, {name}"], figures[f"ours / loop, {name}"] = in_turn(ours, loop, rounds)
        figures[f"ms, {name}"] *= 1000

    for selected in (REGIONS, SELECTED):
        images = froc_images(rng, selected)
        name = f"FROC curve, {IMAGES} images x {REGIONS} regions, {selected} of them detections"
        compare(name, lambda images=images: froc_curve(images), lambda images=images: froc_loop(images))

    groups = np.repeat(np.arange(500), 4)
    s = rng.normal(size=2000)
    y = (s + rng.normal(size=2000) > 1).astype(float)
    statistics_ = {
        "mean": lambda rows: float(s[rows].mean()),
        "AUC": lambda rows: auc_score(y[rows], s[rows]),
    }
    for name, statistic in statistics_.items():
        compare(
            f"bootstrap of the {name}, 500 patients x 4 images, 500 resamples",
            lambda f=statistic: bootstrap_rows(f, groups, n_resamples=500),
            lambda f=statistic: bootstrap_loop(f, groups, 500),
            same=False,  # other draws
        )
    compare("DeLong, 2000 images", lambda: delong(y, s), lambda: delong_pairs(y, s))
    saliency, mask = rng.random((46, 30)), np.zeros((2944, 1920), bool)
    mask[1000:1300, 400:800] = True
    compare(
        "continuous F1, 46x30 map, 2944x1920 mask",
        lambda: continuous_prf(saliency, mask),
        lambda: prf_upsampled(saliency, mask),
    )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    figures = measure(parser.parse_args().rounds)
    facts = provenance()
    write_json(HERE / "metrics_speed.json", {"figures": figures, "provenance": facts})
    rows = "\n".join(f"| {name} | {value:.3g} |" for name, value in figures.items())
    text = (
        "# Speed of the metrics\n\nMade by `python benchmarks/metrics_speed.py`; medians of rounds in turn. "
        "Random inputs.\nThe loops give the same numbers (the bootstrap's: other draws).\n\n"
        f"| figure | value |\n|---|---|\n{rows}\n\nCommit {facts['commit']}, {facts['date']}, "
        f"{facts['device']}, {facts['threads']} CPU threads.\n"
    )
    (HERE / "metrics_speed.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
