import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from mammomil.cnn_m import CNNM128
from mammomil.encoders import EncoderConfig, build_encoder, fingerprint
from mammomil.files import InputError
from mammomil.preprocess import PreprocessConfig
from mammomil.region_model import RegionModelConfig, build_region_model
from mammomil.weights import load_encoder, load_model, save_model


def test_the_small_encoder_is_a_network_and_a_spatial_mean():
    encoder = build_encoder(EncoderConfig(weights="none"), seed=4)
    fields = torch.randn(5, 1, 28, 28)
    features = encoder.net(fields)
    expected = np.array([[channel.mean() for channel in one] for one in features.detach().double().numpy()])
    np.testing.assert_allclose(encoder(fields).detach(), expected, atol=1e-6)
    assert encoder(fields).shape[1] == encoder.out_features == 128
    torch.testing.assert_close(encoder.grey(fields), fields, rtol=0, atol=0)
    again = build_encoder(EncoderConfig(weights="none"), seed=4)
    assert fingerprint(again) == fingerprint(encoder)
    other = build_encoder(EncoderConfig(weights="none"), seed=5)
    assert fingerprint(other) != fingerprint(encoder)


def test_the_default_encoder_is_the_one_trained_on_phantoms():
    encoder = build_encoder(EncoderConfig())
    load_encoder(encoder)
    from mammomil.weights import SHIPPED

    shipped = load_model(SHIPPED / "weights" / "region-encoder").model
    fields = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(encoder(fields), shipped.backbone(fields).mean((-2, -1)))


def test_photograph_networks_see_0_to_255_and_imagenets_statistics(monkeypatch):
    """Reading A17: air is 0, the brightest pixel 255, in three equal channels."""
    encoder = build_encoder(EncoderConfig("resnet18", weights="none"))
    image = torch.tensor([[[[-2.0, 0.0], [1.0, 3.0]]], [[[5.0, 5.0], [5.0, 5.0]]]])
    grey = encoder.grey(image)
    torch.testing.assert_close(grey[0, 0], torch.tensor([[0.0, 102.0], [153.0, 255.0]]))
    assert grey[1].isfinite().all()
    seen = []
    encoder.net.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    fields = 255 * torch.rand(2, 1, 224, 224)
    codes = encoder(fields)
    assert codes.shape == (2, encoder.out_features) == (2, 512)
    for channel, (mean, deviation) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        torch.testing.assert_close(
            seen[0][:, channel], (fields[:, 0] / 255 - mean) / deviation, atol=1e-5, rtol=0
        )


def test_torchvision_weights_from_a_file(tmp_path):
    from torchvision.models import resnet18

    torch.manual_seed(3)
    net = resnet18().eval()
    torch.save(net.state_dict(), tmp_path / "resnet18.pth")
    encoder = build_encoder(EncoderConfig("resnet18", str(tmp_path / "resnet18.pth")))
    load_encoder(encoder)
    net.fc = nn.Identity()
    fields = 255 * torch.rand(1, 1, 224, 224)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = net((fields / 255 - mean[:, None, None]) / deviation[:, None, None])
    torch.testing.assert_close(encoder(fields), expected, atol=1e-4, rtol=1e-4)
    assert not encoder.training


def test_weights_that_cannot_be_downloaded_are_a_sentence(monkeypatch):
    from urllib.error import URLError

    from torchvision.models import ResNet18_Weights

    def offline(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(InputError, match=r"resnet18 could not be downloaded.*no route.*encoder small"):
        load_encoder(build_encoder(EncoderConfig("resnet18")))


def test_cnn_m_needs_a_file_and_uses_it(monkeypatch):
    with pytest.raises(ValueError, match="non-commercial"):
        EncoderConfig("cnn-m-128")
    small = CNNM128((2, 3, 4, 4, 4), 5, 128).eval()
    asked = []
    monkeypatch.setattr("mammomil.encoders.CNNM128", lambda: CNNM128((2, 3, 4, 4, 4), 5, 128))
    monkeypatch.setattr("mammomil.weights.load_cnn_m", lambda *args: (asked.append(args), small)[1])
    encoder = build_encoder(EncoderConfig("cnn-m-128", "my.caffemodel", "mean.binaryproto", "abc"))
    load_encoder(encoder)
    assert asked == [("my.caffemodel", "mean.binaryproto", "abc")]
    fields = 255 * torch.rand(1, 1, 224, 224)
    torch.testing.assert_close(encoder(fields), small(fields.expand(-1, 3, -1, -1)))


def test_encoders_keep_their_statistics_in_training():
    """Windows of one image overlap by half and are mostly alike: no batch to take statistics from."""
    encoder = build_encoder(EncoderConfig(weights="none")).train()
    before = fingerprint(encoder)
    encoder(torch.randn(8, 1, 28, 28))
    assert fingerprint(encoder) == before
    assert all(p.requires_grad for p in encoder.parameters())


def test_an_encoder_can_come_from_a_dual_branch_model(tmp_path):
    config = RegionModelConfig.quick()
    config = dataclasses.replace(config, encoder=EncoderConfig(weights="none"))
    model = build_region_model(config, seed=9)
    save_model(tmp_path / "model", model, PreprocessConfig.quick(), {})
    encoder = build_encoder(EncoderConfig(weights=str(tmp_path / "model")))
    load_encoder(encoder)
    assert fingerprint(encoder) == fingerprint(model.encoder)
    loaded = load_model(tmp_path / "model")
    assert loaded.model.config == config
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.model.state_dict()[name], value, rtol=0, atol=0)


def test_an_encoder_that_is_not_there_is_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="not a model folder"):
        load_encoder(build_encoder(EncoderConfig(weights=str(tmp_path))))
    monkeypatch.setattr("mammomil.weights.SHIPPED", tmp_path)
    with pytest.raises(InputError, match="warm-start"):
        load_encoder(build_encoder(EncoderConfig()))
    with pytest.raises(ValueError, match="side is 4"):
        EncoderConfig(side=4)
