"""The vector quantiser: l2-normalised codes, straight-through gradients, a codebook that stays alive.

van den Oord et al. 2017, "Neural Discrete Representation Learning", on the unit sphere as in Yu et al. 2022,
"Vector-quantized Image Modeling with Improved VQGAN". Half the field swaps the two weights of the loss, so both are
named: see `codebook_loss`.

Shapes: B batch, H and W the token grid, D dimensions of a code, K codes, N = B * H * W, R remembered vectors,
M replaced codes.
"""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from stage1_tokenizer.quantisers.codebook.entropy import entropy_loss
from stage1_tokenizer.quantisers.codebook.lookup import nearest_by_distance, nearest_codes
from stage1_tokenizer.quantisers.codebook.moving_sums import MovingMeans, MovingSums
from stage1_tokenizer.quantisers.codebook.spread import spread
from stage1_tokenizer.quantisers.gradients import diveq, rotate, straight_through
from stage1_tokenizer.quantisers.quantiser import (
    WINDOW,
    Quantised,
    Quantiser,
    QuantiserOptions,
    from_first_rank,
    ranks,
    require_finite,
)

MEMORY = 4  # encoder outputs remembered, in multiples of the number of codes: what new codes are chosen from
ENOUGH = 2**18  # vectors that show which codes are dead, however few steps they are of: the window of 16,384 codes


class VectorConfig(QuantiserOptions):
    """Options of the vector quantiser; the defaults are the reference recipe's."""

    kind: Literal["vector"] = "vector"
    codes: int = Field(16_384, ge=2, le=2**24)
    """How many codes there are."""
    dim: int = Field(16, ge=1, le=4096)
    """Dimensions of a code."""
    unit: bool = True
    """Whether vectors and codes lie on the unit sphere; false: they stay as they are, and the nearest is by Euclidean
    distance.
    """
    codebook: Literal["gradient", "ema"] = "gradient"
    """Whether codes are trained by the loss (gradient) or are the moving average of the vectors they won (ema)."""
    ema_decay: float = Field(0.99, ge=0, lt=1)
    """Decay of that moving average for each step."""
    gradient: Literal["straight_through", "rotation", "diveq"] = "straight_through"
    """How the gradient passes from code to encoder. With diveq it also reaches the codes, and in training the decoder
    gets each code moved a little at random; its paper has no other loss: both weights below are then 0.
    """
    direction_variance: float = Field(1e-3, ge=0)
    """Variance of the noise that turns the way from vector to code, in each dimension (gradient: diveq)."""
    commitment_weight: float = Field(1.0, ge=0)
    """Weight of ||z_e - sg[z_q]||^2, which moves the encoder."""
    codebook_weight: float = Field(0.25, ge=0)
    """Weight of ||sg[z_e] - z_q||^2, which moves the codes (codebook: gradient)."""
    entropy_weight: float = Field(0.0, ge=0)
    """Weight of a loss that favours confident vectors and evenly used codes (entropy.py); 0: not computed."""
    entropy_temperature: float = Field(0.01, gt=0)
    """Temperature of the softmax in that loss."""
    warm_up: int = Field(4, ge=0)
    """Vectors stay unquantised until warm_up x codes of them have come; then the codes are taken from among them."""
    revival_window: int = Field(16, ge=0)
    """A code is dead if neither the last (revival_window x codes) vectors nor those of the last revival_steps steps
    chose it. It is then reset to an encoder output. 0: never.
    """
    revival_steps: int = Field(32, ge=0)
    """For how many steps a code must go unchosen to be dead; 2**18 vectors are enough if the steps hold more."""

    @model_validator(mode="after")
    def _rotation_on_the_sphere(self) -> Self:
        if self.gradient == "rotation" and not self.unit:
            raise ValueError("gradient: rotation turns unit vectors: it needs unit: true")
        return self

    @model_validator(mode="after")
    def _diveq_trains_the_codes(self) -> Self:
        if self.gradient == "diveq" and self.codebook != "gradient":
            raise ValueError("gradient: diveq trains the codes: it needs codebook: gradient")
        return self

    @property
    def warm_up_vectors(self) -> int:
        return self.warm_up * self.codes


