"""What annotations are worth: figures of merit against hours of work, at prices the reader sets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mammomil.explorer import Explorer, choice, slider, toggle
from mammomil.files import InputError, read_json
from mammomil.scenes import GREEN, GREY, INK, MALIGNANT, SKY, YELLOW, Scene

BUDGET = Path(__file__).parents[1] / "static" / "annotation_budget.json"
FIGURES = {"AUROC": "auroc", "sensitivity at 1 FPPI": "sens_at_1_fppi"}
RANGES = {"auroc": (0.65, 0.80), "sens_at_1_fppi": (0.55, 0.85)}  # of the upright axis
PER_LESION, PER_IMAGE = (0.25, 0.5, 1.0, 2.0, 5.0), (0.25, 0.5, 1.0, 2.0)  # minutes
SPANS = (1, 2, 5, 10, 20, 50)  # hours the level axis can show

# Sizes in the scene: narrow, so that the texts can be read on a phone.
WIDTH, HEIGHT = 440, 446
LEFT, TOP, ACROSS, TALL = 60, 44, 356, 200  # of the curve; its frame begins EDGE before hour 0
EDGE = 14
BAR, TEXTS = TOP + TALL + 54, TOP + TALL + 122  # where the bar of the cost and the texts begin


def read_budget(path: Path = BUDGET) -> dict[str, Any]:
    """Read what was recorded of annotated shares; by default the shipped file.

    Returns:
        `ours` (phantoms, the experiment annotation-budget) and `paper`, each with `name`, `source`, `data`,
        and one number per `fraction` in `images`, `lesions`, `share_of_lesions`, `auroc`, `auroc_std`,
        `sens_at_1_fppi`, `sens_at_1_fppi_std`; None where nothing was printed. `steps`: of each figure the
        difference to the fraction before, and its interval over patients.

    Raises:
        InputError: the file is missing or holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict) or not {"ours", "paper"} <= set(value):
        raise InputError(f"{path}: holds no annotation budget. Take the file of the repository.")
    return value


def budget_explorer(budget: Mapping[str, Any]) -> Explorer:
    """Choose a share of annotated images and prices, and see what it costs and what it brings.

    Recorded figures, M vs BN: of our phantoms, or Table II of the dual-branch paper (checklist D29). What the
    explorer computes is the cost: images opened and lesions marked, times the minutes that are set, which are
    assumptions.

    Args:
        budget: from `read_budget`.

    Returns:
        An explorer with the controls `fraction`, `per_lesion`, `per_image`, `figure` and `paper`.
    """
    fractions = budget["ours"]["fraction"]

    def draw(fraction: int, per_lesion: float, per_image: float, figure: str, *, paper: bool) -> Scene:
        table = budget["paper" if paper else "ours"]
        opening = [per_image * n / 60 for n in table["images"]]
        hours = [o + per_lesion * n / 60 for o, n in zip(opening, table["lesions"], strict=True)]
        span = next(s for s in SPANS if s >= hours[-1])
        scene = Scene(WIDTH, HEIGHT)
        name = next(words for words, key in FIGURES.items() if key == figure)
        scene.text(2, 18, f"{name}, {table['name']}", size=16, bold=True)
        _draw_axes(scene, RANGES[figure], span)
        x = [LEFT + ACROSS * h / span for h in hours]
        if table[figure] is None:
            for row, words in enumerate(("The paper prints no numbers here.", *_FIGURE_5)):
                scene.text(LEFT + 14, TOP + 70 + 24 * row, words, size=15)
        else:
            scene.line([(x[fraction], TOP), (x[fraction], TOP + TALL)], GREY, stroke=1, dashed=True)
            _draw_curve(scene, table, figure, x, fraction, paper)
        middle = LEFT + ACROSS * opening[fraction] / span
        scene.rect(LEFT, BAR, middle - LEFT, 20, fill=SKY, stroke=0)
        scene.rect(middle, BAR, x[fraction] - middle, 20, fill=YELLOW, stroke=0)
        scene.rect(LEFT, BAR, ACROSS, 20, GREY, stroke=1)
        for at, colour, words in ((LEFT, SKY, "opening images"), (LEFT + 150, YELLOW, "marking lesions")):
            scene.rect(at, BAR + 30, 12, 12, GREY, fill=colour, stroke=1)
            scene.text(at + 18, BAR + 41, words, size=15)
        told = _told(table, figure, fraction, hours)
        cost = _cost(table, fraction, opening, hours)
        for row, words in enumerate([*cost, *told]):
            scene.text(2, TEXTS + 23 * row, words, size=15)
        prices = f"{_minutes(per_image)} an image and {_minutes(per_lesion)} a lesion"
        said = ". ".join([*cost, *told, *(_FIGURE_5 if table[figure] is None else [])])
        scene.words = f"{name}, {table['name']}. {said}. At {prices}, all: {hours[-1]:.1f} h."
        return scene

    note = (
        "Prices are assumptions: set what your annotators need. Bars at the points are deviations over five "
        "folds. The paper's images and lesions are worked out from its text. A step "
        "cannot be told if its interval over patients holds 0. Click a point to choose it."
    )
    return Explorer(
        "What annotations cost and bring",
        [
            slider("fraction", "Annotated", range(len(fractions)), [f"{f:g}" for f in fractions], start=2),
            slider("per_lesion", "Each lesion", PER_LESION, [*map(_minutes, PER_LESION)], start=1.0),
            slider("per_image", "Each image", PER_IMAGE, [*map(_minutes, PER_IMAGE)], start=0.5),
            choice("figure", "Figure", FIGURES, start="auroc"),
            toggle("paper", "The paper's numbers"),
        ],
        draw,
        note,
    )


