import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mammomil.encoders import EncoderConfig
from mammomil.region_model import (
    POSES,
    SHIFTS,
    Pose,
    RegionModelConfig,
    build_region_model,
    hold,
    image_windows,
    pad_regions,
)
from mammomil.regions import WindowConfig, sliding_windows


@pytest.fixture(scope="module")
def model():
    config = dataclasses.replace(RegionModelConfig.quick(), encoder=EncoderConfig(weights="none"))
    return build_region_model(config, seed=1).eval()


def test_windows_of_the_encoders_size_are_cut_to_the_pixel(model):
    """No resampling at the default: the code of a window is the code of its pixels."""
    image = torch.randn(2, 1, 90, 70)
    lists = [sliding_windows(90, 70, 28, 14), sliding_windows(60, 50, 28, 14)]
    boxes, valid, places = pad_regions(lists)
    with torch.inference_mode():
        codes = model.encode(image, boxes, places)
        for b, own in enumerate(lists):
            for i, (x0, y0, x1, y1) in enumerate(own.int().tolist()):
                expected = model.encoder(image[b : b + 1, :, y0:y1, x0:x1])[0]
                torch.testing.assert_close(codes[b, i], expected, atol=1e-5, rtol=1e-4)
    assert (codes[~valid] == 0).all()


def test_larger_windows_are_averaged_down(model):
    image = torch.randn(1, 1, 112, 112)
    boxes = torch.tensor([[[0.0, 0.0, 56.0, 56.0], [56.0, 0.0, 112.0, 56.0]]])
    small = torch.nn.functional.avg_pool2d(image, 2)
    with torch.inference_mode():
        codes = model.encode(image, boxes, torch.arange(2))
        expected = model.encoder(torch.cat([small[:, :, :28, :28], small[:, :, :28, 28:]]))
    torch.testing.assert_close(codes[0], expected, atol=1e-5, rtol=1e-4)


def test_the_whole_network_is_encoder_and_head(model):
    image = torch.randn(2, 1, 84, 84)
    boxes, valid, places = pad_regions([sliding_windows(84, 84, 28, 14), sliding_windows(56, 56, 28, 14)])
    with torch.inference_mode():
        output = model(image, boxes, valid, places)
        expected = model.head(model.encode(image, boxes, places), valid)
    torch.testing.assert_close(output.log_prob, expected.log_prob)
    assert output.scores.shape == (2, 25, 2)
    assert (output.scores[1, 9:] == 0).all()


def test_gradients_reach_the_encoder_from_valid_windows_alone(model):
    image = torch.randn(1, 1, 84, 84, requires_grad=True)
    boxes = torch.tensor([[[0.0, 0.0, 28.0, 28.0], [0.0, 0.0, 84.0, 84.0]]])
    model.encode(image, boxes, torch.tensor([0])).sum().backward()
    assert (image.grad[..., :28, :28] != 0).any()
    assert (image.grad[..., 28:, :] == 0).all()
    assert model.encoder.net.stem.weight.grad.abs().sum() > 0


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_padding_can_be_undone(counts):
    values = [torch.randn(n, 4) for n in counts]
    padded, valid, places = pad_regions(values)
    torch.testing.assert_close(padded.flatten(0, 1)[places], torch.cat(values), rtol=0, atol=0)
    assert valid.sum(1).tolist() == counts
    assert (padded[~valid] == 0).all()


def test_poses_are_the_papers_orientations_and_shifts_without_repeats():
    """8 turns x (none, left-right, up-down) are 16 different orientations, each with 1 + 6 shifts (D21)."""
    assert POSES[0] == Pose(0, False, 0)
    assert len(set(POSES)) == len(POSES) == 16 * 7
    assert len(SHIFTS) == 1 + 6
    plane = torch.arange(35.0).reshape(1, 5, 7)
    quarters = [pose for pose in POSES if pose.turns % 2 == 0 and not pose.shift]
    seen = {tuple(hold(plane, pose, 0.0).flatten().tolist()) for pose in quarters}
    assert len(seen) == 8
    assert tuple(plane.flip(-2).flatten().tolist()) in seen  # up-down is one of them
    assert tuple(plane.flip(-1).flatten().tolist()) in seen


@pytest.mark.parametrize("pose", [pose for pose in POSES if pose.shift == 0])
def test_a_pose_moves_an_image_and_a_mask_alike(pose):
    """A bright square stays under its mask, keeps its size, and lies where geometry says."""
    image = torch.full((1, 90, 60), -3.0)
    image[0, 20:34, 10:24] = 5.0
    mask = (image > 0).float()
    held, shown = hold(image, pose, -3.0), hold(mask, pose, 0.0) > 0.5
    assert held.min() >= -3.0 - 1e-4
    assert held[shown].mean() > 4.4
    assert held[~shown].max() < 1.5
    assert shown.sum().item() == pytest.approx(14 * 14, rel=0.06)
    x, y = (17 - 30, 27 - 45)  # centre of the square, from the image's
    if pose.mirrored:
        x = -x
    angle = np.deg2rad(45 * pose.turns)  # counter-clockwise, as rot90; y points down
    expected = np.array([x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)])
    rows, columns = np.nonzero(shown[0].numpy())
    centre = np.array([columns.mean() + 0.5, rows.mean() + 0.5]) - np.array(shown.shape[2:0:-1]) / 2
    np.testing.assert_allclose(centre, expected, atol=0.8)


def test_shifts_move_the_grid_by_thirds_of_its_step():
    mask = torch.ones(120, 90, dtype=torch.bool)
    config = WindowConfig(sizes=(24,))
    plain = image_windows(mask, config)
    firsts = [tuple(image_windows(mask, config, Pose(shift=s))[0, :2].tolist()) for s in range(7)]
    assert firsts == [(4.0 * right, 4.0 * down) for down, right in SHIFTS]
    assert plain[1, 0] - plain[0, 0] == 12


def test_several_sizes_are_listed_one_after_the_other():
    mask = torch.ones(64, 64, dtype=torch.bool)
    boxes = image_windows(mask, WindowConfig(sizes=(16, 32)))
    expected = torch.cat([sliding_windows(64, 64, 16, 8), sliding_windows(64, 64, 32, 16)])
    torch.testing.assert_close(boxes, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_answers_as_the_cpu_does(model):
    image = torch.randn(2, 1, 90, 70)
    boxes, valid, places = pad_regions([sliding_windows(90, 70, 28, 14), sliding_windows(60, 50, 28, 14)])
    with torch.inference_mode():
        cpu = model(image, boxes, valid, places)
        cuda = model.cuda()(*(value.cuda() for value in (image, boxes, valid, places)))
    model.cpu()
    torch.testing.assert_close(cuda.log_prob.cpu(), cpu.log_prob, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cuda.scores.cpu(), cpu.scores, atol=1e-4, rtol=1e-3)
