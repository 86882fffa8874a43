"""CNN-M-128, the frozen ImageNet network whose 128 numbers describe a region (dual-branch checklist D2).

The network is of Chatfield et al. 2014, "Return of the Devil in the Details". Its weights are Oxford's and
no part of mammomil: the user names the file, a MatConvNet `.mat` or a `.caffemodel`. Both are read here in
bounded time and memory, which `scipy.io.loadmat` is not: 192 bytes can make it take 2 GB.
"""

import hashlib
import math
import mmap
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mammomil.files import InputError

# Layers with weights and the side of their kernels; fc6 looks at all 6x6 cells of pool5.
KERNELS = {"conv1": 7, "conv2": 5, "conv3": 3, "conv4": 3, "conv5": 3, "fc6": 6, "fc7": 1}
WIDTHS = (96, 256, 512, 512, 512, 4096, 128)  # outputs of each of these layers
PUBLISHED_MD5 = "3a8dc312a44a99d21ad43e8d96a8590f"  # of imagenet-vgg-m-128.mat, from the MatConvNet page
MEAN_COLOUR = (123.68, 116.779, 103.939)  # ImageNet's red, green and blue, where there is no mean image
MAX_BYTES = 1 << 30  # of a file; the published ones have 331 MB
MAX_PARTS = 100_000  # layers, arrays and names of a file; the published ones have some thousands


class CNNM128(nn.Module):
    """CNN-M with a 128-unit fc7; `channels`, `hidden` and `code` are the outputs of conv1-5, fc6 and fc7.

    The published widths have 82,554,624 parameters. fc8, ImageNet's 1000 classes, is left out, and so is
    dropout, as the network stays frozen (D2).
    """

    mean: Tensor  # (3, 224, 224), in 0 to 255, subtracted from every image
    md5: str | None = None  # of the file the weights came from, None for random weights

    def __init__(self, channels: tuple[int, ...] = WIDTHS[:5], hidden: int = 4096, code: int = 128):
        super().__init__()
        c1, c2, c3, c4, c5 = channels
        self.conv1 = nn.Conv2d(3, c1, 7, 2)
        self.conv2 = nn.Conv2d(c1, c2, 5, 2, 1)
        self.conv3 = nn.Conv2d(c2, c3, 3, 1, 1)
        self.conv4 = nn.Conv2d(c3, c4, 3, 1, 1)
        self.conv5 = nn.Conv2d(c4, c5, 3, 1, 1)
        self.fc6 = nn.Linear(6 * 6 * c5, hidden)
        self.fc7 = nn.Linear(hidden, code)
        self.norm = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
        self.register_buffer("mean", torch.zeros(3, 224, 224))

    def forward(self, image: Float[Tensor, "b 3 224 224"]) -> Float[Tensor, "b d"]:
        """Map windows to codes of 0 or more: after relu7, not normalised (readings A16, A17).

        Args:
            image: red, green, blue in 0 to 255, the mean not yet subtracted; grey is copied to all three.
        """
        x = image - self.mean
        x = F.max_pool2d(self.norm(F.relu(self.conv1(x))), 3, 2, ceil_mode=True)  # (b, 96, 54, 54)
        x = F.max_pool2d(self.norm(F.relu(self.conv2(x))), 3, 2, ceil_mode=True)  # (b, 256, 13, 13)
        x = F.relu(self.conv4(F.relu(self.conv3(x))))  # (b, 512, 13, 13)
        x = F.max_pool2d(F.relu(self.conv5(x)), 3, 2)  # (b, 512, 6, 6)
        x = F.relu(self.fc6(x.flatten(1)))  # (b, 4096)
        return F.relu(self.fc7(x))  # (b, 128)


