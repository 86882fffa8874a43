"""GMIC, Figure 3 and Section 3.2 (checklist G15): 14 readers, the models, and both together.

The scores are public, and so no model runs here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mammomil.displays import BarsDisplay, RocDisplay, figure_alt
from mammomil.downloads import REMOTE, fetch
from mammomil.experiments.common import Claim, Picture, keep_settings, number, write_results
from mammomil.experiments.reader_scores import (
    METRICS,
    MODEL,
    SOURCE,
    TOGETHER,
    WEIGHTS,
    Key,
    Study,
    mean_curve,
    measure,
    mix,
    read_scores,
)
from mammomil.files import sha256
from mammomil.metrics import delong_test
from mammomil.panels import DPI

HYBRID = f"mean hybrid with {MODEL}"
# The paper's AUCs; its model is that of 2019, the public scores are of the one of 2020.
PAPER = {"mean reader": 0.778, "best reader": 0.860, MODEL: 0.876, HYBRID: 0.883}

Found = Mapping[Key, tuple[float, float, float]]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Compare GMIC, 14 radiologists and both together, on the published scores of the reader study.

    Leaves OUT/reader-study.csv, .md and pictures. Takes about a minute.
    """

    out: Path = Path("runs/reader-study")
    """Folder of the table, the figures and their provenance."""
    scores: Path | None = None
    """The scores, results.csv of the meta-repository; by default they are downloaded once."""
    seed: int = 0
    """Seed of the bootstrap."""
    resamples: int = 2000
    """How often patients are drawn for the intervals."""

    def __post_init__(self):
        if self.resamples < 1 or self.seed < 0:
            raise ValueError("resamples must be 1 or more and seed 0 or more.")


def run(config: Config) -> int:
    """Run the experiment and return an exit status.

    Raises:
        InputError: the scores cannot be had or used, or `config.out` holds other settings.
    """
    path = fetch("reader-study-scores") if config.scores is None else config.scores
    study, checksum = read_scores(path), sha256(path)
    keep_settings(config)
    print(f"Drawing patients {config.resamples} times")
    found = measure(study, config.resamples, config.seed)
    p_values = {
        f"{first} minus {second}": _delong(study, first, second)
        for who in study.readers
        for first, second in ((MODEL, who), (f"{who} with {MODEL}", who))
    }
    published = checksum == REMOTE["reader-study-scores"].sha256
    intro = (
        f"{len(study.readers)} readers and {len(study.models)} models on {len(study.label)} breasts of "
        f"{len(np.unique(study.patient))} patients, {int(study.label.sum())} breasts with cancer "
        f"({'the published scores' if published else 'other scores than the published ones'}; "
        f"{study.left_out} breasts left out for a missing score). A hybrid is the mean of two scores; a mean "
        "reader or hybrid is the mean of the readers' figures. In brackets 95 % intervals over patients. AP "
        "is average precision, pAUCR the mean specificity at sensitivities from .8 to 1, Spec@ the best "
        "specificity at that sensitivity or more, Sens@Spec.90 the sensitivity of the ROC curve at a "
        "specificity of .9."
    )
    rows: list[dict[str, Any]] = [
        {"who": who, "kind": kind, "metric": metric, "value": value, "low": low, "high": high}
        for (who, kind, metric), (value, low, high) in found.items()
    ]
    rows += [
        {"who": who, "kind": "difference", "metric": "DeLong p", "value": p} for who, p in p_values.items()
    ]
    page = write_results(
        config,
        "reader-study",
        "Reader study: radiologists, GMIC, and both together",
        intro,
        rows,
        _tables(study, found, p_values),
        [_draw_study(study, found), _draw_weights(study, found)],
        _reading(study, found, p_values),
        scores={"source": SOURCE, "sha256": checksum, "published": published},
    )
    print(page.read_text(encoding="utf-8"))
    return 0


