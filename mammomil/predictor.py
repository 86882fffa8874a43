"""From files to predictions in the pixels of those files.

Models see canvases (see `preprocess`). Everything a `Prediction` says about places is turned back into
pixels of the file here, once, and nowhere else.
"""

import math
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from mammomil.backbones import ImageClassifier
from mammomil.dicom import Mammogram, read_image
from mammomil.dual_branch import DualBranchOutput
from mammomil.files import InputError
from mammomil.gmic import GMICOutput
from mammomil.items import Item, collect
from mammomil.preprocess import Prepared, PreprocessConfig, prepare, transform_boxes
from mammomil.region_data import region_mask
from mammomil.region_model import RegionModel, image_windows, pad_regions
from mammomil.types import Prediction
from mammomil.weights import Model, load_model

Precision = Literal["float32", "bfloat16"]


class Loaded(NamedTuple):
    """An image that was read, and its canvas for each way of preparing it."""

    item: Item
    mammogram: Mammogram
    prepared: dict[PreprocessConfig, Prepared]


class Predictor:
    """A model together with the way its images are read and prepared.

    Example:
        >>> predictor = Predictor.from_pretrained("runs/quick")  # doctest: +SKIP
        >>> predictor(["left.dcm", "right.dcm"])[0].prob  # doctest: +SKIP
        array([0.12, 0.83], dtype=float32)
    """

    def __init__(
        self,
        model: Model,
        preprocess: PreprocessConfig,
        name: str,
        device: str = "auto",
        batch_size: int = 1,
        precision: Precision = "float32",
        workers: int = 2,
    ):
        """Move the model to its device; its training or evaluation mode stays as it is.

        Args:
            model: a GMIC, a dual-branch network, or a classifier of findings, which gives probabilities
                alone.
            preprocess: how images are prepared for the model.
            name: name of the model in predictions.
            device: `auto` is CUDA where there is one, else the CPU.
            batch_size: images in one pass. At 2944x1920 one image needs about 0.6 GB.
            precision: `bfloat16` is for CUDA alone; maps and probabilities stay float32.
            workers: threads that read and prepare images while the model works; as many images wait in
                memory at most.

        Raises:
            InputError: the model tells BI-RADS categories; the device or the precision is not there.
        """
        if isinstance(model, ImageClassifier) and model.config.target != "findings":
            raise InputError(
                f"{name}: this classifier tells BI-RADS categories, not findings, so it cannot predict. "
                "Give a GMIC, a dual-branch network, or a classifier trained with target findings."
            )
        self.device = _device(device)
        if precision == "bfloat16" and self.device.type != "cuda":
            raise InputError(f"precision bfloat16 needs CUDA, the device is {self.device}; use float32.")
        self.model = model.to(self.device)
        self.preprocess, self.name = preprocess, name
        self.batch_size, self.precision, self.workers = batch_size, precision, workers

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str = "auto",
        batch_size: int = 1,
        precision: Precision = "float32",
        workers: int = 2,
    ) -> "Predictor":
        """Read a model folder, whose name becomes the model's; see `model_name` and `Predictor`.

        Raises:
            InputError: the folder holds no model that can predict.
        """
        loaded = load_model(folder)
        return cls(
            loaded.model, loaded.preprocess, model_name(folder), device, batch_size, precision, workers
        )

    def __call__(self, paths: str | Path | Iterable[str | Path]) -> list[Prediction]:
        """Predict files, folders and indexes, see `collect`.

        Raises:
            InputError: a file cannot be used. Use `stream` to go on with the others.
        """

        def give_up(item: Item, error: Exception) -> None:
            raise error

        return list(self.stream(collect(paths), give_up))

    def stream(
        self, items: Iterable[Item], on_failure: Callable[[Item, Exception], None]
    ) -> Iterator[Prediction]:
        """Predict one image after the other, in order; memory does not grow with their number.

        Args:
            items: images, for example from `collect`.
            on_failure: called with each image that cannot be used and the reason; the rest goes on.
        """
        with closing(read_ahead(items, [self.preprocess], self.workers)) as images:
            batch: list[Loaded] = []
            for item, image in images:
                if isinstance(image, Exception):
                    on_failure(item, image)
                else:
                    batch.append(image)
                if len(batch) == self.batch_size:
                    yield from self._answer(batch, on_failure)
                    batch = []
            if batch:
                yield from self._answer(batch, on_failure)

    def _answer(
        self, batch: Sequence[Loaded], on_failure: Callable[[Item, Exception], None]
    ) -> Iterator[Prediction]:
        try:
            predictions = self.predict(batch)
        except InputError as error:  # of one image: the others are answered by themselves
            if len(batch) == 1:
                on_failure(batch[0].item, error)
            else:
                for image in batch:
                    yield from self._answer([image], on_failure)
            return
        for image, prediction in zip(batch, predictions, strict=True):
            if (problem := fault(prediction)) is None:
                yield prediction
            else:
                on_failure(image.item, problem)

    @torch.inference_mode()
    def predict(self, images: Sequence[Loaded]) -> list[Prediction]:
        """Run the model on images that were read, as one batch.

        Raises:
            InputError: an image has no place for a window of a dual-branch network.
        """
        canvases = np.stack([image.prepared[self.preprocess].image for image in images])[:, None]
        batch = torch.from_numpy(canvases).to(self.device)  # (b, 1, H, W)
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
        with _evaluating(self.model), autocast:
            if isinstance(self.model, ImageClassifier):
                prob = self.model(batch).logits.sigmoid().cpu().numpy()
                return [self._prediction(image, p, {}) for image, p in zip(images, prob, strict=True)]
            if isinstance(self.model, RegionModel):
                windows = [self._windows(image) for image in images]
                boxes, valid, places = (value.to(self.device) for value in pad_regions(windows))
                output = self.model(batch, boxes, valid, places)
                return [
                    self._ranked(image, own.numpy(), output, row)
                    for row, (image, own) in enumerate(zip(images, windows, strict=True))
                ]
            # The ablation with random patches draws the same ones each time an image is predicted.
            seed = zlib.crc32("/".join(image.item.image_id for image in images).encode(errors="replace"))
            generator = torch.Generator(self.device).manual_seed(seed)
            output = self.model(batch, generator)
        return [self._located(image, output, row) for row, image in enumerate(images)]

    def _prediction(
        self, image: Loaded, prob: np.ndarray, parts: dict[str, np.ndarray], **places: Any
    ) -> Prediction:
        none = {
            "saliency": None, "map_box": None, "boxes": np.zeros((0, 4)), "scores": np.zeros((0, len(prob))),
            "attention": None,
        }  # fmt: skip
        return Prediction(
            image_id=image.item.image_id,
            path=str(image.item.path),
            model=self.name,
            laterality=image.mammogram.laterality,
            view=image.mammogram.view,
            prob=prob,
            p_normal=float(np.prod(1 - prob)),
            parts=parts,
            **{**none, **places},
        )

    def _windows(self, image: Loaded) -> torch.Tensor:
        """List the windows of an image on its canvas, (m, 4)."""
        config, prepared = self.model.config.windows, image.prepared[self.preprocess]
        mask = region_mask(prepared, image.mammogram.view, config)
        boxes = image_windows(torch.from_numpy(mask), config)
        if not len(boxes):
            raise InputError(
                f"{image.item.path}: no window of {max(config.sizes)} pixels lies in the breast, which "
                f"covers {int(mask.sum())} pixels of the canvas. Check that this is a whole mammogram."
            )
        return boxes

    def _ranked(self, image: Loaded, boxes: np.ndarray, output: DualBranchOutput, row: int) -> Prediction:
        """Take one image out of a dual branch's output; all its windows are kept, ranked or not."""
        height, width = image.mammogram.pixels.shape
        places = transform_boxes(boxes, image.prepared[self.preprocess].affine)
        m = len(boxes)
        ranks_some = self.model.config.head.method == "cls-det-rs"
        return self._prediction(
            image,
            output.y[row].float().cpu().numpy(),
            {},
            boxes=np.clip(places, 0, [width, height] * 2),
            scores=output.scores[row, :m].float().cpu().numpy(),
            selected=output.selected[row, :m].cpu().numpy() if ranks_some else None,
        )

    def _located(self, image: Loaded, output: GMICOutput, row: int) -> Prediction:
        """Take one image out of a GMIC's output and turn its places into pixels of the file."""
        affine = image.prepared[self.preprocess].affine
        height, width = self.preprocess.height, self.preprocess.width
        source_height, source_width = image.mammogram.pixels.shape
        values = {
            name: value[row].float().cpu().numpy()
            for name, value in output._asdict().items()
            if value is not None and name in ("saliency", "attention", "y", "y_loc", "y_mil", "y_fusion")
        }
        corners = output.rois[row].cpu().numpy()[:, ::-1].astype(float)  # (row, column) -> xy
        patches = np.concatenate([corners, corners + self.model.config.mil.patch_size], 1)  # (k, 4)
        scores = region_scores(values["saliency"], patches, (height, width))
        boxes = transform_boxes(patches, affine)
        boxes = np.clip(boxes, 0, [source_width, source_height] * 2)
        saliency = values["saliency"]
        if affine[0, 0] < 0:  # the canvas is mirrored
            saliency = saliency[..., ::-1]
        parts = {name: values[f"y_{name}"] for name in ("loc", "mil", "fusion") if f"y_{name}" in values}
        return self._prediction(
            image,
            values["y"],
            parts,
            saliency=np.ascontiguousarray(saliency),
            map_box=transform_boxes(np.array([[0.0, 0.0, width, height]]), affine)[0],
            boxes=boxes,
            scores=scores,
            attention=values["attention"],
        )


