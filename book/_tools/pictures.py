"""Draw the moving pictures of the README: two explorers, played.

    python book/_tools/pictures.py      writes book/images/saliency.gif and book/images/plane.gif

The first pools a saliency map over ever fewer cells; the second replays the training of a dual branch.
"""

import io
import sys
from pathlib import Path

import torch
from PIL import Image

from mammomil import classroom, widgets
from mammomil.dataset import MammogramDataset
from mammomil.explorer import Explorer
from mammomil.files import atomic_path
from mammomil.practice import practice, train_head

IMAGES = Path(__file__).resolve().parents[1] / "images"
SECONDS = 1.1  # a frame


def play(explorer: Explorer, control: str, path: Path, scale: float = 1.0) -> None:
    """Write a GIF of an explorer while one of its controls goes through its values."""
    values = next(c.values for c in explorer.controls if c.name == control)
    frames = [
        Image.open(io.BytesIO(explorer.scene(**{control: v}).png(scale))).convert("RGB") for v in values
    ]
    palette = frames[-1].quantize(128)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    with atomic_path(path) as temporary:
        frames[0].save(
            temporary, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 * SECONDS), loop=0
        )


def main() -> int:
    """Draw both."""
    model, preprocess, _ = classroom.shipped_model()
    data = MammogramDataset(classroom.sample_index(), preprocess)
    sick = int((data.images["malignant"] == 1).argmax())
    explorer = widgets.saliency_explorer(model, torch.stack([data[sick].image]), ["a malignant phantom"])
    play(explorer, "share", IMAGES / "saliency.gif")
    exams = practice()
    trained = train_head(exams, epochs=40, learning_rate=5e-3)  # as chapter 16 does
    play(widgets.plane_explorer(exams, trained), "epoch", IMAGES / "plane.gif")
    return 0


if __name__ == "__main__":
    sys.exit(main())