def load_cnn_m(
    path: str | Path, mean: str | Path | None = None, md5: str | None = None, widths: tuple[int, ...] = WIDTHS
) -> CNNM128:
    """Read CNN-M-128 as its authors published it, frozen and in evaluation mode.

    Args:
        path: `imagenet-vgg-m-128.mat` (MatConvNet, old or new form) or `VGG_CNN_M_128.caffemodel`.
        mean: the mean image, `VGG_mean.binaryproto`. A `.mat` has its own, a `.caffemodel` has none. Without
            one ImageNet's mean colour is subtracted, with a warning.
        md5: checksum the file must have. None is the published one for a `.mat` and no check for a
            `.caffemodel`, which has none published; "" is no check. The model's `md5` is what was found.
        widths: outputs of the seven layers; others than the published ones are for tests.

    Raises:
        InputError: no such file, another checksum, damage, or a network of another shape.
    """
    with torch.device("meta"):  # shapes without memory
        model = CNNM128(widths[:5], *widths[5:])
    source, data, mean_data = path, _open(path), None if mean is None else _open(mean)
    matlab = data[:6] == b"MATLAB" or Path(path).suffix.lower() == ".mat"
    model.md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    expected = (PUBLISHED_MD5 if matlab else "") if md5 is None else md5.lower()
    if expected and model.md5 != expected:
        raise InputError(
            f"{path}: its MD5 is {model.md5} and should be {expected}. Download it again; if you mean to use "
            "another file than the published one, give its own checksum (--model.encoder.md5)."
        )
    try:
        layers, image = _read_matconvnet(data) if matlab else (_read_caffemodel(data), None)
        state = _state_dict(layers, model)
        if mean_data is not None:
            source = mean
            blob = _blob(mean_data, iter(range(MAX_PARTS)))
            image = blob.reshape(blob.shape[-3:])[::-1]  # blue first -> red first
        state["mean"] = _mean_image(np.reshape(MEAN_COLOUR, (3, 1, 1)) if image is None else image)
        if bad := [name for name, value in state.items() if not value.isfinite().all()]:
            raise ValueError(f"{bad[0]} holds numbers that are not finite")
    except ValueError as error:
        raise InputError(f"{source}: {error}. Download CNN-M-128 again from its authors.") from error
    if image is None:
        no_mean = f"{path}: no mean image, so a mean colour is subtracted. Give VGG_mean.binaryproto as mean."
        warnings.warn(no_mean, stacklevel=2)
    if unknown := sorted(set(layers) - set(KERNELS) - {"fc8"}):
        warnings.warn(f"{path}: not used by the model: {', '.join(map(repr, unknown[:9]))}", stacklevel=2)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def _open(path: str | Path) -> memoryview:
    """Map a file into memory, without reading it."""
    try:
        if not 0 < Path(path).stat().st_size <= MAX_BYTES or not Path(path).is_file():
            raise InputError(f"{path}: this is no file of 1 to {MAX_BYTES:,} bytes. Name one of CNN-M-128.")
        with Path(path).open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise InputError(f"{path}: cannot read this file ({error.strerror}).") from error


