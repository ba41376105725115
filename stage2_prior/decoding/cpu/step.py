"""A prior's step on a CPU: products on weights packed once, and Numba's kernels between them.

Shapes: R rows, D width, V codes, K = V of the table, I inner width of a Mamba-2, M hidden width of an MLP; X what a
product returns.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from shared.kernels.arrays import as_array
from shared.kernels.swiglu import gate_rows
from shared.layers.mamba2 import Mamba2, Mamba2State
from shared.layers.rms_norm import RMSNorm
from shared.layers.swiglu import SwiGLU
from stage2_prior.decoding.cpu.attend import attend
from stage2_prior.decoding.cpu.device import narrowest
from stage2_prior.decoding.cpu.norm import add_and_norm
from stage2_prior.decoding.cpu.product import pack
from stage2_prior.decoding.cpu.recur import recur
from stage2_prior.decoding.step import Step
from stage2_prior.network.attention import Attention, KVCache
from stage2_prior.network.block import ClassModulation, Mix, MixState
from stage2_prior.prior import Prior, PriorState


class PackedWeights:
    """A prior's weights for a CPU, as they are now: linear maps packed, copies of all else.

    `dtype` is what keys and values are to be kept in, `matrices` what matrices are rounded to, `rows` what goes into
    products.
    """

    def __init__(self, prior: Prior, exact: bool) -> None:
        self.dtype = torch.float32 if exact else torch.bfloat16
        self.matrices = torch.float32 if exact else narrowest()
        self.rows = torch.bfloat16 if self.matrices == torch.bfloat16 else torch.float32
        table_KR = prior.vocabulary.table()
        self.score = pack(table_KR, prior.vocabulary.bias_K, self.matrices)
        # What is packed need not be copied before.
        linears = [linear for _, _, linear in _linears(prior)]
        linears += prior.modulation.linears() if prior.modulation is not None else []
        weights = [tensor for linear in linears for tensor in linear.parameters()]
        self.model = copy.deepcopy(prior, {id(tensor): tensor for tensor in weights}).eval()
        self.table_KR = self.model.vocabulary.table()
        for module, name, linear in list(_linears(self.model)):
            if linear.weight is not self.table_KR:  # that is `score`
                delattr(module, name)
                setattr(module, name, pack(linear.weight, linear.bias, self.matrices))
        if self.model.modulation is not None:
            _pack_modulators(self.model.modulation)

    def fill(self, inputs_RK: Tensor, state: PriorState) -> None:
        """`Prior.prefill`, but for the logits: of each sequence alone, and once where several begin alike.

        PyTorch's products and loops over vectors have other bits where they are shared out among other sequences, or
        among more threads.
        """
        different_NK, which_R = inputs_RK.unique(dim=0, return_inverse=True)
        with _one_thread():
            for number, inputs_K in enumerate(different_NK):
                alone = self.model.init_state(1, dtype=self.dtype)
                self.model.fill(inputs_K[None], alone, self.table_KR)
                state.put((which_R == number).nonzero()[:, 0], alone)
        state.cursor.advance(inputs_RK.shape[1])

    def step(self, state: PriorState) -> "CpuStep":
        """`Prior.step` for this state, whose cursor it does not move: (R,) ids -> (R, V) logits."""
        return CpuStep(self, state)


def _linears(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """The linear maps of a prior's step: whose part each is, and by what name."""
    for name, part in module.named_children():
        if isinstance(part, nn.Linear):
            yield module, name, part
        elif not isinstance(part, ClassModulation):  # that is once a call
            yield from _linears(part)


def _pack_modulators(modulation: ClassModulation) -> None:
    """Pack its linear maps, unrounded: they are read once a batch."""
    *blocks, last = (pack(linear.weight, linear.bias, torch.float32) for linear in modulation.linears())
    for name, packed in (("blocks", blocks), ("last", last)):
        delattr(modulation, name)
        setattr(modulation, name, packed)


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch and kernels on one thread, of all that this one calls."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class CpuStep(Step[np.ndarray, np.ndarray]):
    """One step of a batch; what a mix adds, and the rows, are arrays of NumPy."""

    def __init__(self, weights: PackedWeights, state: PriorState) -> None:
        shape = state.batch, weights.model.config.width
        self.score = weights.score
        self.normed_RD = torch.empty(shape, dtype=weights.rows)
        self.zeros_RD, self.ones_RD = (as_array(torch.full(shape, value, dtype=weights.rows)) for value in (0, 1))
        super().__init__(weights.model, weights.table_KR, state)

    def begin(self, embedded_RD: Tensor) -> np.ndarray:
        return as_array(embedded_RD)

    def bind_norm(
        self, norm: RMSNorm, modulation_2RD: Tensor | None, gate_RD: Tensor | None
    ) -> Callable[[np.ndarray, np.ndarray | None], None]:
        shift_RD, scale_RD = (self.zeros_RD, self.ones_RD) if modulation_2RD is None else map(as_array, modulation_2RD)
        gate = self.ones_RD if gate_RD is None else as_array(gate_RD)
        options = (_float(norm.weight), norm.eps, scale_RD, shift_RD, as_array(self.normed_RD))

        def add_then_norm(x_RD: np.ndarray, added_RD: np.ndarray | None) -> None:
            added_RD = self.zeros_RD if added_RD is None else added_RD
            add_and_norm(x_RD, added_RD, gate, *options, work=x_RD.shape)

        return add_then_norm

    def bind_mix(self, mix: Mix, state: MixState) -> Callable[[], np.ndarray]:
        match mix, state:
            case Attention(), KVCache():
                return AttentionStep(mix, state, self.normed_RD)
            case Mamba2(), Mamba2State():
                return Mamba2Step(mix, state, self.normed_RD)
            case SwiGLU(), None:
                return MLPStep(mix, self.normed_RD)
        raise TypeError(f"a CPU has no step for {type(mix).__name__} with a state {type(state).__name__}")

    def scores(self) -> Tensor:
        return self.score(self.model.vocabulary.query(self.normed_RD))


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
        self.cursor = state.cursor
        norms = (_float(q_norm.weight), _float(k_norm.weight), q_norm.eps, attention.scale)
        self.options = (*norms, *map(as_array, angles), *map(as_array, state.kv_2BHLE), as_array(self.y_RD))

    def __call__(self) -> np.ndarray:
        qkv_RX, position = as_array(self.qkv_proj(self.normed_RD)), self.cursor.position
        attend(qkv_RX, position, *self.options, work=(self.turns, self.headdim * (position + 1)))
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

    def __call__(self) -> np.ndarray:
        zxBCdt_RX = as_array(self.in_proj(self.normed_RD))
        recur(zxBCdt_RX, *self.options, work=(len(self.y_RI), self.states))
        return as_array(self.out_proj(self.y_RI))


class MLPStep:
    """`SwiGLU.forward` of the normed rows."""

    def __init__(self, mlp: SwiGLU, normed_RD: Tensor) -> None:
        self.in_proj, self.out_proj, self.normed_RD = mlp.in_proj, mlp.out_proj, normed_RD
        self.y_RM = normed_RD.new_empty(len(normed_RD), mlp.hidden)

    def __call__(self) -> np.ndarray:
        gate_rows(as_array(self.in_proj(self.normed_RD)), as_array(self.y_RM), work=self.y_RM.shape)
        return as_array(self.out_proj(self.y_RM))


def _float(weight: Tensor) -> np.ndarray:
    return weight.detach().float().numpy()
