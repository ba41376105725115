"""Features of real images, kept on disk: they are the same for every prior that is judged by those images.

Shapes: B a batch, C channels, H x W pixels, N images, D features.
"""

import hashlib
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from shared.data.dataset import ImageDataset
from shared.data.sources.source import hash_lines, spread
from shared.disk.cache_folder import cache_folder
from shared.disk.room import check_room
from shared.errors import UserError
from shared.reporting.feature_networks import Extractor
from shared.training.devices.gather import gather_rows
from stage2_prior.judging.features import Networks, progress
from stage2_prior.judging.reference import reference_batches

LOOKED_AT = 32  # images whose pixels tell one set from another of the same names


@dataclass(frozen=True)
class RealFeatures:
    """What networks see in sets of real images, computed once and kept in the cache folder.

    A file is named by the network's weights and by what the images are. Features come back mapped into memory, so that
    a set of any size can be judged by.
    """

    networks: Networks
    batch_size: int
    accelerator: Accelerator

    def of(self, images: ImageDataset, *, mirrored: bool = False) -> dict[str, Tensor]:
        """Features (N, D) float32, by network, of all images, or of all of them mirrored. Every process must call it.

        Raises UserError where they cannot be kept.
        """
        folder = cache_folder() / "features"
        called = f"{fingerprint_of_images(images)}{'-mirrored' if mirrored else ''}.npy"
        paths = {network.name: folder / f"{network.name}-{network.fingerprint}-{called}" for network in self._networks}
        missing = [
            network for network in self._networks if not self._everywhere(_is_whole(paths[network.name], images))
        ]
        if missing:
            self._compute(images, mirrored, {network.name: paths[network.name] for network in missing}, missing)
        # Writable copies of what is changed, which nothing is: torch warns of memory that it may not write.
        return {name: torch.from_numpy(np.load(path, mmap_mode="c")) for name, path in paths.items()}

    @property
    def _networks(self) -> list[Extractor]:
        return self.networks.opened

    def _everywhere(self, there: bool) -> bool:
        """Whether that holds for all processes, which may be on several machines."""
        found = torch.tensor([int(there)], device=self.accelerator.device)
        return bool(gather_rows(self.accelerator, found, self.accelerator.num_processes).all())

    def _compute(self, images: ImageDataset, mirrored: bool, paths: dict[str, Path], networks: list[Extractor]) -> None:
        """The first process of each machine writes; a file is there as a whole or not at all."""
        parts = self._parts(images, mirrored, networks)
        if not self.accelerator.is_local_main_process:
            for _ in parts:
                pass
        else:
            try:
                _write(paths, len(images), parts)
            except OSError as error:
                where = next(iter(paths.values())).parent
                raise UserError(f"cannot keep features in {where}: {error}; set TESSERA_CACHE to a folder") from None
        self.accelerator.wait_for_everyone()

    @torch.inference_mode()
    def _parts(self, images: ImageDataset, mirrored: bool, networks: list[Extractor]) -> Iterator[dict[str, Tensor]]:
        """Features (B, D) of all processes together, in the order of the images."""
        ranks = self.accelerator.num_processes
        mine = reference_batches(images, self.batch_size, self.accelerator)
        doing = f"looking at {len(images)} real images{', mirrored' if mirrored else ''}"
        with progress(len(images), doing, self.accelerator) as bar:
            for first in range(0, len(images), self.batch_size * ranks):
                count = min(self.batch_size * ranks, len(images) - first)
                # A process that has none of the last few images joins in with one of no account.
                pixels_BCHW = next(mine, None)
                if pixels_BCHW is None:
                    pixels_BCHW = next(reference_batches(images, 1, self.accelerator))
                if mirrored:
                    pixels_BCHW = pixels_BCHW.flip(-1)
                yield {network.name: gather_rows(self.accelerator, network(pixels_BCHW), count) for network in networks}
                bar.update(count)


def fingerprint_of_images(images: ImageDataset) -> str:
    """A hash of which images these are, in which order and at which size, and of the pixels of some of them."""
    pixels = hashlib.sha256()
    for place in spread(len(images), LOOKED_AT):
        pixels.update(images[0, place][0].numpy().tobytes())
    which = hashlib.sha256(images.indices.numpy().tobytes()).hexdigest()
    config = images.config
    how = (*config.height_width, config.background, str(config.value_range), config.max_pixels)
    return hash_lines([images.source.contents(), which, pixels.hexdigest()], how)


def _is_whole(path: Path, images: ImageDataset) -> bool:
    try:
        return len(np.load(path, mmap_mode="r")) == len(images)
    except (OSError, ValueError, EOFError):
        return False


def _write(paths: dict[str, Path], total: int, parts: Iterator[dict[str, Tensor]]) -> None:
    """Write each part where it belongs, into temporary neighbours that are renamed at the end."""
    where = next(iter(paths.values())).parent
    where.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=where, prefix="features-") as folder:
        arrays: dict[str, np.memmap] = {}
        first = 0
        for part in parts:
            for name, rows_BD in part.items():
                if name not in arrays:
                    shape = (total, rows_BD.shape[1])
                    check_room(where, 4 * math.prod(shape), "features", "or set TESSERA_CACHE to another folder")
                    arrays[name] = np.lib.format.open_memmap(Path(folder, name), "w+", np.float32, shape)
                end = first + len(rows_BD)
                arrays[name][first:end] = rows_BD.float().numpy()
            first = end
        for name, array in arrays.items():
            array.flush()
            os.replace(Path(folder, name), paths[name])
