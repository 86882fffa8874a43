import dataclasses
import math
import os
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from mammomil import cache, preprocess
from mammomil.augment import AugmentConfig
from mammomil.dataset import (
    BalancedSampler,
    FieldDataset,
    MammogramDataset,
    Sample,
    ShuffledSampler,
    collate,
    field_label,
)
from mammomil.dicom import read_image
from mammomil.files import InputError
from mammomil.index import Index, make_index
from mammomil.preprocess import PreprocessConfig

HEIGHT, WIDTH = 320, 224  # of the files, 0.5 mm a pixel
CONFIG = PreprocessConfig(height=160, width=112, resize="spacing", spacing_mm=1.0)
BRIGHT = 60_000


def breast(right: bool, lesions: list[tuple[int, int, int, int]] = (), seed: int = 0) -> np.ndarray:
    """Half an ellipse with texture on air, lesions as bright rectangles; given as for a left breast."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    inside = ((y - 160) / 130) ** 2 + (x / 180) ** 2 < 1
    noise = np.random.default_rng(seed).normal(0, 400, (HEIGHT, WIDTH))
    pixels = np.where(inside, 20_000 + noise, 0)
    for x0, y0, x1, y1 in lesions:
        pixels[y0:y1, x0:x1] = BRIGHT
    return (pixels[:, ::-1] if right else pixels).astype(np.uint16)


BOX = (60, 120, 90, 160)


def mirrored(box):
    return (WIDTH - box[2], box[1], WIDTH - box[0], box[3])


def make(folder, rows: list[dict], findings: list[dict] = (), lesions: dict | None = None) -> Index:
    """Write one picture per row and an index of them."""
    table = []
    for n, row in enumerate(rows):
        name = row.get("image_id", f"i{n}")
        side = row.get("laterality", "L")
        pixels = breast(side == "R", (lesions or {}).get(name, ()), n)
        (folder / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
        table.append({
            "image_id": name, "patient_id": f"p{n}", "path": f"images/{name}.png", "laterality": side,
            "benign": 0.0, "malignant": 0.0, "spacing_mm": 0.5, "height": HEIGHT, "width": WIDTH,
        } | row)  # fmt: skip
    return make_index(pd.DataFrame(table), pd.DataFrame(list(findings)), folder)


def finding(image_id, kind="malignant", box=BOX, **more):
    return {
        "image_id": image_id,
        "finding": kind,
        **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)),
        **more,
    }


@pytest.fixture
def pair(tmp_path):
    """A left and a right breast with one malignant lesion each, and a normal one."""
    rows = [{"malignant": 1.0, "birads": "4a"}, {"malignant": 1.0, "laterality": "R"}, {"benign": math.nan}]
    found = [finding("i0"), finding("i1", box=mirrored(BOX)), finding("i0", box=[math.nan] * 4)]
    return make(tmp_path, rows, found, {"i0": [BOX], "i1": [BOX]})


def test_item_is_the_prepared_image_with_its_labels(pair):
    data = MammogramDataset(pair, CONFIG)
    sample = data[0]
    direct = read_image(pair.root / pair.images["path"][0])._replace(spacing_mm=0.5)  # the table's
    expected = preprocess.prepare(direct, CONFIG)
    assert sample.image.shape == (1, 160, 112)
    # 16 bits: half a level of the range at most, the air exact.
    error = np.abs(sample.image[0].numpy() - expected.image)
    assert error.max() <= np.ptp(expected.image) / 65535 / 2 * 1.01
    assert error.max() < 1e-4
    assert sample.image.min() == expected.image.min()
    np.testing.assert_array_equal(data.prepared(0).breast, expected.breast)
    np.testing.assert_array_equal(data.prepared(0).affine, expected.affine)
    assert (sample.label.tolist(), float(sample.birads), int(sample.row)) == ([0, 1], 4, 0)
    assert math.isnan(data[2].label[0])
    assert data[2].label[1] == 0
    assert math.isnan(data[2].birads)
    assert int(data[-1].row) == 2
    with pytest.raises(IndexError):
        data[3]
    assert len(list(data)) == 3


def test_augmentation_belongs_to_the_seed(pair):
    data = MammogramDataset(pair, CONFIG, AugmentConfig())
    plain = MammogramDataset(pair, CONFIG)
    assert torch.equal(data[0].image, plain[0].image)  # no seed, no change
    assert torch.equal(plain[0, 5].image, plain[0].image)
    assert torch.equal(data[0, 5].image, data[0, 5].image)
    assert not torch.equal(data[0, 5].image, data[0, 6].image)
    assert torch.equal(data[0].image, plain[0].image)  # what is kept was not changed in place


def test_cache_and_memory_change_nothing(pair, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    ways = [
        MammogramDataset(pair, CONFIG, memory_limit=0),
        MammogramDataset(pair, CONFIG),
        MammogramDataset(pair, CONFIG, cache=folder),
    ]
    first = [[way[row] for row in range(3)] for way in ways]
    assert len(list(folder.iterdir())) == 3
    calls = []
    monkeypatch.setattr(cache, "prepare", lambda *a: calls.append(a) or preprocess.prepare(*a))
    for way, expected in zip(ways, (3, 0, 0), strict=True):
        calls.clear()
        for row in range(3):
            image = way[row].image
            assert all(torch.equal(image, samples[row].image) for samples in first)
        assert len(calls) == expected  # memory_limit=0 keeps nothing


def test_cached_image_belongs_to_file_configuration_and_table(pair, tmp_path):
    folder = tmp_path / "cache"

    def entries(index=pair, config=CONFIG):
        MammogramDataset(index, config, cache=folder)[0]
        return len(list(folder.iterdir()))

    assert entries() == entries() == 1
    assert entries(config=dataclasses.replace(CONFIG, spacing_mm=1.1)) == 2
    assert entries(pair._replace(images=pair.images.assign(spacing_mm=0.6))) == 3
    file = pair.root / pair.images["path"][0]
    state = file.stat()
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1000))
    assert entries() == 4
    Image.fromarray(breast(False, seed=9)).save(file)
    changed = MammogramDataset(pair, CONFIG, cache=folder)[0].image
    assert torch.equal(changed, MammogramDataset(pair, CONFIG)[0].image)


def flip_a_bit(raw: bytes, bit: int | None = None) -> bytes:
    place, bit = divmod(len(raw) * 4 if bit is None else bit, 8)
    return raw[:place] + bytes([raw[place] ^ (1 << bit)]) + raw[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [flip_a_bit, lambda raw: raw[:-100], lambda raw: b"", lambda raw: b"\x80\x04N.", lambda raw: b"PK"],
)
def test_damaged_cache_is_made_anew(pair, tmp_path, damage):
    data = MammogramDataset(pair, CONFIG, cache=tmp_path / "cache")
    good = data[0].image
    (entry,) = (tmp_path / "cache").iterdir()
    raw = entry.read_bytes()
    entry.write_bytes(damage(raw))
    assert torch.equal(data[0].image, good)
    with zipfile.ZipFile(entry) as archive:  # and it is whole again
        assert archive.testzip() is None


@given(st.data())
def test_a_flipped_bit_is_found_or_harmless(tmp_path_factory, data):
    rng = np.random.default_rng(0)
    stored = cache.pack(preprocess.Prepared(
        rng.random((20, 10), np.float32), rng.random((20, 10)) > 0.5, np.eye(2, 3), True
    ))  # fmt: skip
    entry = tmp_path_factory.mktemp("cache") / "entry.npz"
    cache.save(entry, stored)
    raw = entry.read_bytes()
    entry.write_bytes(flip_a_bit(raw, data.draw(st.integers(0, 8 * len(raw) - 1))))
    again = cache.load(entry)
    assert again is None or all(np.array_equal(a, b) for a, b in zip(again, stored, strict=True))


def test_cache_that_cannot_be_written(pair, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"image i0, .*file.*: cannot write here"):
        MammogramDataset(pair, CONFIG, cache=tmp_path / "file")[0]


def damaged(folder):
    index = make(folder, [{"malignant": float(n % 2)} for n in range(18)])
    (folder / "images" / "i3.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (folder / "images" / "i7.png").unlink()
    return index


def test_damaged_image_in_training_is_named(tmp_path):
    data = MammogramDataset(damaged(tmp_path), CONFIG)
    with pytest.raises(InputError, match=r"image i3, .*i3\.png"):
        data[3]
    loader = DataLoader(data, batch_size=4, collate_fn=collate, num_workers=2)
    with pytest.raises(InputError, match=r"image i3, .*i3\.png"):
        list(loader)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("on_disk", [False, True])
def test_prepare_all_drops_what_cannot_be_read(tmp_path, workers, on_disk):
    index = damaged(tmp_path)
    data = MammogramDataset(index, CONFIG, cache=tmp_path / "cache" if on_disk else None)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    failures = data.prepare_all(progress=False, workers=workers)
    assert torch.equal(state, torch.get_rng_state())
    assert [name for name, _ in failures] == ["i3", "i7"]
    assert "i3.png" in failures[0][1]
    assert "i7.png" in failures[1][1]
    assert data.images["image_id"].to_list() == [f"i{n}" for n in range(18) if n not in (3, 7)]
    assert (int(data[3].row), data[3].label.tolist()) == (3, [0, 0])  # i4 now
    fresh = MammogramDataset(index, CONFIG)
    assert torch.equal(data[3].image, fresh[4].image)
    # Everything is ready: the files are no longer needed, or only to see that they are the same.
    if not on_disk:
        for file in (tmp_path / "images").iterdir():
            file.unlink()
        assert torch.equal(data[15].image, fresh_image := data[15].image), fresh_image.shape


def test_prepare_all_with_nothing_left(tmp_path):
    index = make(tmp_path, [{}])
    (tmp_path / "images" / "i0.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"no image can be used. The first: image i0, .*i0\.png"):
        MammogramDataset(index, CONFIG).prepare_all(progress=False)


def test_boxes_and_masks_lie_on_the_lesion(pair, tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    x0, y0, x1, y1 = BOX
    mask[y0:y1, x0:x1] = 255
    Image.fromarray(mask).save(tmp_path / "m0.png")
    pair.findings.loc[0, "mask"] = "m0.png"
    data = MammogramDataset(pair, CONFIG)
    for row in (0, 1):  # 1 is a right breast, mirrored on the canvas
        boxes, malignant = data.findings_on_canvas(row)
        assert malignant.tolist() == [True]  # the finding without a place is left out
        image = data[row].image[0]
        rows, columns = np.nonzero((image > (image.max() + image.median()) / 2).numpy())
        extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(boxes[0].numpy(), extent, atol=1)
        masks = data.masks_on_canvas(row)
        assert masks.shape == (1, 160, 112)
        rows, columns = np.nonzero(masks[0].numpy())
        np.testing.assert_allclose(
            [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], boxes[0].numpy(), atol=1
        )
    assert data.findings_on_canvas(2).boxes.shape == (0, 4)
    assert data.masks_on_canvas(2).shape == (0, 160, 112)


def test_mask_of_another_size(pair, tmp_path):
    Image.new("L", (10, 10)).save(tmp_path / "m.png")
    pair.findings.loc[0, "mask"] = "m.png"
    with pytest.raises(InputError, match=r"m.png: the mask is \(10, 10\), its image \(320"):
        MammogramDataset(pair, CONFIG).masks_on_canvas(0)
    (tmp_path / "m.png").unlink()
    with pytest.raises(InputError, match=r"m.png: cannot read this mask"):
        MammogramDataset(pair, CONFIG).masks_on_canvas(0)


corner = st.integers(0, 30)


@st.composite
def int_boxes(draw):
    x0, y0 = draw(corner), draw(corner)
    return [x0, y0, x0 + draw(st.integers(1, 25)), y0 + draw(st.integers(1, 25))]


@example([([0, 6, 12, 18], True)], 0, 0, (0.0, 0.0))  # half of it, but not its centre
@given(
    st.lists(st.tuples(int_boxes(), st.booleans()), max_size=4),
    corner,
    corner,
    st.tuples(*[st.sampled_from([0.0, math.nan])] * 2),
)
def test_field_label_agrees_with_counting_pixels(found, x, y, elsewhere):
    window = (x, y, x + 12, y + 12)
    inside = {(i, j) for i in range(x, x + 12) for j in range(y, y + 12)}
    expected = list(elsewhere)
    for malignant in (False, True):
        shown = cut = False
        for (x0, y0, x1, y1), kind in found:
            if kind == malignant:
                pixels = {(i, j) for i in range(x0, x1) for j in range(y0, y1)}
                centre = ((x0 + x1) / 2, (y0 + y1) / 2)
                holds = x <= centre[0] < x + 12 and y <= centre[1] < y + 12
                shown |= holds or 2 * len(pixels & inside) >= len(pixels)
                cut |= bool(pixels & inside)
        if shown or cut:
            expected[int(malignant)] = 1.0 if shown else math.nan
    boxes = np.array([box for box, _ in found], float).reshape(-1, 4)
    label = field_label(window, boxes, np.array([k for _, k in found], bool), np.array(elsewhere))
    np.testing.assert_array_equal(label, expected)


SMALL = (100, 100, 110, 112)


@pytest.fixture
def lesions(tmp_path):
    """Malignant and benign images, one whose finding has no place, one of unknown labels, two normal ones."""
    rows = [
        {"malignant": 1.0}, {"benign": 1.0, "laterality": "R"}, {"benign": 1.0},
        {"benign": math.nan, "malignant": math.nan}, {}, {},
    ]  # fmt: skip
    found = [finding("i0"), finding("i1", "benign", mirrored(SMALL)), finding("i2", "benign", [math.nan] * 4)]
    return make(tmp_path, rows, found, {"i0": [BOX], "i1": [SMALL]})


def test_fields_show_what_their_labels_say(lesions):
    data = FieldDataset(lesions, CONFIG, size=32, length=120)
    data.prepare_all(progress=False)
    assert len(data) == 120
    level = float(data.prepared(0).image.max()) * 0.6
    rows_seen, positive = set(), np.zeros(2)
    for item in range(120):
        image, label, birads, row = data[item, 7]
        assert image.shape == (1, 32, 32)
        assert math.isnan(birads)
        bright = int((image > level).sum())
        if item % 2 == 0:  # all of the lesion, whose area on the canvas is known
            assert label.tolist() == ([0, 1] if int(row) == 0 else [1, 0])
            positive += label.numpy() == 1
            assert bright == pytest.approx(15 * 20 if int(row) == 0 else 5 * 6, rel=0.35)
        else:
            rows_seen.add(int(row))
            assert bright == 0
            unknown = {2: [True, False]}.get(int(row), [False, False])  # a benign finding is somewhere in i2
            assert torch.isnan(label).tolist() == unknown
            assert torch.nansum(label) == 0
    assert rows_seen == {0, 1, 2, 4, 5}  # nothing is known of i3
    assert positive.min() >= 20  # both classes about as often


def test_fields_depend_on_item_and_seed_alone(lesions):
    data = FieldDataset(lesions, CONFIG, size=32, augment=AugmentConfig())
    assert len(data) == 12
    again = FieldDataset(lesions, CONFIG, size=32, augment=AugmentConfig())
    for item in (0, 1, 5):
        assert torch.equal(data[item].image, again[item].image)
        assert torch.equal(data[item, 3].image, again[item, 3].image)
        assert not torch.equal(data[item, 3].image, data[item, 4].image)
    assert (data.augment.rotation, data.augment.translation, data.augment.scale) == (0, 0, 0)


def test_fields_cover_different_places(lesions):
    data = FieldDataset(lesions, CONFIG, size=32)
    places = {tuple(torch.nonzero(data[0, seed].image[0] > 2)[0].tolist()) for seed in range(20)}
    assert len(places) > 8


def test_lesion_larger_than_the_field_is_shown_from_its_middle(tmp_path):
    box = (20, 60, 150, 260)
    index = make(tmp_path, [{"malignant": 1.0}], [finding("i0", box=box)], {"i0": [box]})
    data = FieldDataset(index, CONFIG, size=24)
    for seed in range(10):
        sample = data[0, seed]
        assert sample.label[1] == 1
        assert (sample.image > 0).float().mean() > 0.99


def test_fields_that_cannot_be(lesions, tmp_path):
    with pytest.raises(
        InputError, match="size is 200; choose a field of 8 pixels up to the canvas, 160 x 112"
    ):
        FieldDataset(lesions, CONFIG, size=200)
    without = lesions._replace(findings=lesions.findings.iloc[2:])
    with pytest.raises(InputError, match="no finding has a box"):
        FieldDataset(without, CONFIG, size=32)


def exams(labels: list[list[tuple[float, float]]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"exam_id": f"e{n}", "benign": benign, "malignant": malignant}
            for n, images in enumerate(labels)
            for benign, malignant in images
        ]
    )


value = st.sampled_from([0.0, 1.0, math.nan])


@given(
    st.lists(st.lists(st.tuples(value, value), min_size=1, max_size=4), min_size=1, max_size=20),
    st.integers(0, 3),
)
def test_balanced_epochs(labels, seed):
    kinds = []
    for images in labels:
        known = [v for pair in images for v in pair if not math.isnan(v)]
        kinds.append("positive" if 1 in known else "negative" if known else "unknown")
    table = exams(labels)
    if "positive" not in kinds:
        with pytest.raises(InputError, match="images is labelled 1"):
            BalancedSampler(table, seed)
        return
    sampler = BalancedSampler(table, seed)
    drawn_negatives = set()
    for epoch in range(3):
        sampler.set_epoch(epoch)
        items = list(sampler)
        assert items == list(sampler)
        assert len(items) == len(sampler)
        rows = [row for row, _ in items]
        assert len(set(rows)) == len(rows)
        drawn = {table["exam_id"][row] for row in rows}
        # All images of a drawn exam, and no others.
        assert sorted(rows) == table.index[table["exam_id"].isin(drawn)].to_list()
        by_kind = {k: {f"e{n}" for n, kind in enumerate(kinds) if kind == k} for k in set(kinds)}
        assert by_kind["positive"] <= drawn
        assert not drawn & by_kind.get("unknown", set())
        negatives = drawn & by_kind.get("negative", set())
        assert len(negatives) == min(len(by_kind["positive"]), len(by_kind.get("negative", ())))
        drawn_negatives |= negatives
        assert all(0 <= s < 2**62 for _, s in items)
    assert drawn_negatives <= {f"e{n}" for n, kind in enumerate(kinds) if kind == "negative"}


def test_balanced_epochs_differ_and_visit_all_negatives():
    table = exams([[(1.0, 0.0)] * 4] * 3 + [[(0.0, 0.0)] * 2] * 12)
    sampler = BalancedSampler(table, seed=1)
    seen, orders, seeds = set(), set(), set()
    for epoch in range(30):
        sampler.set_epoch(epoch)
        items = list(sampler)
        assert len(items) == 3 * 4 + 3 * 2
        seen |= {row for row, _ in items}
        orders.add(tuple(row for row, _ in items))
        seeds |= {seed for _, seed in items}
    assert seen == set(range(len(table)))
    assert len(orders) == 30
    assert len(seeds) == 30 * 18
    other = BalancedSampler(table, seed=2)
    other.set_epoch(29)
    assert list(other) != items


def test_shuffled_epochs_hold_every_item_once():
    sampler = ShuffledSampler(10, seed=4)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(row for row, _ in first) == sorted(row for row, _ in second) == list(range(10))
    assert first != second
    assert len(sampler) == 10


def test_number_of_workers_changes_nothing(pair, tmp_path):
    data = MammogramDataset(pair, CONFIG, AugmentConfig(), cache=tmp_path / "cache")
    sampler = BalancedSampler(data.images, seed=5)
    batches = [
        list(DataLoader(data, 2, sampler=sampler, collate_fn=collate, num_workers=workers))
        for workers in (0, 2)
    ]
    assert len(batches[0]) == 2
    for here, there in zip(*batches, strict=True):
        for one, other in zip(here, there, strict=True):
            assert torch.equal(one, other) or torch.equal(one.nan_to_num(9), other.nan_to_num(9))
    assert sorted(torch.cat([batch.row for batch in batches[0]]).tolist()) == [0, 1, 2]


def test_collate_pads_with_each_minimum():
    samples = [
        Sample(torch.full((1, 3, 5), 2.0), torch.tensor([0.0, math.nan]), torch.tensor(2.0), torch.tensor(7)),
        Sample(
            torch.full((1, 4, 2), -1.0), torch.tensor([1.0, 0.0]), torch.tensor(math.nan), torch.tensor(8)
        ),
    ]
    samples[1].image[0, 0, 0] = -3.0
    batch = collate(samples)
    assert batch.image.shape == (2, 1, 4, 5)
    assert (batch.image[0] == 2).all()
    assert torch.equal(batch.image[1, 0, :4, :2], samples[1].image[0])
    assert (batch.image[1, 0, :, 2:] == -3).all()
    assert batch.label.nan_to_num(9).tolist() == [[0, 9], [1, 0]]
    assert batch.birads.nan_to_num(9).tolist() == [2, 9]
    assert batch.row.tolist() == [7, 8]


def test_real_films_from_table_to_batch(real_data):
    from mammomil.index import select
    from mammomil.readers import mini_mias

    index = mini_mias.read(real_data / "mini-mias" / "all-mias")
    chosen = index.images["image_id"].isin(["mdb005", "mdb006", "mdb028", "mdb012"])
    data = MammogramDataset(select(index, chosen), PreprocessConfig.quick())
    assert data.prepare_all(progress=False) == []
    batch = collate([data[row] for row in range(len(data))])
    assert batch.image.shape == (4, 1, 368, 240)
    assert torch.isfinite(batch.image).all()
    ids = data.images["image_id"].to_list()
    # The dense round mass of film 028: its box on the canvas is brighter than the breast.
    row = ids.index("mdb028")
    (box,), (malignant,) = data.findings_on_canvas(row)
    x0, y0, x1, y1 = (int(edge) for edge in box)
    breast = data.prepared(row).breast
    assert bool(malignant)
    assert (
        batch.image[row, 0, y0:y1, x0:x1].mean() > batch.image[row, 0][torch.from_numpy(breast)].mean() + 0.5
    )
    assert len(data.findings_on_canvas(ids.index("mdb005")).boxes) == 2
