"""Tokens replaced by others near them, so that a decoder learns to forgive what a prior will get wrong.

After the latent perturbation of Qiu et al. 2025, "Robust Latent Matters: Boosting Image Generation with Sampling Error
Synthesis" (RobusTok, arXiv 2503.08354). There codes near the encoder's vector are taken, here those near its code, so
that tokens suffice, of any quantiser.

Shapes: B images, H and W the token grid, Q tokens of one place, K codes, D dimensions, N tokens, n those replaced.
"""

import zlib

import torch
from torch import Tensor

from stage1_tokenizer.quantisers.codebook.lookup import full_float32
from stage1_tokenizer.quantisers.quantiser import Quantiser

TILE = 2**21  # distances held at once: 8 MiB


class TokenNoise:
    """Replaces a share of the tokens of a training batch, which falls linearly to none over the run."""

    def __init__(self, share: float, neighbours: int) -> None:
        """share: of all tokens, at the start. neighbours: the codes that one is taken from, the nearest others."""
        self.share, self.neighbours, self.left = share, neighbours, 1.0

    def begin_step(self, progress: float) -> None:
        """Set what is left of the share, given the fraction of the run that is over."""
        self.left = 1.0 - progress

    @torch.compiler.disable
    @torch.no_grad()
    def __call__(self, tokens_BHW: Tensor, quantiser: Quantiser) -> Tensor:
        """Tokens (B, H, W * Q) of which a share is replaced, by torch's global generator."""
        total, device = tokens_BHW.numel(), tokens_BHW.device
        count = round(self.share * self.left * total)
        places_n, draws_n = torch.randperm(total, device=device)[:count], torch.rand(count, device=device)
        return replaced(tokens_BHW, places_n, draws_n, quantiser, self.neighbours)


@torch.no_grad()
def own_noise(tokens_BHW: Tensor, quantiser: Quantiser, share: float, neighbours: int) -> Tensor:
    """Tokens (B, H, W * Q), of each image a share replaced, at least one, by random numbers that its tokens decide.

    So a grid's noise is the same beside whichever others, in whichever process.
    """
    total = tokens_BHW[0].numel()
    count = max(1, round(share * total))
    places, draws = [], []
    for number, tokens_HW in enumerate(tokens_BHW.cpu()):
        generator = torch.Generator().manual_seed(zlib.crc32(tokens_HW.contiguous().numpy().tobytes()))
        places.append(number * total + torch.randperm(total, generator=generator)[:count])
        draws.append(torch.rand(count, generator=generator))
    device = tokens_BHW.device
    return replaced(tokens_BHW, torch.cat(places).to(device), torch.cat(draws).to(device), quantiser, neighbours)


def replaced(tokens_BHW: Tensor, places_n: Tensor, draws_n: Tensor, quantiser: Quantiser, neighbours: int) -> Tensor:
    """Tokens with those at these places, counted in raster order, replaced by one of their nearest other codes each.

    draws_n: in [0, 1), which of them, from the nearest to the farthest.
    """
    tokens_N = tokens_BHW.flatten().clone()
    levels = quantiser.tokens_per_place
    for level, codes_KD in enumerate(quantiser.codes_KD.unflatten(1, (levels, -1)).unbind(1)):
        mine = slice(None) if levels == 1 else places_n % levels == level
        places, draws = places_n[mine], draws_n[mine]
        near = nearest_others(tokens_N[places], codes_KD, neighbours)
        which = (draws * near.shape[1]).long()
        tokens_N[places] = near.gather(1, which[:, None])[:, 0]
    return tokens_N.view_as(tokens_BHW)


def nearest_others(tokens_n: Tensor, codes_KD: Tensor, count: int) -> Tensor:
    """For each token the `count` other codes at the smallest Euclidean distance from its own, or all if they are fewer.

    (n, count) int64, the nearest first. Holds a tile of distances, or one row of them where there are more codes.
    """
    with torch.autocast(codes_KD.device.type, enabled=False), full_float32():
        codes_KD = codes_KD.float()
        half_K = codes_KD.square().sum(1) / 2
        rows = max(1, TILE // len(codes_KD))
        return torch.cat([_nearest(part, codes_KD, half_K, count) for part in tokens_n.split(rows)])


def _nearest(tokens_n: Tensor, codes_KD: Tensor, half_K: Tensor, count: int) -> Tensor:
    nearness_nK = codes_KD[tokens_n] @ codes_KD.T - half_K  # half of minus the squared distance, and a constant
    nearness_nK.scatter_(1, tokens_n[:, None], -torch.inf)
    return nearness_nK.topk(min(count, len(codes_KD) - 1)).indices
