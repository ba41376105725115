"""One block of a prior: a mixer, attention or Mamba-2, and an MLP; and what the class does to its norms.

Shapes: B batch, L length, D width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.layers.dropout import Dropout
from shared.layers.mamba2 import Mamba2, Mamba2State
from shared.layers.rms_norm import RMSNorm
from shared.layers.swiglu import SwiGLU
from stage2_prior.attention import Attention, KVCache, Place

INIT_STD = 0.02  # GPT-2's, of every embedding and matrix of a prior


class Block(nn.Module):
    """x + mixer(norm(x)), then, where there is an MLP, x + mlp(norm(x)). Dropout acts on what a branch adds.

    A `modulation` makes of each branch x + gate * branch(norm(x) * scale + shift). It holds the shift, scale and gate
    of the mixer and then of the MLP, along its first axis.
    """

    def __init__(self, width: int, mixer: Attention | Mamba2, mlp: SwiGLU | None, dropout: float) -> None:
        super().__init__()
        self.mixer_norm, self.mixer = RMSNorm(width), mixer
        self.mlp_norm, self.mlp = nn.Identity() if mlp is None else RMSNorm(width), mlp
        self.dropout = Dropout(dropout)

    def forward(self, x_BLD: Tensor, modulation: Tensor | None = None) -> Tensor:
        return self._run(x_BLD, self.mixer, modulation)

    def prefill(self, x_BLD: Tensor, state: Any, modulation: Tensor | None = None) -> Tensor:
        return self._run(x_BLD, lambda u_BLD: self.mixer.prefill(u_BLD, state), modulation)

    def step(self, x_BD: Tensor, state: Any, modulation: Tensor | None = None) -> Tensor:
        return self._run(x_BD, lambda u_BD: self.mixer.step(u_BD, state), modulation)

    def _run(self, x: Tensor, mixer: Callable[[Tensor], Tensor], modulation: Tensor | None) -> Tensor:
        mixer_modulation, mlp_modulation = (None, None) if modulation is None else (modulation[:3], modulation[3:])
        x = self._add(x, self.mixer_norm, mixer, mixer_modulation)
        return x if self.mlp is None else self._add(x, self.mlp_norm, self.mlp, mlp_modulation)

    def _add(self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor], modulation: Tensor | None) -> Tensor:
        if modulation is None:
            return x + self.dropout(branch(norm(x)))
        shift, scale, gate = modulation
        return x + gate * self.dropout(branch(norm(x) * scale + shift))

    def init_state(self, batch: int, place: Place, dtype: torch.dtype) -> KVCache | Mamba2State:
        """Keys and values of `dtype` (a recurrent state is float32) for `batch` sequences."""
        if isinstance(self.mixer, Attention):
            return self.mixer.init_state(batch, place, dtype)
        return self.mixer.init_state(batch, place.index_1.device)

    def branches(self) -> list[Attention | Mamba2 | SwiGLU]:
        """The modules whose `out_proj` writes into the residual stream."""
        return [self.mixer] if self.mlp is None else [self.mixer, self.mlp]


class ClassModulation(nn.Module):
    """Shift, scale and gate of every branch, and shift and scale of the last norm, by class: adaLN-Zero.

    Peebles & Xie 2023, section 3.2. At first scales are 1 and all else is 0: each block is the identity.
    """

    def __init__(self, classes: int, width: int, branches: Sequence[int]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes + 1, width)  # the last row: no class
        self.blocks = nn.ModuleList(_modulator(width, 3, count) for count in branches)
        self.last = _modulator(width, 2, 1)
        nn.init.normal_(self.embedding.weight, std=INIT_STD)

    def forward(self, classes_B: Tensor) -> list[Tensor]:
        """(B,) classes -> (3 per branch, B, D) for each block, then (2, B, D) for the last norm."""
        c_BD = F.silu(self.embedding(classes_B))
        width = c_BD.shape[1]
        return [linear(c_BD).unflatten(1, (-1, width)).transpose(0, 1) for linear in (*self.blocks, self.last)]


def _modulator(width: int, parts: int, branches: int) -> nn.Linear:
    """To `parts` vectors a branch, the second of which (the scale) is 1 at first, and the others 0."""
    linear = nn.Linear(width, branches * parts * width)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    with torch.no_grad():
        linear.bias.view(branches, parts, width)[:, 1] = 1
    return linear