@np.errstate(all="ignore")  # numbers too large for 32 bits become infinite, which is told
def _state_dict(layers: dict[str, list[np.ndarray]], model: CNNM128) -> dict[str, Tensor]:
    """Copy weights and biases into the shapes that `model` has, and check every one."""
    state = {}
    for name, side in KERNELS.items():
        arrays = layers.get(name, [])
        if len(arrays) != 2:
            raise ValueError(f"{name} has {len(arrays)} arrays and should have two, weights and biases")
        own = tuple(getattr(model, name).weight.shape)
        kernel = (own[0], own[1] // side**2, side, side) if name.startswith("fc") else own
        for array, part, *shapes in ((arrays[0], "weight", own, kernel), (arrays[1], "bias", own[:1])):
            # Old Caffe files write four numbers for every shape, the first of them 1: hence the end alone.
            if not any(array.shape[-len(s) :] == s and array.size == math.prod(s) for s in shapes):
                raise ValueError(f"{name}.{part} is {array.shape} and should be {shapes[-1]}")
            values = torch.from_numpy(np.array(array, np.float32, order="C"))
            state[f"{name}.{part}"] = values.reshape(shapes[0])
    return state


@np.errstate(all="ignore")
def _mean_image(image: np.ndarray) -> Tensor:
    """Return a mean (3, h, w) as (3, 224, 224): a colour is spread, a larger image cut as in Caffe."""
    sides = image.shape[1:] if image.ndim == 3 and len(image) == 3 else (0, 0)
    if sides != (1, 1) and min(sides) < 224:
        raise ValueError(f"the mean image is {image.shape} and should be (3, 224, 224)")
    top, left = (max(0, side - 224) // 2 for side in sides)
    image = image[:, top : top + 224, left : left + 224].astype(np.float32)
    return torch.from_numpy(image).expand(3, 224, 224).contiguous()


def _cut(data: memoryview, at: int, size: int) -> memoryview:
    if size > len(data) - at:
        raise ValueError(f"it is cut short or damaged: {size} bytes should follow, {len(data) - at} do")
    return data[at : at + size]


def _text(data: memoryview) -> str:
    return bytes(data[:80]).replace(b"\0", b"").decode("utf-8", "replace")  # UTF-16 loses its zeros


# Caffe: protobuf's wire format. Field numbers are those of caffe.proto.
def _read_caffemodel(data: memoryview) -> dict[str, list[np.ndarray]]:
    """Return weights and biases by layer, conv1's kernels turned red first; of unknown layers the name."""
    budget, layers = iter(range(MAX_PARTS)), {}
    for number, wire, layer in _fields(data, budget):
        if number in (2, 100) and wire == 2:
            name_field, blob_field = (4, 6) if number == 2 else (1, 7)  # `layers` of 2014, later `layer`
            parts = [(field, value) for field, kind, value in _fields(layer, budget) if kind == 2]
            name = next((_text(value) for field, value in parts if field == name_field), "")
            if blobs := [value for field, value in parts if field == blob_field]:
                layers[name] = [_blob(blob, budget) for blob in blobs] if name in KERNELS else []
    if layers.get("conv1") and layers["conv1"][0].ndim == 4:
        layers["conv1"][0] = layers["conv1"][0][:, ::-1]
    return layers


def _blob(data: memoryview, budget: Iterator[int]) -> np.ndarray:
    """Return a BlobProto: floats (field 5), shaped by `shape` (7) or num, channels, height, width (1-4)."""
    old, new, chunks = [0, 0, 0, 0], [], [np.empty(0, "<f4")]
    for number, wire, value in _fields(data, budget):
        if number == 5 and wire in (2, 5):
            chunks.append(np.frombuffer(value, "<f4"))
        elif number in (1, 2, 3, 4) and wire == 0:
            old[number - 1] = value
        elif number == 7 and wire == 2:
            for _, kind, dim in _fields(value, budget):
                at = 0
                new.extend([dim] if kind == 0 else [])
                while kind == 2 and at < len(dim) and len(new) < 9:
                    size, at = _varint(dim, at)
                    new.append(size)
    shape, values = new or old, chunks[-1] if len(chunks) == 2 else np.concatenate(chunks)
    if len(shape) > 8 or not values.size or math.prod(shape) != values.size:
        raise ValueError(f"it is damaged: an array of shape {shape[:8]} has {values.size} numbers")
    return values.reshape(shape)


def _fields(data: memoryview, budget: Iterator[int]) -> Iterator[tuple[int, int, Any]]:
    """Yield (field number, wire type, value) of a message; a run of 4-byte values of one field as one."""
    at = 0
    while at < len(data):
        start = at
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire not in (0, 1, 2, 5) or number == 0 or next(budget, None) is None:
            raise ValueError(f"it is damaged, or no Caffe file (byte {start} of a part of {len(data)})")
        value, at = _varint(data, at) if wire in (0, 2) else ({1: 8, 5: 4}[wire], at)
        if wire:
            value, at = _cut(data, at, value), at + value
        if wire == 5 and at - start == 5:  # one byte of key and four of value, as long as the key repeats
            rows = np.frombuffer(data[start:], "u1", min((len(data) - start) // 5, 65536) * 5).reshape(-1, 5)
            run = int(np.append(rows[:, 0] != data[start], True).argmax())
            value, at = memoryview(rows[:run, 1:].tobytes()), start + 5 * run
        yield number, wire, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the number of base 128 at `at`, and where the next thing starts."""
    value = 0
    for place, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise ValueError("it is cut short or damaged: a number has no end")


# MatConvNet: MATLAB's level 5 format. Numbers are those of MathWorks' description of it.
FORMS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8"}


def _read_matconvnet(data: memoryview) -> tuple[dict[str, list[np.ndarray]], np.ndarray | None]:
    """Return each layer's weights (out, in, rows, columns) and biases, and the mean (3, h, w) or None."""
    if data[:10] != b"MATLAB 5.0" or data[126:128] != b"IM" or data[128:132] == b"\x0f\0\0\0":
        raise ValueError("it is no uncompressed MATLAB 5 file, as MATLAB's `save -v6` writes them")
    budget, layers = iter(range(MAX_PARTS)), {}
    net = dict(_array(body, budget) for kind, body in _parts(data[128:], budget) if kind == 14)
    for layer in net["layers"] if isinstance(net.get("layers"), list) else []:
        layer = layer if isinstance(layer, dict) else {}
        found = layer.get("weights", [layer.get("filters"), layer.get("biases")])  # newer, older form
        found = [a for a in found if isinstance(a, np.ndarray) and a.size] if isinstance(found, list) else []
        if found:
            kernel = found[0].reshape(found[0].shape + (1,) * (4 - found[0].ndim))  # (rows, columns, in, out)
            kernel = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel
            layers[str(layer.get("name"))] = [kernel, *(bias.ravel() for bias in found[1:])]
    meta = net.get("meta")
    normalization = (meta if isinstance(meta, dict) else net).get("normalization")  # newer, older form
    image = normalization.get("averageImage") if isinstance(normalization, dict) else None
    if not isinstance(image, np.ndarray) or not image.size:
        return layers, None
    image = image.reshape(1, 1, 3) if image.size == 3 else image
    return layers, image.transpose(2, 0, 1) if image.ndim == 3 else image


def _array(body: memoryview, budget: Iterator[int], level: int = 0) -> tuple[str, Any]:
    """Return an array's name and value: numbers, text, a cell as a list, a 1x1 struct as a dict, or None."""
    parts, end = _parts(body, budget), (0, body[:0])
    flags, dims, title = (next(parts, end)[1] for _ in range(3))
    kind, shape, name = _integers(flags)[0] & 255, _integers(dims), _text(title)
    if kind not in (1, 2, 4, *range(6, 16)) or level > 32:
        return "", None  # empty, sparse, an object, a function: nothing of a network
    if kind in (1, 2):
        width, names = (_integers(next(parts, end)[1])[0], next(parts, end)[1]) if kind == 2 else end
        values = [_array(child, budget, level + 1)[1] for code, child in parts if code == 14]
        fields = {_text(names[i * width : (i + 1) * width]): value for i, value in enumerate(values)}
        return name, values if kind == 1 else fields
    code, data = next(parts, end)
    if kind == 4:
        return name, _text(data)
    form = np.dtype(FORMS.get(code, "u1"))
    if len(shape) > 8 or min(shape) < 0 or math.prod(shape) * form.itemsize != len(data):
        raise ValueError(f"it is damaged: an array of shape {shape[:8]} has {len(data)} bytes")
    return name, np.frombuffer(data, form).reshape(shape, order="F")


def _integers(data: memoryview) -> list[int]:
    return np.frombuffer(data[: min(len(data), 64) // 4 * 4], "<i4").tolist() or [0]


def _parts(data: memoryview, budget: Iterator[int]) -> Iterator[tuple[int, memoryview]]:
    """Yield (kind, bytes) of the parts of a file or an array; each starts at a multiple of eight."""
    at = 0
    while at < len(data):
        if next(budget, None) is None:
            raise ValueError(f"it is damaged: it has more than {MAX_PARTS:,} parts")
        kind, size = struct.unpack("<II", _cut(data, at, 8))
        if short := kind >> 16:  # up to four bytes stand within the head
            body, at = _cut(data[at + 4 : at + 8], 0, short), at + 8
        else:
            body, at = _cut(data, at + 8, size), at + 8 + size + -size % 8
        yield kind & 0xFFFF, body
