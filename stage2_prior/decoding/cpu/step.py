"""A prior's step on a CPU: products on weights packed once, and Numba's kernels between them.

Shapes: R rows, D width, V codes, K = V of the table, I inner width of a Mamba-2, M hidden width of an MLP; X what a
product returns.
"""

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared.kernels.arrays import as_array
from shared.kernels.swiglu import gate_rows
from shared.layers.mamba2 import Mamba2, Mamba2State
from shared.layers.rms_norm import RMSNorm
from shared.layers.swiglu import SwiGLU
from stage2_prior.attention import Attention, KVCache
from stage2_prior.block import ClassModulation
from stage2_prior.decoding.cpu.attend import attend
from stage2_prior.decoding.cpu.fingerprint import hash_bits
from stage2_prior.decoding.cpu.norm import add_and_norm
from stage2_prior.decoding.cpu.product import narrowest, pack
from stage2_prior.decoding.cpu.recur import recur
from stage2_prior.prior import Prior, PriorState


class PackedWeights:
    """A prior's weights for a CPU: packed linear maps, and for all else the prior's own tensors.

    `dtype` is what keys and values are to be kept in, `matrices` what matrices are rounded to, `rows` what goes into
    products.
    """

    def __init__(self, prior: Prior, exact: bool) -> None:
        self.dtype = torch.float32 if exact else torch.bfloat16
        self.matrices = torch.float32 if exact else narrowest()
        self.rows = torch.bfloat16 if self.matrices == torch.bfloat16 else torch.float32
        self.fingerprint: int | None = None
        self.load(prior)

    def load(self, prior: Prior) -> None:
        """Take over the weights, if they changed: for 23 million of them a look takes 3 ms, packing them 40."""
        found = _fingerprint(prior)
        if found == self.fingerprint:
            return
        self.fingerprint = found
        tensors = itertools.chain(prior.parameters(), prior.buffers())
        self.model = copy.deepcopy(prior, {id(tensor): tensor for tensor in tensors}).eval()
        self.table_KR = prior.vocabulary.table()
        self.score = pack(self.table_KR, prior.vocabulary.bias_K, self.matrices)
        self._pack(self.model)

    def advance(self, state: PriorState) -> Callable[[Tensor], Tensor]:
        """`Prior.step` for this state, which it does not move: (R,) ids -> (R, V) logits."""
        return Step(self.model, state, self.rows)

    def _pack(self, module: nn.Module) -> None:
        """Replace the linear maps of `module`. What takes their place is no module: calling one takes microseconds."""
        for name, part in list(module.named_children()):
            if isinstance(part, ClassModulation):  # once a call
                continue
            if isinstance(part, nn.Linear) and part.weight is not self.table_KR:  # that is `score`
                delattr(module, name)
                setattr(module, name, pack(part.weight, part.bias, self.matrices))
            else:
                self._pack(part)


class Step:
    """One step of a batch: each part of the model, bound to the memory of its rows."""

    def __init__(self, model: Prior, state: PriorState, dtype: torch.dtype) -> None:
        self.model, self.state = model, state
        rows, width = state.batch, model.config.width
        self.normed_RD = torch.empty(rows, width, dtype=dtype)
        self.zeros_RD, self.ones_RD = (as_array(torch.full((rows, width), value, dtype=dtype)) for value in (0, 1))
        self.branches = list(self._branches())
        last = state.modulations[-1]
        shift_RD, scale_RD = (self.zeros_RD, self.ones_RD) if last is None else map(as_array, last)
        self.last_norm = Norm(model.norm, scale_RD, shift_RD, as_array(self.normed_RD))

    def __call__(self, ids_R: Tensor) -> Tensor:
        """Take in an id a row where the state stands; (R, V) logits of the next, in the weights' dtype."""
        place = self.state.place
        embedded_RD = self.model._embed(ids_R[:, None], self.state.table_KR, offset=place.index_1)[:, 0]
        x_RD, added_RD, gate_RD = as_array(embedded_RD.float().contiguous()), self.zeros_RD, self.ones_RD
        for branch in self.branches:
            branch.norm(x_RD, added_RD, gate_RD)
            added_RD, gate_RD = branch.mix(place.position), branch.gate_RD
        self.last_norm(x_RD, added_RD, gate_RD)
        return self.state.score(self.model.vocabulary.query(self.normed_RD))

    def _branches(self) -> Iterator["Branch"]:
        state = self.state
        for block, block_state, modulation in zip(self.model.blocks, state.blocks, state.modulations[:-1], strict=True):
            mixer, mlp = (None, None) if modulation is None else (modulation[:3], modulation[3:])
            yield self._branch(block.mixer_norm, mixer, _mixer_step(block.mixer, block_state, self.normed_RD))
            if block.mlp is not None and isinstance(block.mlp_norm, RMSNorm):
                yield self._branch(block.mlp_norm, mlp, MLPStep(block.mlp, self.normed_RD))

    def _branch(self, norm: RMSNorm, modulation: Tensor | None, mix: Callable[[int], np.ndarray]) -> "Branch":
        unmodulated = (self.zeros_RD, self.ones_RD, self.ones_RD)
        shift_RD, scale_RD, gate_RD = unmodulated if modulation is None else map(as_array, modulation)
        return Branch(Norm(norm, scale_RD, shift_RD, as_array(self.normed_RD)), mix, gate_RD)


