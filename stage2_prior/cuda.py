"""A prior's step on a GPU: cuBLAS's products, on weights that stay where they are, and Triton's kernels between them.

All that changes from step to step is in tensors, so that a step can be captured in a CUDA graph.

Shapes: R rows, K = V of the table, S length of a prefix, and those of stage2_prior.kernels_triton.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.layers import LearnedPositions, SwiGLU
from shared.mamba2 import Mamba2, Mamba2State
from shared.rms_norm import RMSNorm
from stage2_prior.attention import Attention, KVCache
from stage2_prior.kernels_triton import Added, Attend, Recur, add_and_norm, gated_mlp
from stage2_prior.prior import Prior, PriorState


class StaticWeights:
    """A prior's weights for a GPU: copies at fixed addresses, where captured graphs find them; matrices in bfloat16."""

    def __init__(self, prior: Prior, exact: bool) -> None:
        narrow = not exact and _multiplies_bfloat16(prior.norm.weight.device)
        self.dtype = dtype = torch.bfloat16 if narrow else torch.float32
        self.model = copy.deepcopy(prior).eval()
        for module in self.model.modules():
            if isinstance(module, nn.Linear | nn.Embedding | LearnedPositions):
                module.to(dtype)
        self.table_KR = prior.vocabulary.table().to(dtype, copy=True)
        bias_K = prior.vocabulary.bias_K
        self.bias_K = None if bias_K is None else bias_K.detach().to(dtype, copy=True)
        self.score: Callable[[Tensor], Tensor] = partial(F.linear, weight=self.table_KR, bias=self.bias_K)

    def load(self, prior: Prior) -> None:
        """Take over the weights as they are now."""
        for mine, given in zip(self.model.parameters(), prior.parameters(), strict=True):
            mine.copy_(given)
        self.table_KR.copy_(prior.vocabulary.table())
        if self.bias_K is not None and prior.vocabulary.bias_K is not None:
            self.bias_K.copy_(prior.vocabulary.bias_K)

    def prefill(self, inputs_RS: Tensor, state: PriorState) -> None:
        """`Prior.prefill`; then the inputs of convolutions are where the kernels look for them."""
        self.model.prefill(inputs_RS, state)
        for block in state.blocks:
            if isinstance(block, Mamba2State):
                block.conv_BKC.copy_(block.conv_BKC.roll(inputs_RS.shape[1], 1))

    def advance(self, state: PriorState) -> "Step":
        """`Prior.advance` for this state: (R,) ids -> (R, V) logits."""
        return Step(self.model, state, self.dtype)


class Step:
    """One step of a batch: each part of the model, bound to the memory of its rows."""

    def __init__(self, model: Prior, state: PriorState, dtype: torch.dtype) -> None:
        self.model, self.state = model, state
        self.normed_RD = torch.empty(state.batch, model.config.width, dtype=dtype, device=model.norm.weight.device)
        self.branches = list(self._branches())

    def __call__(self, ids_R: Tensor) -> Tensor:
        """Take in an id a row where the state stands; (R, V) logits of the next, in the weights' dtype."""
        place_1, last = self.state.place.index_1, self.state.modulations[-1]
        x_RD = self.model._embed(ids_R[:, None], self.state.table_KR, offset=place_1)[:, 0].float().contiguous()
        added, gate_RD = None, None
        for branch in self.branches:
            add_and_norm(x_RD, self.normed_RD, branch.norm, branch.modulation_2RD, added, gate_RD)
            added, gate_RD = branch.mix(self.normed_RD, place_1), branch.gate_RD
        add_and_norm(x_RD, self.normed_RD, self.model.norm, last, added, gate_RD)
        return self.state.score(self.model.vocabulary.query(self.normed_RD))

    def _branches(self) -> Iterator["Branch"]:
        state = self.state
        for block, block_state, modulation in zip(self.model.blocks, state.blocks, state.modulations[:-1], strict=True):
            mixer, mlp = (None, None) if modulation is None else (modulation[:3], modulation[3:])
            yield _branch(block.mixer_norm, mixer, _mixer_step(block.mixer, block_state))
            if block.mlp is not None and isinstance(block.mlp_norm, RMSNorm):
                yield _branch(block.mlp_norm, mlp, MLPStep(block.mlp))


@dataclass
class Branch:
    """x + gate * mix(norm(x)). `mix` is given the normed rows and the place, (1,) int64 on the device."""

    norm: RMSNorm
    modulation_2RD: Tensor | None  # shift and scale
    gate_RD: Tensor | None
    mix: Callable[[Tensor, Tensor], Added]


def _branch(norm: RMSNorm, modulation_3RD: Tensor | None, mix: Callable[[Tensor, Tensor], Added]) -> Branch:
    if modulation_3RD is None:
        return Branch(norm, None, None, mix)
    return Branch(norm, modulation_3RD[:2], modulation_3RD[2], mix)


class AttentionStep:
    """`Attention.step` of the normed rows."""

    def __init__(self, attention: Attention, state: KVCache) -> None:
        self.qkv_proj, self.out_proj = attention.qkv_proj, attention.out_proj
        q_norm, k_norm, rotary = attention.q_norm, attention.k_norm, attention.rotary
        norms = (q_norm, k_norm) if isinstance(q_norm, RMSNorm) and isinstance(k_norm, RMSNorm) else None
        angles = None if rotary is None else (rotary.cos_LF, rotary.sin_LF)
        scale = attention.score_factor * attention.headdim**-0.5
        self.attend = Attend(state.kv_2BHLE, norms, angles, scale)

    def __call__(self, normed_RD: Tensor, place_1: Tensor) -> Added:
        y_RD = torch.empty_like(normed_RD)
        self.attend(self.qkv_proj(normed_RD), place_1, y_RD)
        return Added(self.out_proj(y_RD))


class Mamba2Step:
    """`Mamba2.step` of the normed rows."""

    def __init__(self, mamba: Mamba2, state: Mamba2State) -> None:
        self.in_proj, self.out_proj = mamba.in_proj, mamba.out_proj
        self.recur = Recur(mamba, state.conv_BKC, state.ssm_BGNJ[:, 0])

    def __call__(self, normed_RD: Tensor, place_1: Tensor) -> Added:
        y_RI, squares_RT = self.recur(self.in_proj(normed_RD), place_1)
        return Added(self.out_proj(y_RI), squares_RT)


class MLPStep:
    """`SwiGLU.forward` of the normed rows."""

    def __init__(self, mlp: SwiGLU) -> None:
        self.mlp = mlp

    def __call__(self, normed_RD: Tensor, place_1: Tensor) -> Added:
        return Added(self.mlp.out_proj(gated_mlp(self.mlp.in_proj(normed_RD))))


def _mixer_step(mixer: Attention | Mamba2, state: Any) -> AttentionStep | Mamba2Step:
    return AttentionStep(mixer, state) if isinstance(mixer, Attention) else Mamba2Step(mixer, state)


def _multiplies_bfloat16(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)
