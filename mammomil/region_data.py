"""From an index to regions: windows over the breast in any pose, labels of annotated ones, batches."""

import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from mammomil.cache import Canvases
from mammomil.files import InputError
from mammomil.index import Index, select
from mammomil.preprocess import Prepared, PreprocessConfig, pectoral_mask
from mammomil.region_model import POSES, Pose, hold, image_windows, pad_regions
from mammomil.regions import WindowConfig, iom_masks, region_labels
from mammomil.types import RegionBatch

ALPHA = 0.5  # IoM from which on a region is malignant (checklist D11)


class Look(NamedTuple):
    """An image in a pose, its windows and their labels (-1 everywhere where nothing is annotated)."""

    image: Float[Tensor, "1 H W"]
    boxes: Float[Tensor, "m 4"]
    region_label: Int[Tensor, "m"]


class RegionSample(NamedTuple):
    """One image of a `RegionBatch`: codes, or pixels and windows."""

    label: Float[Tensor, "c"]
    region_label: Int[Tensor, "m"]
    annotated: Bool[Tensor, ""]
    row: Int[Tensor, ""]
    codes: Float[Tensor, "m f"] | None = None
    image: Float[Tensor, "1 H W"] | None = None
    boxes: Float[Tensor, "m 4"] | None = None


def region_mask(prepared: Prepared, view: str, config: WindowConfig) -> Bool[np.ndarray, "H W"]:
    """Mask of what is cut into windows: the breast, on an MLO view without the muscle (checklist D1)."""
    if config.pectoral or view != "MLO":
        return prepared.breast
    grey = prepared.image - prepared.image.min()
    return prepared.breast & ~pectoral_mask(grey, prepared.breast)


def choose_annotated(index: Index, fraction: float, seed: int) -> frozenset[str]:
    """Choose the malignant images whose findings are learned from, a larger fraction around a smaller (D29).

    Args:
        index: the training images.
        fraction: share of the images that can be annotated, in [0, 1]: malignant ones all of whose malignant
            findings are placed.
        seed: decides which.

    Returns:
        Their image ids.

    Raises:
        InputError: `fraction` is larger than 0 and no image can be annotated.
    """
    if not 0 <= fraction <= 1:
        raise InputError(f"annotated is {fraction}; give a share between 0 and 1.")
    found = index.findings[index.findings["finding"] == "malignant"]
    unplaced = set(found.loc[found["x0"].isna(), "image_id"])
    malignant = index.images.loc[index.images["malignant"] == 1, "image_id"]
    able = sorted(i for i in malignant if i in set(found["image_id"]) and i not in unplaced)
    if fraction > 0 and not able:
        raise InputError(
            f"{index.root}: no malignant training image has all its findings placed, so none can be "
            "annotated. Give findings.csv with boxes or masks, or annotated 0."
        )
    order = np.random.default_rng([seed, 29]).permutation(len(able))
    count = max(round(fraction * len(able)), 1) if fraction > 0 else 0
    return frozenset(able[i] for i in order[:count])


class RegionCanvases(Canvases):
    """Images of an index as looks; the datasets of regions are made of these."""

    def __init__(
        self,
        index: Index,
        preprocess: PreprocessConfig,
        windows: WindowConfig,
        annotated: Collection[str] = (),
        cache: str | Path | None = None,
        memory_limit: int = 2**30,
    ):
        super().__init__(index, preprocess, cache, memory_limit)
        self.windows, self.annotated = windows, frozenset(annotated)
        self._masks: dict[str, np.ndarray] = {}  # finding a muscle takes longer than all else of a look

    def look(self, row: int, pose: Pose = POSES[0], prepared: Prepared | None = None) -> Look:
        """Hold an image, cut it into windows, and label them where the image is annotated.

        Lesions are compared pixel by pixel, a box standing for one without a mask (reading A9).

        Raises:
            InputError: the file or a mask cannot be read, or no window lies in the breast.
        """
        prepared = self.prepared(row) if prepared is None else prepared
        values = self._rows[row]
        if (bits := self._masks.get(values.image_id)) is None:
            bits = np.packbits(region_mask(prepared, values.view, self.windows))
            self._masks[values.image_id] = bits
        height, width = prepared.breast.shape
        mask = np.unpackbits(bits, count=height * width).reshape(height, width)
        planes = [torch.from_numpy(mask).float()[None]]
        annotated = values.image_id in self.annotated
        if annotated:
            malignant = self.findings_on_canvas(row, prepared).malignant
            planes.append(self.masks_on_canvas(row, prepared)[malignant].float())
        mask, *lesions = hold(torch.cat(planes), pose, 0.0) > 0.5
        boxes = image_windows(mask, self.windows, pose)
        if not len(boxes):
            sides = ", ".join(map(str, self.windows.sizes))
            raise InputError(
                f"image {values.image_id}, {self.index.root / values.path}: no window of {sides} pixels lies "
                "in the breast. Check the image, or choose smaller windows."
            )
        label = torch.full((len(boxes),), -1)
        if annotated:
            stack = torch.stack(lesions) if lesions else torch.zeros((0, *mask.shape), dtype=torch.bool)
            label = region_labels(iom_masks(boxes, stack), ALPHA)
        image = torch.from_numpy(prepared.image)[None]
        return Look(hold(image, pose, float(image.min())), boxes, label)

    def sample(self, row: int, region_label: Tensor, **rest: Tensor) -> RegionSample:
        """Put an image's labels beside its codes or pixels; without a malignant region it is weak (A6)."""
        annotated = (region_label == 1).any()
        return RegionSample(
            torch.from_numpy(self.label(row)), region_label, annotated, torch.tensor(row), **rest
        )

    def warn_of_weak(self, rows: Sequence[int]) -> None:
        """Say which annotated images have no malignant region and are learned from by their label (A6)."""
        if rows:
            names = ", ".join(self._rows[row].image_id for row in rows[:5])
            those = "1 annotated image has" if len(rows) == 1 else f"{len(rows)} annotated images have"
            counts = "counts" if len(rows) == 1 else "count"
            warnings.warn(
                f"{those} no region with IoM {ALPHA} or more and {counts} as weakly labelled: "
                f"{names}{', ...' if len(rows) > 5 else ''}",
                stacklevel=3,
            )


