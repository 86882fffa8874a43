"""GMIC with parts of it switched off at test time: four switches, and what is left of the ROC curve."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader

from mammomil.dataset import MammogramDataset, collate
from mammomil.experiments.gmic_ablation import PAPER
from mammomil.experiments.gmic_runs import Breasts, breasts_of
from mammomil.explorer import Explorer, toggle
from mammomil.gmic import GMIC, ablate
from mammomil.metrics import auc_score, bootstrap_rows
from mammomil.regions import crop_rois
from mammomil.scenes import BENIGN, GREY, MALIGNANT, Scene
from mammomil.types import FINDINGS

WIDTH, HEIGHT = 480.0, 520.0
LEFT, TOP, SIDE = 62.0, 200.0, 270.0  # of the ROC curve
# (saliency branch, patch branch, attention, retrieved) -> row of Table 1; the other ways have none.
ROWS = {
    (True, True, True, True): "GMIC",
    (False, True, True, True): "GMIC-mil",
    (False, True, False, True): "GMIC-noattn",
    (False, True, True, False): "GMIC-random",
    (True, True, True, False): "GMIC-loc-random",
}


def ablation_explorer(
    model: GMIC,
    data: MammogramDataset,
    finding: Literal["benign", "malignant"] = "malignant",
    seed: int = 0,
    n_resamples: int = 300,
) -> Explorer:
    """Show the ROC curve of breasts with each of GMIC's modules on or off, all with the same weights.

    The global network and the patch network run once; attention, branches, AUC and intervals are computed
    at every move. Rows of Table 1 of the GMIC paper get its figure beside ours (checklist G14; test time,
    reading G-i).

    Args:
        model: a trained GMIC with the average head; used in evaluation mode.
        data: images with labels of both classes, on which it was not trained.
        finding: whose AUC is shown.
        seed: of the random patches.
        n_resamples: of the bootstrap over patients.

    Returns:
        An explorer of 16 frames with toggles `saliency`, `patches`, `attention` and `retrieved`.
    """
    model = model.eval()
    y_loc, instances = _parts(model, data, seed)
    breasts, column = breasts_of(data, finding), FINDINGS.index(finding)

    def scores(saliency: bool, patches: bool, attention: bool, retrieved: bool) -> np.ndarray | None:
        with torch.inference_mode():
            h = instances[retrieved]
            bag = model.attention(h)[1] if attention else h.mean(1)
            branches = [y_loc] * saliency + [model.mil_classifier(bag).sigmoid()] * patches
            if not branches:
                return None
            answer = torch.stack(branches).mean(0)[:, column]
        return breasts.scores(answer.double().cpu().numpy())

    whole = scores(True, True, True, True)

    def draw(saliency: bool, patches: bool, attention: bool, retrieved: bool) -> Scene:
        scene = Scene(WIDTH, HEIGHT)
        _draw_modules(scene, saliency, patches, attention, retrieved)
        _draw_axes(scene)
        _draw_curve(scene, breasts.label, whole, GREY, 1.5)
        name = ROWS.get((saliency, patches, attention, retrieved)) if patches else "GMIC-loc"
        s = scores(saliency, patches, attention, retrieved)
        if s is None:
            scene.words = "Both branches are off, so there is no answer and no curve. Switch one on."
            scene.text(
                LEFT + SIDE / 2, TOP + SIDE / 2, "nothing answers", size=15.0, anchor="middle", bold=True
            )
            return scene
        name = name or "not in Table 1"
        _draw_curve(scene, breasts.label, s, MALIGNANT, 2.5)
        scene.words = _figures(scene, breasts, s, whole, name, finding, n_resamples)
        if not patches:
            scene.words += " Attention and patches make no difference here: the patch branch is off."
        elif not saliency and retrieved:
            scene.words += " The map still chooses the patches; only its own answer is left out."
        return scene

    return Explorer(
        "What each module buys",
        [
            toggle("saliency", "Saliency branch", start=True),
            toggle("patches", "Patch branch", start=True),
            toggle("attention", "Attention", start=True),
            toggle("retrieved", "Retrieved patches (off: random)", start=True),
        ],
        draw,
        "Grey is the whole model. Find the six rows of Table 1 that one set of weights can give. Which "
        "differences to GMIC can be told from none?",
    )


def _parts(
    model: GMIC, data: MammogramDataset, seed: int
) -> tuple[Float[Tensor, "n c"], dict[bool, Float[Tensor, "n k f"]]]:
    """Run both networks on all images: y_loc, and features of retrieved (True) and random (False) patches."""
    config, device = model.config, next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    y_loc: list[Tensor] = []
    found: dict[bool, list[Tensor]] = {True: [], False: []}
    with torch.inference_mode():
        for batch in DataLoader(data, 8, collate_fn=collate):
            image = batch.image.to(device)
            try:
                for retrieved in found:
                    model.config = ablate(config, "gmic" if retrieved else "loc-random")
                    output = model(image, generator)
                    patches = crop_rois(image, output.rois, config.mil.patch_size)
                    h = model.projection(model.patch_net(patches.flatten(0, 1)))
                    found[retrieved].append(h.unflatten(0, output.rois.shape[:2]))
            finally:
                model.config = config
            y_loc.append(output.y_loc)
    return torch.cat(y_loc), {retrieved: torch.cat(parts) for retrieved, parts in found.items()}


def _figures(
    scene: Scene, breasts: Breasts, s: np.ndarray, whole: np.ndarray, name: str, finding: str, resamples: int
) -> str:
    """Write AUC, its interval and the paired difference beside the curve, and return them in words."""

    def auc(rows: np.ndarray) -> float | None:
        return auc_score(breasts.label[rows], s[rows])

    def change(rows: np.ndarray) -> float | None:
        label = breasts.label[rows]
        a, b = auc_score(label, s[rows]), auc_score(label, whole[rows])
        return None if a is None or b is None else a - b

    everyone = np.arange(len(s))
    value, shift = auc(everyone), change(everyone)
    if value is None or shift is None:
        return f"{name}: no AUC, because {finding} breasts or others are missing."
    lines = [(name, True), (f"AUC {value:.3f}", True)]
    words = f"{name}: AUC of {finding} breasts {value:.3f}"
    if interval := bootstrap_rows(auc, breasts.patients, n_resamples=resamples):
        lines.append(("{:.2f} to {:.2f}".format(*interval), False))
        words += " (95 % interval over patients {:.2f} to {:.2f})".format(*interval)
    if name in PAPER:
        paper = PAPER[name][finding == "benign"]
        lines.append((f"paper {paper:.3f}", False))
        words += f"; the paper, on real mammograms, has {paper:.3f}"
    ends = bootstrap_rows(change, breasts.patients, n_resamples=resamples)
    if name != "GMIC" and ends:
        lines += [("minus GMIC", True), (f"{shift:+.3f}", False), ("{:+.2f} to {:+.2f}".format(*ends), False)]
        told = "which is told" if ends[1] < 0 or ends[0] > 0 else "which cannot be told from none"
        words += f". Difference to GMIC {shift:+.3f} ({ends[0]:+.2f} to {ends[1]:+.2f}), {told}"
    for n, (line, bold) in enumerate(lines):
        scene.text(LEFT + SIDE + 10, TOP + 22 + 24 * n, line, size=14.0, bold=bold)
    return words + "."


def _draw_modules(scene: Scene, saliency: bool, patches: bool, attention: bool, retrieved: bool) -> None:
    """Draw both branches as boxes; what is off, or feeds what is off, is dashed and pale."""

    def box(x: float, y: float, width: float, head: str, text: str, on: bool) -> None:
        fade = 1.0 if on else 0.6
        if on:
            scene.rect(x, y, width, 52.0, BENIGN, fill=BENIGN, stroke=0.0, opacity=0.16)
        scene.rect(x, y, width, 52.0, BENIGN if on else GREY, dashed=not on, opacity=fade)
        colour = "currentColor" if on else GREY
        scene.text(x + width / 2, y + 22, head, size=14.0, anchor="middle", bold=True, colour=colour)
        scene.text(x + width / 2, y + 42, text, size=13.0, anchor="middle", colour=colour)

    box(10.0, 20.0, 150.0, "saliency map", "says where", saliency or (patches and retrieved))
    box(190.0, 20.0, 130.0, "pooling", "top t % of cells", saliency)
    box(10.0, 102.0, 150.0, "6 patches", "the map chooses" if retrieved else "at random places", patches)
    box(190.0, 102.0, 130.0, "attention" if attention else "equal weights", "over patches", patches)
    answer = {2: "mean of both", 1: "one branch", 0: "nothing"}[saliency + patches]
    box(350.0, 61.0, 120.0, "answer", answer, saliency or patches)
    used = (
        ((160, 46), (190, 46), saliency),
        ((160, 128), (190, 128), patches),
        ((85, 72), (85, 102), patches and retrieved),
        ((320, 46), (350, 78), saliency),
        ((320, 128), (350, 96), patches),
    )
    for start, end, on in used:
        if on:
            scene.line([start, end], BENIGN, stroke=2.5)


def _draw_axes(scene: Scene) -> None:
    scene.rect(LEFT, TOP, SIDE, SIDE, GREY)
    scene.line([(LEFT, TOP + SIDE), (LEFT + SIDE, TOP)], GREY, dashed=True)
    for share in (0, 0.5, 1):
        scene.text(LEFT + SIDE * share, TOP + SIDE + 19, f"{share:g}", anchor="middle")
        scene.text(LEFT - 8, TOP + SIDE * (1 - share) + 5, f"{share:g}", anchor="end")
    scene.text(LEFT + SIDE / 2, TOP + SIDE + 40, "1 - specificity", size=14.0, anchor="middle")
    scene.text(4.0, TOP - 10, "sensitivity", size=14.0)


def _draw_curve(scene: Scene, label: np.ndarray, s: np.ndarray, colour: str, stroke: float) -> None:
    from sklearn.metrics import roc_curve

    known = ~np.isnan(label)
    fpr, tpr, _ = roc_curve(label[known], s[known])
    scene.line(np.stack([LEFT + SIDE * fpr, TOP + SIDE * (1 - tpr)], 1), colour, stroke=stroke)
