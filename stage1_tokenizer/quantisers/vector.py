"""The vector quantiser: l2-normalised codes, straight-through gradients, a codebook that stays alive.

van den Oord et al. 2017, "Neural Discrete Representation Learning", on the unit sphere as in Yu et al. 2022,
"Vector-quantized Image Modeling with Improved VQGAN". Half the field swaps the two weights of the loss, so both are
named: see `codebook_loss`.

Shapes: B batch, H and W the token grid, D dimensions of a code, K codes, N = B * H * W, R remembered vectors.
"""

from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from shared.config import Config
from stage1_tokenizer.quantisers.lookup import nearest_codes


class VectorConfig(Config):
    """Options of the vector quantiser; the defaults are the reference recipe's."""

    kind: Literal["vector"] = "vector"
    codes: PositiveInt = 16_384
    dim: PositiveInt = 16
    commitment_weight: float = Field(1.0, ge=0)  # of ||z_e - sg[z_q]||^2, which moves the encoder
    codebook_weight: float = Field(0.25, ge=0)  # of ||sg[z_e] - z_q||^2, which moves the codes
    warm_up: int = Field(4, ge=0)  # stay unquantised for warm_up x codes vectors, then take codes from encoder outputs
    revival_window: int = Field(16, ge=0)  # dead: won none of the last window x codes vectors; 0: no revival


class Quantised(NamedTuple):
    """`z_BHWD` codes (straight-through), `tokens_BHW` int64 (None while unquantised), `loss` scalar float32."""

    z_BHWD: Tensor
    tokens_BHW: Tensor | None
    loss: Tensor


