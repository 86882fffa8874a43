"""The four views of an exam, the outlines that the library finds, and the findings that are there."""

from collections.abc import Sequence

import numpy as np

from mammomil.dicom import Mammogram
from mammomil.explorer import Explorer, choice, toggle
from mammomil.files import InputError
from mammomil.pectoral import pectoral_mask
from mammomil.phantom import SCALES, Exam, View
from mammomil.preprocess import (
    PreprocessConfig,
    breast_mask,
    invert_affine,
    orient,
    prepare,
    transform_boxes,
)
from mammomil.scenes import BENIGN, MALIGNANT, SKY, YELLOW, Length, Scene

ROWS, COLUMNS, SPACING = SCALES["quick"]
TALL, GAP, HEAD = 312, 8, 26  # of a view, between views, above the upper ones
WIDE = TALL * COLUMNS / ROWS
HANGING = ("R-CC", "L-CC", "R-MLO", "L-MLO")  # the chest walls meet in the middle, as readers hang them


def views_explorer(exams: Sequence[Exam]) -> Explorer:
    """Look at exams as they are stored and as a network sees them, with outlines switched on and off.

    Breast and muscle are found by `preprocess.breast_mask` and `pectoral.pectoral_mask`; the findings are the
    phantom's truth. Everything is measured in the stored image and moved to the canvas by its affine.

    Args:
        exams: phantoms of `render_exam` at quick scale, two or more with different seeds.

    Returns:
        An explorer with the controls `exam`, `network`, `breast`, `muscle` and `findings`.

    Raises:
        InputError: fewer than two exams, or one of another scale.
    """
    by_seed = {exam.seed: {f"{v.laterality}-{v.view}": v for v in exam.views} for exam in exams}
    wrong = [e.seed for e in exams if e.views[0].pixels.shape != (ROWS, COLUMNS)]
    if len(by_seed) < 2 or wrong:
        raise InputError(f"{len(by_seed)} exams, {wrong} not at quick scale: give two or more quick ones.")

    def draw(exam: int, network: bool, breast: bool, muscle: bool, findings: bool) -> Scene:
        scene = Scene(2 * WIDE + GAP, HEAD + 2 * TALL + GAP)
        said = []
        for n, name in enumerate(HANGING):
            corner = (n % 2 * (WIDE + GAP), HEAD + n // 2 * (TALL + GAP))
            words = _draw_view(scene, by_seed[exam][name], corner, network, breast, muscle, findings)
            said += [f"{name}: {'; '.join(words)}."] if words else []
        scene.text(0, 17, "right breast", bold=True)
        scene.text(scene.width, 17, "left breast", bold=True, anchor="end")
        how = "on the canvas of a network, chest wall left" if network else "as stored"
        scene.words = f"Phantom exam {exam}, {how}. {' '.join(said) or 'Nothing is marked.'}"
        return scene

    names = {f"{e.seed}, density {e.density}": e.seed for e in exams}
    return Explorer(
        "Four views of an exam",
        [
            choice("exam", "Exam", names),
            choice("network", "Shown", {"as stored": False, "as a network sees them": True}, start=False),
            toggle("breast", "Breast found"),
            toggle("muscle", "Muscle found"),
            toggle("findings", "Findings (truth)"),
        ],
        draw,
        "Look for the findings first, then switch them on. What disappears when the network looks?",
    )


def _draw_view(
    scene: Scene,
    view: View,
    corner: tuple[Length, Length],
    network: bool,
    breast: bool,
    muscle: bool,
    findings: bool,
) -> list[str]:
    """Draw one view with its upper left corner at `corner` -> what to say of it."""
    pixels, words = view.pixels.astype(np.float32), []
    found = breast_mask(pixels) if breast or muscle else None
    if network:
        mammogram = Mammogram(pixels, view.laterality, view.view, SPACING, ())
        prepared = prepare(mammogram, PreprocessConfig.quick())
        pixels, to_shown = prepared.image, invert_affine(prepared.affine)
    else:
        to_shown = np.eye(2, 3)
    scene.image(pixels, *corner, WIDE, TALL, smooth=True)

    def place(points: np.ndarray) -> np.ndarray:
        """From (x, y) in the file to units of the scene."""
        return (points @ to_shown[:, :2].T + to_shown[:, 2]) * (TALL / ROWS) + corner

    if breast:
        scene.line(place(_outline(found)), YELLOW, stroke=2)
        words.append(f"breast found, IoU {_iou(found, view.breast):.3f} with the truth")
    if muscle and view.view == "MLO":
        pectoral = _muscle(view.pixels.astype(np.float32), found)
        if pectoral.any():
            scene.line(place(_outline(pectoral)), SKY, stroke=2.5)
            words.append(f"muscle found, IoU {_iou(pectoral, view.pectoral):.3f}")
        else:
            words.append("no muscle found")
    if findings:
        for finding in view.findings:
            x0, y0, x1, y1 = transform_boxes(np.array([finding.box]), to_shown)[0] * (TALL / ROWS)
            malignant = finding.finding == "malignant"
            colour = MALIGNANT if malignant else BENIGN
            scene.rect(
                corner[0] + x0 - 3,
                corner[1] + y0 - 3,
                x1 - x0 + 6,
                y1 - y0 + 6,
                colour,
                stroke=3,
                dashed=not malignant,
            )
        words.append(_counted([finding.finding for finding in view.findings]))
        if not view.findings:
            middle = corner[0] + WIDE / 2
            scene.text(middle, corner[1] + TALL - 34, "no finding", anchor="middle", halo=True)
    x, anchor = (corner[0] + WIDE - 6, "end") if view.laterality == "L" else (corner[0] + 6, "start")
    if network:
        x, anchor = corner[0] + WIDE - 6, "end"
    scene.text(x, corner[1] + TALL - 8, f"{view.laterality}-{view.view}", anchor=anchor, bold=True, halo=True)
    return words


def _muscle(pixels: np.ndarray, breast: np.ndarray) -> np.ndarray:
    """The muscle in the image as it is stored; it is looked for with the chest wall left."""
    oriented, flipped = orient(pixels)
    way = slice(None, None, -1 if flipped else 1)
    return pectoral_mask(oriented, breast[:, way])[:, way]


def _outline(mask: np.ndarray) -> np.ndarray:
    """Longest outline of a mask as (x, y) on pixel edges, closed, with few corners."""
    from skimage.measure import approximate_polygon, find_contours

    outline = max(find_contours(np.pad(mask, 1).astype(float), 0.5), key=len)
    return approximate_polygon(outline, 0.7)[:, ::-1] - 0.5  # padding -1, centre of a pixel +0.5


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def _counted(findings: list[str]) -> str:
    """`1 benign and 2 malignant findings`."""
    counts = [f"{findings.count(name)} {name}" for name in ("benign", "malignant") if name in findings]
    return f"{' and '.join(counts)} finding{'s' * (len(findings) > 1)}" if counts else "no finding"
