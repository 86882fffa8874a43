"""From canvases to batches: whole images, fields of view, balanced epochs, padding.

What an item looks like depends on (row, seed) alone, so batches do not depend on the number of workers.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler

from mammomil.augment import AugmentConfig, augment
from mammomil.cache import Canvases
from mammomil.files import InputError
from mammomil.index import Index
from mammomil.preprocess import PreprocessConfig
from mammomil.types import FINDINGS, Batch

Item = int | tuple[int, int]
_TRIES = 30  # random fields looked at to find one without a part of a finding


class Sample(NamedTuple):
    """One image of a `Batch`, before it has neighbours."""

    image: Float[Tensor, "1 H W"]
    label: Float[Tensor, "c"]
    birads: Float[Tensor, ""]
    row: Int[Tensor, ""]


class MammogramDataset(Canvases, Dataset):
    """Whole images of an index, prepared for a model."""

    def __init__(
        self,
        index: Index,
        preprocess: PreprocessConfig,
        augment: AugmentConfig | None = None,
        cache: str | Path | None = None,
        memory_limit: int = 2**30,
    ):
        """Prepare nothing yet.

        Args:
            index: the images, for example `subset(index, "train")`.
            preprocess: how files become canvases.
            augment: changes of training images; applied to items (row, seed) only.
            cache: folder for prepared images, see `Canvases`.
            memory_limit: bytes of prepared images kept in memory without a cache, see `Canvases`.
        """
        super().__init__(index, preprocess, cache, memory_limit)
        self.augment = augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: Item) -> Sample:
        """Give an image and its labels.

        Args:
            item: a row, for the image as it is; or (row, seed), for its change by augmentation.

        Raises:
            InputError: the file cannot be read; the message names image and file.
        """
        row, seed = item if isinstance(item, tuple) else (item, None)
        row = range(len(self))[row]
        image = torch.from_numpy(self.prepared(row).image)[None]
        if seed is not None and self.augment is not None:
            image = _augmented(image, self.augment, seed)
        category = self._rows[row].birads[:1]  # 4a, 4b and 4c are 4
        birads = torch.tensor(float(category or math.nan))
        return Sample(image, torch.from_numpy(self.label(row)), birads, torch.tensor(row))


class FieldDataset(Canvases, Dataset):
    """Square fields of view cut from prepared images, each with labels of its own, to learn lesions from.

    Items 0, 2, 4, ... show a finding, malignant and benign ones as often; items 1, 3, 5, ... show breast
    without any. What (item, seed) shows depends on nothing else. Needs findings with boxes, which phantoms
    have and screening data have not.
    """

    def __init__(
        self,
        index: Index,
        preprocess: PreprocessConfig,
        size: int = 96,
        length: int | None = None,
        augment: AugmentConfig | None = None,
        cache: str | Path | None = None,
        memory_limit: int = 2**30,
    ):
        """Prepare nothing yet.

        Args:
            index: images with findings.
            preprocess: how files become canvases.
            size: side of a field in canvas pixels.
            length: items of an epoch; by default two per image.
            augment: changes of the fields, for items (item, seed) only. Rotation, translation and scale are
                left out, so that labels stay exact; fields are cut at random places anyway.
            cache: folder for prepared images, see `Canvases`.
            memory_limit: bytes of prepared images kept in memory without a cache, see `Canvases`.

        Raises:
            InputError: no finding has a box, or `size` is larger than the canvas.
        """
        if not 8 <= size <= min(preprocess.height, preprocess.width):
            canvas = f"{preprocess.height} x {preprocess.width}"
            raise InputError(f"size is {size}; choose a field of 8 pixels up to the canvas, {canvas}.")
        super().__init__(index, preprocess, cache, memory_limit)
        self.size = size
        self.length = 2 * len(self.images) if length is None else length
        self.augment = augment and dataclasses.replace(augment, rotation=0.0, translation=0.0, scale=0.0)

    def _set(self, index: Index) -> None:
        super()._set(index)
        rows = pd.Series(range(len(self.images)), self.images["image_id"])
        placed = self.findings[self.findings["x0"].notna()]
        rows_of = {
            c: rows[placed.loc[placed["finding"] == name, "image_id"]] for c, name in enumerate(FINDINGS)
        }
        self._rows_of = {c: found.to_numpy() for c, found in rows_of.items() if len(found)}
        if not self._rows_of:
            raise InputError(f"{index.root}: no finding has a box, so no field can be labelled.")
        known = np.flatnonzero(self.images[list(FINDINGS)].notna().any(axis=1))
        self._known_rows = known if len(known) else np.arange(len(self.images))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: Item) -> Sample:
        """Give a field, the labels of what it shows, and the row of its image; BI-RADS is unknown.

        Args:
            item: a number, always for the same field; or (number, seed) for another one per seed.

        Raises:
            InputError: the file cannot be read; the message names image and file.
        """
        number, seed = item if isinstance(item, tuple) else (item, None)
        number = range(len(self))[number]
        rng = np.random.default_rng([number, 0 if seed is None else seed + 1])
        c = int(rng.choice(list(self._rows_of)))
        row = int(rng.choice(self._rows_of[c] if number % 2 == 0 else self._known_rows))
        prepared = self.prepared(row)
        found = self.findings_on_canvas(row, prepared)
        boxes, malignant = found.boxes.numpy(), found.malignant.numpy()
        elsewhere = self._label_elsewhere(row)
        mine = np.flatnonzero(malignant == bool(c)) if number % 2 == 0 else ()
        if len(mine):
            window = self._around(rng, boxes[rng.choice(mine)])
        else:  # also for findings that do not reach the canvas
            window = self._beside(rng, prepared.breast, boxes)
        label = field_label(window, boxes, malignant, elsewhere)
        x0, y0, x1, y1 = window
        image = torch.from_numpy(prepared.image[y0:y1, x0:x1].copy())[None]
        if seed is not None and self.augment is not None:
            image = _augmented(image, self.augment, int(rng.integers(2**62)))
        return Sample(image, torch.from_numpy(label), torch.tensor(math.nan), torch.tensor(row))

    def _label_elsewhere(self, row: int) -> np.ndarray:
        """Labels of what lies outside every box: 0, or NaN where a finding may be that nobody placed."""
        label, (boxes, malignant, _) = self.label(row), self.findings_of(row)
        for c in range(len(FINDINGS)):
            mine = boxes[malignant == bool(c)]
            if label[c] == 1:
                label[c] = 0 if len(mine) and not np.isnan(mine).any() else math.nan
        return label

    def _around(self, rng: np.random.Generator, box: np.ndarray) -> tuple[int, int, int, int]:
        """A field with all of a box, or with its centre in the inner half where it is too large."""
        corner = []
        for low, high, side in (
            (box[0], box[2], self.preprocess.width),
            (box[1], box[3], self.preprocess.height),
        ):
            first, last = math.ceil(high) - self.size, math.floor(low)
            if first > last:
                middle = (low + high) / 2
                first, last = round(middle - 0.75 * self.size), round(middle - 0.25 * self.size)
            corner.append(min(max(int(rng.integers(first, last + 1)), 0), side - self.size))
        return (*corner, corner[0] + self.size, corner[1] + self.size)

    def _beside(
        self, rng: np.random.Generator, breast: np.ndarray, boxes: np.ndarray
    ) -> tuple[int, int, int, int]:
        """A field centred in the breast that touches no box; the last one tried where all do."""
        inside = np.flatnonzero(breast) if breast.any() else np.arange(breast.size)
        height, width = breast.shape
        for pixel in rng.choice(inside, _TRIES):
            row, column = divmod(int(pixel), width)
            x = min(max(column - self.size // 2, 0), width - self.size)
            y = min(max(row - self.size // 2, 0), height - self.size)
            window = (x, y, x + self.size, y + self.size)
            if not _shares(window, boxes).any():
                break
        return window


def field_label(
    window: tuple[int, int, int, int],
    boxes: Float[np.ndarray, "n 4"],
    malignant: Bool[np.ndarray, "n"],
    elsewhere: Float[np.ndarray, "c"],
) -> Float[np.ndarray, "c"]:
    """Label a field of view by the findings it shows, in the order of `FINDINGS`.

    Args:
        window: the field, xyxy in canvas pixels.
        boxes: findings, xyxy in canvas pixels.
        malignant: class of each finding.
        elsewhere: labels of a field that touches no box: 0, or NaN where unknown.

    Returns:
        1 where the field holds the centre or at least half of the box of a finding; NaN where it cuts off
        less of one; `elsewhere` where it touches none.
    """
    shares = _shares(window, boxes)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    shown = (shares >= 0.5) | ((middle >= window[:2]) & (middle < window[2:])).all(axis=1)
    label = elsewhere.astype(np.float32)
    for c in range(len(FINDINGS)):
        mine = malignant == bool(c)
        if (shown & mine).any():
            label[c] = 1
        elif (shares[mine] > 0).any():
            label[c] = math.nan
    return label


def _shares(window: tuple[int, int, int, int], boxes: np.ndarray) -> np.ndarray:
    """Part of the area of each box that lies in the window."""
    sides = np.minimum(boxes[:, 2:], window[2:]) - np.maximum(boxes[:, :2], window[:2])
    return sides.clip(min=0).prod(axis=1) / (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def _augmented(image: Tensor, config: AugmentConfig, seed: int) -> Tensor:
    no_masks = torch.zeros((0, *image.shape[1:]), dtype=torch.bool)
    return augment(image, torch.zeros(0, 4), no_masks, config, seed).image


class ShuffledSampler(Sampler):
    """All items once per epoch in random order, each as (item, seed); depends on seed and epoch alone."""

    def __init__(self, length: int, seed: int = 0):
        """Start at epoch 0.

        Args:
            length: number of items, such as `len(dataset)`.
            seed: 0 or more.
        """
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration goes through."""
        self.epoch = epoch

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch])

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        return np.arange(self.length)

    def __len__(self) -> int:
        return len(self._draw(self._rng()))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = self._rng()
        rows = rng.permutation(self._draw(rng))
        seeds = rng.integers(2**62, size=len(rows))
        return zip(rows.tolist(), seeds.tolist(), strict=True)


