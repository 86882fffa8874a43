import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mammomil.augment import AugmentConfig, augment
from mammomil.files import InputError

AIR = -0.7
GEOMETRY = AugmentConfig(gamma=0.0, contrast=0.0, noise=0.0)


def scene(height=200, width=160, box=(50, 60, 80, 100)):
    """A bright rectangle in air, its box and its mask."""
    x0, y0, x1, y1 = box
    image = torch.full((1, height, width), AIR)
    image[:, y0:y1, x0:x1] = 3.0
    return image, torch.tensor([box], dtype=torch.float32), image > 0


def only(**fields: float) -> AugmentConfig:
    return dataclasses.replace(AugmentConfig.off(), **fields)


@given(st.integers(0, 2**62))
def test_off_is_the_identity(seed):
    image, boxes, masks = scene()
    image = image + torch.rand(image.shape)
    done = augment(image, boxes, masks, AugmentConfig.off(), seed)
    assert torch.equal(done.image, image)
    assert torch.equal(done.boxes, boxes)
    assert torch.equal(done.masks, masks)
    assert (type(done.image), type(done.boxes), done.masks.dtype) == (torch.Tensor, torch.Tensor, torch.bool)


@pytest.mark.parametrize(
    ("config", "flipped", "box"),
    [
        (only(horizontal_flip=1.0), -1, [80, 60, 110, 100]),
        (only(vertical_flip=1.0), -2, [50, 100, 80, 140]),
    ],
)
def test_flip_moves_the_box_exactly(config, flipped, box):
    image, boxes, masks = scene()
    image = image + torch.rand(image.shape)
    done = augment(image, boxes, masks, config, 5)
    assert done.boxes.tolist() == [box]
    np.testing.assert_array_equal(done.image.numpy(), np.flip(image.numpy(), flipped))
    np.testing.assert_array_equal(done.masks.numpy(), np.flip(masks.numpy(), flipped))


def extent(mask: torch.Tensor) -> np.ndarray:
    rows, columns = np.nonzero(mask.numpy())
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@given(st.integers(0, 2**62))
def test_image_mask_and_box_stay_together(seed):
    done = augment(*scene(), GEOMETRY, seed)
    bright = done.image[0] > (AIR + 3) / 2
    assert (bright ^ done.masks[0]).sum() <= 0.02 * done.masks[0].sum()
    np.testing.assert_allclose(extent(bright), done.boxes[0].numpy(), atol=1.0)
    np.testing.assert_allclose(extent(done.masks[0]), done.boxes[0].numpy(), atol=1.0)
    # What comes in from outside is air.
    assert done.image.min() == pytest.approx(AIR)
    assert (
        done.image[0][~torch.nn.functional.max_pool2d(bright[None].float(), 5, 1, 2)[0].bool()] < -0.69
    ).all()


def test_every_kind_of_change_happens_and_stays_in_its_range():
    image, boxes, masks = scene(box=(60, 60, 100, 100))
    seen = {name: [] for name in ("shift", "size", "tall")}
    for seed in range(200):
        done = augment(image, boxes, masks, only(translation=0.1), seed)
        x0, y0, x1, y1 = done.boxes[0].tolist()
        assert (x1 - x0, y1 - y0) == (40, 40)
        seen["shift"].append((x0 - 60, y0 - 60))
        x0, y0, x1, y1 = augment(image, boxes, masks, only(scale=0.25), seed).boxes[0].tolist()
        seen["size"].append((x1 - x0) / 40)
        x0, y0, x1, y1 = augment(image, boxes, masks, only(rotation=20.0), seed).boxes[0].tolist()
        seen["tall"].append((y1 - y0) / 40)
    shift = np.array(seen["shift"])
    assert np.abs(shift).max(axis=0).tolist() == [16, 20]  # a tenth of 160 and of 200
    assert np.abs(shift.mean(axis=0)).max() < 3
    assert abs(np.corrcoef(shift.T)[0, 1]) < 0.3  # the two directions are drawn apart
    assert 0.8 <= min(seen["size"]) < 0.84 < 1.2 < max(seen["size"]) <= 1.2501
    widest = np.cos(np.pi / 9) + np.sin(np.pi / 9)  # a square turned by 20 degrees
    assert 0.98 * widest < max(seen["tall"]) <= widest + 1e-3
    flips = [augment(*scene(), only(horizontal_flip=0.3), s).boxes[0, 0] == 50 for s in range(300)]
    assert 0.6 < np.mean(flips) < 0.8


