"""The one way to measure a tokenizer: reconstruct every image once, and let instruments look on.

Shapes: B batch, C channels, H and W pixels, h and w the token grid.
"""

from collections.abc import Sequence

import torch
from accelerate import Accelerator

from shared.data.dataset import ImageDataset
from shared.data.loader import validation_loader
from stage1_tokenizer.judging.instruments import Instrument, Readings, Reconstructed
from stage1_tokenizer.tokenizer import Tokenizer


@torch.inference_mode()
def measure(
    tokenizer: Tokenizer,
    datasets: Sequence[ImageDataset],
    instruments: Sequence[Instrument],
    accelerator: Accelerator,
    batch_size: int = 32,
) -> Readings:
    """Reconstruct all images in float32, and return what the instruments say; leaves the tokenizer in eval mode.

    The processes of `accelerator`, each of which must call it, share the images out in turns, and each gets the whole.
    """
    tokenizer.eval()
    process, processes, before = accelerator.process_index, accelerator.num_processes, 0
    for dataset in datasets:
        rank = (process - before) % processes  # turns go on from one dataset to the next
        workers = dataset.config.workers
        for images_BCHW, _ in validation_loader(dataset, batch_size, rank=rank, world_size=processes, workers=workers):
            x_BCHW = images_BCHW.to(tokenizer.device)
            result = tokenizer(x_BCHW)
            batch = Reconstructed(x_BCHW, result.images_BCHW.clamp(-1, 1), result.tokens_Bhw)
            for instrument in instruments:
                instrument.see(batch)
        before += len(dataset)
    readings = Readings()
    for instrument in instruments:
        readings.add(instrument.read(accelerator, before))
    return readings
