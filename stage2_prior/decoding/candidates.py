"""Several grids drawn for each image, of which one is kept that the prior finds neither unlikely nor too likely.

A token that was drawn by bad luck leads to places where the prior knows no likely token: torn pictures are among the
unlikeliest. The likeliest are flat, or mush. Both are the tails of what a prior draws, and real pictures are in neither
(typicality: Meister et al. 2023, "Locally Typical Sampling", there of single tokens).

Shapes: B images, N candidates for each, L grid length, K codes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.errors import UserError
from stage2_prior.prior import Prior

QUANTILE = 2 / 3  # the second likeliest of 4, the third of 8: there are more torn drawings than flat ones
MOST_CANDIDATES = 1000
ELEMENTS = 2**26  # logits at a time on a GPU; a CPU looks at one grid after another


def check_candidates(candidates: int) -> None:
    """Raise UserError for a number of candidates out of its range."""
    if not 1 <= candidates <= MOST_CANDIDATES:
        raise UserError(f"{candidates} candidates for an image: it must be from 1 to {MOST_CANDIDATES}")


def typical(prior: Prior, tokens_NBL: Tensor, labels_B: Tensor | None) -> Tensor:
    """(B, L): of the candidates of each image, the one at `QUANTILE` of their likelihoods, given its label if any.

    It does not depend on which other images are looked at.
    """
    likelihoods_NB = torch.stack([log_likelihoods(prior, tokens_BL, labels_B) for tokens_BL in tokens_NBL])
    kept = round(QUANTILE * (len(tokens_NBL) - 1))
    kept_B = likelihoods_NB.argsort(dim=0, stable=True)[kept]
    return tokens_NBL[kept_B, torch.arange(len(kept_B))]


def log_likelihoods(prior: Prior, tokens_BL: Tensor, labels_B: Tensor | None = None) -> Tensor:
    """(B,) float32 on the CPU: what the prior's own distribution says of each grid, in nats per token.

    tokens_BL, labels_B: on the CPU. Leaves the prior in eval mode.
    """
    return token_log_likelihoods(prior, tokens_BL, labels_B).mean(1)


@torch.inference_mode()
def token_log_likelihoods(prior: Prior, tokens_BL: Tensor, labels_B: Tensor | None = None) -> Tensor:
    """(B, L): the same of each token, given those before it."""
    device = prior.eval().norm.weight.device
    size = 1 if device.type == "cpu" else max(1, ELEMENTS // (prior.length * prior.codes))
    parts = torch.arange(len(tokens_BL)).split(size)
    return torch.cat([_of(prior, tokens_BL[part].to(device), _rows(labels_B, part)) for part in parts])


def _rows(labels_B: Tensor | None, rows_N: Tensor) -> Tensor | None:
    return None if labels_B is None else labels_B[rows_N]


def _of(prior: Prior, tokens_BL: Tensor, labels_B: Tensor | None) -> Tensor:
    logits_BLK = prior(prior.inputs(tokens_BL, labels_B))
    return -F.cross_entropy(logits_BLK.transpose(1, 2), tokens_BL, reduction="none").cpu()