class RegionImageDataset(RegionCanvases, Dataset):
    """Pixels and windows of an index's images, to train the encoder too: the paper's future work."""

    def __init__(self, *args, random_poses: bool = False, **kwargs):
        """Prepare nothing yet; arguments as of `Canvases`, windows and annotated ids between.

        Args:
            *args: index, preprocess, windows, annotated, cache, memory_limit.
            random_poses: hold images as the seed of an item says.
            **kwargs: the same by name.
        """
        super().__init__(*args, **kwargs)
        self.random_poses = random_poses

    def prepare_all(
        self, progress: bool = True, workers: int = 2, start: float = 0.0
    ) -> list[tuple[str, str]]:
        """Prepare and cut every image once, see `Canvases`; drop what has no window, tell what stays weak."""
        failures = super().prepare_all(progress, workers, start)
        keep, weak = [], []
        for row in tqdm(range(len(self.images)), "Cutting windows", unit="image", disable=not progress):
            name = self._rows[row].image_id
            try:
                labels = self.look(row).region_label
            except InputError as error:
                failures.append((name, str(error)))
                keep.append(False)
                continue
            keep.append(True)
            if name in self.annotated and not (labels == 1).any():
                weak.append(sum(keep) - 1)
        if not any(keep):
            raise InputError(f"{self.index.root}: no image can be used. The first: {failures[0][1]}")
        self._set(select(self.index, keep))
        self.warn_of_weak(weak)
        return failures

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int | tuple[int, int]) -> RegionSample:
        """Give an image, its windows and labels.

        Args:
            item: a row, for the image as it is; or (row, seed), for a pose drawn from the seed.

        Raises:
            InputError: the file cannot be read, or no window lies in the breast.
        """
        row, seed = item if isinstance(item, tuple) else (item, None)
        pose = POSES[seed % len(POSES)] if self.random_poses and seed is not None else POSES[0]
        look = self.look(row, pose)
        return self.sample(row, look.region_label, image=look.image, boxes=look.boxes)


def collate_regions(samples: Sequence[RegionSample]) -> RegionBatch:
    """Stack samples; regions are padded with `valid` False, images at the right and at the bottom."""
    region_label, valid, places = pad_regions([sample.region_label for sample in samples])
    region_label = region_label.masked_fill(~valid, -1)
    shared = {
        name: torch.stack([getattr(sample, name) for sample in samples])
        for name in ("label", "annotated", "row")
    }
    if samples[0].codes is not None:
        codes = pad_regions([sample.codes for sample in samples])[0]
        return RegionBatch(valid=valid, region_label=region_label, codes=codes, **shared)
    boxes = pad_regions([sample.boxes for sample in samples])[0]
    height, width = (max(sample.image.shape[side] for sample in samples) for side in (1, 2))
    images = [
        torch.nn.functional.pad(
            image, (0, width - image.shape[2], 0, height - image.shape[1]), value=float(image.min())
        )
        for image in (sample.image for sample in samples)
    ]
    return RegionBatch(
        valid=valid,
        region_label=region_label,
        image=torch.stack(images),
        boxes=boxes,
        places=places,
        **shared,
    )