def model_name(folder: str | Path) -> str:
    """Name a model after its folder, or after its run where `mammomil train` called the folder `model`."""
    folder = Path(folder).resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def region_scores(
    saliency: Float[np.ndarray, "c h w"], patches: Float[np.ndarray, "k 4"], canvas: tuple[int, int]
) -> Float[np.ndarray, "k c"]:
    """Average each finding's map over each patch: the evidence of a region for a finding.

    Where patches are whole cells, as on both of the library's scales, this is what GMIC's Algorithm 1 ranks
    windows by, before it normalises the maps (checklist G6). Cells that a patch cuts count by their part.

    Args:
        saliency: maps that cover the canvas.
        patches: xyxy in canvas pixels, inside the canvas or reaching past it.
        canvas: height and width in pixels.
    """

    def overlap(low: np.ndarray, high: np.ndarray, cells: int, pixels: int) -> np.ndarray:
        edges = np.arange(cells + 1) * (pixels / cells)
        inside = np.minimum(high[:, None], edges[1:]) - np.maximum(low[:, None], edges[:-1])
        return inside.clip(0)  # (k, cells), in pixels

    rows = overlap(patches[:, 1], patches[:, 3], saliency.shape[1], canvas[0])
    columns = overlap(patches[:, 0], patches[:, 2], saliency.shape[2], canvas[1])
    area = rows.sum(1) * columns.sum(1)
    return np.einsum("kh,chw,kw->kc", rows, saliency, columns) / area[:, None]


