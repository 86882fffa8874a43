import hashlib
import math
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given
from hypothesis import strategies as st

from mammomil.cnn_m import CNNM128, KERNELS, PUBLISHED_MD5, WIDTHS, load_cnn_m
from mammomil.files import InputError

TINY = (7, 6, 5, 4, 3, 10, 8)
Weights = dict[str, tuple[np.ndarray, np.ndarray]]


def random_weights(widths: tuple[int, ...] = TINY, seed: int = 0) -> Weights:
    """Kernels (out, in, rows, columns) of float32 values, none of them symmetric, and biases that matter."""
    rng = np.random.default_rng(seed)
    weights, into = {}, 3
    for (name, side), out in zip(KERNELS.items(), widths, strict=True):
        kernel = rng.standard_normal((out, into, side, side), np.float32)
        kernel *= math.sqrt(2 / (into * side * side))
        weights[name] = kernel, rng.standard_normal(out, np.float32) * 5
        into = out
    return weights


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights()


@pytest.fixture(scope="module")
def mean() -> np.ndarray:
    """A mean image (3, 224, 224), red first, unlike its own mirror images."""
    rng = np.random.default_rng(1)
    return (rng.random((3, 224, 224)) * 60 + np.array([130, 110, 90])[:, None, None]).astype(np.float32)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Two photographs' worth of noise with unequal channels, (2, 3, 224, 224) in 0 to 255."""
    rng = np.random.default_rng(2)
    return (rng.random((2, 3, 224, 224)) * np.array([255, 130, 40])[:, None, None]).astype(np.float32)


# --- the network by its table, in NumPy ---------------------------------------------------------------------


def convolve(x, kernel, bias, stride, pad):
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    side = kernel.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), (1, 2))[:, ::stride, ::stride]
    out = np.tensordot(kernel, windows, ((1, 2, 3), (0, 3, 4)))
    return np.maximum(out + bias[:, None, None], 0)


def normalise(x):
    """Caffe's across-channel LRN, one channel at a time."""
    out = np.empty_like(x)
    for c in range(len(x)):
        total = sum(x[j] ** 2 for j in range(max(0, c - 2), min(len(x), c + 3)))
        out[c] = x[c] / (2 + 5e-4 / 5 * total) ** 0.75
    return out


def pool(x, expected):
    """Windows of 3 at a stride of 2; the last one may hang over the edge, where nothing is."""
    over = 2 * (expected - 1) + 3 - x.shape[-1]
    assert over in (0, 1)
    x = np.pad(x, ((0, 0), (0, over), (0, over)), constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2].max((3, 4))


def reference(weights, image, mean):
    """Codes of one image; the precision is that of the weights."""
    x = (image - mean).astype(weights["conv1"][0].dtype)
    x = convolve(x, *weights["conv1"], 2, 0)
    assert x.shape[1:] == (109, 109)
    x = pool(normalise(x), 54)
    x = convolve(x, *weights["conv2"], 2, 1)
    assert x.shape[1:] == (26, 26)
    x = pool(normalise(x), 13)
    for name in ("conv3", "conv4", "conv5"):
        x = convolve(x, *weights[name], 1, 1)
    x = pool(x, 6)
    for name in ("fc6", "fc7"):
        kernel, bias = weights[name]
        x = np.maximum(kernel.reshape(len(kernel), -1) @ x.ravel() + bias, 0)
    return x


@pytest.fixture(scope="module")
def codes(weights, images, mean) -> torch.Tensor:
    double = {name: tuple(a.astype(np.float64) for a in pair) for name, pair in weights.items()}
    codes = np.stack([reference(double, image.astype(np.float64), mean) for image in images])
    assert 0.3 < (codes > 0).mean() < 1
    assert np.abs(codes[0] - codes[1]).max() > 0.1
    return torch.from_numpy(codes)


def assert_codes(model: CNNM128, images: np.ndarray, codes: torch.Tensor):
    found = model(torch.from_numpy(images))
    torch.testing.assert_close(found.double(), codes, rtol=1e-5, atol=1e-5 * codes.max().item())


# --- writers of the published formats -----------------------------------------------------------------------