def _delong(study: Study, first: str, second: str) -> float | None:
    """P of DeLong's test of a model or hybrid against a reader."""
    reader, model = study.readers[second], study.models[MODEL]
    test = delong_test(study.label, model if first == MODEL else mix(reader, model), reader)
    return None if test is None else test.p


def _ranked(study: Study, found: Found) -> list[str]:
    """Readers from the highest AUC down."""
    return sorted(study.readers, key=lambda who: -found[who, "reader", "AUC"][0])


def _cell(found: Found, who: str, kind: str, metric: str = "AUC", sign: str = "") -> str:
    value, low, high = found[who, kind, metric]
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def _tables(study: Study, found: Found, p_values: Mapping[str, float | None]) -> dict[str, Any]:
    """Return the tables of the page: heading to heads and rows."""
    readers = _ranked(study, found)

    def row(who: str, kind: str, name: str = "", paper: str = "") -> list[str]:
        first, *others = (_cell(found, who, kind, metric) for metric in METRICS)
        return [name or who, first, number(PAPER.get(paper or who)), *others]

    heads = ["who", "AUC", "paper", *METRICS[1:]]
    main = [
        row("mean reader", "mean"),
        row(readers[0], "reader", f"best reader ({readers[0]})", "best reader"),
        row(readers[-1], "reader", f"lowest reader ({readers[-1]})"),
        row(TOGETHER, "readers together"),
        *(row(name, "model") for name in study.models),
        *(row(f"mean hybrid with {name}", "mean") for name in study.models),
        *(row(f"{TOGETHER} with {name}", "readers together") for name in study.models),
    ]
    paired = []
    for who in readers:
        hybrid = f"{who} with {MODEL}"
        cells = [who, _cell(found, who, "reader"), _cell(found, hybrid, "hybrid")]
        for first in (MODEL, hybrid):
            name = f"{first} minus {who}"
            p = p_values[name]
            cells += [_cell(found, name, "difference", sign="+"), "-" if p is None else f"{p:.2g}"]
        paired.append(cells)
    paired_heads = [
        "reader",
        "AUC",
        "AUC of hybrid",
        f"{MODEL} minus reader",
        "p",
        "hybrid minus reader",
        "p",
    ]
    weights = [[f"{w:.2f}", _cell(found, f"mean hybrid, weight {w:.2f}", "weight")] for w in WEIGHTS]
    return {
        "Readers, models, both": (heads, main),
        "Each reader": (heads, [row(who, "reader") for who in readers]),
        f"{MODEL} and each reader, paired (p: DeLong)": (paired_heads, paired),
        f"Weight of {MODEL} in the hybrid": (["weight", "mean AUC of hybrids"], weights),
    }


