"""Choosing new codes among remembered vectors. Shapes: R remembered vectors, K codes, D dimensions."""

import torch
from torch import Tensor

from stage1_tokenizer.quantisers.codebook.lookup import nearest_by_distance


def spread(vectors_RD: Tensor, codes_KD: Tensor, count: int) -> Tensor:
    """Choose `count` of the vectors as new codes beside `codes_KD`, far from one another: (count, D).

    By D^2 sampling in rounds (k-means++, Arthur & Vassilvitskii 2007; rounds as in Bahmani et al. 2012): a vector's
    chance is its squared distance from the nearest code so far. Chosen uniformly, half of all codes would be variants
    of an image's blank background, and say nothing a prior could predict.
    """
    chosen = vectors_RD.new_empty(0, vectors_RD.shape[1])
    remaining_RD = vectors_RD
    while len(chosen) < count:
        known_KD = torch.cat([codes_KD, chosen])
        if len(known_KD):
            nearest_RD = known_KD[nearest_by_distance(remaining_RD, known_KD)]
            weight_R = (remaining_RD - nearest_RD).square().sum(1) + 1e-9
        else:
            weight_R = torch.ones(len(remaining_RD), device=vectors_RD.device)
        # Each round at most doubles the codes, so that those of one round rarely crowd the same empty place.
        size = min(count - len(chosen), max(len(known_KD), 64), len(remaining_RD))
        # The largest of log(u) / weight: weighted sampling without replacement (Efraimidis & Spirakis 2006).
        picked = (torch.rand(len(weight_R)).to(weight_R.device).log() / weight_R).topk(size).indices
        chosen = torch.cat([chosen, remaining_RD[picked]])
        remaining_RD = remaining_RD[_others(picked, len(remaining_RD))]
    return chosen


def _others(picked: Tensor, count: int) -> Tensor:
    mask = torch.ones(count, dtype=torch.bool, device=picked.device)
    mask[picked] = False
    return mask