@dataclass
class Branch:
    """x + gate * mix(norm(x)). `mix` is given the place, and finds the normed rows where the norm leaves them."""

    norm: "Norm"
    mix: Callable[[int], np.ndarray]
    gate_RD: np.ndarray


class Norm:
    """Adds to the rows what the branch before had to say, and writes them, normed and modulated, to `y_RD`."""

    def __init__(self, norm: RMSNorm, scale_RD: np.ndarray, shift_RD: np.ndarray, y_RD: np.ndarray) -> None:
        self.options = (_float(norm.weight), norm.eps, scale_RD, shift_RD, y_RD)

    def __call__(self, x_RD: np.ndarray, added_RD: np.ndarray, gate_RD: np.ndarray) -> None:
        add_and_norm(x_RD, added_RD, gate_RD, *self.options, work=x_RD.shape)


class AttentionStep:
    """`Attention.step` of the normed rows."""

    def __init__(self, attention: Attention, state: KVCache, normed_RD: Tensor) -> None:
        self.qkv_proj, self.out_proj, self.normed_RD = attention.qkv_proj, attention.out_proj, normed_RD
        self.y_RD = torch.empty_like(normed_RD)
        self.turns, self.headdim = len(normed_RD) * attention.heads, attention.headdim
        no_norm = RMSNorm(0)
        q_norm, k_norm = (n if isinstance(n, RMSNorm) else no_norm for n in (attention.q_norm, attention.k_norm))
        rotary = attention.rotary
        angles = (torch.empty(0, 0), torch.empty(0, 0)) if rotary is None else (rotary.cos_LF, rotary.sin_LF)
        norms = (_float(q_norm.weight), _float(k_norm.weight), q_norm.eps, attention.scale)
        self.options = (*norms, *map(as_array, angles), *map(as_array, state.kv_2BHLE), as_array(self.y_RD))

    def __call__(self, place: int) -> np.ndarray:
        qkv_RX = as_array(self.qkv_proj(self.normed_RD))
        attend(qkv_RX, place, *self.options, work=(self.turns, self.headdim * (place + 1)))
        return as_array(self.out_proj(self.y_RD))


class Mamba2Step:
    """`Mamba2.step` of the normed rows."""

    def __init__(self, mamba: Mamba2, state: Mamba2State, normed_RD: Tensor) -> None:
        self.in_proj, self.out_proj, self.normed_RD = mamba.in_proj, mamba.out_proj, normed_RD
        self.y_RI, self.states = normed_RD.new_empty(len(normed_RD), mamba.d_inner), state.ssm_BGNJ[0].numel()
        taps_KC, bias_C = mamba.conv1d.weight[:, 0].T.contiguous(), mamba.conv1d.bias
        bias_C = taps_KC.new_zeros(mamba.d_xBC) if bias_C is None else bias_C
        weights = (taps_KC, bias_C, mamba.dt_bias, -mamba.A_log.exp(), mamba.D)
        self.options = (
            as_array(state.conv_BKC),
            *map(_float, weights),
            as_array(state.ssm_BGNJ[:, 0]),
            _float(mamba.norm.weight),
            mamba.norm.eps,
            as_array(self.y_RI),
        )

    def __call__(self, place: int) -> np.ndarray:
        zxBCdt_RX = as_array(self.in_proj(self.normed_RD))
        recur(zxBCdt_RX, *self.options, work=(len(self.y_RI), self.states))
        return as_array(self.out_proj(self.y_RI))


class MLPStep:
    """`SwiGLU.forward` of the normed rows."""

    def __init__(self, mlp: SwiGLU, normed_RD: Tensor) -> None:
        self.in_proj, self.out_proj, self.normed_RD = mlp.in_proj, mlp.out_proj, normed_RD
        self.y_RM = normed_RD.new_empty(len(normed_RD), mlp.hidden)

    def __call__(self, place: int) -> np.ndarray:
        gate_rows(as_array(self.in_proj(self.normed_RD)), as_array(self.y_RM), work=self.y_RM.shape)
        return as_array(self.out_proj(self.y_RM))


def _mixer_step(mixer: Attention | Mamba2, state: Any, normed_RD: Tensor) -> AttentionStep | Mamba2Step:
    if isinstance(mixer, Attention):
        return AttentionStep(mixer, state, normed_RD)
    return Mamba2Step(mixer, state, normed_RD)


def _fingerprint(prior: Prior) -> int:
    """A hash of the contents of all parameters and buffers; `.data` changes without leaving another trace."""
    found = np.uint64(0)
    for tensor in itertools.chain(prior.parameters(), prior.buffers()):
        bits_N = tensor.detach().float().contiguous().flatten().view(torch.uint32)
        found = np.uint64(hash_bits(bits_N.numpy(), found))
    return int(found)


def _float(weight: Tensor) -> np.ndarray:
    return weight.detach().float().numpy()