class VectorQuantiser(Quantiser):
    """Replace each vector by the nearest of K codes, which are unit vectors unless `unit: false`.

    The codebook is trained by gradient, or follows a moving average. Its initial values are encoder outputs, taken
    after an unquantised warm-up: codes drawn at random lie where no encoder output is, and nearly all die at once.
    Codes that win nothing over a window are replaced by recent encoder outputs (`maintain`). The window is of
    max(revival_window x codes, min(revival_steps steps, 2**18)) vectors, and slides by half. The second term is for
    small codebooks: 1,024 codes have 16,384 vectors by the first, the tokens of 64 images of 256, and half of the codes
    may be in none of so few. A window of 2**18 vectors, as 16,384 codes have it, or more is not lengthened.

    Every rank remembers its own encoder outputs, but all take their new codes from rank 0's. So nothing is lost when a
    checkpoint holds rank 0's memory only, and each rank starts again from that.
    """

    recent_RD: Tensor
    written: Tensor

    def __init__(self, config: VectorConfig) -> None:
        super().__init__(config.codes, window=config.revival_window or WINDOW)
        self.config = config
        codes_KD = F.normalize(torch.randn(config.codes, config.dim), dim=1)
        self.codebook = nn.Parameter(codes_KD, requires_grad=config.codebook == "gradient")
        self.codebook._no_weight_decay = True  # type: ignore[attr-defined]
        moving = MovingSums if config.unit else MovingMeans
        self.moving_sums = moving(codes_KD, config.ema_decay) if config.codebook == "ema" else None
        self.initialised = config.warm_up == 0
        self.register_buffer("recent_RD", torch.zeros(MEMORY * config.codes, config.dim))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))  # vectors ever remembered

    @property
    def codes_KD(self) -> Tensor:
        """The codes as they are used: (K, D) float32, unit vectors if `unit`."""
        return self._on_sphere(self.codebook)

    def forward(self, z_BHWD: Tensor) -> Quantised:
        """Quantise encoder outputs of any length; in training mode also counts and remembers them.

        Vectors that are not finite are a UserError in eval mode. In training they make the loss not finite, and the
        training loop then undoes the step, what is remembered here included.
        """
        with torch.autocast(z_BHWD.device.type, enabled=False):
            z_BHWD = self._on_sphere(z_BHWD)
            if self.training:
                self._remember(z_BHWD.detach().flatten(0, -2))
            else:
                require_finite(z_BHWD)
            if not self.initialised:
                # The codebook takes part, with a gradient of 0: processes that share gradients wait for every weight.
                return Quantised(z_BHWD, None, 0.0 * self.codebook.float().sum())
            tokens_BHW = self._nearest(z_BHWD.detach())
            if self.training:
                self._count(tokens_BHW)
                if self.moving_sums is not None:
                    self.moving_sums.add(tokens_BHW.flatten(), z_BHWD.detach().flatten(0, -2))
            q_BHWD = self._on_sphere(F.embedding(tokens_BHW, self.codebook))
            return Quantised(self._pass_gradient(z_BHWD, q_BHWD), tokens_BHW, self._loss(z_BHWD, q_BHWD))

    @torch.no_grad()
    def tokenize(self, z_BHWD: Tensor) -> Tensor:
        """Indices (B, H, W) int64 of the nearest codes. Raises UserError for vectors that are not finite."""
        require_finite(z_BHWD)
        return self._nearest(z_BHWD)

    def lookup(self, tokens_BHW: Tensor) -> Tensor:
        """Codes (B, H, W, D) of tokens."""
        return F.embedding(tokens_BHW, self.codes_KD)

    @torch.no_grad()
    def maintain(self, optimizer: torch.optim.Optimizer, averaged_codebook: Tensor | None = None) -> int:
        """Initialise the codebook when it is time, and revive dead codes; call after each optimiser step.

        `averaged_codebook` is the codebook's exponential moving average, if one is kept: new codes enter it at once.
        Returns how many codes were replaced. Every rank replaces the same codes by the same vectors.
        """
        step_counts_K = self._gather_counts()
        if self.initialised and self.moving_sums is not None:
            self.moving_sums.move(self.codebook, step_counts_K)
        remembered = min(int(self.written), len(self.recent_RD))
        dead_K = self._dead_codes(remembered, step_vectors=int(step_counts_K.sum()))
        if dead_K is None:
            return 0
        replaced_M = dead_K.nonzero()[:remembered, 0]
        new_MD = from_first_rank(spread(self.recent_RD[:remembered], self.codes_KD[~dead_K], len(replaced_M)))
        self._replace(replaced_M, new_MD, optimizer)
        if averaged_codebook is not None:
            averaged_codebook[replaced_M] = new_MD
        return len(replaced_M)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.initialised)

    def set_extra_state(self, state: Tensor) -> None:
        self.initialised = bool(state)

    def _nearest(self, z_BHWD: Tensor) -> Tensor:
        z_ND, codes_KD = self._on_sphere(z_BHWD).flatten(0, -2), self.codes_KD
        # On the sphere the nearest code is the one of the largest inner product.
        tokens_N = nearest_codes(z_ND, codes_KD) if self.config.unit else nearest_by_distance(z_ND, codes_KD)
        return tokens_N.view(z_BHWD.shape[:-1])

    def _on_sphere(self, vectors: Tensor) -> Tensor:
        """The vectors in float32, and of length 1 if `unit`."""
        return F.normalize(vectors.float(), dim=-1) if self.config.unit else vectors.float()

    def _pass_gradient(self, z_BHWD: Tensor, q_BHWD: Tensor) -> Tensor:
        """The codes with gradients, exact but for the noise of DiVeQ in training."""
        if self.config.gradient == "rotation":
            return rotate(z_BHWD, q_BHWD)
        if self.config.gradient == "diveq" and self.training:
            return diveq(z_BHWD, q_BHWD, self.config.direction_variance)
        return straight_through(z_BHWD, q_BHWD)

    def _loss(self, z_BHWD: Tensor, q_BHWD: Tensor) -> Tensor:
        config = self.config
        codebook_weight = config.codebook_weight if config.codebook == "gradient" else 0.0
        loss = codebook_loss(z_BHWD, q_BHWD, config.commitment_weight, codebook_weight)
        if config.entropy_weight:
            z_ND = z_BHWD.flatten(0, -2)
            entropy = entropy_loss(z_ND, self.codes_KD, config.entropy_temperature, by_distance=not config.unit)
            loss = loss + config.entropy_weight * entropy
        return loss

    def _dead_codes(self, remembered: int, step_vectors: int) -> Tensor | None:
        """Which codes (K,) are to be replaced: all once when the warm-up is over, then those that won nothing over a
        window. None where it is not time. step_vectors: quantised in this step, on all ranks together."""
        if not self.initialised:
            if int(self.seen) < self.config.warm_up * self.config.codes or remembered < self.config.codes:
                return None
            self.initialised = True
            self.seen.zero_()
            return torch.ones_like(self.counts_K, dtype=torch.bool)
        enough = min(self.config.revival_steps * step_vectors, ENOUGH)
        undone = step_vectors == 0  # by the training loop, because something was not finite
        if undone or int(self.seen) < max(self.half_window, enough // 2):
            return None
        dead_K = self.window_counts() == 0
        self._slide_window()
        return dead_K if self.config.revival_window else None

    def _replace(self, replaced_M: Tensor, new_MD: Tensor, optimizer: torch.optim.Optimizer) -> None:
        self.codebook[replaced_M] = new_MD
        for moment in optimizer.state.get(self.codebook, {}).values():
            if torch.is_tensor(moment) and moment.shape == self.codebook.shape:
                moment[replaced_M] = 0  # stale momentum would drag the new vectors away
        if self.moving_sums is not None:
            self.moving_sums.reset(replaced_M, new_MD)

    @torch.no_grad()
    def _remember(self, z_ND: Tensor) -> None:
        """Write a sample of the vectors over the oldest; at most an eighth of the memory a step, so that steps mix."""
        room = len(self.recent_RD)
        sample_MD = z_ND[:: -(-len(z_ND) * 8 // room)]
        rows_M = (self.written + torch.arange(len(sample_MD), device=z_ND.device)) % room
        self.recent_RD[rows_M] = sample_MD
        self.written += len(sample_MD)
        self.seen += ranks() * len(z_ND)


def codebook_loss(z: Tensor, q: Tensor, commitment_weight: float, codebook_weight: float) -> Tensor:
    """commitment_weight * ||z - sg[q]||^2 + codebook_weight * ||sg[z] - q||^2, means over all elements.

    taming-transformers' default ("legacy") is commitment 1, codebook 0.25, which is also the reference recipe;
    van den Oord et al. (2017, eq. 3) have commitment 0.25, codebook 1.
    """
    return commitment_weight * F.mse_loss(z, q.detach()) + codebook_weight * F.mse_loss(q, z.detach())
