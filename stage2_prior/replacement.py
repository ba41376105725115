"""Tokens replaced at random in training.

In what a prior predicts from (context noise), so that its own mistakes do not lead it astray when it draws. After reAR
(He et al. 2025, "Rethinking visual autoregressive models via generator-tokenizer consistency regularisation"): ever
fewer tokens as training goes on.

In what it is to predict (label smoothing), so that it is never wholly sure. Drawn anew each time, a share s of other
targets is, in expectation, the loss of a target that holds 1 - s of a token and s of the others (Szegedy et al. 2016,
"Rethinking the Inception architecture for computer vision", section 7).

Shapes: B batch, L length, K codes, N neighbours, D dimensions of a code.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from shared.runs.token_cache import TokenCache
from stage2_prior.run_config import PriorTrainingConfig

PART = 1024  # codes whose neighbours are looked for at once


@dataclass(frozen=True)
class Replacement:
    """share: of the tokens replaced. codes: of how many. neighbours_KN: by which ones; None: by any."""

    share: float
    codes: int
    neighbours_KN: Tensor | None = None

    @classmethod
    def of(cls, share: float, config: PriorTrainingConfig, cache: TokenCache, device: torch.device) -> Self:
        """A share of the tokens of a cache, replaced by what a configuration says."""
        if not share or config.noise_neighbours is None:
            return cls(share, cache.info.codes)
        return cls(share, cache.info.codes, nearest_codes(cache.code_vectors_KD, config.noise_neighbours).to(device))

    def __call__(self, tokens_BL: Tensor, left: float = 1.0) -> Tensor:
        """Tokens of which a part is replaced, by torch's global generator. left: of the share, from 1 to 0."""
        if not self.share:
            return tokens_BL
        replaced_BL = torch.rand(tokens_BL.shape, device=tokens_BL.device) < self.share * left
        return torch.where(replaced_BL, self._others(tokens_BL), tokens_BL)

    def _others(self, tokens_BL: Tensor) -> Tensor:
        if self.neighbours_KN is None:
            return torch.randint_like(tokens_BL, self.codes)
        which_BL = torch.randint_like(tokens_BL, self.neighbours_KN.shape[1])
        return self.neighbours_KN[tokens_BL, which_BL]


def nearest_codes(code_vectors_KD: Tensor, count: int) -> Tensor:
    """(K, N) int64: of each code the `count` others whose vectors are nearest to its own, or all if they are fewer."""
    codes = len(code_vectors_KD)
    found = []
    for start in range(0, codes, PART):
        part = code_vectors_KD[start : start + PART].double()
        distances = torch.cdist(part, code_vectors_KD.double())
        distances[torch.arange(len(part)), torch.arange(start, start + len(part))] = torch.inf
        found.append(distances.topk(min(count, codes - 1), largest=False).indices)
    return torch.cat(found)
