"""A prior's step on a GPU: Triton's kernels, on weights that stay where they are.

All that changes from step to step is in tensors, so that a step can be captured in a CUDA graph. Without a GPU the
kernels run in Triton's interpreter (TRITON_INTERPRET=1), which is how they are tested.

Shapes: R rows, D width, K = V of the table, S parts of a product.
"""

import copy
import itertools
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from shared.layers.mamba2 import Mamba2, Mamba2State
from shared.layers.positions import LearnedPositions
from shared.layers.rms_norm import RMSNorm
from shared.layers.swiglu import SwiGLU
from shared.training.devices.precision import multiplies_bfloat16
from stage2_prior.decoding.gpu.attend import Attend
from stage2_prior.decoding.gpu.norm import Added, add_and_norm
from stage2_prior.decoding.gpu.product import GatedProduct, Product
from stage2_prior.decoding.gpu.recur import Recur
from stage2_prior.decoding.step import Step
from stage2_prior.network.attention import Attention, KVCache
from stage2_prior.network.block import Mix, MixState
from stage2_prior.prior import Prior, PriorState


class StaticWeights:
    """A prior's weights for a GPU, as they are now: copies at fixed addresses, where captured graphs find them.

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

    def fill(self, inputs_RK: Tensor, state: PriorState) -> None:
        """`Prior.prefill`, but for the logits."""
        self.model.fill(inputs_RK, state, self.table_KR)

    def step(self, state: PriorState) -> "GpuStep":
        """`Prior.step` for this state, whose cursor it does not move: (R,) ids -> (R, V) float32 logits."""
        return GpuStep(self, state)


class MixStep(Protocol):
    """What a branch does to the normed rows, given the position, (1,) int64 on the device."""

    products: tuple[Product, Product]

    def __call__(self, normed_RD: Tensor, position_1: Tensor, /) -> Added: ...


class GpuStep(Step[Tensor, Added]):
    """One step of a batch; each product asks for the weights of the one that follows."""

    def __init__(self, weights: StaticWeights, state: PriorState) -> None:
        table_KR, self.bias_K = weights.table_KR, weights.bias_K
        shape = state.batch, weights.model.config.width
        self.normed_RD = torch.empty(shape, dtype=table_KR.dtype, device=weights.model.norm.weight.device)
        self.products: list[Product] = []
        super().__init__(weights.model, table_KR, state)
        self.head = Product(table_KR)
        for product, following in itertools.pairwise((*self.products, self.head, self.products[0])):
            product.ahead_XY = following.weight_XY

    def begin(self, embedded_RD: Tensor) -> Tensor:
        return embedded_RD

    def bind_norm(
        self, norm: RMSNorm, modulation_2RD: Tensor | None, gate_RD: Tensor | None
    ) -> Callable[[Tensor, Added | None], None]:
        def add_then_norm(x_RD: Tensor, added: Added | None) -> None:
            add_and_norm(x_RD, self.normed_RD, norm, modulation_2RD, added, gate_RD)

        return add_then_norm

    def bind_mix(self, mix: Mix, state: MixState) -> Callable[[], Added]:
        step = self._step_of(mix, state)
        self.products += step.products
        return partial(step, self.normed_RD, self.state.cursor.index_1)

    def _step_of(self, mix: Mix, state: MixState) -> MixStep:
        match mix, state:
            case Attention(), KVCache():
                return AttentionStep(mix, state)
            case Mamba2(), Mamba2State():
                return Mamba2Step(mix, state)
            case SwiGLU(), None:
                return MLPStep(mix)
        raise TypeError(f"a GPU has no step for {type(mix).__name__} with a state {type(state).__name__}")

    def scores(self) -> Tensor:
        parts_SRV = self.head(self.model.vocabulary.query(self.normed_RD).contiguous())
        logits_RV = parts_SRV[0] if len(parts_SRV) == 1 else parts_SRV.sum(0)
        return logits_RV if self.bias_K is None else logits_RV + self.bias_K


class AttentionStep:
    """`Attention.step` of the normed rows."""

    def __init__(self, attention: Attention, state: KVCache) -> None:
        q_norm, k_norm, rotary = attention.q_norm, attention.k_norm, attention.rotary
        norms = (q_norm, k_norm) if isinstance(q_norm, RMSNorm) and isinstance(k_norm, RMSNorm) else None
        angles = None if rotary is None else (rotary.cos_LF, rotary.sin_LF)
        self.attend = Attend(state.kv_2BHLE, norms, angles, attention.scale)
        self.products = Product(attention.qkv_proj.weight), Product(attention.out_proj.weight)

    def __call__(self, normed_RD: Tensor, position_1: Tensor) -> Added:
        qkv_proj, out_proj = self.products
        y_RD = torch.empty_like(normed_RD)
        self.attend(qkv_proj(normed_RD), position_1, y_RD)
        return Added(out_proj(y_RD))


class Mamba2Step:
    """`Mamba2.step` of the normed rows."""

    def __init__(self, mamba: Mamba2, state: Mamba2State) -> None:
        assert mamba.ngroups == 1  # as that of every prior
        self.recur = Recur(mamba, state.conv_BKC, state.ssm_BGNJ[:, 0])
        self.products = Product(mamba.in_proj.weight), Product(mamba.out_proj.weight)

    def __call__(self, normed_RD: Tensor, position_1: Tensor) -> Added:
        in_proj, out_proj = self.products
        y_RI, squares_RT = self.recur(in_proj(normed_RD), normed_RD.dtype)
        return Added(out_proj(y_RI), squares_RT)


class MLPStep:
    """`SwiGLU.forward` of the normed rows."""

    def __init__(self, mlp: SwiGLU) -> None:
        self.products: tuple[Product, Product] = GatedProduct(mlp.in_proj.weight), Product(mlp.out_proj.weight)

    def __call__(self, normed_RD: Tensor, position_1: Tensor) -> Added:
        gated, out_proj = self.products
        return Added(out_proj(gated(normed_RD)))
