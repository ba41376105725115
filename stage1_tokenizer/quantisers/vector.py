"""The vector quantiser: l2-normalised codes, straight-through gradients, a codebook that stays alive.

van den Oord et al. 2017, "Neural Discrete Representation Learning", on the unit sphere as in Yu et al. 2022,
"Vector-quantized Image Modeling with Improved VQGAN". Half the field swaps the two weights of the loss, so both are
named: see `codebook_loss`.

Shapes: B batch, H and W the token grid, D dimensions of a code, K codes, N = B * H * W, R remembered vectors.
"""

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from stage1_tokenizer.quantisers.lookup import nearest_codes
from stage1_tokenizer.quantisers.quantiser import Quantised, Quantiser, QuantiserOptions

MEMORY = 4  # encoder outputs remembered, in multiples of the number of codes: what new codes are chosen from


class VectorConfig(QuantiserOptions):
    """Options of the vector quantiser; the defaults are the reference recipe's."""

    kind: Literal["vector"] = "vector"
    codes: int = Field(16_384, ge=2, le=2**24)
    dim: int = Field(16, ge=1, le=4096)
    commitment_weight: float = Field(1.0, ge=0)  # of ||z_e - sg[z_q]||^2, which moves the encoder
    codebook_weight: float = Field(0.25, ge=0)  # of ||sg[z_e] - z_q||^2, which moves the codes
    warm_up: int = Field(4, ge=0)  # stay unquantised for warm_up x codes vectors, then take codes from encoder outputs
    revival_window: int = Field(16, ge=0)  # dead: won none of the last window x codes vectors; 0: no revival

    @property
    def warm_up_vectors(self) -> int:
        return self.warm_up * self.codes


class VectorQuantiser(Quantiser):
    """Replace each vector by the nearest of K unit vectors.

    The codebook is a parameter trained by gradient. Its initial values are encoder outputs, taken after an unquantised
    warm-up: codes drawn at random lie where no encoder output is, and nearly all die at once. Codes that win nothing
    over a window are replaced by recent encoder outputs (`maintain`).
    """

    counts_K: Tensor
    previous_counts_K: Tensor
    recent_RD: Tensor
    written: Tensor
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
        self.register_buffer("recent_RD", torch.zeros(MEMORY * config.codes, config.dim))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))  # vectors ever remembered
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # vectors since codes were last replaced

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
        remembered = min(int(self.written), len(self.recent_RD))
        if not self.initialised:
            if seen < self.config.warm_up * codes or remembered < codes:
                return 0
            self.initialised = True
            dead_K = torch.ones(codes, dtype=torch.bool, device=self.codebook.device)
        elif self.config.revival_window and seen >= self.config.revival_window * codes // 2:
            dead_K = self._slide_window() == 0
        else:
            return 0
        self.seen.zero_()
        replaced = dead_K.nonzero()[:remembered, 0]
        new_MD = spread(self.recent_RD[:remembered], self.codes_KD[~dead_K], len(replaced))
        self.codebook[replaced] = _from_first_rank(new_MD)
        for moment in optimizer.state.get(self.codebook, {}).values():
            if torch.is_tensor(moment) and moment.shape == self.codebook.shape:
                moment[replaced] = 0  # stale momentum would drag the new vectors away
        if averaged_codebook is not None:
            averaged_codebook[replaced] = self.codebook[replaced]
        return len(replaced)

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
        sample_MD = z_ND[:: -(-len(z_ND) * 8 // room)]
        places_M = (self.written + torch.arange(len(sample_MD), device=z_ND.device)) % room
        self.recent_RD[places_M] = sample_MD
        self.written += len(sample_MD)
        self.seen += len(z_ND)


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
            nearest_RD = known_KD[nearest_codes(remaining_RD, known_KD)]
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


def _from_first_rank(vectors: Tensor) -> Tensor:
    if _several_ranks():
        dist.broadcast(vectors, src=0)
    return vectors


def _all_reduce(counts: Tensor) -> None:
    if _several_ranks():
        dist.all_reduce(counts)
