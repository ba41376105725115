"""Perceptual losses, against formulas and against the packages whose weights they read."""

import importlib
import sys
import types
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import nn

from shared.config import Config, parse_config
from shared.data.vision import models  # before lpips: it makes torchvision importable beside a CPU torch
from shared.errors import UserError
from stage1_tokenizer.losses import perceptual
from stage1_tokenizer.losses.perceptual import LpipsConfig, PerceptualConfig, StlpipsConfig, build_perceptual
from tests.support.narrow import present

NETS = ("vgg", "alex")


class Loss(Config):
    """What a tokenizer's configuration does with it."""

    perceptual: PerceptualConfig | None = None


def images(batch: int = 2, height: int = 48, width: int = 40, seed: int = 0) -> torch.Tensor:
    """Smooth random images (B, 3, H, W) in [-1, 1]."""
    coarse = torch.rand(batch, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear")


def noisy(x: torch.Tensor, amount: float) -> torch.Tensor:
    return x + amount * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=NETS)
def stlpips(request: pytest.FixtureRequest) -> perceptual.PerceptualLoss:
    return build_perceptual(StlpipsConfig(net=request.param), "cpu")


def test_configurations_are_checked() -> None:
    with pytest.raises(UserError, match="did you mean 'lpips'"):
        parse_config(Loss, {"perceptual": {"kind": "lpip"}}, "test.yaml")
    with pytest.raises(UserError, match="squeeze"):
        parse_config(Loss, {"perceptual": {"kind": "lpips", "net": "squeeze"}}, "test.yaml")
    assert parse_config(Loss, {"perceptual": None}, "test.yaml").perceptual is None


# --- Shift-tolerant LPIPS


