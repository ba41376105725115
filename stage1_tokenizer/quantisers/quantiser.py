"""What every quantiser offers, and what all have in common: the count of what their codes won, and a word on vectors
that are not finite. `tokenizer.py` names the kinds.

Shapes: B batch, H and W the token grid, D dimensions of a vector, Q tokens of one place, K codes.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shared.config import Config
from shared.errors import UserError

WINDOW = 16  # how many times K vectors the counts reach back, where no revival says otherwise


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
    """`z_BHWD` codes (straight-through), `tokens_BHW` int64 (None while unquantised), `loss` scalar float32.

    Where one place has Q tokens, they stand side by side: `tokens_BHW` is then (B, H, W * Q).
    """

    z_BHWD: Tensor
    tokens_BHW: Tensor | None
    loss: Tensor


class Quantiser(nn.Module, ABC):
    """Vectors to tokens and back. `forward`, for training, takes vectors (B, H, W, D) and returns `Quantised`.

    Counts the codes' wins over a sliding window, on all ranks together.

    Counts are summed over ranks once an optimiser step (`maintain`), so that every rank holds the same: rank 0's
    checkpoint is right for all of them, and decisions taken on counts are the same everywhere.
    """

    initialised = True  # False while vectors pass unquantised
    counts_K: Tensor
    previous_counts_K: Tensor
    step_counts_K: Tensor
    seen: Tensor
    not_finite: Tensor

    def __init__(self, codes: int, window: int = WINDOW) -> None:
        super().__init__()
        self.half_window = window * codes // 2  # vectors of one rank
        # The window slides in halves.
        self.register_buffer("counts_K", torch.zeros(codes, dtype=torch.int64))
        self.register_buffer("previous_counts_K", torch.zeros(codes, dtype=torch.int64))
        self.register_buffer("step_counts_K", torch.zeros(codes, dtype=torch.int64), persistent=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # this rank's vectors since the last slide
        self.register_buffer("not_finite", torch.zeros((), dtype=torch.bool), persistent=False)

    @property
    @abstractmethod
    def codes_KD(self) -> Tensor:
        """A vector for each token of the vocabulary, float32: what stage two may know of the codes."""

    @abstractmethod
    def tokenize(self, z_BHWD: Tensor) -> Tensor:
        """Tokens (B, H, W * Q) int64 of vectors; the same in training mode and out of it, and nothing is counted."""

    @abstractmethod
    def lookup(self, tokens_BHW: Tensor) -> Tensor:
        """Vectors (B, H, W, D) float32 of tokens (B, H, W * Q)."""

    def begin_step(self, progress: float) -> None:
        """Called before each optimiser step with the fraction of the run that is over; for what is annealed."""

    def check_finite(self, images: int) -> None:
        """UserError where a vector of this step was NaN or infinite; call once a step, before the optimiser's.

        Forward passes only set a flag on their device: reading it here waits for nothing that the norm of the
        gradient, which the training loop reads next, does not wait for too.
        """
        if self.not_finite:
            raise UserError(
                f"the encoder's output is not finite in the step after {images} images: lower training.learning_rate, "
                "or train with training.precision=fp32. The last checkpoint is whole"
            )

    @torch.no_grad()
    def maintain(self, optimizer: torch.optim.Optimizer, averaged_codebook: Tensor | None = None) -> int:
        """Called after each optimiser step on every rank; returns how many codes were replaced."""
        self._gather_counts()
        if int(self.seen) >= self.half_window:
            self._slide_window()
        return 0

    def window_counts(self) -> Tensor:
        """How often each code won over the sliding window (half to whole), all ranks together: (K,) int64.

        Where a place has Q tokens, the codes of its first token come first: (Q * K,), as in `count_codes`.
        """
        return self.counts_K + self.previous_counts_K

    def _note_finite(self, z: Tensor) -> None:
        """In training, note for `check_finite` whether vectors are not finite; in eval mode raise UserError at once."""
        if self.training:
            self.not_finite |= ~z.isfinite().all()
        else:
            require_finite(z)

    def _count(self, tokens: Tensor) -> None:
        # Not bincount, which on CUDA waits for the device, and which torch.compile cannot trace.
        self.step_counts_K.index_add_(0, tokens.flatten(), torch.ones_like(tokens.flatten()))

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


def number_codes(tokens: Tensor, codes: int, tokens_per_place: int) -> Tensor:
    """Tokens of any shape in raster order -> which of all Q * K codes each is, (N, Q) int64.

    The tokens of a place have a codebook each, though all share the ids 0 .. K - 1.
    """
    first_code_Q = codes * torch.arange(tokens_per_place, device=tokens.device)
    return tokens.reshape(-1, tokens_per_place) + first_code_Q


def count_codes(tokens: Tensor, codes: int, tokens_per_place: int) -> Tensor:
    """How often each code occurs in tokens of any shape in raster order: (Q * K,) int64, the first token's codes first.

    A fraction of "all codes" is thus a fraction of Q * K.
    """
    numbers = number_codes(tokens, codes, tokens_per_place)
    return torch.bincount(numbers.flatten(), minlength=codes * tokens_per_place)


def require_finite(z: Tensor) -> None:
    """UserError where a vector is NaN or infinite."""
    if not z.isfinite().all():
        raise UserError("the encoder's output is not finite, so it has no tokens: these weights have diverged")


def perplexity(counts_K: Tensor) -> Tensor:
    """exp of the entropy of the codes' use: K when all are used equally, 1 when one takes all. Scalar float32."""
    p_K = counts_K.double() / counts_K.sum().clamp(min=1)
    return torch.exp(-(p_K * p_K.clamp(min=1e-30).log()).sum()).float()


def usage(counts_K: Tensor) -> Tensor:
    """Fraction of all K codes that won at least one vector."""
    return (counts_K > 0).float().mean()


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
