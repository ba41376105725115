"""Cache the token grids of a tokenizer: python -m stage1_tokenizer.cache [--tokenizer RUN]

Tokenizes the images that RUN/config.yaml names under `cache`, writes RUN/tokens/, and decodes a few grids to
RUN/tokens.png, which shows at a glance whether the cache is sound. `accelerate launch -m stage1_tokenizer.cache` shares
the images out to many processes; the first of them writes.
"""

import argparse
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor
from tqdm import tqdm

from shared.code_counts import usage
from shared.config import parse_config
from shared.data.augment import AugmentConfig
from shared.data.config import DataConfig
from shared.data.dataset import ImageDataset
from shared.data.loader import validation_loader
from shared.data.open import open_datasets
from shared.disk.outputs import check_writable
from shared.errors import UserError, run_command
from shared.options.commands import command_of
from shared.reporting.contact_sheet import save_grid
from shared.runs.fingerprint import fingerprint, tokenizing_fingerprint
from shared.runs.run_directory import newest_run, read_yaml
from shared.runs.token_cache import Rows, Split, TokenInfo, open_cache, write_cache
from shared.runs.uses import count_uses
from shared.training.devices.accelerator import plain_accelerator
from shared.training.devices.gather import gather_rows
from stage1_tokenizer.run_config import TokenizerRun
from stage1_tokenizer.tokenizer import Tokenizer, load_tokenizer


def cache_tokens(run: Path, batch_size: int = 64) -> Path:
    """Tokenize the images that the configuration of `run` names under `cache` into `run/tokens`; returns that path.

    Training images have `cache.views` views, validation images one. A whole cache of the same tokenizer, images and
    preprocessing is left as it is. Where there are several processes, each must call it.
    """
    accelerator = plain_accelerator()
    tokenizer = load_tokenizer(run).to(accelerator.device)
    config = parse_config(TokenizerRun, read_yaml(run / "config.yaml"), where=f"{run}/config.yaml")
    data = config.data.model_copy(update={"source": config.cache.source or config.data.source})
    views, validation = open_views(data, config.cache.views)
    plain = views[0]
    info = TokenInfo(
        grid=tokenizer.grid(config.data.height_width),
        codes=tokenizer.codes,
        code_dim=tokenizer.quantiser.codes_KD.shape[1],
        tokens_per_place=tokenizer.tokens_per_place,
        tokenizer=str(run),
        fingerprint=fingerprint(tokenizer),
        tokenizing=tokenizing_fingerprint(tokenizer.state_dict()),
        source=plain.source.description,
        contents=plain.source.contents(),
        preprocessing=data.model_dump(mode="json"),
        views=len(views),
        class_names=plain.source.class_names,
    )
    path = run / "tokens"
    splits: dict[Split, list[ImageDataset]] = {"train": views, "validation": [validation]}
    rows: dict[Split, Rows] = {
        split: tokens_of_views(tokenizer, datasets, batch_size, accelerator) for split, datasets in splits.items()
    }
    if is_whole(path, info):
        accelerator.print(f"{path} already holds the grids of this tokenizer")
    elif accelerator.is_main_process:
        write_cache(path, info, tokenizer.quantiser.codes_KD, rows)
    else:
        for _ in chain(*rows.values()):  # tokenized here, written by the first process
            pass
    if accelerator.is_main_process:
        draw_check(path, tokenizer, plain, run / "tokens.png")
    accelerator.wait_for_everyone()
    return path


def is_whole(path: Path, info: TokenInfo) -> bool:
    """Whether `path` holds a readable cache of exactly what `info` describes."""
    try:
        found = open_cache(path).info
        return found.is_like(info) and found.tokenizer == info.tokenizer
    except UserError:
        return False