@pytest.mark.parametrize("net", NETS)
def test_stlpips_is_the_original(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The package imports these at its top and uses none of them in the networks compared here.
    for name, attributes in {"IPython": ["embed"], "torchsummary": ["summary"], "torchvision": ["models"]}.items():
        stub = types.ModuleType(name)
        for attribute in attributes:
            setattr(stub, attribute, None)
        monkeypatch.setitem(sys.modules, name, stub)
    # Its constructor draws a 100-million-weight classifier that it never uses.
    for initialiser in ("kaiming_normal_", "kaiming_uniform_", "normal_"):
        monkeypatch.setattr(nn.init, initialiser, lambda tensor, *_, **__: tensor)
    original = importlib.import_module("stlpips_pytorch.stlpips").LPIPS(
        net=net, variant="shift_tolerant", verbose=False
    )
    ours = build_perceptual(StlpipsConfig(net=net), "cpu")
    for x, x_hat in [(images(), noisy(images(), 0.2)), (images(2, 33, 50, seed=3), images(2, 33, 50, seed=4))]:
        reference = x_hat.clone().requires_grad_()
        expected = original(reference, x).flatten()
        expected.sum().backward()
        tested = x_hat.clone().requires_grad_()
        distances = ours(tested, x)
        distances.sum().backward()
        torch.testing.assert_close(distances, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(tested.grad, reference.grad, rtol=1e-3, atol=1e-6)


def test_identical_images_are_at_distance_0_with_a_finite_gradient(stlpips: perceptual.PerceptualLoss) -> None:
    for x in (images(), torch.zeros(1, 3, 48, 48)):
        x_hat = x.clone().requires_grad_()
        distances = stlpips(x_hat, x)
        distances.sum().backward()
        assert distances.tolist() == [0.0] * len(x)
        assert torch.isfinite(present(x_hat.grad)).all()


def test_gradient_is_finite_where_every_feature_is_0() -> None:
    f = torch.zeros(1, 8, 2, 2, requires_grad=True)
    perceptual._unit(f).sum().backward()
    assert torch.isfinite(present(f.grad)).all()


def test_distance_is_symmetric_per_image_and_grows_with_distortion(stlpips: perceptual.PerceptualLoss) -> None:
    x = images(3)
    levels = [stlpips(noisy(x, amount), x) for amount in (0.02, 0.1, 0.4)]
    assert levels[0].shape == (3,)
    assert (levels[0] < levels[1]).all()
    assert (levels[1] < levels[2]).all()
    torch.testing.assert_close(stlpips(x, noisy(x, 0.1)), levels[1])
    one_by_one = torch.cat([stlpips(noisy(x, 0.1)[i : i + 1], x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(one_by_one, levels[1])


def test_bfloat16_convolutions_still_measure_in_float32(stlpips: perceptual.PerceptualLoss) -> None:
    x, x_hat = images(), noisy(images(), 0.2)
    expected = stlpips(x_hat, x)
    with torch.autocast("cpu", torch.bfloat16):
        distances = stlpips(x_hat, x)
        assert stlpips(x, x).tolist() == [0.0, 0.0]
    assert distances.dtype == torch.float32
    torch.testing.assert_close(distances, expected, rtol=0.05, atol=0)


def test_network_is_frozen_and_in_no_state_dict(stlpips: perceptual.PerceptualLoss) -> None:
    parent = nn.ModuleDict({"perceptual": stlpips, "own": nn.Linear(2, 2)})
    assert list(parent.state_dict()) == ["own.weight", "own.bias"]
    assert list(stlpips.parameters()) == []
    parent.load_state_dict(parent.state_dict(), strict=True)


def test_gradients_reach_the_reconstruction_only(stlpips: perceptual.PerceptualLoss) -> None:
    x, x_hat = images().requires_grad_(), noisy(images(), 0.1).requires_grad_()
    stlpips(x_hat, x).mean().backward()
    assert x.grad is None
    assert present(x_hat.grad).abs().sum() > 0


def test_building_takes_no_random_numbers_from_the_run() -> None:
    before = torch.get_rng_state()
    build_perceptual(StlpipsConfig(net="alex"), "cpu")
    assert torch.equal(before, torch.get_rng_state())


def test_images_outside_the_contract_are_refused() -> None:
    loss = build_perceptual(StlpipsConfig(net="alex"), "cpu")
    x = images()
    with pytest.raises(ValueError, match=r"\[-1, 1\], but these reach 255"):
        loss(x, torch.full_like(x, 255.0))
    with pytest.raises(ValueError, match="nan"):
        loss(x, torch.full_like(x, float("nan")))
    for wrong in (x[0], x[:, :1], x.movedim(1, -1)):
        with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
            loss(wrong, wrong)
    with pytest.raises(ValueError, match="one shape"):
        loss(x[:1], x)
    with pytest.raises(UserError, match=r"20 x 64 are too small .* 21 x 21"):
        loss(images(1, 20, 64), images(1, 20, 64))


@pytest.mark.parametrize(("kind", "net"), perceptual.MINIMUM_SIZE)
def test_minimum_size_is_where_the_network_starts_to_work(kind: str, net: str) -> None:
    configs: dict[str, type[LpipsConfig | StlpipsConfig]] = {"lpips": LpipsConfig, "stlpips": StlpipsConfig}
    config = configs[kind](net=net)

    def works(size: int) -> bool:
        with torch.device("meta"):
            features = perceptual.PerceptualLoss(config).features
            try:
                return min(features(torch.empty(1, 3, size, size)).shape) > 0
            except RuntimeError:
                return False

    working = [size for size in range(8, 40) if works(size)]
    assert working == list(range(perceptual.MINIMUM_SIZE[kind, net], 40))


# --- Weights


def stand_in_package(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(perceptual, "_package_folder", lambda package, distribution: folder)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_weights_of_another_network_are_refused(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = perceptual._read(Path(perceptual._stlpips_weights("alex")[1]))
    key = "net.slice4.11.bias"
    tensor = weights.pop(key)
    if change != "missing":
        weights[key] = tensor
        weights["net.slice5.99.weight" if change == "extra" else key] = torch.zeros(2)
    path = tmp_path / "weights/vST0.0/alex_shift_tolerant.pth"
    path.parent.mkdir(parents=True)
    torch.save(weights, path)
    stand_in_package(monkeypatch, tmp_path)
    with pytest.raises(UserError, match=r"alex_shift_tolerant\.pth") as caught:
        build_perceptual(StlpipsConfig(net="alex"), "cpu")
    assert ("features.99.weight" if change == "extra" else "features.11.bias") in str(caught.value)


def test_damaged_and_dangerous_weight_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights/vST0.0/alex_shift_tolerant.pth"
    path.parent.mkdir(parents=True)
    stand_in_package(monkeypatch, tmp_path)
    for content in (b"", b"not weights"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot read the weights"):
            build_perceptual(StlpipsConfig(net="alex"), "cpu")
    torch.save({"features": Path}, path)
    with pytest.raises(UserError, match="cannot read the weights"):
        build_perceptual(StlpipsConfig(net="alex"), "cpu")


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install stlpips-pytorch"):
        build_perceptual(StlpipsConfig(), "cpu")


@pytest.mark.parametrize(("net", "file"), [("vgg", "vgg16-397923af.pth"), ("alex", "alexnet-owt-7be5be79.pth")])
def test_lpips_without_its_backbone_says_where_to_put_it(
    net: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_internet(*_: object, **__: object) -> None:
        raise URLError("no internet")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_internet)
    with pytest.raises(UserError, match="no internet") as caught:
        build_perceptual(LpipsConfig(net=net), "cpu")
    message = str(caught.value)
    assert str(tmp_path / "hub/checkpoints" / file) in message
    for advice in ("TORCH_HOME", "loss.perceptual.kind=stlpips", "loss.perceptual=null"):
        assert advice in message


@pytest.mark.parametrize(("net", "architecture"), [("vgg", "vgg16"), ("alex", "alexnet")])
@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")  # lpips calls it by an old name
def test_lpips_is_the_original(net: str, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both read one random backbone file from torch.hub's cache; it is laid out as torchvision's is."""
    lpips = pytest.importorskip("lpips")
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in getattr(models, architecture)().state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    weights = {name: _random_weight(name, shape, generator) for name, shape in shapes.items()}
    path = tmp_path / "hub/checkpoints" / perceptual.BACKBONE_URLS[net].rsplit("/", 1)[-1]
    path.parent.mkdir(parents=True)
    torch.save(weights, path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda tensor, *_, **__: tensor)  # every weight is loaded

    ours, original = build_perceptual(LpipsConfig(net=net), "cpu"), lpips.LPIPS(net=net, verbose=False)
    x, x_hat = images(2, 64, 48), noisy(images(2, 64, 48), 0.2)
    expected = original(x_hat, x).flatten()
    assert expected.min() > 1e-3
    torch.testing.assert_close(ours(x_hat, x), expected, rtol=1e-4, atol=1e-6)


def _random_weight(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if name.startswith("classifier."):
        return torch.zeros(1).expand(shape)  # never used: a file of one number
    fan_in = max(1, shape[1:].numel())
    return torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
