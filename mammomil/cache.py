"""From a row of the index to its canvas: the prepared image, kept on disk or in memory, and its findings."""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Shaped
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from mammomil import __version__
from mammomil.dicom import read_image
from mammomil.files import InputError, atomic_path
from mammomil.index import BOX, Index, select
from mammomil.preprocess import Prepared, PreprocessConfig, invert_affine, prepare, transform_boxes
from mammomil.types import FINDINGS

CACHE_FORMAT = 1  # part of every entry's name: raise it when `prepare` or the entry changes


class CanvasFindings(NamedTuple):
    """Findings of one image in canvas pixels: boxes xyxy on pixel edges, and which are malignant."""

    boxes: Float[Tensor, "n 4"]
    malignant: Bool[Tensor, "n"]


class Stored(NamedTuple):
    """A prepared image in 16 bits; of the pixels, only the part that differs from the minimum, the air."""

    levels: np.ndarray
    corner: np.ndarray  # row and column of `levels` on the canvas
    shape: np.ndarray
    scale: np.ndarray  # minimum, and grey value of one level
    breast: np.ndarray  # one bit per pixel
    affine: np.ndarray
    flipped: np.ndarray


class _Row(NamedTuple):
    """What is needed of a row of the table of images."""

    image_id: str
    path: str
    laterality: str
    view: str
    spacing_mm: float
    birads: str
    height: float
    width: float


def pack(prepared: Prepared) -> Stored:
    """Round an image to 65,536 levels between its extremes: at most half a level off, the minimum exact."""
    image = prepared.image
    low = float(image.min())
    step = (float(image.max()) - low) / 65535 or 1.0
    rows, columns = (np.flatnonzero((image > low).any(axis)) for axis in (1, 0))
    top, bottom = (rows[0], rows[-1] + 1) if len(rows) else (0, 0)
    left, right = (columns[0], columns[-1] + 1) if len(columns) else (0, 0)
    levels = np.rint((image[top:bottom, left:right] - low) / step).astype(np.uint16)
    corner, shape, scale = np.array([top, left]), np.array(image.shape), np.array([low, step])
    breast = np.packbits(prepared.breast)
    return Stored(levels, corner, shape, scale, breast, prepared.affine, np.array(prepared.flipped))


def unpack(stored: Stored) -> Prepared:
    """Undo `pack`."""
    low, step = stored.scale.astype(np.float32)
    height, width = (int(side) for side in stored.shape)
    image = np.full((height, width), low, np.float32)
    (top, left), (rows, columns) = stored.corner, stored.levels.shape
    image[top : top + rows, left : left + columns] = low + step * stored.levels.astype(np.float32)
    breast = np.unpackbits(stored.breast, count=height * width).reshape(height, width).astype(bool)
    return Prepared(image, breast, stored.affine, bool(stored.flipped))