_FIGURE_5 = ("With a half annotated it has 30 % more", "From three quarters on it is level")


def _minutes(value: float) -> str:
    return f"{60 * value:g} s" if value < 1 else f"{value:g} min"


def _draw_axes(scene: Scene, ends: tuple[float, float], span: int) -> None:
    low, high = ends
    scene.rect(LEFT - EDGE, TOP, ACROSS + EDGE, TALL, GREY, stroke=1)
    for step in range(4):
        y = TOP + TALL - TALL * step / 3
        scene.text(LEFT - EDGE - 5, y + 5, f"{low + (high - low) * step / 3:.2f}", size=15, anchor="end")
        if 0 < step < 3:
            scene.line([(LEFT - EDGE, y), (LEFT + ACROSS, y)], GREY, stroke=0.5)
    for share in (0, 0.5, 1):
        words = f"{span * share:g}" + " h" * (share == 1)
        scene.text(LEFT + ACROSS * share, TOP + TALL + 19, words, size=15, anchor="middle")
    scene.text(LEFT + ACROSS / 2, TOP + TALL + 38, "hours of annotation", size=15, anchor="middle")


def _draw_curve(
    scene: Scene, table: Mapping[str, Any], figure: str, x: list[float], chosen: int, paper: bool
) -> None:
    low, high = RANGES[figure]
    colour = GREEN if paper else MALIGNANT

    def up(value: float) -> float:
        return TOP + TALL * (high - value) / (high - low)

    values, deviations = table[figure], table[f"{figure}_std"]
    scene.line(list(zip(x, map(up, values), strict=True)), colour, stroke=2)
    for k, (at, value, deviation) in enumerate(zip(x, values, deviations, strict=True)):
        fill = colour if k == chosen else None
        top, bottom = up(value + deviation), up(value - deviation)
        scene.line([(at, top), (at, bottom)], colour, stroke=3 if k == chosen else 1.2)
        if paper:
            scene.rect(at - 6, up(value) - 6, 12, 12, colour, fill=fill, stroke=2)
        else:
            scene.circle(at, up(value), 7, colour, fill=fill, stroke=2)
        words = f"{table['fraction'][k]:g}"
        scene.text(at, top - 5, words, size=15, anchor="middle", bold=k == chosen, colour=INK)
        scene.hot(at, up(value), 13, f"annotate {words}", fraction=k)


def _cost(table: Mapping[str, Any], k: int, opening: list[float], hours: list[float]) -> list[str]:
    """Say how much work a share is."""
    images, lesions = table["images"], table["lesions"]
    share = 100 * table["share_of_lesions"][k]
    return [
        f"{images[k]:.0f} of {images[-1]:.0f} images, {lesions[k]:.0f} lesions ({share:.3g} % of all)",
        f"{opening[k]:.1f} h opening and {hours[k] - opening[k]:.1f} h marking: {hours[k]:.1f} h",
    ]


def _told(table: Mapping[str, Any], figure: str, k: int, hours: list[float]) -> list[str]:
    """Say what a share brings, and whether the last step can be told from none."""
    values, fractions = table[figure], table["fraction"]
    if values is None:
        return ["No numbers are printed, Fig. 5 has the curve"]
    found = [f"{values[k]:.3f} ± {table[f'{figure}_std'][k]:.3f}"]
    if k == 0:
        return [f"{found[0]} without any annotation"]
    gain = values[k] - values[0]
    found = [f"{found[0]}, {gain:+.3f} against none, {gain / hours[k]:+.4f} an hour"]
    if table["steps"] is None:
        return [*found, f"{values[k] - values[k - 1]:+.3f} to {fractions[k - 1]:g}, no interval printed"]
    step, low, high = table["steps"][figure][k - 1]
    verdict = "told from 0" if low > 0 or high < 0 else "cannot be told"
    return [*found, f"{step:+.3f} to {fractions[k - 1]:g} ({low:+.3f} to {high:+.3f}): {verdict}"]