def test_grey_values():
    image, boxes, masks = scene()
    image[0, :30, :30] = torch.linspace(AIR, 3.0, 900).reshape(30, 30)
    for seed in range(20):
        gamma = augment(image, boxes, masks, only(gamma=0.5), seed).image
        stretched, before = (gamma - AIR) / (3 - AIR), (image - AIR) / (3 - AIR)
        between = (before > 0.01) & (before < 0.99)
        powers = torch.log(stretched[between]) / torch.log(before[between])
        assert powers.std() < 1e-2  # one power law for all pixels
        assert 1 / 1.5 - 1e-3 < powers.mean() < 1.5 + 1e-3
        factor = augment(image, boxes, masks, only(contrast=0.2), seed).image / image
        assert factor.std() < 1e-5
        assert 1 / 1.2 - 1e-3 < factor.mean() < 1.2 + 1e-3
        noisy = augment(image, boxes, masks, only(noise=0.1), seed).image
        assert torch.equal(noisy[image == AIR], image[image == AIR])  # air stays air
        assert 0 < (noisy - image)[masks].std() < 0.11
        for changed in (gamma, noisy):
            assert not torch.equal(changed, image)


def test_same_seed_same_result_and_the_global_state_is_left_alone():
    parts = scene()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = augment(*parts, AugmentConfig(), 11)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(5)
    again, other = augment(*parts, AugmentConfig(), 11), augment(*parts, AugmentConfig(), 12)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.image, other.image)
    assert torch.equal(parts[0], scene()[0])  # what came in is not changed


def test_a_field_does_not_change_the_others():
    """Turning noise off leaves the geometry of a seed as it was."""
    done = augment(*scene(), AugmentConfig(), 3)
    assert torch.equal(done.boxes, augment(*scene(), GEOMETRY, 3).boxes)


def test_nothing_and_many_findings_and_boxes_that_leave():
    image, _, _ = scene()
    nothing = augment(
        image, torch.zeros(0, 4), torch.zeros(0, 200, 160, dtype=torch.bool), AugmentConfig(), 1
    )
    assert (nothing.boxes.shape, nothing.masks.shape) == ((0, 4), (0, 200, 160))
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [60.0, 60.0, 70.0, 70.0]])
    areas = []
    for seed in range(30):
        done = augment(image, boxes, torch.zeros(0, 200, 160, dtype=torch.bool), only(translation=0.2), seed)
        assert done.boxes.shape == (2, 4)
        assert (done.boxes >= 0).all()
        areas.append(float((done.boxes[0, 2:] - done.boxes[0, :2]).prod()))
    assert min(areas) == 0  # in the corner, so some shifts push it out


def test_constant_image_stays_finite():
    image = torch.zeros(1, 32, 32)
    done = augment(image, torch.zeros(0, 4), torch.zeros(0, 32, 32, dtype=torch.bool), AugmentConfig(), 1)
    assert torch.isfinite(done.image).all()


@pytest.mark.parametrize("fields", [{"noise": -0.1}, {"vertical_flip": 1.5}, {"rotation": 181.0}])
def test_config_names_the_bad_field(fields):
    (name,) = fields
    with pytest.raises(InputError, match=f"{name} is {fields[name]}; choose between 0 and"):
        AugmentConfig(**fields)
