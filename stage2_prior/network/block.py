"""One block of a prior: a mixer, attention or Mamba-2, and an MLP; and what the class does to its norms.

Shapes: B batch, L length, D width.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from shared.layers.dropout import Dropout
from shared.layers.mamba2 import Mamba2, Mamba2State
from shared.layers.rms_norm import RMSNorm
from shared.layers.swiglu import SwiGLU, gate
from stage2_prior.network.attention import Attention, Cursor, KVCache

INIT_STD = 0.02  # GPT-2's, of every embedding and matrix of a prior


Mix = Attention | Mamba2 | SwiGLU
MixState = KVCache | Mamba2State | None  # what decoding remembers of a mix; None where there is nothing


class Branch(NamedTuple):
    """x + mix(norm(x)). A modulation makes of it x + gate * mix(norm(x) * scale + shift): (3, ..., D), in the order
    shift, scale, gate.
    """

    norm: RMSNorm
    mix: Mix
    modulation: Tensor | None


class Block(nn.Module):
    """x + mixer(norm(x)), then, where there is an MLP, x + mlp(norm(x)). Dropout acts on what a branch adds.

    A `modulation` holds the shift, scale and gate of the mixer and then of the MLP, along its first axis.
    """

    def __init__(self, width: int, mixer: Attention | Mamba2, mlp: SwiGLU | None, dropout: float) -> None:
        super().__init__()
        self.mixer_norm, self.mixer = RMSNorm(width, before_product=True), mixer
        self.mlp_norm = nn.Identity() if mlp is None else RMSNorm(width, before_product=True)
        self.mlp = mlp
        self.dropout = Dropout(dropout)

    def branches(self, modulation: Tensor | None = None) -> list[Branch]:
        """The branches in their order, each with its part of the modulation: the one place that names them.

        The forms below walk them, and so do the decoding steps of CPUs and GPUs.
        """
        mixer_modulation, mlp_modulation = (None, None) if modulation is None else (modulation[:3], modulation[3:])
        branches = [Branch(self.mixer_norm, self.mixer, mixer_modulation)]
        if self.mlp is not None and isinstance(self.mlp_norm, RMSNorm):
            branches.append(Branch(self.mlp_norm, self.mlp, mlp_modulation))
        return branches

    def forward(self, x_BLD: Tensor, modulation: Tensor | None = None) -> Tensor:
        for branch in self.branches(modulation):
            x_BLD = self._add(x_BLD, branch, branch.mix)
        return x_BLD

    def prefill(self, x_BLD: Tensor, states: Sequence[MixState], modulation: Tensor | None = None) -> Tensor:
        """`forward` from empty states, one for each branch, which it fills."""
        for branch, state in zip(self.branches(modulation), states, strict=True):
            x_BLD = self._add(x_BLD, branch, _with_state(branch.mix, "prefill", state))
        return x_BLD

    def step(self, x_BD: Tensor, states: Sequence[MixState], modulation: Tensor | None = None) -> Tensor:
        """The next position alone, given the states of those before it, which it updates."""
        for branch, state in zip(self.branches(modulation), states, strict=True):
            x_BD = self._add(x_BD, branch, _with_state(branch.mix, "step", state))
        return x_BD

    def _add(self, x: Tensor, branch: Branch, mix: Callable[[Tensor], Tensor]) -> Tensor:
        if branch.modulation is None:
            return x + self.dropout(mix(branch.norm(x)))
        shift, scale, gate = branch.modulation
        return x + gate * self.dropout(mix(branch.norm(x) * scale + shift))

    def init_state(self, batch: int, cursor: Cursor, dtype: torch.dtype) -> list[MixState]:
        """For each branch, what decoding remembers of it: keys and values of `dtype`, recurrent states in float32."""
        return [_empty_state(branch.mix, batch, cursor, dtype) for branch in self.branches()]


def _empty_state(mix: Mix, batch: int, cursor: Cursor, dtype: torch.dtype) -> MixState:
    match mix:
        case Attention():
            return mix.init_state(batch, cursor, dtype)
        case Mamba2():
            return mix.init_state(batch, cursor.index_1.device)
        case SwiGLU():
            return None


def _with_state(mix: Mix, form: Literal["prefill", "step"], state: MixState) -> Callable[[Tensor], Tensor]:
    """That form of a mix which has a state; of one that has none, all positions are alike."""
    return mix if state is None else partial(getattr(mix, form), state=state)


class ClassModulation(nn.Module):
    """Shift, scale and gate of every branch, and shift and scale of the last norm, by class: adaLN-Zero.

    Peebles & Xie 2023, section 3.2. At first scales are 1 and all else is 0: each block is the identity.
    """

    def __init__(self, classes: int, width: int, branches: Sequence[int]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes + 1, width)  # the last row: no class
        blocks = nn.ModuleList(_modulator(width, 3, count) for count in branches)
        self.blocks: Sequence[nn.Linear] = blocks  # type: ignore[assignment]
        self.last = _modulator(width, 2, 1)
        nn.init.normal_(self.embedding.weight, std=INIT_STD)

    def linears(self) -> list[nn.Linear]:
        """Those of the blocks, and that of the last norm."""
        return [*self.blocks, self.last]

    def forward(self, classes_B: Tensor) -> list[Tensor]:
        """(B,) classes -> (3 per branch, B, D) for each block, then (2, B, D) for the last norm."""
        embedded_BD = self.embedding(classes_B)
        # silu, as MLPs compute it: of F.silu on a CPU, the last few numbers of a batch have other bits.
        c_BD = gate(torch.cat((embedded_BD, torch.ones_like(embedded_BD)), dim=1))
        width = c_BD.shape[1]
        return [linear(c_BD).unflatten(1, (-1, width)).transpose(0, 1) for linear in self.linears()]


def _modulator(width: int, parts: int, branches: int) -> nn.Linear:
    """To `parts` vectors a branch, the second of which (the scale) is 1 at first, and the others 0."""
    linear = nn.Linear(width, branches * parts * width)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    with torch.no_grad():
        linear.bias.view(branches, parts, width)[:, 1] = 1
    return linear
