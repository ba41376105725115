"""What networks see in images, gathered from all processes.

Shapes: B a batch, C channels, H x W pixels, D features.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from shared.reporting.feature_networks import Extractor
from shared.training.devices.gather import gather_rows

SHOWN = 64  # images kept to be looked at


class Networks(NamedTuple):
    """Those that could be opened, and by name of each other one the reason why not."""

    opened: list[Extractor]
    missing: dict[str, str]


@torch.inference_mode()
def features_of(
    batches: Iterator[Tensor], networks: Networks, total: int, accelerator: Accelerator, doing: str
) -> tuple[dict[str, Tensor], Tensor]:
    """Every network's features (total, D), by its name, and the first `SHOWN` of the images (B, 3, H, W) uint8.

    batches: this process's share of the images, dealt out in turns. What comes back is of all processes, in the images'
    order, on the CPU. doing: what the progress bar says.
    """
    rows: dict[str, list[Tensor]] = defaultdict(list)
    pictures: list[Tensor] = []
    with progress(total, doing, accelerator) as bar:
        for pixels_BCHW in batches:
            pictures.append(pixels_BCHW[: SHOWN - sum(len(part) for part in pictures)])
            for network in networks.opened:
                rows[network.name].append(network(pixels_BCHW))
            bar.update(len(pixels_BCHW) * accelerator.num_processes)
    gathered = {name: gather_rows(accelerator, torch.cat(parts), total) for name, parts in rows.items()}
    return gathered, gather_rows(accelerator, torch.cat(pictures), min(total, SHOWN))


def progress(total: int, doing: str, accelerator: Accelerator) -> tqdm:
    """A bar of images, which the first process shows and is gone at the end."""
    return tqdm(total=total, unit="img", desc=doing, disable=not accelerator.is_main_process, leave=False)
