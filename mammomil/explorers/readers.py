"""Readers, a model, and both together: ROC curves of the published reader study, from a file of curves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mammomil.experiments.reader_scores import CURVES, MEAN, thin_curve
from mammomil.experiments.reader_study import HYBRID, PAPER
from mammomil.explorer import Explorer, choice, slider
from mammomil.files import InputError, read_json
from mammomil.scenes import BENIGN, GREY, INK, MALIGNANT, Length, Scene

WIDTH, HEIGHT = 480, 520
LEFT, TOP, SIDE = 58, 34, 270  # of the ROC curves
LOW, TALL = 378, 90  # of the AUC over the weight: upper edge, height


def read_curves(path: Path = CURVES) -> dict[str, Any]:
    """Read the curves that `experiments.reader_scores.write_curves` wrote; by default the shipped ones.

    Returns:
        `model`, `breasts`, `malignant`, `patients`, `weights`, `source`, `licence`, and `curves`: reader to
        one `auc`, `fpr` and `tpr` per weight, the first the reader alone, the last the model alone.

    Raises:
        InputError: the file is missing or holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict) or not {"model", "weights", "curves"} <= set(value):
        raise InputError(f"{path}: holds no curves of readers. Make it with experiments.reader_scores.")
    return value


def readers_explorer(curves: Mapping[str, Any]) -> Explorer:
    """Mix a reader's score with the model's, and watch the ROC curve and the AUC of the hybrid.

    The scores are those of the public reader study (GMIC section 3.2 and Fig. 3, checklist G15); the paper's
    hybrid has a weight of 0.5. AUCs are of the whole scores; the curves are thinned.

    Args:
        curves: from `read_curves`.

    Returns:
        An explorer with the controls `reader` and `weight`.
    """
    by_reader, weights, model = curves["curves"], tuple(curves["weights"]), curves["model"]
    everything = [entry["auc"] for entries in by_reader.values() for entry in entries]
    low, high = np.floor(min(everything) * 20) / 20, np.ceil(max(everything) * 20) / 20

    def draw(reader: str, weight: float) -> Scene:
        entries, at = by_reader[reader], weights.index(weight)
        alone, both, machine = entries[0], entries[at], entries[-1]
        scene = Scene(WIDTH, HEIGHT)
        _draw_axes(scene)
        for entry, colour, stroke in ((alone, GREY, 2), (machine, BENIGN, 1.5), (both, MALIGNANT, 3)):
            x, y = thin_curve(np.array(entry["fpr"]), np.array(entry["tpr"]), 24)  # whole units: small pages
            scene.line(np.rint(np.stack([LEFT + SIDE * x, TOP + SIDE * (1 - y)], 1)), colour, stroke=stroke)
        paper = PAPER["mean reader"] if reader == MEAN else None
        hybrid = {0.0: paper, 0.5: PAPER[HYBRID] if paper else None, 1.0: PAPER[model]}.get(weight)
        rows = (
            (reader, alone["auc"], GREY, paper),
            (model, machine["auc"], BENIGN, PAPER[model]),
            (f"hybrid, {weight:g}", both["auc"], MALIGNANT, hybrid),
        )
        for n, (name, auc, colour, printed) in enumerate(rows):
            y = TOP + 16 + 84 * n
            scene.line([(LEFT + SIDE + 14, y - 5), (LEFT + SIDE + 34, y - 5)], colour, stroke=4)
            scene.text(LEFT + SIDE + 40, y, name, size=14, bold=True)
            scene.text(LEFT + SIDE + 40, y + 22, f"AUC {auc:.4f}", size=14)
            if printed is not None:
                scene.text(LEFT + SIDE + 40, y + 44, f"paper {printed:.3f}", size=13)
        _draw_weights(scene, weights, [entry["auc"] for entry in entries], at, float(low), float(high))
        who = "Mean of the readers" if reader == MEAN else reader.capitalize()
        said = f" In the paper: {hybrid:.3f}." if hybrid is not None else ""
        scene.words = (
            f"{who}: AUC {alone['auc']:.4f}. {model}: {machine['auc']:.4f}. Hybrid with a weight of "
            f"{weight:g} for the model: {both['auc']:.4f}, {both['auc'] - alone['auc']:+.4f} to the reader, "
            f"{both['auc'] - machine['auc']:+.4f} to the model.{said}"
        )
        return scene

    names = {"mean reader" if who == MEAN else who: who for who in by_reader}
    texts = [f"{w:g}{' (reader)' * (w == 0)}{' (model)' * (w == 1)}" for w in weights]
    return Explorer(
        "A reader, a model, and both",
        [
            choice("reader", "Reader", names, start=MEAN),
            slider("weight", "Weight of the model", weights, texts, start=0.5, play=True),
        ],
        draw,
        "For which readers is the hybrid better than the model alone? Move from 0 to 0.1 and see where the "
        "curve lifts first.",
    )


def _draw_axes(scene: Scene) -> None:
    scene.rect(LEFT, TOP, SIDE, SIDE, GREY)
    scene.line([(LEFT, TOP + SIDE), (LEFT + SIDE, TOP)], GREY, dashed=True, stroke=1)
    for x, y, words in ((-10, SIDE + 14, "0"), (SIDE, SIDE + 18, "1"), (-12, 5, "1")):
        scene.text(LEFT + x, TOP + y, words, anchor="middle")
    scene.text(LEFT + SIDE / 2, TOP + SIDE + 36, "1 - specificity", size=14, anchor="middle")
    scene.text(4, 20, "sensitivity", size=14)


def _draw_weights(
    scene: Scene, weights: tuple[float, ...], aucs: list[float], at: int, low: float, high: float
) -> None:
    """Draw the AUC of the hybrid over the weight, with a dot where the slider stands."""

    def place(weight: Length, auc: Length) -> tuple[float, float]:
        return LEFT + 400 * float(weight), LOW + TALL * (high - float(auc)) / (high - low)

    scene.text(4, LOW - 12, "AUC of the hybrid, by the model's weight", size=14)
    for value in (low, high):
        scene.line([place(0, value), place(1, value)], GREY, stroke=1, opacity=0.6)
        scene.text(LEFT - 8, place(0, value)[1] + 5, f"{value:.2f}", anchor="end")
    scene.line([place(w, auc) for w, auc in zip(weights, aucs, strict=True)], INK, stroke=2)
    scene.circle(*place(weights[at], aucs[at]), 6, MALIGNANT, fill=MALIGNANT)
    for weight, words in ((0, "reader"), (1, "model")):
        anchor = "end" if weight else "start"
        scene.text(place(weight, low)[0], LOW + TALL + 22, words, anchor=anchor)
