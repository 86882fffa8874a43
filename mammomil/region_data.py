"""From an index to batches of regions: windows, their codes (kept on disk), labels of annotated ones."""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from mammomil.cache import Canvases
from mammomil.encoders import fingerprint
from mammomil.files import InputError, atomic_path, sha256
from mammomil.index import Index, select
from mammomil.preprocess import Prepared, PreprocessConfig, pectoral_mask
from mammomil.region_model import POSES, Pose, RegionModel, hold, image_windows, pad_regions
from mammomil.regions import WindowConfig, iom_masks, region_labels
from mammomil.types import RegionBatch

CODES_FORMAT = 1  # part of every entry's name: raise it when windows or codes change
ALPHA = 0.5  # IoM from which on a region is malignant (checklist D11)


@dataclass(frozen=True)
class PoseConfig:
    """How often and how differently training images are held (checklist D21, reading A19)."""

    copies: int = 1
    """Poses of each image; 1 is the image as it is, 112 is all there are."""
    balance: bool = False
    """More poses of malignant, benign or normal images where they are rarer, until they are as many."""

    def __post_init__(self):
        if not 1 <= self.copies <= len(POSES):
            raise ValueError(f"copies is {self.copies}; choose 1 to {len(POSES)}.")


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


class _RegionCanvases(Canvases):
    """Images of an index as looks."""

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

    def look(self, row: int, pose: Pose = POSES[0], prepared: Prepared | None = None) -> Look:
        """Hold an image, cut it into windows, and label them where the image is annotated.

        Raises:
            InputError: the file or a mask cannot be read, or no window lies in the breast.
        """
        prepared = self.prepared(row) if prepared is None else prepared
        values = self._rows[row]
        planes = [torch.from_numpy(region_mask(prepared, values.view, self.windows)).float()[None]]
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
            warnings.warn(
                f"{len(rows)} annotated images have no region with IoM {ALPHA} or more and count as weakly "
                f"labelled: {names}{', ...' if len(rows) > 5 else ''}",
                stacklevel=3,
            )


