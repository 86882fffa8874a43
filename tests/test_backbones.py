import pytest
import torch
import torch.nn.functional as F

from mammomil.backbones import (
    ClassifierConfig,
    PatchNet,
    ResNet22,
    ResNet22Config,
    build_classifier,
    grey_convolution,
)


def test_resnet22_has_the_papers_parameters():
    """2,799,536 parameters: checklist G1, read off the authors' file."""
    assert sum(p.numel() for p in ResNet22(ResNet22Config()).parameters()) == 2_799_536


@pytest.mark.parametrize(
    ("config", "pixels", "cells"),
    [
        (ResNet22Config(), (2944, 1920), (46, 30)),
        (ResNet22Config((16, 32, 64), (1, 2, 2), stem_pool=False), (368, 240), (46, 30)),
    ],
)
def test_both_scales_have_the_same_grid(config, pixels, cells):
    with torch.device("meta"):
        net = ResNet22(config)
        assert net(torch.zeros(2, 1, *pixels)).shape == (2, net.out_channels, *cells)


def naive_resnet22(state: dict, image: torch.Tensor, config: ResNet22Config) -> torch.Tensor:
    """The network written out with functions, from gmic-release.md section 2, in evaluation mode."""

    def bn(name, x):
        shape = (1, -1, 1, 1)
        mean, var = state[f"{name}.running_mean"].view(shape), state[f"{name}.running_var"].view(shape)
        return (x - mean) / (var + 1e-5).sqrt() * state[f"{name}.weight"].view(shape) + state[
            f"{name}.bias"
        ].view(shape)

    x = F.conv2d(image, state["stem.weight"], stride=2, padding=3)
    if config.stem_pool:
        x = F.max_pool2d(x, 3, 2)
    for s, stride in enumerate(config.strides):
        for b in range(config.blocks):
            name, step = f"stages.{s}.{b}", stride if b == 0 else 1
            active = bn(f"{name}.bn1", x).clamp(min=0)
            residual = F.conv2d(active, state[f"{name}.shortcut.weight"], stride=step) if b == 0 else x
            out = F.conv2d(active, state[f"{name}.conv1.weight"], stride=step, padding=1)
            out = F.conv2d(bn(f"{name}.bn2", out).clamp(min=0), state[f"{name}.conv2.weight"], padding=1)
            x = out + residual
    return bn("norm", x).clamp(min=0)


def randomise(model: torch.nn.Module) -> None:
    """Give batch norms statistics of their own, so that a misplaced one shows."""
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.2)
        elif name.endswith("running_var") or "bn" in name or name.startswith("norm"):
            tensor.copy_(torch.rand(tensor.shape) + 0.5)


@pytest.mark.parametrize("config", [ResNet22Config(), ResNet22Config((4, 6), (2, 2), 3, stem_pool=False)])
def test_resnet22_equals_the_written_out_network(config):
    net = ResNet22(config).double().eval()
    randomise(net)
    image = torch.randn(2, 1, 130, 97, dtype=torch.float64)
    torch.testing.assert_close(net(image), naive_resnet22(net.state_dict(), image, config))


def test_checkpointing_changes_no_gradient():
    plain = ResNet22(ResNet22Config((4, 6), (1, 2)))
    saving = ResNet22(ResNet22Config((4, 6), (1, 2), checkpoint_stages=1))
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(2, 1, 64, 64)
    for net in (plain, saving):
        net(image).square().sum().backward()
    for ours, theirs in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_grey_resnet18_equals_torchvisions_on_a_repeated_patch():
    from torchvision.models import resnet18

    torch.manual_seed(3)
    theirs = resnet18().eval()
    ours = PatchNet("resnet18").eval()
    state = theirs.state_dict()
    state["conv1.weight"] = grey_convolution(theirs.conv1).weight
    ours.net.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
    theirs.fc = torch.nn.Identity()
    patches = torch.randn(3, 1, 64, 64)
    torch.testing.assert_close(ours(patches), theirs(patches.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_configs_refuse_what_cannot_be_built():
    with pytest.raises(ValueError, match="same number of stages"):
        ResNet22Config((16, 32), (1,))
    with pytest.raises(ValueError, match="ImageNet"):
        PatchNet("narrow", pretrained=True)
    with pytest.raises(ValueError, match="0 to 5"):
        ResNet22Config(checkpoint_stages=6)


def test_building_with_a_seed_leaves_the_global_generator_alone():
    config = ClassifierConfig(backbone=ResNet22Config((4,), (1,)))
    before = torch.get_rng_state()
    first, second, other = (build_classifier(config, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


@pytest.mark.parametrize(("widths", "last"), [((16, 32), True), ((4, 8), False), ((16, 24), False)])
def test_channels_last_only_where_its_gradients_are_safe(widths, last):
    """Widths that are no multiple of 16 crash the CPU backward of torch 2.15.0 in channels-last order."""
    model = build_classifier(ClassifierConfig(ResNet22Config(widths, (2, 2))))
    weight = model.backbone.stages[0][0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == last
    model(torch.randn(2, 1, 184, 120)).logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
