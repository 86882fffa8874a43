import dataclasses

import pytest
import torch
import torch.nn.functional as F

from mammomil.gmic import ABLATIONS, GMICConfig, MILConfig, ablate, build_gmic
from mammomil.losses import GMICObjective
from mammomil.regions import cells_to_pixels, crop_rois, retrieve_rois
from mammomil.types import Batch

QUICK = GMICConfig.quick()


def batch_of(n: int, size: tuple[int, int] = (96, 96), seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 2, (n, 2), generator=generator).float()
    image = torch.randn(n, 1, *size, generator=generator)
    return Batch(image, label, torch.full((n,), torch.nan), torch.arange(n))


def with_mil(config: GMICConfig, **changes) -> GMICConfig:
    return dataclasses.replace(config, mil=dataclasses.replace(config.mil, **changes))


@pytest.mark.parametrize("head", ["average", "fusion"])
def test_forward_equals_its_parts_written_out(head):
    """Section 2 of the paper with the model's own layers, patch by patch and without batching."""
    model = build_gmic(dataclasses.replace(QUICK, head=head)).eval()
    image = torch.randn(2, 1, 112, 80)
    output = model(image)
    for b in range(2):
        features = model.backbone(image[b : b + 1])
        logits = model.saliency_head(features)
        saliency = torch.sigmoid(logits)
        torch.testing.assert_close(output.saliency[b], saliency[0], rtol=1e-4, atol=1e-6)
        count = round(QUICK.top_t * saliency[0, 0].numel())
        y_loc = torch.stack([s.flatten().sort(descending=True).values[:count].mean() for s in saliency[0]])
        torch.testing.assert_close(output.y_loc[b], y_loc, rtol=1e-4, atol=1e-6)
        corners = cells_to_pixels(retrieve_rois(saliency, 6, 4), (14, 10), (112, 80), 32)
        assert torch.equal(output.rois[b], corners[0])
        h = torch.stack(
            [model.patch_net(crop_rois(image[b : b + 1], corners[:, k : k + 1], 32)[0])[0] for k in range(6)]
        )
        gate = torch.tanh(h @ model.attention.V.weight.T) * torch.sigmoid(h @ model.attention.U.weight.T)
        alpha = torch.softmax((gate @ model.attention.w.weight.T)[:, 0], 0)
        z = sum(a * x for a, x in zip(alpha, h, strict=True))
        y_mil = torch.sigmoid(model.mil_classifier.weight @ z)
        torch.testing.assert_close(output.attention[b], alpha, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(output.y_mil[b], y_mil, rtol=1e-4, atol=1e-6)
        if head == "average":
            assert output.y_fusion is None
            expected = (y_loc + y_mil) / 2  # checklist G9
        else:
            joint = torch.cat([features.amax((-2, -1))[0], z])
            expected = torch.sigmoid(model.fusion.weight @ joint + model.fusion.bias)
            torch.testing.assert_close(output.y_fusion[b], expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(output.y[b], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pooling", ["top_t", "gap", "gmp", "lse"])
@pytest.mark.parametrize("head", ["average", "fusion"])
def test_every_part_receives_gradient(pooling, head):
    model = build_gmic(dataclasses.replace(QUICK, pooling=pooling, head=head))
    batch = batch_of(2)
    sum(GMICObjective()(model(batch.image), batch).values()).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_without_y_loc_the_saliency_head_learns_nothing():
    """Cropping is not differentiable: this is why Eq. 1 has a loss of its own for the map (section 2.4)."""
    model = build_gmic(QUICK)
    batch = batch_of(2)
    GMICObjective()(model(batch.image), batch)["mil"].backward()
    assert model.saliency_head.weight.grad is None
    assert model.mil_classifier.weight.grad.abs().sum() > 0


def test_train_and_eval_return_the_same_type_and_nothing_is_stored_on_the_model():
    model = build_gmic(QUICK)
    before = set(vars(model))
    outputs = [model.train()(batch_of(2).image), model.eval()(batch_of(2).image)]
    assert type(outputs[0]) is type(outputs[1])
    assert set(vars(model)) == before


@pytest.mark.parametrize("size", [(96, 96), (101, 57), (33, 200), (20, 20)])
def test_any_image_size(size):
    output = build_gmic(QUICK).eval()(torch.randn(1, 1, *size))
    assert output.y.isfinite().all()
    assert (output.rois >= 0).all()
    assert (output.rois <= torch.tensor(size).sub(32).clamp(min=0)).all()


def test_a_blank_image_gives_finite_answers():
    output = build_gmic(QUICK).eval()(torch.zeros(1, 1, 96, 96))
    assert all(value.isfinite().all() for value in output if value is not None)


def test_an_image_does_not_depend_on_its_batch():
    model = build_gmic(QUICK).eval()
    image = batch_of(4).image
    together, alone = model(image), model(image[2:3])
    torch.testing.assert_close(together.y[2:3], alone.y)
    assert torch.equal(together.rois[2:3], alone.rois)


def test_ablations_are_switches_over_the_same_weights():
    """Table 1 of the paper, rows GMIC-loc to GMIC-loc-random (checklist G14)."""
    full = build_gmic(QUICK, seed=4).eval()
    image = batch_of(3).image
    base = full(image)
    for name in ABLATIONS:
        model = build_gmic(ablate(QUICK, name), seed=9).eval()
        model.load_state_dict(full.state_dict())
        out = model(image, generator=torch.Generator().manual_seed(7))
        assert torch.equal(out.saliency, base.saliency)
        expected = {
            "gmic": (base.y_loc + base.y_mil) / 2,
            "loc": base.y_loc,
            "mil": base.y_mil,
            "noattn": out.y_mil,
            "random": out.y_mil,
            "loc-random": (base.y_loc + out.y_mil) / 2,
        }[name]
        torch.testing.assert_close(out.y, expected)
        uniform = torch.full_like(out.attention, 1 / 6)
        assert torch.equal(out.attention, uniform) == (name == "noattn")
        assert torch.equal(out.rois, base.rois) == ("random" not in name)
    with pytest.raises(ValueError, match="no ablation 'nothing'"):
        ablate(QUICK, "nothing")


def test_uniform_attention_is_the_mean_of_the_patches():
    model = build_gmic(with_mil(QUICK, attention="uniform")).eval()
    image = batch_of(1).image
    out = model(image)
    h = model.patch_net(crop_rois(image, out.rois, 32)[0])
    torch.testing.assert_close(out.y_mil[0], torch.sigmoid(model.mil_classifier.weight @ h.mean(0)))


def test_random_patches_cover_the_image_evenly():
    model = build_gmic(with_mil(QUICK, patches="random", num_patches=500)).eval()
    rois = model(torch.zeros(1, 1, 40, 64), generator=torch.Generator().manual_seed(0)).rois[0]
    assert set(rois[:, 0].tolist()) == set(range(9))
    assert set(rois[:, 1].tolist()) == set(range(33))


@pytest.mark.slow
def test_one_batch_can_be_learnt_by_heart():
    model = build_gmic(QUICK)
    batch = batch_of(4, seed=1)._replace(label=torch.tensor([[0.0, 1], [1, 0], [0, 0], [1, 1]]))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = sum(GMICObjective(1e-5)(model(batch.image), batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    out = model(batch.image)
    for y in (out.y_loc, out.y_mil):
        assert ((y > 0.5) == (batch.label > 0.5)).all()
        assert (y - batch.label).abs().max() < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("head", ["average", "fusion"])
def test_exports_with_a_dynamic_batch(head):
    model = build_gmic(dataclasses.replace(QUICK, head=head)).eval()
    exported = torch.export.export(
        model,
        (torch.randn(2, 1, 96, 96),),
        dynamic_shapes={"image": {0: torch.export.Dim("b")}},
    ).module()
    for n in (1, 5):
        image = batch_of(n).image
        ours, theirs = model(image), exported(image)
        torch.testing.assert_close(theirs.y, ours.y)
        assert torch.equal(theirs.rois, ours.rois)


def test_autocast_keeps_the_map_and_the_probabilities_in_float32():
    model = build_gmic(QUICK).eval()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch_of(2).image)
    assert {v.dtype for v in output if v is not None and v.is_floating_point()} == {torch.float32}


def test_the_papers_length_128_is_projected_and_the_releases_512_is_not():
    """Reading G-f."""
    assert build_gmic(GMICConfig()).projection.weight.shape == (128, 512)
    release = GMICConfig(mil=MILConfig(instance_features=512))
    assert isinstance(build_gmic(release).projection, torch.nn.Identity)


def test_configs_refuse_impossible_values():
    for change in ({"top_t": 0.0}, {"top_t": 20.0}, {"lse_sharpness": -1.0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            dataclasses.replace(QUICK, **change)
    with pytest.raises(ValueError, match="1 or more"):
        MILConfig(num_patches=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_forward_on_a_gpu_equals_the_cpu_and_never_waits_for_the_device():
    model = build_gmic(QUICK).eval()
    image = batch_of(2, (368, 240)).image
    expected = model(image)
    model, image = model.cuda(), image.cuda()
    model(image)
    torch.cuda.set_sync_debug_mode("error")
    try:
        output = model(image)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(output.saliency.cpu(), expected.saliency, rtol=1e-3, atol=1e-4)
    assert F.l1_loss(output.y.cpu(), expected.y) < 1e-3