class VectorQuantiser(nn.Module):
    """Replace each vector by the nearest of K unit vectors.

    The codebook is a parameter trained by gradient. Its initial values are encoder outputs, taken after an unquantised
    warm-up: codes drawn at random lie where no encoder output is, and nearly all die at once. Codes that win nothing
    over a window are replaced by recent encoder outputs (`maintain`).
    """

    counts_K: Tensor
    previous_counts_K: Tensor
    recent_RD: Tensor
    seen: Tensor

    def __init__(self, config: VectorConfig) -> None:
        super().__init__()
        self.config = config
        codes_KD = F.normalize(torch.randn(config.codes, config.dim), dim=1)
        self.codebook = nn.Parameter(codes_KD)
        self.codebook._no_weight_decay = True  # type: ignore[attr-defined]
        self.initialised = config.warm_up == 0
        # The window slides in halves: dead is what won nothing in either.
        self.register_buffer("counts_K", torch.zeros(config.codes, dtype=torch.int64))
        self.register_buffer("previous_counts_K", torch.zeros(config.codes, dtype=torch.int64))
        self.register_buffer("recent_RD", torch.zeros(config.codes, config.dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # vectors, over all ranks

    @property
    def codes_KD(self) -> Tensor:
        """The codes as they are used: unit vectors (K, D), float32."""
        return F.normalize(self.codebook.float(), dim=1)

    def forward(self, z_BHWD: Tensor) -> Quantised:
        """Quantise encoder outputs of any length; in training mode also counts and remembers them."""
        with torch.autocast(z_BHWD.device.type, enabled=False):
            z_BHWD = F.normalize(z_BHWD.float(), dim=-1)
            if self.training:
                self._remember(z_BHWD.detach().flatten(0, -2))
            if not self.initialised:
                # The codebook takes part, with a gradient of 0: processes that share gradients wait for every weight.
                return Quantised(z_BHWD, None, 0.0 * self.codebook.float().sum())
            tokens_BHW = self.tokenize(z_BHWD)
            if self.training:
                self.counts_K += torch.bincount(tokens_BHW.flatten(), minlength=self.config.codes)
            q_BHWD = F.normalize(F.embedding(tokens_BHW, self.codebook.float()), dim=-1)
            loss = codebook_loss(z_BHWD, q_BHWD, self.config.commitment_weight, self.config.codebook_weight)
            return Quantised(straight_through(z_BHWD, q_BHWD), tokens_BHW, loss)

    @torch.no_grad()
    def tokenize(self, z_BHWD: Tensor) -> Tensor:
        """Indices (B, H, W) int64 of the nearest codes."""
        z_BHWD = F.normalize(z_BHWD.float(), dim=-1)
        return nearest_codes(z_BHWD.flatten(0, -2), self.codes_KD).view(z_BHWD.shape[:-1])

    def lookup(self, tokens_BHW: Tensor) -> Tensor:
        """Codes (B, H, W, D) of tokens."""
        return F.embedding(tokens_BHW, self.codes_KD)

    @torch.no_grad()
    def maintain(self, optimizer: torch.optim.Optimizer, averaged_codebook: Tensor | None = None) -> int:
        """Initialise the codebook when it is time, and revive dead codes; call after each optimiser step.

        `averaged_codebook` is the codebook's exponential moving average, if one is kept: new codes enter it at once.
        Returns how many codes were replaced. Every rank replaces the same codes by the same vectors.
        """
        seen, codes = int(self.seen), self.config.codes
        if not self.initialised:
            if seen < self.config.warm_up * codes:
                return 0
            self.initialised = True
            replaced_K = torch.ones(codes, dtype=torch.bool, device=self.codebook.device)
        elif self.config.revival_window and seen >= self.config.revival_window * codes // 2:
            replaced_K = self._slide_window() == 0
        else:
            return 0
        self.seen.zero_()
        count = int(replaced_K.sum())
        self.codebook[replaced_K] = self._draw_recent(count)
        for moment in optimizer.state.get(self.codebook, {}).values():
            if torch.is_tensor(moment) and moment.shape == self.codebook.shape:
                moment[replaced_K] = 0  # stale momentum would drag the new vectors away
        if averaged_codebook is not None:
            averaged_codebook[replaced_K] = self.codebook[replaced_K]
        return count

    def window_counts(self) -> Tensor:
        """How often each code won over the sliding window (half to whole), (K,) int64; this rank's."""
        return self.counts_K + self.previous_counts_K

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.initialised)

    def set_extra_state(self, state: Tensor) -> None:
        self.initialised = bool(state)

    def _slide_window(self) -> Tensor:
        counts_K = self.window_counts()
        _all_reduce(counts_K)
        self.previous_counts_K.copy_(self.counts_K)
        self.counts_K.zero_()
        return counts_K

    @torch.no_grad()
    def _remember(self, z_ND: Tensor) -> None:
        """Write a sample of the vectors over the oldest; at most an eighth of the memory a step, so that steps mix."""
        room = len(self.recent_RD)
        sample_MD = z_ND[:: max(1, len(z_ND) * 8 // room)]
        place = self.seen * len(sample_MD) // len(z_ND)
        places_M = (place + torch.arange(len(sample_MD), device=z_ND.device)) % room
        self.recent_RD[places_M] = sample_MD
        self.seen += len(z_ND)

    def _draw_recent(self, count: int) -> Tensor:
        places = torch.randperm(len(self.recent_RD), device="cpu")[:count].to(self.recent_RD.device)
        vectors_MD = self.recent_RD[places]
        if _several_ranks():
            dist.broadcast(vectors_MD, src=0)
        return vectors_MD


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """Exactly `q` going forward; going back, the gradient passes to `z` as if it had not been quantised."""
    return q.detach() + (z - z.detach())


def codebook_loss(z: Tensor, q: Tensor, commitment_weight: float, codebook_weight: float) -> Tensor:
    """commitment_weight * ||z - sg[q]||^2 + codebook_weight * ||sg[z] - q||^2, means over all elements.

    taming-transformers' default ("legacy") is commitment 1, codebook 0.25, which is also the reference recipe;
    van den Oord et al. (2017, eq. 3) have commitment 0.25, codebook 1.
    """
    return commitment_weight * F.mse_loss(z, q.detach()) + codebook_weight * F.mse_loss(q, z.detach())


def perplexity(counts_K: Tensor) -> Tensor:
    """exp of the entropy of the codes' use: K when all are used equally, 1 when one takes all. Scalar float32."""
    p_K = counts_K.double() / counts_K.sum().clamp(min=1)
    return torch.exp(-(p_K * p_K.clamp(min=1e-30).log()).sum()).float()


def usage(counts_K: Tensor) -> Tensor:
    """Fraction of all K codes that won at least one vector."""
    return (counts_K > 0).float().mean()


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _all_reduce(counts: Tensor) -> None:
    if _several_ranks():
        dist.all_reduce(counts)
