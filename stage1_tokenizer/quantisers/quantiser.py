"""What every quantiser offers: vectors to tokens and back, and the count of what its codes won.

`tokenizer.py` names the kinds. Shapes: B batch, H and W the token grid, D dimensions of a vector, Q tokens of one
place, K codes that a token may name.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shared.code_counts import code_numbers
from shared.config import Config
from shared.errors import UserError

WINDOW = 16  # length of the sliding window, in multiples of the number of codes, where no revival says otherwise


class QuantiserOptions(Config):
    """Base of every quantiser's options, which also say `kind`, `codes` (tokens are 0 .. codes - 1) and `dim` (D)."""

    @property
    def tokens_per_place(self) -> int:
        """How many tokens, side by side in the grid, stand for one vector."""
        return 1

    @property
    def warm_up_vectors(self) -> int:
        """Vectors that pass unquantised before there is a codebook."""
        return 0


class Quantised(NamedTuple):
    """`z_BHWD` codes with gradients to the vectors, `tokens_BHW` int64 (None while unquantised), `loss` scalar float32.

    Where one place has Q tokens, they stand side by side: `tokens_BHW` is then (B, H, W * Q).
    """

    z_BHWD: Tensor
    tokens_BHW: Tensor | None
    loss: Tensor


class Quantiser(nn.Module, ABC):
    """`forward`, for training, takes vectors (B, H, W, D) of any precision and returns `Quantised`, in float32.

    It counts the codes' wins over a sliding window, on all ranks together: counts are summed over ranks once an
    optimiser step (`maintain`), so that every rank holds the same. Rank 0's checkpoint is then right for all of them,
    and decisions taken on counts are the same everywhere.
    """

    initialised = True  # False while vectors pass unquantised
    counts_K: Tensor
    previous_counts_K: Tensor
    step_counts_K: Tensor
    seen: Tensor

    def __init__(self, codes: int, tokens_per_place: int = 1, window: int = WINDOW) -> None:
        super().__init__()
        self.codes, self.tokens_per_place = codes, tokens_per_place
        self.half_window = window * codes // 2  # vectors
        zeros_K = torch.zeros(tokens_per_place * codes, dtype=torch.int64)
        # The window slides in halves.
        self.register_buffer("counts_K", zeros_K.clone())
        self.register_buffer("previous_counts_K", zeros_K.clone())
        self.register_buffer("step_counts_K", zeros_K.clone(), persistent=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # vectors of all ranks since the last slide

    @property
    @abstractmethod
    def codes_KD(self) -> Tensor:
        """A vector for each token of the vocabulary, float32: what stage two may know of the codes."""

    @abstractmethod
    def tokenize(self, z_BHWD: Tensor) -> Tensor:
        """Tokens (B, H, W * Q) int64 of vectors; the same in training mode and out of it, and nothing is counted.

        Raises UserError for vectors that are not finite.
        """

    @abstractmethod
    def lookup(self, tokens_BHW: Tensor) -> Tensor:
        """Vectors (B, H, W, D) float32 of tokens (B, H, W * Q)."""

    def begin_step(self, progress: float) -> None:
        """Called before each optimiser step with the fraction of the run that is over; for what is annealed."""

    @torch.no_grad()
    def maintain(self, optimizer: torch.optim.Optimizer, averaged_codebook: Tensor | None = None) -> int:
        """Look after the codebook once an optimiser step is done, on every rank; returns how many codes were replaced.

        `averaged_codebook` is the moving average of the parameter `codebook`, where there is one.
        """
        self._gather_counts()
        if int(self.seen) >= self.half_window:
            self._slide_window()
        return 0

    def window_counts(self) -> Tensor:
        """How often each code won over the sliding window (half to whole), all ranks together: (Q * K,) int64."""
        return self.counts_K + self.previous_counts_K

    def _count(self, tokens_BHW: Tensor) -> None:
        """Count one forward pass of training."""
        numbers_N = code_numbers(tokens_BHW, self.codes, self.tokens_per_place)
        # Not bincount, which on CUDA waits for the device, and which torch.compile cannot trace.
        self.step_counts_K.index_add_(0, numbers_N, torch.ones_like(numbers_N))

    def _gather_counts(self) -> Tensor:
        """Add this step's counts, of all ranks, to the window, and return them."""
        step_counts_K = all_reduced(self.step_counts_K.clone())
        self.counts_K += step_counts_K
        self.step_counts_K.zero_()
        return step_counts_K

    def _slide_window(self) -> None:
        self.previous_counts_K.copy_(self.counts_K)
        self.counts_K.zero_()
        self.seen.zero_()


def require_finite(z: Tensor) -> None:
    """UserError where a vector is NaN or infinite."""
    if not z.isfinite().all():
        raise UserError("the encoder's output is not finite, so it has no tokens: these weights have diverged")


def ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduced(tensor: Tensor) -> Tensor:
    """The sum of every rank's `tensor`, in place."""
    if ranks() > 1:
        dist.all_reduce(tensor)
    return tensor


def from_first_rank(tensor: Tensor) -> Tensor:
    """Rank 0's `tensor`, in place."""
    if ranks() > 1:
        dist.broadcast(tensor, src=0)
    return tensor
