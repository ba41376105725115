"""The entropy regulariser: each vector sure of its code, all codes used alike.

Chang et al. 2022 (MaskGIT) and Yu et al. 2023, "Language Model Beats Diffusion" (MAGVIT-v2), section 3.1:
L = mean_n H(p_n) - H(mean_n p_n), p_n the softmax of vector n's similarities over a temperature: inner products on the
unit sphere, distances off it.
Shapes: N vectors, n those of a tile, K codes, D dimensions.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TILE = 2**21  # probabilities held at once; a tile's are computed again in the backward pass


def entropy_loss(x_ND: Tensor, codes_KD: Tensor, temperature: float, by_distance: bool = False) -> Tensor:
    """Mean entropy of each vector's p minus the entropy of their mean p, in nats; scalar in [-log K, log K].

    p = softmax(x . codes / temperature) over the codes, or, for vectors that are not of length 1 and go to the nearest
    code, softmax(-||x - codes||^2 / (2 temperature)): of unit vectors they are the same. Gradients reach vectors and
    codes. Several ranks take each their own mean.
    """
    entropy, p_K = x_ND.new_zeros(()), x_ND.new_zeros(len(codes_KD))
    for x_nD in x_ND.split(max(1, TILE // len(codes_KD))):
        tile_entropy, tile_p_K = checkpoint(
            _sums, x_nD, codes_KD, temperature, by_distance, use_reentrant=False, preserve_rng_state=False
        )
        entropy, p_K = entropy + tile_entropy, p_K + tile_p_K
    mean_p_K = (p_K / len(x_ND)).clamp(min=1e-30)  # the entropy's slope at 0 is infinite
    return entropy / len(x_ND) - torch.special.entr(mean_p_K).sum()


def _sums(x_nD: Tensor, codes_KD: Tensor, temperature: float, by_distance: bool) -> tuple[Tensor, Tensor]:
    """Over a tile's vectors: the sum of the entropies of their p, and the sum (K,) of their p."""
    similarities_nK = x_nD @ codes_KD.T
    if by_distance:  # minus half the squared distance, but for ||x||^2 / 2, which is the same for every code
        similarities_nK = similarities_nK - codes_KD.square().sum(1) / 2
    log_p_nK = (similarities_nK / temperature).log_softmax(1)
    p_nK = log_p_nK.exp()
    return -(p_nK * log_p_nK).sum(), p_nK.sum(0)
