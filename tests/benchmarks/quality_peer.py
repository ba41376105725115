"""diffusers' VQModel and x-transformers' GPT on the images of a prior, for given minutes: the other project's row.

    python -m tests.benchmarks.quality_peer --prior RUN --minutes 4 8 --samples 1000 --seed 0

Trains on the images that RUN's tokens were made from, with grids of the same size and as many codes, a GPT of the same
width and depth that is told the class, both as their documentation shows; draws with temperature 1, and measures as
`judge.py --samples` does. The last line is JSON. `tests.benchmarks.quality --peer` runs it.

Shapes: B a batch, N images drawn, H held out, h x w = L tokens.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shared  # noqa: F401  # before the libraries, which read their settings on import

# isort: split
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from shared.data.dataset import ImageDataset
from shared.data.loader import training_loader, validation_loader
from shared.data.pixels import to_float
from shared.errors import run_command
from shared.reporting.contact_sheet import save_grid
from shared.reporting.set_distances import distances
from shared.runs.token_cache import TokenInfo, read_info
from shared.training.devices.accelerator import make_accelerator
from stage1_tokenizer.judging.networks import open_networks
from stage1_tokenizer.judging.similarity import psnr_of
from stage2_prior.judging.codec import decoded
from stage2_prior.judging.copies import between_features, copying, nearest
from stage2_prior.judging.features import Networks, features_of
from stage2_prior.judging.nearest_images import held_out_features, training_views
from stage2_prior.judging.real_features import RealFeatures
from stage2_prior.judging.reference import labels_like, reference_images
from stage2_prior.judging.titles import COPYING, MEASURES

BATCH, WARM_UP = 16, 100  # images of a step; steps
LEARNING_RATES = 4e-4, 1e-3  # of the two stages: the best of 1e-4, 4e-4 and 3e-4, 1e-3 is not looked for
WIDTH, DEPTH, HEADS = 256, 8, 4


class VqModel:
    """diffusers' VQModel as a codec: `grid` tokens of `codes` codes of an image of `size` pixels a side."""

    device = torch.device("cpu")

    def __init__(self, info: TokenInfo) -> None:
        from diffusers import VQModel

        halvings = int(math.log2(info.data.height_width[0] // info.grid[0]))
        widths = [min(256, 64 * 2**level) for level in range(halvings + 1)]
        self.grid = info.grid
        self.model: Any = VQModel(  # type: ignore[no-untyped-call]
            down_block_types=["DownEncoderBlock2D"] * len(widths), up_block_types=["UpDecoderBlock2D"] * len(widths),
            block_out_channels=widths, layers_per_block=1, latent_channels=32, num_vq_embeddings=info.codes,
            sample_size=info.data.height_width[0],
        )  # fmt: skip

    def tokenize(self, images_BCHW: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> tokens (B, h, w)."""
        _, _, (_, _, tokens_N) = self.model.quantize(self.model.encode(images_BCHW).latents)
        return tokens_N.view(-1, *self.grid)

    def detokenize(self, tokens_Bhw: Tensor) -> Tensor:
        """Tokens (B, h, w) -> images (B, 3, H, W)."""
        shape = (*tokens_Bhw.shape, self.model.quantize.vq_embed_dim)
        codes_BDhw = self.model.quantize.get_codebook_entry(tokens_Bhw.flatten(), shape)
        return self.model.decode(codes_BDhw, force_not_quantize=True).sample.clamp(-1, 1)


def train(model: nn.Module, losses: Iterator[Tensor], rate: float, minutes: float) -> int:
    """AdamW with a warm-up and a cosine over the minutes; returns how many steps there were."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05, betas=(0.9, 0.95))
    began, steps = time.perf_counter(), 0
    while (spent := (time.perf_counter() - began) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min((steps + 1) / WARM_UP, (1 + math.cos(math.pi * spent)) / 2)
        optimizer.zero_grad()
        next(losses).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps += 1
    return steps


def reconstruction_losses(codec: VqModel, images: ImageDataset, seed: int) -> Iterator[Tensor]:
    """Squared error and commitment of one batch after another."""
    for images_BCHW, _ in training_loader(images, BATCH, seed=seed):
        found = codec.model(images_BCHW)
        yield F.mse_loss(found.sample, images_BCHW) + found.commit_loss


@torch.inference_mode()
def tokens_of(codec: VqModel, images: ImageDataset) -> tuple[Tensor, Tensor]:
    """All grids (N, L), and labels (N,), 0 where there are none."""
    parts = [
        (codec.tokenize(images_BCHW).flatten(1), torch.zeros(len(images_BCHW)).long() if labels_B is None else labels_B)
        for images_BCHW, labels_B in validation_loader(images, 64)
    ]
    tokens, labels = zip(*parts, strict=True)
    return torch.cat(tokens).clone(), torch.cat(labels).clone()


def gpt(info: TokenInfo) -> Any:
    """x-transformers' decoder over the codes, behind a start token of the class."""
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    layers = Decoder(
        dim=WIDTH, depth=DEPTH, heads=HEADS, attn_flash=True, ff_glu=True, ff_swish=True, layer_dropout=0.0,
        attn_dropout=0.1, ff_dropout=0.1,
    )  # fmt: skip
    length = info.grid[0] * info.grid[1]
    starts = len(info.class_names or [""])
    return AutoregressiveWrapper(
        TransformerWrapper(num_tokens=info.codes + starts, max_seq_len=length + 1, attn_layers=layers)
    )


def prediction_losses(model: Any, tokens_NL: Tensor, labels_N: Tensor, codes: int, seed: int) -> Iterator[Tensor]:
    """Cross-entropy of random batches, a start token in front."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows_B = torch.randint(len(tokens_NL), (BATCH,), generator=generator)
        yield model(torch.cat([codes + labels_N[rows_B, None], tokens_NL[rows_B]], 1))


@torch.inference_mode()
def bits(model: Any, tokens_NL: Tensor, labels_N: Tensor, codes: int) -> float:
    """Per token, over all grids."""
    model.eval()
    pairs = zip(tokens_NL.split(64), labels_N.split(64), strict=True)
    sums = [float(model(torch.cat([codes + labels_B[:, None], grids], 1))) * len(grids) for grids, labels_B in pairs]
    return sum(sums) / len(tokens_NL) / math.log(2)


@torch.inference_mode()
def drawn(model: Any, labels_N: Tensor, info: TokenInfo) -> Tensor:
    """Grids (N, h, w); what is no token, which it seldom draws, is token 0."""
    model.eval()
    length = info.grid[0] * info.grid[1]
    whole = {"filter_logits_fn": lambda logits, **_: logits, "temperature": 1.0, "cache_kv": True}
    grids = [model.generate(info.codes + labels_B[:, None], length, **whole) for labels_B in labels_N.split(64)]
    tokens_NL = torch.cat(grids)
    return tokens_NL.masked_fill(tokens_NL >= info.codes, 0).view(-1, *info.grid)


@torch.inference_mode()
def measures(
    codec: VqModel, tokens_Nhw: Tensor, info: TokenInfo, networks: Networks, accelerator: Accelerator, picture: Path
) -> dict[str, float]:
    """What `judge.py --samples` finds, by features; writes the first drawings into one picture."""
    real = RealFeatures(networks, 64, accelerator)
    features, shown = features_of(decoded(tokens_Nhw, codec, 64), networks, len(tokens_Nhw), accelerator, "drawn")
    views, usual = training_views(real, info), held_out_features(real, info, codec)
    found: dict[str, float] = {}
    for name, drawn_ND in features.items():
        found |= dict(zip(MEASURES[name], distances(drawn_ND, views[name][0]), strict=False))  # but Inception's score
        near = [
            nearest(judged, *views[name], distance=between_features).distances_N for judged in (drawn_ND, usual[name])
        ]
        found[COPYING[name]] = copying(*near)
    save_grid(to_float(shown), picture, columns=8)
    return found


def main() -> None:
    """Train both stages, draw, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--prior", type=Path, required=True)
    parser.add_argument("--minutes", type=float, nargs=2, required=True, help="of the two stages, caching included")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inception", type=Path, metavar="PATH", help="as judge.py takes it")
    args = parser.parse_args()
    accelerator = make_accelerator()
    torch.manual_seed(args.seed)
    info = read_info(args.prior)
    training, held_out = (reference_images(info, split) for split in ("train", "validation"))
    began = time.perf_counter()
    codec = VqModel(info)
    steps = train(codec.model, reconstruction_losses(codec, training, args.seed), LEARNING_RATES[0], args.minutes[0])
    codec.model.eval()
    tokens_NL, labels_N = tokens_of(codec, training)
    model = gpt(info)
    losses = prediction_losses(model, tokens_NL, labels_N, info.codes, args.seed)
    more = train(model, losses, LEARNING_RATES[1], args.minutes[1])
    minutes = (time.perf_counter() - began) / 60
    unseen_HL, unseen_labels_H = tokens_of(codec, held_out)
    labels = labels_like(training, args.samples) if info.class_names else torch.zeros(args.samples).long()
    [images_HCHW] = [torch.cat([images for images, _ in validation_loader(held_out, 64)])]
    with torch.inference_mode():
        psnr = psnr_of(codec.detokenize(unseen_HL.view(-1, *info.grid)), images_HCHW).mean().item()
    networks = Networks(*open_networks(info.data.height_width, args.inception, accelerator.device))
    found = measures(codec, drawn(model, labels, info), info, networks, accelerator, Path("peer.png"))
    print(
        json.dumps(
            {
                "minutes": minutes, "steps": [steps, more], "psnr": psnr,
                "bits_unseen": bits(model, unseen_HL, unseen_labels_H, info.codes),
                "bits_training": bits(model, tokens_NL[:2000], labels_N[:2000], info.codes),
                "codes_in_use": len(tokens_NL.unique()) / info.codes, **found,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    run_command(main)