class Canvases:
    """Prepared images of an index with their findings; the datasets are made of these.

    Images are rounded to 16 bits (under 1e-4 standard deviations), whether they are kept or not, so that the
    cache changes nothing.
    """

    def __init__(
        self,
        index: Index,
        preprocess: PreprocessConfig,
        cache: str | Path | None = None,
        memory_limit: int = 2**30,
    ):
        """Prepare nothing yet.

        Args:
            index: the images, for example `subset(index, "train")`.
            preprocess: how files become canvases.
            cache: folder for prepared images. It may be shared and deleted at any time: an entry belongs to
                one state of one image file and one configuration.
            memory_limit: bytes of prepared images kept in memory when there is no cache. Fill it by
                `prepare_all` before workers start, or every worker fills its own.
        """
        self.preprocess = preprocess
        self.cache = None if cache is None else Path(cache)
        self.memory_limit = memory_limit
        self._memory: dict[str, Stored] = {}
        self._used = 0
        self._set(index)

    def _set(self, index: Index) -> None:
        """Take the tables apart into lists and arrays: a pandas look-up takes longer than a small image."""
        self.index = index
        self._rows = list(map(_Row, *(index.images[name].to_list() for name in _Row._fields)))
        self._labels = index.images[list(FINDINGS)].to_numpy(np.float32)
        boxes, masks = index.findings[BOX].to_numpy(float), index.findings["mask"].to_numpy(object)
        malignant = (index.findings["finding"] == "malignant").to_numpy(bool)
        places = index.findings.groupby("image_id").indices
        self._findings = {name: (boxes[at], malignant[at], masks[at]) for name, at in places.items()}

    @property
    def images(self) -> pd.DataFrame:
        """The table of images; `row` everywhere means a position in it."""
        return self.index.images

    @property
    def findings(self) -> pd.DataFrame:
        """The table of findings."""
        return self.index.findings

    def label(self, row: int) -> Float[np.ndarray, "c"]:
        """Labels of an image in the order of `FINDINGS`: 0, 1, or NaN where unknown."""
        return self._labels[row].copy()

    def findings_of(
        self, row: int
    ) -> tuple[Float[np.ndarray, "n 4"], Bool[np.ndarray, "n"], Shaped[np.ndarray, "n"]]:
        """Boxes in pixels of the file (NaN where nobody placed the finding), malignant or not, mask files."""
        nothing = (np.zeros((0, 4)), np.zeros(0, bool), np.zeros(0, object))
        return self._findings.get(self._rows[row].image_id, nothing)

    def prepared(self, row: int) -> Prepared:
        """The prepared image of a row, its breast mask and the way back to the file's pixels.

        Raises:
            InputError: the file cannot be read; the message names image and file.
        """
        return unpack(self._stored(row))

    def findings_on_canvas(self, row: int, prepared: Prepared | None = None) -> CanvasFindings:
        """Findings with a box, in canvas pixels; boxes are cut at the border, those outside left out."""
        boxes, malignant, _ = self._on_canvas(row, self.prepared(row) if prepared is None else prepared)
        return CanvasFindings(torch.from_numpy(boxes).float(), torch.from_numpy(malignant))

    def masks_on_canvas(self, row: int, prepared: Prepared | None = None) -> Bool[Tensor, "n H W"]:
        """Pixel masks in the order of `findings_on_canvas`; the box where a finding has no mask.

        Raises:
            InputError: a mask cannot be read or is not as large as its image.
        """
        prepared = self.prepared(row) if prepared is None else prepared
        boxes, _, names = self._on_canvas(row, prepared)
        masks = np.zeros((len(boxes), *prepared.image.shape), bool)
        for mask, name, box in zip(masks, names, boxes.tolist(), strict=True):
            if name:
                mask[:] = self._mask(row, self.index.root / name, prepared)
            if not mask.any():  # no mask, or one too small to meet the centre of a canvas pixel
                x0, y0, x1, y1 = (round(edge) for edge in box)
                mask[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = True
        return torch.from_numpy(masks)

    def prepare_all(
        self, progress: bool = True, workers: int = 2, start: float = 0.0
    ) -> list[tuple[str, str]]:
        """Prepare every image now, fill cache or memory, and drop the images that cannot be used.

        Rows change when images are dropped: make samplers afterwards.

        Args:
            progress: show a bar.
            workers: processes that prepare; 0 works in this one.
            start: begin so far down the table, in [0, 1). Runs that fill one cache together begin in
                different places and find later what the others have done.

        Returns:
            (image_id, reason) for each dropped image.

        Raises:
            InputError: no image is left.
        """
        workers = min(workers, len(self.images) // 8)  # starting a process takes as long as a few images
        order = turned(len(self.images), start)
        loader = DataLoader(
            _Attempts(self),
            batch_size=None,
            sampler=order,
            num_workers=workers,
            collate_fn=_unchanged,
            generator=torch.Generator(),
        )
        reasons = [""] * len(order)
        with tqdm(loader, desc="Preparing images", unit="image", disable=not progress) as bar:
            for row, (reason, stored) in zip(order, bar, strict=True):
                reasons[row] = reason
                if stored is not None:
                    self._remember(self._rows[row].image_id, stored)
        failures = [(row.image_id, reason) for row, reason in zip(self._rows, reasons, strict=True) if reason]
        if len(failures) == len(order):
            raise InputError(f"{self.index.root}: no image can be used. The first: {failures[0][1]}")
        self._set(select(self.index, [not reason for reason in reasons]))
        return failures

    def _remember(self, image_id: str, stored: Stored) -> None:
        size = stored.levels.nbytes + stored.breast.nbytes
        if image_id not in self._memory and self._used + size <= self.memory_limit:
            self._used += size
            self._memory[image_id] = stored

    def _stored(self, row: int) -> Stored:
        values = self._rows[row]
        if (kept := self._memory.get(values.image_id)) is not None:
            return kept
        path = self.index.root / values.path
        try:
            if self.cache is None:
                stored = pack(self._prepare(path, values))
                self._remember(values.image_id, stored)
                return stored
            told = (values.laterality, values.view, values.spacing_mm)
            entry = self.cache / entry_name(path, self.preprocess, *told)
            if (stored := load(entry)) is None:
                stored = pack(self._prepare(path, values))
                save(entry, stored)
        except InputError as error:
            raise InputError(f"image {values.image_id}, {error}") from error
        return stored

    def _prepare(self, path: Path, values: _Row) -> Prepared:
        """What the table says goes before what the file says: a person may have corrected it."""
        image = read_image(path)
        image = image._replace(
            laterality=values.laterality or image.laterality,
            view=values.view or image.view,
            spacing_mm=image.spacing_mm if math.isnan(values.spacing_mm) else values.spacing_mm,
        )
        try:
            return prepare(image, self.preprocess)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def _on_canvas(self, row: int, prepared: Prepared) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        boxes, malignant, masks = self.findings_of(row)
        height, width = prepared.image.shape
        boxes = transform_boxes(boxes, invert_affine(prepared.affine))
        boxes = np.clip(boxes, 0, [width, height, width, height])
        inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # false for NaN, a place nobody noted
        return boxes[inside], malignant[inside], masks[inside]

    def _mask(self, row: int, path: Path, prepared: Prepared) -> np.ndarray:
        try:
            with Image.open(path) as file:
                source = np.asarray(file) > 0
        except OSError as error:
            raise InputError(f"{path}: cannot read this mask ({error}). Restore the file.") from error
        size = (self._rows[row].height, self._rows[row].width)
        if source.shape != size and not any(math.isnan(side) for side in size):
            raise InputError(f"{path}: the mask is {source.shape}, its image {size}. Give one of that size.")
        canvas = Image.fromarray(source.astype(np.uint8)).transform(
            prepared.image.shape[::-1], Image.Transform.AFFINE, tuple(prepared.affine.ravel())
        )
        return np.asarray(canvas) > 0


class _Attempts(Dataset):
    """Row -> (why it cannot be used or nothing, the prepared image where memory is to keep it)."""

    def __init__(self, canvases: Canvases):
        self.canvases = canvases

    def __len__(self) -> int:
        return len(self.canvases.images)

    def __getitem__(self, row: int) -> tuple[str, Stored | None]:
        try:
            stored = self.canvases._stored(row)
        except InputError as error:
            return str(error), None
        return "", stored if self.canvases.cache is None else None


def turned(count: int, start: float) -> list[int]:
    """Numbers from 0 to `count`, beginning with the one at the share `start` of them."""
    first = int(start * count)
    return [*range(first, count), *range(first)]


def _unchanged(value: tuple) -> tuple:
    return value


def entry_name(path: Path, config: PreprocessConfig, *told: object) -> str:
    """Name the entry of one state of an image file, one way to prepare it and what the table tells of it.

    Raises:
        InputError: the file cannot be found.
    """
    try:
        path = path.resolve()
        state = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot read this file ({error.strerror}). Check the path.") from error
    identity = [CACHE_FORMAT, __version__, str(path), state.st_size, state.st_mtime_ns]
    text = json.dumps([*identity, dataclasses.asdict(config), *map(str, told)])
    return hashlib.sha256(text.encode()).hexdigest()[:32] + ".npz"


def save(entry: Path, stored: Stored) -> None:
    """Write an entry, whole or not at all.

    Raises:
        InputError: the folder cannot be written or is full.
    """
    try:
        with atomic_path(entry) as temporary:
            np.savez(temporary, **stored._asdict())
    except OSError as error:
        raise InputError(f"{entry}: cannot write the cache ({error.strerror}). Make room there.") from error


def load(entry: Path) -> Stored | None:
    """Read an entry; None when it is not there or fails the checksums of zip, so that it is made anew."""
    try:
        with entry.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return Stored(**{name: arrays[name] for name in Stored._fields})
    except Exception:  # a damaged zip file raises nearly anything
        return None
