"""Drawing a code from its logits: a stream of random numbers for each image, and a tree that they descend.

Shapes: B batch, V codes, U levels of the tree, E = 8 branches, N nodes of one level.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BRANCHES = 8  # of each node in the tree; more would be fewer steps, but more boundaries on the way to a leaf


def uniforms(seed: int, image: int, length: int, codes: int, candidate: int = 0) -> np.ndarray:
    """(length, levels) float64 in [0, 1): the random stream of one candidate for one image, on any device."""
    numbers = [seed, image, candidate] if candidate else [seed, image]
    return np.random.Generator(np.random.PCG64(numbers)).random((length, len(strides(codes))))


def draw(logits_BV: Tensor, uniforms_BU: Tensor) -> Tensor:
    """(B,) codes drawn by softmax(logits), choosing one of eight branches per level of a tree with a code at each leaf.

    One running sum over all codes would be as exact, but a batch of another size changes the last bits of every logit,
    and with them all 16,384 boundaries between codes: one draw in some hundred then falls on the other side of one.
    A tree has few boundaries on the way to a leaf, and each of its levels a random number of its own.
    """
    sizes, weights_BN = strides(logits_BV.shape[-1]), logits_BV.softmax(-1)
    levels: list[Tensor] = []  # of the tree, the leaves first, each in its branches
    for stride in sizes:
        levels.append(_branches(weights_BN, stride))
        weights_BN = levels[-1].sum(1)
    index_B1 = torch.zeros(len(logits_BV), 1, dtype=torch.long, device=logits_BV.device)
    uniforms_BU = uniforms_BU.clamp(max=1 - 2**-53)  # then uniform * total is less than the total, however it rounds
    for level_BEN, stride, uniform_B in zip(levels[::-1], sizes[::-1], uniforms_BU.unbind(1), strict=True):
        weights_BE = level_BEN.gather(2, index_B1[:, None].expand(-1, BRANCHES, -1))[..., 0]
        index_B1 = index_B1.add(_invert(weights_BE, uniform_B[:, None]), alpha=stride)
    return index_B1[:, 0]


def strides(codes: int) -> list[int]:
    """Nodes of each level of the tree, from the leaves' parents to the root: 16,384 codes have 2048, 256, 32, 4, 1."""
    strides: list[int] = []
    while codes > 1:
        codes = -(-codes // BRANCHES)
        strides.append(codes)
    return strides


def _branches(weights_BN: Tensor, stride: int) -> Tensor:
    """(B, E, stride): node i of the level above has the children i, i + stride, i + 2 stride, ... (or zeros)."""
    missing = BRANCHES * stride - weights_BN.shape[-1]
    if missing:  # padding by nothing is a copy
        weights_BN = F.pad(weights_BN, (0, missing))
    return weights_BN.unflatten(-1, (BRANCHES, stride))


def _invert(weights_BE: Tensor, uniform_B1: Tensor) -> Tensor:
    """The first index whose running sum exceeds uniform * total: it has a weight above zero, as the sum rose there."""
    sums_BE = weights_BE.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(sums_BE, uniform_B1 * sums_BE[:, -1:], right=True)
