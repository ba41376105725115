"""Frozen networks in whose features sets of images are compared; FID's among them.

Shapes: B images, N rows of features, D features.
"""

import pickle
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from shared.data.vision import torchvision  # noqa: F401  # before torch-fidelity imports it
from shared.errors import UserError
from shared.runs.fingerprint import fingerprint

# isort: split
from torch_fidelity import FeatureExtractorInceptionV3
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from shared.reporting.findings import NotMeasured


class Extractor(Protocol):
    """A frozen network: uint8 images (B, 3, H, W) on its device -> features (B, D) float32."""

    name: str
    fingerprint: str  # of its weights

    def __call__(self, pixels_BCHW: Tensor) -> Tensor: ...


class Inception:
    """torch-fidelity's InceptionV3, the network of FID: 2048 features of images that it resizes to 299 x 299."""

    name = "inception"

    def __init__(self, network: FeatureExtractorInceptionV3) -> None:
        self.network = network
        self.fingerprint = fingerprint(network)

    def __call__(self, pixels_BCHW: Tensor) -> Tensor:
        return self.network(pixels_BCHW)[0]

    def logits(self, features_ND: Tensor) -> Tensor:
        """Of its 1008 classes, without the bias, from which the Inception score is taken."""
        return features_ND.to(self.network.fc.weight.device) @ self.network.fc.weight.T


def open_inception(path: Path | None, device: torch.device | str) -> Inception:
    """The Inception network with the weights of `path`, or else with those that torch-fidelity publishes.

    Raises UserError where `path` cannot be used, NotMeasured where nothing was named and nothing can be downloaded.
    """
    weights = path or downloaded(URL_INCEPTION_V3)
    try:
        # torch-fidelity unpickles without a guard: read first as weights only, so that no code in the file can run.
        torch.load(weights, map_location="cpu", weights_only=True)
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(weights))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{weights} does not hold torch-fidelity's Inception weights: {error}") from None
    return Inception(network.to(device))


def downloaded(url: str) -> Path:
    """The file of `url` in torch.hub's folder, fetched where it is not there yet; NotMeasured where it cannot be."""
    try:
        torch.hub.load_state_dict_from_url(url, map_location="cpu", progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise NotMeasured(
            f"Inception's weights could not be had ({error}): download {url} where there is internet and give "
            "--inception PATH"
        ) from None
    return Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])