def _draw_study(study: Study, found: Found) -> Picture:
    """Draw ROC curves, and AUCs alone and with the model."""
    from matplotlib.figure import Figure
    from sklearn.metrics import roc_curve

    y, model = study.label, study.models[MODEL]
    figure = Figure((12.5, 7.2), dpi=DPI, facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2)
    single = [roc_curve(y, s)[:2] for s in study.readers.values()]
    hybrids = [roc_curve(y, mix(s, model))[:2] for s in study.readers.values()]
    for k, (fpr, tpr) in enumerate(single):
        left.plot(fpr, tpr, color="0.75", linewidth=0.8, zorder=0.5, label=None if k else "single readers")
    shown = (
        (MODEL, "model", MODEL, roc_curve(y, model)[:2]),
        ("mean reader", "mean", "mean of the readers' curves", mean_curve(single)),
        (HYBRID, "mean", "mean of the hybrids' curves", mean_curve(hybrids)),
        (TOGETHER, "readers together", TOGETHER, roc_curve(y, study.together)[:2]),
    )
    displays = []
    counts = (int((y == 0).sum()), int((y == 1).sum()))
    for who, kind, name, (fpr, tpr) in shown:
        auc, *ends = found[who, kind, "AUC"]
        display = RocDisplay(fpr=fpr, tpr=tpr, auc=auc, interval=tuple(ends), counts=counts, name=name)
        displays.append(display.plot(left))

    rows = [(who, "reader", f"{who} with {MODEL}", "hybrid") for who in _ranked(study, found)]
    rows += [("mean reader", "mean", HYBRID, "mean")]
    rows += [(TOGETHER, "readers together", f"{TOGETHER} with {MODEL}", "readers together")]
    rows += [(name, "model", "", "") for name in study.models]
    values = [found[who, kind, "AUC"] for who, kind, _, _ in rows]
    BarsDisplay.from_table(
        [who for who, *_ in rows],
        [value for value, *_ in values],
        [(low, high) for _, low, high in values],
        [found[hybrid, kind, "AUC"][0] if hybrid else None for *_, hybrid, kind in rows],
        series=("alone", f"mean with {MODEL}"),
    ).plot(right)
    lowest, best, lowest_hybrid, best_hybrid = (
        number(f(found[who.format(reader), kind, "AUC"][0] for reader in study.readers))
        for who, kind in (("{}", "reader"), (f"{{}} with {MODEL}", "hybrid"))
        for f in (min, max)
    )
    alt = figure_alt(*displays, title=f"ROC curves of {MODEL}, of {len(single)} readers and of both") + (
        f" Beside them AUCs with intervals: single readers from {lowest} to {best}, each in the mean with "
        f"{MODEL} from {lowest_hybrid} to {best_hybrid}, and the models, as in the tables."
    )
    caption = (
        "Left: the mean curves average sensitivity at each specificity, so their area is the mean area. "
        "Right: lines are 95 % intervals over patients."
    )
    return Picture("reader-study", figure, alt, caption)


def _draw_weights(study: Study, found: Found) -> Picture:
    """Draw the AUC of hybrids over the model's weight in them."""
    from matplotlib.figure import Figure

    def curve(who: str) -> np.ndarray:
        return np.array([found[f"{who}, weight {w:.2f}", "weight", "AUC"] for w in WEIGHTS]).T  # (3, 21)

    figure = Figure((7.2, 5), dpi=DPI, facecolor="white", layout="constrained")
    ax = figure.subplots()
    for k, who in enumerate(study.readers):
        ax.plot(
            WEIGHTS, curve(who)[0], color="0.75", linewidth=0.8, label="single readers" if k == 0 else None
        )
    mean, low, high = curve("mean hybrid")
    ax.fill_between(WEIGHTS, low, high, color="#0072B2", alpha=0.18, linewidth=0, label="95 % over patients")
    ax.plot(WEIGHTS, mean, "o-", color="#0072B2", markersize=4, label="mean of the readers' hybrids")
    ax.set(xlim=(0, 1), xlabel=f"weight of {MODEL} in the hybrid", ylabel="AUC")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="lower right", fontsize=8, edgecolor="none")
    best = int(np.argmax(mean))
    alt = (
        f"Mean AUC of hybrids over the weight of {MODEL}: {mean[0]:.3f} for readers alone, {mean[1]:.3f} at "
        f"{WEIGHTS[1]:.2f}, {mean[10]:.3f} at 0.50, at most {mean[best]:.3f}, at {WEIGHTS[best]:.2f}, "
        f"and {mean[-1]:.3f} for {MODEL} alone, where the thin lines of all readers meet."
    )
    return Picture("reader-study-weights", figure, alt, f"0 is the reader alone, 1 is {MODEL} alone.")


