"""Quantisers of the package vector-quantize-pytorch behind this project's interface.

The package's modules work in float32 here, whatever autocast says, and only their training step may change them. In
training they hold a matrix of (vectors x codes), unlike the vector quantiser; out of it vectors come in tiles.
Shapes: B batch, H and W the token grid, D dimensions, Q tokens of one place, w = W / Q, d = D / Q, N = B * H * w,
n vectors of one tile, K codes.
"""

from abc import abstractmethod
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.errors import UserError
from shared.extras import install_hint
from stage1_tokenizer.quantisers.gradients import straight_through
from stage1_tokenizer.quantisers.quantiser import Quantised, Quantiser, ranks, require_finite

ROW_TILE = 4096  # vectors at a time out of training: with 16,384 codes, 256 MiB of distances


def installed_library() -> ModuleType:
    """The package vector-quantize-pytorch; UserError where it is not installed."""
    try:
        import vector_quantize_pytorch
    except ImportError:
        raise UserError(
            "model.quantiser.kind fsq, lfq, simvq and residual need a package that is not installed "
            f"(vector-quantize-pytorch): {install_hint('quantisers')}"
        ) from None
    return vector_quantize_pytorch


class Adapter(Quantiser):
    """Flattens, counts and keeps precision; a kind adds its module and how that is called."""

    def forward(self, z_BHWD: Tensor) -> Quantised:
        """Quantise vectors; in training mode also counts them. `loss` is 0 out of training."""
        with torch.autocast(z_BHWD.device.type, enabled=False):
            z_BHWD = z_BHWD.float()
            if not self.training:
                tokens_BHW = self.tokenize(z_BHWD)
                return Quantised(straight_through(z_BHWD, self.lookup(tokens_BHW)), tokens_BHW, z_BHWD.new_zeros(()))
            z_ND = z_BHWD.flatten(0, -2)
            q_ND, tokens_NQ, loss = self._train(z_ND)
            tokens_BHW = tokens_NQ.reshape(*z_BHWD.shape[:2], -1)
            self._count(tokens_BHW)
            self.seen += ranks() * len(z_ND)
            return Quantised(q_ND.view_as(z_BHWD), tokens_BHW, loss)

    @torch.no_grad()
    def tokenize(self, z_BHWD: Tensor) -> Tensor:
        require_finite(z_BHWD)
        with torch.autocast(z_BHWD.device.type, enabled=False):
            tokens = [self._tokens(z_nD) for z_nD in z_BHWD.float().flatten(0, -2).split(ROW_TILE)]
        return torch.cat(tokens).reshape(*z_BHWD.shape[:2], -1)

    def lookup(self, tokens_BHW: Tensor) -> Tensor:
        tokens_BHwQ = tokens_BHW.unflatten(-1, (-1, self.tokens_per_place))
        codes_KQd = self.codes_KD.unflatten(1, (self.tokens_per_place, -1))
        parts = zip(tokens_BHwQ.unbind(-1), codes_KQd.unbind(1), strict=True)
        return torch.cat([F.embedding(tokens_BHw, codes_Kd) for tokens_BHw, codes_Kd in parts], dim=-1)

    @abstractmethod
    def _train(self, z_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (N, D) with gradients, tokens (N,) or (N, Q) int64, and the scalar loss of one training step."""

    @abstractmethod
    def _tokens(self, z_nD: Tensor) -> Tensor:
        """Tokens (n,) or (n, Q) int64."""