def write_mat(path: Path, weights: Weights, mean: np.ndarray | None, old: bool, compress=False) -> Path:
    layers = []
    for name, (kernel, bias) in {**weights, "fc8": (np.ones((9, 8, 1, 1)), np.ones(9))}.items():
        kernel, bias = kernel.transpose(2, 3, 1, 0), bias[None]  # (rows, columns, in, out), (1, out)
        layer = {"type": "conv", "name": name, "stride": np.array([[1.0, 1.0]])}
        if old:
            layers.append({**layer, "filters": kernel, "biases": bias})
        else:
            cell = np.empty((1, 2), object)
            cell[0, 0], cell[0, 1] = kernel, bias
            layers.append({**layer, "weights": cell})
        relu = {"type": "relu", "name": f"relu{name[-1]}", "leak": 0.0}
        layers.append(relu if old else {**relu, "weights": np.empty((0, 0), object)})
    cell = np.empty((1, len(layers)), object)
    cell[0] = layers
    normalization = {"imageSize": np.array([[224.0, 224, 3]]), "interpolation": "bicubic"}
    if mean is not None:
        normalization["averageImage"] = mean.transpose(1, 2, 0)
    classes = {"description": np.array(["tench", "goldfish, Carassius auratus"], object)}
    net = {"layers": cell, "classes": classes, "normalization": normalization}
    if not old:
        net = {"layers": cell, "meta": {"classes": classes, "normalization": normalization}}
    scipy.io.savemat(path, net, oned_as="column", do_compression=compress)
    return path


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def blob(array: np.ndarray, new: bool, packed: bool) -> bytes:
    values = np.ascontiguousarray(array, "<f4")
    if new:
        dims = [varint(n) for n in array.shape]
        shape = field(7, field(1, b"".join(dims)) if packed else b"".join(b"\x08" + d for d in dims))
    else:
        four = (1,) * (4 - array.ndim) + array.shape
        shape = b"".join(field(number, n) for number, n in enumerate(four, 1))
    if packed:
        half = values.size // 2 * 4
        data = field(5, values.tobytes()[:half]) + field(5, values.tobytes()[half:])
        data += field(6, np.ones(5, "<f4").tobytes())  # diff, which is not ours
    else:
        rows = np.empty((values.size, 5), "u1")
        rows[:, 0], rows[:, 1:] = 5 << 3 | 5, values.reshape(-1, 1).view("u1")
        data = rows.tobytes()
    return data + shape if new else shape + data


def write_caffemodel(path: Path, weights: Weights, new: bool, packed: bool, extra: bytes = b"") -> Path:
    name_field, blob_field, layer_field = (1, 7, 100) if new else (4, 6, 2)
    net = field(1, b"VGG_CNN_M_128") + field(3, b"data") + b"".join(field(4, n) for n in (10, 3, 224, 224))
    for name, (kernel, bias) in {**weights, "fc8": (np.ones((9, 8, 1, 1)), np.ones(9))}.items():
        kernel = kernel[:, ::-1] if name == "conv1" else kernel  # blue first
        kernel = kernel.reshape(len(kernel), -1) if name.startswith("fc") else kernel
        layer = field(name_field, name.encode()) + field(50, 4) + field(2 if not new else 3, b"data")
        layer += b"".join(field(blob_field, blob(a, new, packed)) for a in (kernel, bias))
        net += field(layer_field, layer)
        net += field(layer_field, field(name_field, f"relu{name[-1]}".encode()))
    path.write_bytes(net + extra)
    return path


def write_mean(path: Path, mean: np.ndarray, new: bool = False, packed: bool = True) -> Path:
    path.write_bytes(blob(mean[::-1], new, packed))
    return path


# --- the network --------------------------------------------------------------------------------------------


def test_the_published_network_has_the_tables_parameters():
    with torch.device("meta"):
        model = CNNM128()
    assert sum(p.numel() for p in model.parameters()) == 82_554_624
    assert sum(p.numel() for p in model.parameters()) + 128 * 1000 + 1000 == 82_683_624
    assert [p.shape[0] for name, p in model.named_parameters() if "weight" in name] == list(WIDTHS)


