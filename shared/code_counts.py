"""How often codes occur, and how evenly: what both stages say of a codebook.

Shapes: Q tokens of one place, K codes that a token may name, N places.
"""

import torch
from torch import Tensor

from shared.training.devices.precision import widest


def code_numbers(tokens: Tensor, codes: int, tokens_per_place: int = 1) -> Tensor:
    """Tokens, int64 of any shape in raster order, numbered through all codebooks: (N * Q,) int64 in 0 .. Q * K - 1.

    Where a place has Q tokens, each has a codebook of its own, though all share the ids 0 .. K - 1.
    """
    first_code_Q = codes * torch.arange(tokens_per_place, device=tokens.device)
    return (tokens.reshape(-1, tokens_per_place) + first_code_Q).flatten()


def count_codes(tokens: Tensor, codes: int, tokens_per_place: int = 1) -> Tensor:
    """How often each code occurs in `tokens`, int64 of any shape in raster order: (Q * K,) int64.

    The counts of a place's first codebook come first. A fraction of "all codes" is thus a fraction of Q * K.
    """
    return torch.bincount(code_numbers(tokens, codes, tokens_per_place), minlength=codes * tokens_per_place)


def perplexity(counts_K: Tensor) -> Tensor:
    """exp of the entropy of the codes' use: K when all are used equally, 1 when one takes all. Scalar float32."""
    p_K = counts_K.to(widest(counts_K.device)) / counts_K.sum().clamp(min=1)
    return torch.exp(-(p_K * p_K.clamp(min=1e-30).log()).sum()).float()


def usage(counts_K: Tensor) -> Tensor:
    """Fraction of all K codes that occur at least once. Scalar float32."""
    return (counts_K > 0).float().mean()
