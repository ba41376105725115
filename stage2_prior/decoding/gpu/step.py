"""A prior's step on a GPU: Triton's kernels, on weights that stay where they are.

All that changes from step to step is in tensors, so that a step can be captured in a CUDA graph. Without a GPU the
kernels run in Triton's interpreter (TRITON_INTERPRET=1), which is how they are tested.

Shapes: R rows, D width, K = V of the table, S parts of a product.
"""

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.layers.mamba2 import Mamba2, Mamba2State
from shared.layers.positions import LearnedPositions
from shared.layers.rms_norm import RMSNorm
from shared.layers.swiglu import SwiGLU
from shared.training.devices.precision import multiplies_bfloat16
from stage2_prior.attention import Attention, KVCache
from stage2_prior.decoding.gpu.attend import Attend
from stage2_prior.decoding.gpu.norm import Added, add_and_norm
from stage2_prior.decoding.gpu.product import GatedProduct, Product
from stage2_prior.decoding.gpu.recur import Recur
from stage2_prior.prior import Prior, PriorState


class StaticWeights:
    """A prior's weights for a GPU: copies at fixed addresses, where captured graphs find them.

    Matrices are in bfloat16, unless `exact` or where the GPU does not multiply it.
    """

    def __init__(self, prior: Prior, exact: bool) -> None:
        narrow = not exact and multiplies_bfloat16(prior.norm.weight.device)
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

    def advance(self, state: PriorState) -> "Step":
        """`Prior.step` for this state, which it does not move: (R,) ids -> (R, V) logits."""
        return Step(self.model, state, self.bias_K)


class Step:
    """One step of a batch: each part of the model, bound to the memory of its rows."""

    def __init__(self, model: Prior, state: PriorState, bias_K: Tensor | None) -> None:
        self.model, self.state, self.bias_K, dtype = model, state, bias_K, state.table_KR.dtype
        self.normed_RD = torch.empty(state.batch, model.config.width, dtype=dtype, device=model.norm.weight.device)
        self.branches = list(self._branches())
        self.head = Product(state.table_KR)
        products = [product for branch in self.branches for product in branch.mix.products]
        for product, following in itertools.pairwise((*products, self.head, products[0])):
            product.ahead_XY = following.weight_XY

    def __call__(self, ids_R: Tensor) -> Tensor:
        """Take in an id a row where the state stands; (R, V) float32 logits of the next."""
        place_1, last = self.state.place.index_1, self.state.modulations[-1]
        x_RD = self.model._embed(ids_R[:, None], self.state.table_KR, offset=place_1)[:, 0].float().contiguous()
        added, gate_RD = None, None
        for branch in self.branches:
            add_and_norm(x_RD, self.normed_RD, branch.norm, branch.modulation_2RD, added, gate_RD)
            added, gate_RD = branch.mix(self.normed_RD, place_1), branch.gate_RD
        add_and_norm(x_RD, self.normed_RD, self.model.norm, last, added, gate_RD)
        parts_SRV = self.head(self.model.vocabulary.query(self.normed_RD).contiguous())
        logits_RV = parts_SRV[0] if len(parts_SRV) == 1 else parts_SRV.sum(0)
        return logits_RV if self.bias_K is None else logits_RV + self.bias_K

    def _branches(self) -> Iterator["Branch"]:
        state = self.state
        for block, block_state, modulation in zip(self.model.blocks, state.blocks, state.modulations[:-1], strict=True):
            mixer, mlp = (None, None) if modulation is None else (modulation[:3], modulation[3:])
            yield _branch(block.mixer_norm, mixer, _mixer_step(block.mixer, block_state))
            if block.mlp is not None and isinstance(block.mlp_norm, RMSNorm):
                yield _branch(block.mlp_norm, mlp, MLPStep(block.mlp))


class Mix(Protocol):
    """What a branch does to the normed rows, given the place, (1,) int64 on the device."""

    products: tuple[Product, Product]

    def __call__(self, normed_RD: Tensor, place_1: Tensor, /) -> Added: ...


@dataclass
class Branch:
    """x + gate * mix(norm(x))."""

    norm: RMSNorm
    modulation_2RD: Tensor | None  # shift and scale
    gate_RD: Tensor | None
    mix: Mix


def _branch(norm: RMSNorm, modulation_3RD: Tensor | None, mix: Mix) -> Branch:
    if modulation_3RD is None:
        return Branch(norm, None, None, mix)
    return Branch(norm, modulation_3RD[:2], modulation_3RD[2], mix)


class AttentionStep:
    """`Attention.step` of the normed rows."""

    def __init__(self, attention: Attention, state: KVCache) -> None:
        q_norm, k_norm, rotary = attention.q_norm, attention.k_norm, attention.rotary
        norms = (q_norm, k_norm) if isinstance(q_norm, RMSNorm) and isinstance(k_norm, RMSNorm) else None
        angles = None if rotary is None else (rotary.cos_LF, rotary.sin_LF)
        self.attend = Attend(state.kv_2BHLE, norms, angles, attention.scale)
        self.products = Product(attention.qkv_proj.weight), Product(attention.out_proj.weight)

    def __call__(self, normed_RD: Tensor, place_1: Tensor) -> Added:
        qkv_proj, out_proj = self.products
        y_RD = torch.empty_like(normed_RD)
        self.attend(qkv_proj(normed_RD), place_1, y_RD)
        return Added(out_proj(y_RD))


class Mamba2Step:
    """`Mamba2.step` of the normed rows."""

    def __init__(self, mamba: Mamba2, state: Mamba2State) -> None:
        assert mamba.ngroups == 1  # as that of every prior
        self.recur = Recur(mamba, state.conv_BKC, state.ssm_BGNJ[:, 0])
        self.products = Product(mamba.in_proj.weight), Product(mamba.out_proj.weight)

    def __call__(self, normed_RD: Tensor, place_1: Tensor) -> Added:
        in_proj, out_proj = self.products
        y_RI, squares_RT = self.recur(in_proj(normed_RD), normed_RD.dtype)
        return Added(out_proj(y_RI), squares_RT)


class MLPStep:
    """`SwiGLU.forward` of the normed rows."""

    def __init__(self, mlp: SwiGLU) -> None:
        self.products: tuple[Product, Product] = GatedProduct(mlp.in_proj.weight), Product(mlp.out_proj.weight)

    def __call__(self, normed_RD: Tensor, place_1: Tensor) -> Added:
        gated, out_proj = self.products
        return Added(out_proj(gated(normed_RD)))


def _mixer_step(mixer: Attention | Mamba2, state: Any) -> AttentionStep | Mamba2Step:
    return AttentionStep(mixer, state) if isinstance(mixer, Attention) else Mamba2Step(mixer, state)