@pytest.mark.parametrize("old", [True, False])
def test_matconvnet_files_give_the_reference_codes(tmp_path, weights, mean, images, codes, old):
    path = write_mat(tmp_path / "m.mat", weights, mean, old)
    model = load_cnn_m(path, md5="", widths=TINY)
    assert_codes(model, images, codes)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert model.md5 == hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_caffe_files_give_the_reference_codes(tmp_path, weights, mean, images, codes, new, packed):
    path = write_caffemodel(tmp_path / "m.caffemodel", weights, new, packed)
    model = load_cnn_m(path, write_mean(tmp_path / "mean.binaryproto", mean, new, packed), widths=TINY)
    assert_codes(model, images, codes)
    assert model.md5 == hashlib.md5(path.read_bytes()).hexdigest()


def test_a_larger_mean_is_cut_as_caffe_cuts_it(tmp_path, weights, mean, images, codes):
    """Caffe trains with crops of 256x256 and takes the mean at the place of the crop."""
    large = np.full((3, 256, 256), 1000, np.float32)
    large[:, 16:240, 16:240] = mean
    path = write_caffemodel(tmp_path / "m.caffemodel", weights, new=False, packed=True)
    model = load_cnn_m(path, write_mean(tmp_path / "mean.binaryproto", large), widths=TINY)
    assert_codes(model, images, codes)


def test_colours_are_not_exchanged(tmp_path, weights, mean, images, codes):
    """The three channels differ, so codes of a red image are not those of a blue one."""
    model = load_cnn_m(write_mat(tmp_path / "m.mat", weights, mean, old=False), md5="", widths=TINY)
    swapped = model(torch.from_numpy(images[:, ::-1].copy())).double()
    assert (swapped - codes).abs().max() > 0.05 * codes.max()
    red, blue = np.zeros((2, 3, 224, 224), np.float32)
    red[0], blue[2] = 255, 255
    caffe = load_cnn_m(
        write_caffemodel(tmp_path / "m.caffemodel", weights, new=True, packed=True),
        write_mean(tmp_path / "mean.binaryproto", mean),
        widths=TINY,
    )
    for image in (red, blue):
        assert_codes(caffe, image[None], model(torch.from_numpy(image[None])).double())


def test_transposed_kernels_and_means_would_be_noticed(tmp_path, weights, mean, images, codes):
    """Square kernels keep their shape when rows and columns are exchanged; the codes do not."""
    turned = {name: (kernel.swapaxes(2, 3), bias) for name, (kernel, bias) in weights.items()}
    for name in ("conv1", "conv3", "fc6"):
        path = write_mat(tmp_path / "m.mat", {**weights, name: turned[name]}, mean, old=True)
        found = load_cnn_m(path, md5="", widths=TINY)(torch.from_numpy(images)).double()
        assert (found - codes).abs().max() > 0.05 * codes.max(), name
    path = write_mat(tmp_path / "m.mat", weights, mean.swapaxes(1, 2), old=True)
    found = load_cnn_m(path, md5="", widths=TINY)(torch.from_numpy(images)).double()
    assert (found - codes).abs().max() > 1e-3 * codes.max()


@pytest.mark.parametrize("form", ["mat", "caffemodel"])
def test_without_a_mean_image_a_colour_is_subtracted_and_told(tmp_path, weights, images, form):
    path = tmp_path / f"m.{form}"
    if form == "mat":
        write_mat(path, weights, None, old=False)
    else:
        write_caffemodel(path, weights, new=True, packed=True)
    with pytest.warns(UserWarning, match=r"no mean image.*Give VGG_mean\.binaryproto"):
        model = load_cnn_m(path, md5="", widths=TINY)
    colour = np.array([123.68, 116.779, 103.939])[:, None, None]
    double = {name: tuple(a.astype(np.float64) for a in pair) for name, pair in weights.items()}
    assert_codes(model, images[:1], torch.from_numpy(reference(double, images[0], colour))[None])


def test_a_mean_colour_in_the_file_is_spread(tmp_path, weights, images):
    colour = np.array([50, 90, 170], np.float32)[:, None, None]
    model = load_cnn_m(write_mat(tmp_path / "m.mat", weights, colour, old=False), md5="", widths=TINY)
    double = {name: tuple(a.astype(np.float64) for a in pair) for name, pair in weights.items()}
    assert_codes(model, images[:1], torch.from_numpy(reference(double, images[0], colour))[None])


# --- files that cannot be used ------------------------------------------------------------------------------


