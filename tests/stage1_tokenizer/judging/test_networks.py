"""Networks that see sets of images."""

import pytest
import torch

from stage1_tokenizer.judging.networks import Vgg16, open_networks
from stage1_tokenizer.losses.perceptual import StlpipsConfig, build_perceptual


@pytest.fixture
def vgg16(monkeypatch: pytest.MonkeyPatch) -> Vgg16:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    [network], missing = open_networks((32, 32), None, "cpu")
    assert missing.keys() == {"inception"}
    assert isinstance(network, Vgg16)
    return network


def test_vgg16_is_the_last_stage_of_stlpips_of_unit_mean_square(vgg16: Vgg16) -> None:
    pixels_BCHW = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    loss = build_perceptual(StlpipsConfig(net="vgg"), "cpu")
    with torch.inference_mode():
        x_BCHW = (pixels_BCHW.double() / 127.5 - 1).float()
        # Zhang et al.'s normalisation of images: ImageNet's mean and deviation, moved to [-1, 1].
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        expected_BD = loss.features((x_BCHW - shift.view(3, 1, 1)) / scale.view(3, 1, 1)).mean((2, 3))
        features_BD = vgg16(pixels_BCHW)
    assert features_BD.shape == (3, 512)
    torch.testing.assert_close(features_BD.square().mean(1), torch.ones(3))
    torch.testing.assert_close(features_BD / features_BD.amax(1, True), expected_BD / expected_BD.amax(1, True))


def test_vgg16_tells_noise_from_flat_images(vgg16: Vgg16) -> None:
    noise_BCHW = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    flat_BCHW = torch.randint(0, 256, (4, 3, 1, 1), dtype=torch.uint8).expand(-1, -1, 32, 32)
    with torch.inference_mode():
        noise_BD, flat_BD = vgg16(noise_BCHW), vgg16(flat_BCHW)
    assert torch.cdist(noise_BD, flat_BD).min() > torch.cdist(noise_BD, noise_BD).max()