class BalancedSampler(ShuffledSampler):
    """Per epoch all exams with a finding and as many without, drawn anew (GMIC, checklist G10 and G-j).

    An exam has a finding if one of its images has a label of 1; it has none if every known label is 0.
    Exams of which nothing is known are left out. All images of a chosen exam are used.
    """

    def __init__(self, images: pd.DataFrame, seed: int = 0):
        """Start at epoch 0.

        Args:
            images: the table of the dataset whose rows are drawn.
            seed: 0 or more.

        Raises:
            InputError: no exam has a finding.
        """
        labels = images[list(FINDINGS)]
        exams = images["exam_id"].to_numpy()
        positive = labels.eq(1).any(axis=1).groupby(exams).transform("any").to_numpy()
        known = labels.notna().any(axis=1).groupby(exams).transform("any").to_numpy()
        if not positive.any():
            raise InputError(
                f"None of {len(images)} images is labelled 1 for {' or '.join(FINDINGS)}, so no epoch can be "
                "balanced. Check the labels, or that this split has patients with findings."
            )
        super().__init__(len(images), seed)
        self._positive = np.flatnonzero(positive)
        self._exams = len(np.unique(exams[positive]))
        negative = np.flatnonzero(known & ~positive)
        groups = pd.Series(negative).groupby(exams[negative]).indices
        self._negative = [negative[group] for group in groups.values()]

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        count = min(self._exams, len(self._negative))
        drawn = rng.choice(len(self._negative), count, replace=False) if count else ()
        return np.concatenate([self._positive, *(self._negative[n] for n in drawn)])


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples; smaller images are padded at the right and at the bottom with their own minimum."""
    height, width = (max(sample.image.shape[side] for sample in samples) for side in (1, 2))
    images = [
        F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]), value=float(image.min()))
        for image in (sample.image for sample in samples)
    ]
    rest = (torch.stack(values) for values in list(zip(*samples, strict=True))[1:])
    return Batch(torch.stack(images), *rest)