def test_a_mat_file_is_the_published_one_unless_told_otherwise(tmp_path, weights, mean):
    path = write_mat(tmp_path / "m.mat", weights, mean, old=False)
    found = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(InputError, match=rf"m\.mat: its MD5 is {found} and should be {PUBLISHED_MD5}\. Down"):
        load_cnn_m(path, widths=TINY)
    with pytest.raises(InputError, match=f"should be {'0' * 32}"):
        load_cnn_m(path, md5="0" * 32, widths=TINY)
    assert load_cnn_m(path, md5=found.upper(), widths=TINY).md5 == found
    caffe = write_caffemodel(tmp_path / "m.caffemodel", weights, new=True, packed=True)
    with pytest.raises(InputError, match=f"m.caffemodel: its MD5 is .* should be {found}"):
        load_cnn_m(caffe, md5=found, widths=TINY)
    renamed = path.rename(tmp_path / "m.bin")  # known by what is in it
    with pytest.raises(InputError, match="its MD5"):
        load_cnn_m(renamed, widths=TINY)
    assert load_cnn_m(renamed, md5="", widths=TINY).md5 == found


@pytest.mark.parametrize("form", ["mat", "caffemodel"])
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "conv1",
            lambda k, b: (k[:, :, :5, :5], b),
            r"conv1\.weight is \(7, 3, 5, 5\) and .* \(7, 3, 7, 7\)",
        ),
        ("conv4", lambda k, b: (k[:3], b), r"conv4\.weight is \(3, 5, 3, 3\) and should be \(4, 5, 3, 3\)"),
        ("conv5", lambda k, b: (k, b[:2]), r"conv5\.bias is .*2\W+ and should be \(3,\)"),
        ("fc6", lambda k, b: (k[:, :, :5], b), r"fc6\.weight is .* and should be \(10, 3, 6, 6\)"),
        ("fc7", lambda k, b: (k.reshape(10, 8, 1, 1), b), r"fc7\.weight is .* and should be \(8, 10, 1, 1\)"),
        (
            "conv2",
            lambda k, b: (k * np.float32(np.nan), b),
            r"conv2\.weight holds numbers that are not finite",
        ),
    ],
)
def test_other_shapes_are_named(tmp_path, weights, mean, form, name, change, message):
    wrong = {**weights, name: change(*weights[name])}
    path = tmp_path / f"m.{form}"
    if form == "mat":
        write_mat(path, wrong, mean, old=False)
    else:
        write_caffemodel(path, wrong, new=True, packed=True)
    with pytest.raises(InputError, match=rf"m\.{form}: {message}"):
        load_cnn_m(path, md5="", widths=TINY)


def test_the_published_widths_are_the_default(tmp_path, weights, mean):
    path = write_mat(tmp_path / "m.mat", weights, mean, old=False)
    with pytest.raises(InputError, match=r"conv1\.weight is \(7, 3, 7, 7\) and should be \(96, 3, 7, 7\)"):
        load_cnn_m(path, md5="")


def test_missing_and_unknown_layers_are_named(tmp_path, weights, mean):
    part = {name: pair for name, pair in weights.items() if name != "conv3"}
    for path in (
        write_mat(tmp_path / "m.mat", part, mean, old=True),
        write_caffemodel(tmp_path / "m.caffemodel", part, new=False, packed=True),
    ):
        with pytest.raises(InputError, match="conv3 has 0 arrays and should have two, weights and biases"):
            load_cnn_m(path, md5="", widths=TINY)
    more = {**weights, "conv9": weights["conv3"]}
    with pytest.warns(UserWarning, match=r"m\.mat: not used by the model: 'conv9'$"):
        load_cnn_m(write_mat(tmp_path / "m.mat", more, mean, old=False), md5="", widths=TINY)
    path = write_caffemodel(tmp_path / "m.caffemodel", more, new=True, packed=False)
    with pytest.warns(UserWarning, match=r"m\.caffemodel: not used by the model: 'conv9'$"):
        load_cnn_m(path, write_mean(tmp_path / "mean.binaryproto", mean), widths=TINY)


def test_unusable_means_are_named(tmp_path, weights, mean):
    path = write_caffemodel(tmp_path / "m.caffemodel", weights, new=True, packed=True)
    for wrong, message in [
        (mean[:, :100], r"the mean image is \(3, 100, 224\) and should be \(3, 224, 224\)"),
        (mean[:2], r"the mean image is \(2, 224, 224\)"),
        (mean * np.float32(np.inf), "mean holds numbers that are not finite"),
    ]:
        with pytest.raises(InputError, match=rf"mean\.binaryproto: {message}"):
            load_cnn_m(path, write_mean(tmp_path / "mean.binaryproto", wrong, new=True), widths=TINY)
    with pytest.raises(InputError, match=r"nowhere: cannot read this file \(No such file"):
        load_cnn_m(path, tmp_path / "nowhere", widths=TINY)