class RegionDataset(_RegionCanvases, Dataset):
    """Codes of the regions of an index's images; the encoder is not trained, so that they are made once.

    An item is an image in one of its poses. `prepare_all` must be called first.
    """

    def __init__(
        self,
        index: Index,
        preprocess: PreprocessConfig,
        model: RegionModel,
        cache: str | Path | None = None,
        annotated: Collection[str] = (),
        poses: PoseConfig | None = None,
        seed: int = 0,
    ):
        """Make nothing yet.

        Args:
            index: the images, for example `subset(index, "train")`.
            preprocess: how files become canvases.
            model: encoder and windows.
            cache: folder for codes, which may be shared and deleted at any time: an entry belongs to the
                bytes of an image file, the way it is prepared and cut, and the weights of the encoder.
            annotated: ids of images whose malignant findings label their regions.
            poses: how training images are held; None is as they are.
            seed: decides which poses.
        """
        super().__init__(index, preprocess, model.config.windows, annotated, memory_limit=0)
        self.model, self.codes_cache = model, None if cache is None else Path(cache)
        self.poses, self.seed = poses or PoseConfig(), seed
        self.encoder_id = fingerprint(model.encoder)
        self.items: list[tuple[int, Pose]] = []
        self._kept: list[tuple[Tensor, Tensor]] = []  # codes and labels, one per item

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: int | tuple[int, int]) -> RegionSample:
        """Give the codes of an item and its labels.

        Args:
            item: its number, or (number, seed) as samplers have it; the seed does not count.
        """
        number = item[0] if isinstance(item, tuple) else item
        codes, label = self._kept[number]
        return self.sample(self.items[number][0], label, codes=codes)

    def prepare_all(self, progress: bool = True, workers: int = 2) -> list[tuple[str, str]]:
        """Cut and code every image in all its poses, or read that from the cache; drop what cannot be used.

        Ctrl-C loses nothing but the image at hand: entries are whole, and are found by the next call.

        Args:
            progress: show a bar.
            workers: processes that read, prepare and cut images; 0 works in this one.

        Returns:
            (image_id, reason) for each dropped image.

        Raises:
            InputError: no image is left, or the cache cannot be written.
        """
        import torchvision.ops  # noqa: F401 - now, or every process spends its seconds on it

        wanted = self._choose_poses()
        jobs = _Jobs(self, wanted)
        workers = min(workers, len(self.images) // 8)  # starting a process takes as long as a few images
        loader = DataLoader(
            jobs, batch_size=None, num_workers=workers, collate_fn=_unchanged, generator=torch.Generator()
        )
        failures, keep, items, kept, weak = [], [], [], [], []
        with tqdm(loader, "Coding regions", unit="image", disable=not progress) as bar:
            for row, (reason, looks) in enumerate(bar):
                keep.append(not reason)
                if reason:
                    failures.append((self._rows[row].image_id, reason))
                    continue
                at = sum(keep) - 1  # its row once the images that failed are gone
                for pose, entry, codes, look in looks:
                    if codes is None:
                        codes = self.encode(look, entry)
                    items.append((at, pose))
                    # Copies: what comes from another process holds an open file as long as it lives.
                    kept.append((codes.clone(), look.region_label.clone()))
                    if pose == POSES[0] and self._rows[row].image_id in self.annotated:
                        weak += [] if (look.region_label == 1).any() else [at]
        if not any(keep):
            raise InputError(f"{self.index.root}: no image can be used. The first: {failures[0][1]}")
        self._set(select(self.index, keep))
        self.items, self._kept = items, kept
        self.warn_of_weak(weak)
        return failures

    @property
    def device(self) -> torch.device:
        """Where windows are coded."""
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def encode(self, look: Look, entry: Path | None = None) -> Float[Tensor, "m f"]:
        """Code the windows of a look, and keep the codes in a cache entry if one is named.

        Raises:
            InputError: the entry cannot be written.
        """
        image, boxes = look.image[None].to(self.device), look.boxes[None].to(self.device)
        places = torch.arange(len(look.boxes), device=self.device)
        codes = self.model.encode(image, boxes, places)[0].float().cpu()
        if entry is not None:
            _save(entry, codes)
        return codes

    def _choose_poses(self) -> list[list[Pose]]:
        """Choose the poses of each row: the image as it is, and others by seed and id."""
        labels = self.images[["malignant", "benign"]].to_numpy(float)
        group = np.where(labels[:, 0] == 1, 2, np.where(labels[:, 1] == 1, 1, 0))
        counts = np.bincount(group, minlength=3)
        chosen = []
        for row, kind in enumerate(group):
            more = counts.max() / counts[kind] if self.poses.balance else 1
            count = min(round(self.poses.copies * more), len(POSES))
            digest = hashlib.sha256(self._rows[row].image_id.encode(errors="surrogatepass")).digest()
            rng = np.random.default_rng([self.seed, int.from_bytes(digest[:8], "little")])
            others = 1 + rng.permutation(len(POSES) - 1)[: count - 1]
            chosen.append([POSES[0], *(POSES[number] for number in others)])
        return chosen

    def entries(self, row: int, poses: Sequence[Pose]) -> list[Path | None]:
        """Name the cache entries of an image's poses.

        Raises:
            InputError: the file cannot be read.
        """
        if self.codes_cache is None:
            return [None] * len(poses)
        values = self._rows[row]
        path = self.index.root / values.path
        try:
            content = sha256(path)
        except OSError as error:
            raise InputError(
                f"image {values.image_id}, {path}: cannot read this file ({error.strerror})."
            ) from error
        told = [values.laterality, values.view, str(values.spacing_mm)]
        settings = [dataclasses.asdict(c) for c in (self.preprocess, self.windows)]
        identity = [CODES_FORMAT, content, *told, *settings, self.encoder_id]
        names = [hashlib.sha256(json.dumps([*identity, pose]).encode()).hexdigest()[:32] for pose in poses]
        return [self.codes_cache / f"{name}.npz" for name in names]


class RegionImageDataset(_RegionCanvases, Dataset):
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


class _Jobs(Dataset):
    """Row -> (why it cannot be used or nothing, its looks with entries, and codes unless a GPU makes them).

    On a CPU the processes that prepare images code them too, each with one thread: networks as small as the
    default encoder lose more by waiting for threads than they win.
    """

    def __init__(self, data: RegionDataset, poses: list[list[Pose]]):
        self.data, self.poses = data, poses

    def __len__(self) -> int:
        return len(self.poses)

    def __getitem__(self, row: int) -> tuple[str, list]:
        try:
            return "", list(self._looks(row))
        except InputError as error:
            return str(error), []

    def _looks(self, row: int) -> Iterator[tuple[Pose, Path | None, Tensor | None, Look]]:
        data, poses = self.data, self.poses[row]
        entries = data.entries(row, poses)
        found = [None if entry is None else _load(entry) for entry in entries]
        annotated = data._rows[row].image_id in data.annotated
        prepared = data.prepared(row) if annotated or any(codes is None for codes in found) else None
        for pose, entry, codes in zip(poses, entries, found, strict=True):
            if codes is not None and not annotated:
                nothing = torch.full((len(codes),), -1)
                yield pose, entry, codes, Look(torch.zeros(1, 0, 0), torch.zeros(0, 4), nothing)
            else:
                look = data.look(row, pose, prepared)
                if codes is not None and len(codes) != len(look.boxes):
                    codes = None
                if codes is None and data.device.type == "cpu":
                    codes = data.encode(look, entry)
                if codes is not None:
                    look = look._replace(image=torch.zeros(1, 0, 0))  # not sent from process to process
                yield pose, entry, codes, look


def _unchanged(value: tuple) -> tuple:
    return value


def _save(entry: Path, codes: Tensor) -> None:
    try:
        with atomic_path(entry) as temporary:
            np.savez(temporary, codes=codes.numpy())
    except OSError as error:
        raise InputError(f"{entry}: cannot write the codes ({error.strerror}). Make room there.") from error


def _load(entry: Path) -> Tensor | None:
    """Read an entry; None when it is not there or fails the checksums of zip, so that it is made anew."""
    try:
        with entry.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return torch.from_numpy(arrays["codes"])
    except Exception:  # a damaged zip file raises nearly anything
        return None