def read_item(item: Item, configs: Iterable[PreprocessConfig]) -> Loaded:
    """Read an image and prepare it in each of the given ways.

    Raises:
        InputError: the file cannot be used.
    """
    image = read_image(item.path)
    image = image._replace(
        laterality=item.laterality or image.laterality,
        view=item.view or image.view,
        spacing_mm=image.spacing_mm if math.isnan(item.spacing_mm) else item.spacing_mm,
    )
    return Loaded(item, image, {config: prepare(image, config) for config in configs})


def read_ahead(
    items: Iterable[Item], configs: Iterable[PreprocessConfig], workers: int = 2
) -> Iterator[tuple[Item, Loaded | Exception]]:
    """Read images in threads, in order, at most `workers` of them ahead of the caller.

    Yields:
        Each item with its image, or with what went wrong.
    """
    configs, todo = list(configs), iter(items)
    pool = ThreadPoolExecutor(max(workers, 1))
    waiting: deque[tuple[Item, Future[Loaded]]] = deque()

    def start(count: int) -> None:
        waiting.extend((item, pool.submit(read_item, item, configs)) for item in islice(todo, count))

    try:
        start(max(workers, 1))
        while waiting:
            item, future = waiting.popleft()
            failure = future.exception()
            start(1)  # the next file is read while the caller works on this one
            if isinstance(failure, Exception):  # of any kind: one bad file must not stop the others
                yield item, failure
            else:
                yield item, future.result()
            del future, failure  # lets go of the image before the next one is waited for
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def fault(prediction: Prediction) -> InputError | None:
    """Say what is wrong with an answer: weights that overflowed give NaN, which must not pass as a number."""
    if np.isfinite(prediction.prob).all():
        return None
    return InputError(
        f"{prediction.path}: the model {prediction.model} gives no number (NaN). Its weights may be damaged; "
        "try precision float32, or train again with a lower learning rate."
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r}: not there. Use auto, cpu or cuda.") from error
    return device


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, and every part of it back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