def test_what_is_no_weights_file_is_told(tmp_path, weights, mean):
    with pytest.raises(InputError, match=r"nowhere\.mat: cannot read this file"):
        load_cnn_m(tmp_path / "nowhere.mat")
    (tmp_path / "empty.mat").write_bytes(b"")
    for path in (tmp_path, tmp_path / "empty.mat"):
        with pytest.raises(InputError, match="this is no file of 1 to"):
            load_cnn_m(path)
    with (tmp_path / "large.caffemodel").open("wb") as file:
        file.truncate((1 << 30) + 1)  # a hole, it takes no space
    with pytest.raises(InputError, match="this is no file of 1 to 1,073,741,824 bytes"):
        load_cnn_m(tmp_path / "large.caffemodel")
    path = write_mat(tmp_path / "m.mat", weights, mean, old=False, compress=True)
    with pytest.raises(InputError, match=r"m\.mat: it is no uncompressed MATLAB 5 file, as .*-v6"):
        load_cnn_m(path, md5="", widths=TINY)
    path.write_bytes(b"MATLAB 7.3 MAT-file, " + b"\x89HDF" * 60)
    with pytest.raises(InputError, match=r"m\.mat: it is no uncompressed MATLAB 5 file, as .*-v6"):
        load_cnn_m(path, md5="")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict[str, bytes]:
    """Files small enough that most of their bytes are structure: one channel a layer, one mean colour."""
    folder, weights = tmp_path_factory.mktemp("small"), random_weights((1,) * 7)
    colour = np.full((3, 1, 1), 100, np.float32)
    return {
        "old.mat": write_mat(folder / "a.mat", weights, colour, old=True).read_bytes(),
        "new.mat": write_mat(folder / "b.mat", weights, colour, old=False).read_bytes(),
        "old.caffemodel": write_caffemodel(folder / "c", weights, new=False, packed=True).read_bytes(),
        "new.caffemodel": write_caffemodel(folder / "d", weights, new=True, packed=False).read_bytes(),
        "mean.binaryproto": write_mean(folder / "e", colour).read_bytes(),
    }


def load_small(folder: Path, name: str, content: bytes, small: dict[str, bytes]) -> CNNM128:
    """Load `content` in the place of one of the small files."""
    mean, path = folder / "mean.binaryproto", folder / name
    mean.write_bytes(small["mean.binaryproto"])
    path.write_bytes(content)
    if path == mean:
        path = folder / "old.caffemodel"
        path.write_bytes(small["old.caffemodel"])
    return load_cnn_m(path, None if name.endswith(".mat") else mean, md5="", widths=(1,) * 7)


NAMES = ["old.mat", "new.mat", "old.caffemodel", "new.caffemodel", "mean.binaryproto"]


