"""How often each code is chosen.

Shapes: B batch, H and W the token grid, Q tokens of one place, K codes that a token may name, N places.
"""

import torch
from torch import Tensor, nn

WINDOW = 16  # length of the sliding window, in multiples of the number of codes


def count_codes(tokens: Tensor, codes: int, tokens_per_place: int = 1) -> Tensor:
    """How often each code occurs in `tokens`, int64 of any shape in raster order: (Q * K,) int64.

    Where a place has Q tokens, each has a codebook of its own, though all share the ids 0 .. K - 1: the counts of the
    first codebook come first. A fraction of "all codes" is thus a fraction of Q * K.
    """
    first_code_Q = codes * torch.arange(tokens_per_place, device=tokens.device)
    codes_NQ = tokens.reshape(-1, tokens_per_place) + first_code_Q
    return torch.bincount(codes_NQ.flatten(), minlength=codes * tokens_per_place)


class CodeCounts(nn.Module):
    """Counts over a window of `WINDOW` x (Q * K) tokens, half of it to all of it, that slides in halves."""

    counts_K: Tensor
    previous_counts_K: Tensor

    def __init__(self, codes: int, tokens_per_place: int = 1) -> None:
        super().__init__()
        self.codes, self.tokens_per_place = codes, tokens_per_place
        for name in ("counts_K", "previous_counts_K"):
            self.register_buffer(name, torch.zeros(tokens_per_place * codes, dtype=torch.int64))

    @torch.no_grad()
    def add(self, tokens_BHW: Tensor) -> None:
        """Count one batch; begins the next half of the window where this one is full."""
        full = 2 * self.counts_K.sum() >= WINDOW * len(self.counts_K)
        self.previous_counts_K.copy_(torch.where(full, self.counts_K, self.previous_counts_K))
        self.counts_K.mul_(~full).add_(count_codes(tokens_BHW, self.codes, self.tokens_per_place))

    def window(self) -> Tensor:
        """(Q * K,) int64."""
        return self.counts_K + self.previous_counts_K
