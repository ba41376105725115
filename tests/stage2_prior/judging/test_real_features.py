"""Features of real images are kept: whole or not at all, and for exactly those images and that network."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from shared.data.config import DataConfig
from shared.data.dataset import ImageDataset
from shared.data.open import open_source
from shared.disk.cache_folder import cache_folder
from shared.errors import UserError
from stage2_prior.judging.features import Networks
from stage2_prior.judging.real_features import RealFeatures, fingerprint_of_images
from tests.support.pictures import encoded


class Mean:
    """Sees the mean of each channel; counts the images."""

    def __init__(self, name: str = "mean", fingerprint: str = "one") -> None:
        self.name, self.fingerprint, self.seen = name, fingerprint, 0

    def __call__(self, pixels_BCHW: Tensor) -> Tensor:
        self.seen += len(pixels_BCHW)
        return torch.cat([pixels_BCHW.float().mean((2, 3)), pixels_BCHW[:, :, 0, 0].float()], 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(7):
        pixels_HWC = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        place = tmp_path / "pictures" / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(encoded(Image.fromarray(pixels_HWC)))
    return tmp_path / "pictures"


def images(folder: Path, indices: range = range(7), **options: object) -> ImageDataset:
    config = DataConfig(source=str(folder), image_size=8, **options)
    return ImageDataset(open_source(config), indices, config, augmented=False)


def real(*networks: Mean) -> RealFeatures:
    return RealFeatures(Networks(list(networks), {}), batch_size=3, accelerator=Accelerator())


@pytest.mark.parametrize("mirrored", [False, True])
def test_are_what_the_network_sees(folder: Path, mirrored: bool) -> None:
    dataset = images(folder)
    pixels_NCHW = torch.stack([dataset[0, place][0] for place in range(7)])
    expected = Mean()(pixels_NCHW.flip(-1) if mirrored else pixels_NCHW)
    for _ in range(2):  # computed, then read
        assert torch.equal(real(Mean()).of(dataset, mirrored=mirrored)["mean"], expected)


def test_are_computed_once_by_each_network(folder: Path) -> None:
    first = Mean()
    real(first).of(images(folder))
    again, other, retrained = Mean(), Mean("other"), Mean(fingerprint="two")
    real(again, other).of(images(folder))
    real(retrained).of(images(folder))
    assert [network.seen for network in (first, again, other, retrained)] == [7, 0, 7, 7]


def test_of_other_images_are_others(folder: Path) -> None:
    found = {
        fingerprint_of_images(images(folder)),
        fingerprint_of_images(images(folder, range(6))),
        fingerprint_of_images(images(folder, background="black")),
    }
    (folder / "3.png").write_bytes((folder / "4.png").read_bytes() + b"\0")
    found.add(fingerprint_of_images(images(folder)))
    assert len(found) == 4


def test_a_broken_file_is_made_anew(folder: Path) -> None:
    expected = real(Mean()).of(images(folder))["mean"].clone()
    [kept] = (cache_folder() / "features").iterdir()
    kept.write_bytes(kept.read_bytes()[:40])
    network = Mean()
    assert torch.equal(real(network).of(images(folder))["mean"], expected)
    assert network.seen == 7


def test_an_interrupted_look_leaves_nothing(folder: Path) -> None:
    class Stops(Mean):
        def __call__(self, pixels_BCHW: Tensor) -> Tensor:
            if self.seen > 2:
                raise KeyboardInterrupt
            return super().__call__(pixels_BCHW)

    with pytest.raises(KeyboardInterrupt):
        real(Stops()).of(images(folder))
    assert not list((cache_folder() / "features").iterdir())


def test_a_place_that_cannot_be_written_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot keep features in .*file.*TESSERA_CACHE"):
        real(Mean()).of(images(folder))