@pytest.mark.parametrize("name", NAMES)
def test_files_cut_short_are_refused(tmp_path, small, name):
    whole = small[name]
    load_small(tmp_path, name, whole, small)
    needed = whole.index(b"fc8") - 400 if b"fc8" in whole else len(whole) - 22  # without diff
    for end in sorted({1, 2, 5, 64, 127, 128, 129, 135, 136, *range(0, needed, needed // 120 + 1)} - {0}):
        if end < needed:
            with pytest.raises(InputError, match=name):
                load_small(tmp_path, name, whole[:end], small)


@pytest.mark.filterwarnings("ignore::UserWarning")  # a name may be hit: then a layer or the mean is unknown
@pytest.mark.parametrize("name", NAMES)
def test_files_with_wrong_bytes_are_read_or_refused(tmp_path_factory, small, name):
    folder, rng = tmp_path_factory.mktemp("wrong"), np.random.default_rng(3)
    refused = 0
    for _ in range(80):
        content = bytearray(small[name])
        for place in rng.integers(128 if name.endswith(".mat") else 0, len(content), rng.integers(1, 9)):
            content[place] = rng.choice([0, 1, 2, 5, 14, 15, 127, 128, 255, rng.integers(256)])
        try:
            load_small(folder, name, bytes(content), small)
        except InputError:
            refused += 1
    assert refused > 8


@given(st.binary(min_size=1, max_size=400), st.sampled_from(NAMES))
def test_noise_is_refused(tmp_path_factory, small, noise, name):
    folder = tmp_path_factory.mktemp("noise")
    head = small[name][:128] if name.endswith(".mat") else b""
    with pytest.raises(InputError, match=name):
        load_small(folder, name, head + noise, small)


FIELDS = st.recursive(
    st.one_of(
        st.tuples(st.integers(0, 2**70), st.integers(0, 2**70)).map(lambda p: varint(p[0]) + varint(p[1])),
        st.binary(max_size=12),
    ),
    lambda inner: st.lists(
        st.tuples(st.sampled_from([1, 2, 4, 5, 6, 7, 100]), st.one_of(inner, st.sampled_from([b"conv1"]))),
        max_size=4,
    ).map(lambda parts: b"".join(field(number, value) for number, value in parts)),
    max_leaves=12,
)


@given(FIELDS.filter(len))
def test_messages_of_any_shape_are_refused(tmp_path_factory, small, message):
    folder = tmp_path_factory.mktemp("messages")
    for name in ("old.caffemodel", "mean.binaryproto"):
        with pytest.raises(InputError, match=name):
            load_small(folder, name, message, small)


def huge_mat(kind: int, data: bytes) -> bytes:
    """A variable `layers` of 2^45 elements, in some bytes."""
    body = struct.pack("<IIII", 6, 8, kind, 0) + struct.pack("<IIII", 5, 8, 1 << 15, 1 << 30)
    body += struct.pack("<II8s", 1, 6, b"layers") + data
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
    return head + struct.pack("<II", 14, len(body)) + body


LAYER = field(1, b"conv1")
HUGE = {
    "number.mat": huge_mat(7, struct.pack("<II", 7, 0)),
    "long.mat": huge_mat(7, struct.pack("<II", 7, 1 << 31)),
    "text.mat": huge_mat(4, struct.pack("<II", 16, 0)),
    "cell.mat": huge_mat(1, b""),
    "struct.mat": huge_mat(2, struct.pack("<III4x", 5 | 4 << 16, 1, 1) + b"a" * 4096),
    "sparse.mat": huge_mat(5, b""),
    "parts.mat": huge_mat(1, struct.pack("<II", 14, 0) * 200_000),
    "long.caffemodel": varint(100 << 3 | 2) + varint(1 << 40) + b"conv1",
    "shape.caffemodel": field(100, LAYER + field(7, field(7, field(1, varint(1 << 40))) + field(5, b"1234"))),
    "zero.caffemodel": field(100, LAYER + field(7, field(7, field(1, varint(1 << 80) + b"\0")))),
    "dims.caffemodel": field(100, LAYER + field(7, field(7, field(1, b"\xff\xff\x7f" * 100_000)))),
    "parts.caffemodel": field(5, 5) * 500_000,
    "layers.caffemodel": field(100, LAYER + field(7, b"\x08\1") * 2) * 100_000,
    "shapes.caffemodel": field(100, LAYER + field(7, field(7, b"\x08\x7f" * 90_000))),
}


@pytest.mark.parametrize("name", HUGE)
def test_claims_of_great_size_cost_nothing(tmp_path, monkeypatch, name):
    monkeypatch.setattr("mammomil.cnn_m.MAX_PARTS", 2000)  # the checks of types in tests are slow
    (tmp_path / name).write_bytes(HUGE[name])
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=name):
            load_cnn_m(tmp_path / name, md5="", widths=TINY)
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_a_file_of_the_published_size_gives_the_reference_codes(tmp_path, images, mean):
    weights = random_weights(WIDTHS)
    path = write_mat(tmp_path / "m.mat", weights, mean, old=True)
    try:
        model = load_cnn_m(path, md5="")
        assert sum(p.numel() for p in model.parameters()) == 82_554_624
        code = reference(weights, images[0], mean)
        assert code.shape == (128,)
        found = model(torch.from_numpy(images[:1]))[0].numpy()
        np.testing.assert_allclose(found, code, rtol=1e-3, atol=1e-4 * code.max())
    finally:
        path.unlink()
