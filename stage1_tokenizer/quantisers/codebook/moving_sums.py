"""A codebook that follows its vectors' moving average. Shapes: N vectors, K codes, D dimensions, M replaced codes.

van den Oord et al. 2017, "Neural Discrete Representation Learning", appendix A.1; Razavi et al. 2019 (VQ-VAE-2).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage1_tokenizer.quantisers.quantiser import all_reduced

SMOOTHING = 1e-5  # sonnet's epsilon: in Laplace's rule, the wins that each code is given beside its own


class MovingSums(nn.Module):
    """Decaying sums of the vectors each code won; their directions are the codes.

    The papers divide each sum by a decaying count, smoothed after Laplace. That changes a sum's length but not its
    direction, and on the unit sphere only the direction is used: so there are no counts, and nothing to smooth.
    """

    sums_KD: Tensor
    step_sums_KD: Tensor

    def __init__(self, codes_KD: Tensor, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("sums_KD", codes_KD.detach().clone())
        self.register_buffer("step_sums_KD", torch.zeros_like(codes_KD), persistent=False)

    @torch.no_grad()
    def add(self, tokens_N: Tensor, x_ND: Tensor) -> None:
        """Note that these codes won these vectors, in the current optimiser step."""
        self.step_sums_KD.index_add_(0, tokens_N, x_ND)

    @torch.no_grad()
    def move(self, codes_KD: Tensor, step_counts_K: Tensor) -> None:
        """At the step's end, move the codes in place: sums = decay * sums + (1 - decay) * the step's, of all ranks.

        A code that won nothing, on any rank, stays where it is: its direction could only lose precision.
        """
        self.sums_KD.lerp_(all_reduced(self.step_sums_KD), 1 - self.decay)
        won_K1 = (step_counts_K > 0)[:, None]
        codes_KD.copy_(torch.where(won_K1, self._places(step_counts_K), codes_KD))
        self.step_sums_KD.zero_()

    @torch.no_grad()
    def reset(self, replaced_M: Tensor, codes_MD: Tensor) -> None:
        """Forget what replaced codes had won; the new ones count as one vector each."""
        self.sums_KD[replaced_M] = codes_MD

    def _places(self, step_counts_K: Tensor) -> Tensor:
        """Where the sums put each code: (K, D)."""
        return F.normalize(self.sums_KD, dim=1)


class MovingMeans(MovingSums):
    """Off the sphere length matters too: each sum over a decaying count of the vectors in it is the code.

    Appendix A.1, equations 6 to 8, with the counts smoothed after Laplace as in sonnet's VectorQuantizerEMA: (count +
    epsilon) / (total + K epsilon) * total. A code that won nothing stays where it is, as on the sphere.
    """

    decayed_counts_K: Tensor

    def __init__(self, codes_KD: Tensor, decay: float) -> None:
        super().__init__(codes_KD, decay)
        self.register_buffer("decayed_counts_K", torch.ones(len(codes_KD), device=codes_KD.device))

    @torch.no_grad()
    def reset(self, replaced_M: Tensor, codes_MD: Tensor) -> None:
        super().reset(replaced_M, codes_MD)
        self.decayed_counts_K[replaced_M] = 1.0

    def _places(self, step_counts_K: Tensor) -> Tensor:
        counts_K = self.decayed_counts_K
        counts_K.lerp_(step_counts_K.to(counts_K.dtype), 1 - self.decay)
        total = counts_K.sum()
        smoothed_K = (counts_K + SMOOTHING) / (total + len(counts_K) * SMOOTHING) * total
        return self.sums_KD / smoothed_K[:, None]