def open_views(config: DataConfig, count: int) -> tuple[list[ImageDataset], ImageDataset]:
    """`count` views of the training images (as they are, mirrored, augmented ...), and the validation images."""
    augmented, validation = open_datasets(config, seed=0)

    def view(augment: AugmentConfig | None) -> ImageDataset:
        data = config.model_copy(update={"augment": augment})
        return ImageDataset(augmented.source, augmented.indices.tolist(), data, augmented=augment is not None)

    views = [view(None)]
    if config.augment and config.augment.flip:
        views.append(view(AugmentConfig(crop_scale=(1.0, 1.0), flip=1.0, sharpness=0.0, autocontrast=0.0)))
    return (views + [augmented] * count)[:count], validation


def tokens_of_views(
    tokenizer: Tokenizer, views: list[ImageDataset], batch_size: int, accelerator: Accelerator
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of tokens (B, h, w) and labels (B,) of all processes together, in the order of the images."""
    main = accelerator.is_main_process
    with tqdm(total=sum(map(len, views)), unit="img", desc="tokenizing", disable=not main) as bar:
        for epoch, dataset in enumerate(views):
            for tokens_Bhw, labels_B in _tokens_of_view(tokenizer, dataset, epoch, batch_size, accelerator):
                yield tokens_Bhw, labels_B
                bar.update(len(tokens_Bhw))


def _tokens_of_view(
    tokenizer: Tokenizer, dataset: ImageDataset, epoch: int, batch_size: int, accelerator: Accelerator
) -> Iterator[tuple[Tensor, Tensor | None]]:
    rank, ranks = accelerator.process_index, accelerator.num_processes
    workers = dataset.config.workers
    mine = validation_loader(dataset, batch_size, epoch=epoch, rank=rank, world_size=ranks, workers=workers)
    for first in range(0, len(dataset), batch_size * ranks):
        count = min(batch_size * ranks, len(dataset) - first)
        # A process that has none of the last few images joins in with one of no account.
        images, labels_B = next(mine, None) or next(validation_loader(dataset, 1, epoch=epoch))
        tokens_Bhw = tokenizer.tokenize(images.to(accelerator.device))
        yield (
            gather_rows(accelerator, tokens_Bhw, count),
            None if labels_B is None else gather_rows(accelerator, labels_B, count),
        )


def draw_check(path: Path, tokenizer: Tokenizer, images: ImageDataset, picture: Path, columns: int = 12) -> None:
    """Read grids back from the cache, decode them, and draw them below the images they came from."""
    cache = open_cache(path)
    rows = torch.linspace(0, len(images) - 1, min(columns, len(images))).round().long()
    tokens_BL, _ = cache.batch("train", rows)
    decoded = tokenizer.detokenize(tokens_BL.view(-1, *cache.info.grid).to(tokenizer.device))
    originals, _ = next(
        validation_loader(
            ImageDataset(images.source, images.indices[rows].tolist(), images.config, augmented=False), columns
        )
    )
    save_grid(torch.cat([originals, decoded.cpu()]), picture, columns=len(rows))


def main() -> None:
    """Read the command line, cache, say what was written."""
    parser = argparse.ArgumentParser(prog=command_of("cache"), description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, metavar="RUN", help="run directory (default: the last one trained)")
    parser.add_argument("--batch-size", type=int, default=64, help="images encoded at a time (default: 64)")
    args = parser.parse_args()
    if args.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {args.batch_size}")
    run = args.tokenizer or newest_run("tokenizer", "ema.safetensors")
    check_writable(run)
    path = cache_tokens(run, args.batch_size)
    if not PartialState().is_main_process:
        return
    cache = open_cache(path)
    counts_K = count_uses(cache)
    print(
        f"wrote {path}: {len(cache.tokens['train'])} + {len(cache.tokens['validation'])} grids of "
        f"{cache.info.grid[0]} x {cache.info.grid[1]} tokens, {usage(counts_K):.1%} of {len(counts_K)} codes in use; "
        f"decoded again in {run / 'tokens.png'}\n"
        f"next: {command_of('train-prior')}    (in a clone `make prior` does it, and the page of the training)"
    )


if __name__ == "__main__":
    run_command(main)
