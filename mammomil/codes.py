"""Codes of the regions of images: made once, kept on disk by content, learned from many times."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from mammomil.cache import turned
from mammomil.encoders import fingerprint
from mammomil.files import InputError, atomic_path, sha256
from mammomil.index import Index, select
from mammomil.preprocess import PreprocessConfig
from mammomil.region_data import Look, RegionCanvases, RegionSample
from mammomil.region_model import POSES, Pose, RegionModel

CODES_FORMAT = 1  # part of every entry's name: raise it when windows or codes change


@dataclass(frozen=True)
class PoseConfig:
    """How often and how differently training images are held (checklist D21, reading A19)."""

    copies: int = 1
    """Poses of each image; 1 is the image as it is, 112 is all there are. A pose of 200 regions takes
    0.1 MB of memory and of disk."""
    balance: bool = False
    """More poses of malignant, benign or normal images where they are rarer, until they are as many."""

    def __post_init__(self):
        if not 1 <= self.copies <= len(POSES):
            raise ValueError(f"copies is {self.copies}; choose 1 to {len(POSES)}.")


class CodeDataset(RegionCanvases, Dataset):
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
        self._can_keep = True

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

    def prepare_all(
        self, progress: bool = True, workers: int = 2, start: float = 0.0
    ) -> list[tuple[str, str]]:
        """Cut and code every image in all its poses, or read that from the cache; drop what cannot be used.

        Ctrl-C loses nothing but the image at hand: entries are whole, and are found by the next call.

        Args:
            progress: show a bar.
            workers: processes that read, prepare and cut images; 0 works in this one.
            start: begin so far down the table, see `Canvases.prepare_all`.

        Returns:
            (image_id, reason) for each dropped image.

        Raises:
            InputError: no image is left.
        """
        import torchvision.ops  # noqa: F401 - now, or every process spends its seconds on it

        wanted = self._choose_poses()
        jobs = _Jobs(self, wanted)
        workers = min(workers, len(self.images) // 8)  # starting a process takes as long as a few images
        order = turned(len(self.images), start)
        loader = DataLoader(
            jobs, batch_size=None, sampler=order, num_workers=workers, collate_fn=_unchanged,
            generator=torch.Generator(),
        )  # fmt: skip
        reasons: list[str] = [""] * len(order)
        coded: list[list[tuple[Pose, Tensor, Tensor]]] = [[]] * len(order)
        with tqdm(loader, "Coding regions", unit="image", disable=not progress) as bar:
            for row, (reason, looks) in zip(order, bar, strict=True):
                reasons[row] = reason
                # Copies: what comes from another process holds an open file as long as it lives.
                coded[row] = [
                    (pose, (self.encode(look, entry) if codes is None else codes).clone(),
                     look.region_label.clone())
                    for pose, entry, codes, look in looks
                ]  # fmt: skip
        failures = [(row.image_id, reason) for row, reason in zip(self._rows, reasons, strict=True) if reason]
        if len(failures) == len(order):
            raise InputError(f"{self.index.root}: no image can be used. The first: {failures[0][1]}")
        self._set(select(self.index, [not reason for reason in reasons]))
        used = [looks for looks, reason in zip(coded, reasons, strict=True) if not reason]
        self.items = [(row, pose) for row, looks in enumerate(used) for pose, _, _ in looks]
        self._kept = [(codes, label) for looks in used for _, codes, label in looks]
        weak = [
            row for row, looks in enumerate(used)
            if self._rows[row].image_id in self.annotated and not (looks[0][2] == 1).any()
        ]  # fmt: skip
        self.warn_of_weak(weak)
        return failures

    @property
    def device(self) -> torch.device:
        """Where windows are coded."""
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def encode(self, look: Look, entry: Path | None = None) -> Float[Tensor, "m f"]:
        """Code the windows of a look, and keep the codes in a cache entry if one is named.

        Where the first entry cannot be written, that is said and no other is tried.
        """
        image, boxes = look.image[None].to(self.device), look.boxes[None].to(self.device)
        places = torch.arange(len(look.boxes), device=self.device)
        codes = self.model.encode(image, boxes, places)[0].float().cpu()
        if entry is not None and self._can_keep:
            try:
                with atomic_path(entry) as temporary:
                    np.savez(temporary, codes=codes.numpy())
            except (OSError, InputError) as error:  # a full disk must not stop what needs no disk
                self._can_keep = False
                print(f"{entry}: codes are not kept from here on ({error}).", file=sys.stderr)
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


class _Jobs(Dataset):
    """Row -> (why it cannot be used or nothing, its looks with entries, and codes unless a GPU makes them).

    On a CPU the processes that prepare images code them too, each with one thread: networks as small as the
    default encoder lose more by waiting for threads than they win.
    """

    def __init__(self, data: CodeDataset, poses: list[list[Pose]]):
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


def _load(entry: Path) -> Tensor | None:
    """Read an entry; None when it is not there or fails the checksums of zip, so that it is made anew."""
    try:
        with entry.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return torch.from_numpy(arrays["codes"])
    except Exception:  # a damaged zip file raises nearly anything
        return None