def _reading(study: Study, found: Found, p_values: Mapping[str, float | None]) -> list[str]:
    """Say what the numbers mean, and what they do not."""
    readers, n = _ranked(study, found), len(study.readers)
    best = readers[0]

    def claim(first: str, second: str, text: str, other: float) -> str:
        value, *ends = found[f"{first} minus {second}", "difference", "AUC"]
        return Claim(text, value, tuple(ends), PAPER[first] - other).verdict()

    def gain(first: str, second: str, metric: str = "AUC") -> str:
        return _cell(found, f"{first} minus {second}", "difference", metric, "+")

    def count(first: str) -> str:
        names = [f"{first.format(who)} minus {who}" for who in readers]
        cells = [found[name, "difference", "AUC"] for name in names]
        small = sum(p is not None and p < 0.05 for p in (p_values[name] for name in names))
        return (
            f"above {sum(v > 0 for v, *_ in cells)} of {n} readers, with an interval above 0 for "
            f"{sum(low > 0 for _, low, _ in cells)} and DeLong's p below .05 for {small}"
        )

    weights = [found[f"mean hybrid, weight {w:.2f}", "weight", "AUC"][0] for w in WEIGHTS]
    top = int(np.argmax(weights))
    lowest = np.mean([s == s.min() for s in study.readers.values()], 0)  # share of readers, by breast
    at_90 = "Sens@Spec.90"
    return [
        claim(MODEL, "mean reader", f"{MODEL} above the mean reader, AUC", PAPER["mean reader"]),
        claim(MODEL, best, f"{MODEL} above the best reader ({best}), AUC", PAPER["best reader"])
        + " That reader was called the best after seeing these very answers, so the gap is, if anything, "
        "too small.",
        claim(HYBRID, "mean reader", "Hybrids above readers, mean AUC", PAPER["mean reader"]),
        claim(HYBRID, MODEL, f"Hybrids above {MODEL}, mean AUC", PAPER[MODEL]),
        f"Reader by reader: {MODEL} is {count(MODEL)}; the hybrid is {count(f'{{}} with {MODEL}')}. These "
        f"are {2 * n} comparisons on the same breasts, not corrected for their number. DeLong's test takes "
        "breasts for independent; the intervals draw patients with both breasts.",
        f"Look at the curves, not at AUC alone: at a specificity of .90 the mean sensitivity of readers is "
        f"{_cell(found, 'mean reader', 'mean', at_90)}, that of {MODEL} "
        f"{_cell(found, MODEL, 'model', at_90)}, a difference of "
        f"{gain(MODEL, 'mean reader', at_90)}. A reader gives "
        f"{100 * lowest.mean():.0f} % of all breasts the lowest score, "
        f"{100 * lowest[study.label == 1].mean():.0f} % of those with cancer among them; what they did not "
        "tell apart is a straight line in their curves and costs them AUC, and is why their specificity at "
        f"high sensitivity is 0. A weight of {WEIGHTS[1]:.2f} for the model puts these breasts in an order, "
        f"and the mean AUC goes from {weights[0]:.3f} to {weights[1]:.3f}.",
        f"The best mean AUC is {weights[top]:.3f}, at weight {WEIGHTS[top]:.2f}, chosen on the breasts it is "
        "measured on. It depends on the scale of the two scores, which nothing here calibrates.",
        f"Several readers: the mean score of all {n} has an AUC {gain(TOGETHER, 'mean reader')} above the "
        f"mean reader's; {MODEL} adds {gain(f'{TOGETHER} with {MODEL}', TOGETHER)} to it.",
        "Against the paper: readers come out within .001, as these are their answers. The public scores of "
        "GMIC are of the later model of 2020, with a fusion module, and not of the one the paper of 2019 "
        "reports, so GMIC and its hybrids need not agree with the paper's .876 and .883.",
        f"What this cannot say: the set is enriched with cancers, {100 * study.label.mean():.1f} % of its "
        "breasts against 985 breasts in the 229,426 exams of the paper, so AP means nothing elsewhere. "
        "Readers saw images alone, and nothing else that is known of a patient. The images are of the "
        "institution GMIC was trained at. The intervals are over patients; these readers are taken as they "
        "are, not as a sample of readers. Nothing here is about use on patients.",
    ]
