"""Kernels of a decoding step, against PyTorch: its own operations, and the modules whose steps they are."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shared.kernels.arrays import as_array
from shared.layers.mamba2 import Mamba2
from shared.layers.positions import Rotary
from shared.layers.rms_norm import RMSNorm
from shared.layers.swiglu import SwiGLU
from stage2_prior.decoding.cpu.norm import add_and_norm
from stage2_prior.decoding.cpu.step import AttentionStep, Mamba2Step, MLPStep
from stage2_prior.network.attention import Attention, Cursor
from tests.support.narrow import part

Module = TypeVar("Module", bound=nn.Module)
DTYPES = [torch.float32, torch.bfloat16]
MANY = 33  # rows, so many that kernels share them out among threads


@pytest.fixture(autouse=True)
def _without_gradients() -> Any:
    with torch.no_grad():
        yield


def tolerance(dtype: torch.dtype) -> dict[str, Any]:
    return {"atol": 2e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}


def same_rows(run: Callable[[int], list[Tensor]]) -> list[Tensor]:
    """What `run` returns of many rows, whose first ones are bit by bit what it returns of these alone."""
    whole = run(MANY)
    for rows in (1, 2, 7):
        for alone, among_others in zip(run(rows), whole, strict=True):
            assert torch.equal(alone, among_others[:rows])
    return whole


@pytest.mark.parametrize("scale", [1.0, 1e-4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_adds_norms_and_modulates(dtype: torch.dtype, scale: float) -> None:
    norm, x_RD, added_RD = RMSNorm(640), torch.randn(MANY, 640) * scale, (torch.randn(MANY, 640) * scale).to(dtype)
    norm.weight.uniform_(0.5, 1.5)
    gate_RD, scale_RD, shift_RD = torch.randn(3, MANY, 640).to(dtype)

    def run(rows: int) -> list[Tensor]:
        sum_RD, y_RD = x_RD[:rows].clone(), torch.empty(rows, 640, dtype=dtype)
        modulation = (part[:rows] for part in (scale_RD, shift_RD, y_RD))
        add_and_norm_rows(norm, sum_RD, added_RD[:rows], gate_RD[:rows], *modulation)
        return [sum_RD, y_RD]

    sum_RD, y_RD = same_rows(run)
    torch.testing.assert_close(sum_RD, x_RD + gate_RD.float() * added_RD, atol=1e-6, rtol=1e-6)
    expected_RD = norm(sum_RD) * scale_RD + shift_RD
    torch.testing.assert_close(y_RD, expected_RD.to(dtype), **tolerance(dtype))
    nothing_RD = torch.zeros(1, 640)
    add_and_norm_rows(norm, nothing_RD, nothing_RD, nothing_RD, nothing_RD + 1, nothing_RD, y_RD[:1].float())
    assert not nothing_RD.any()


def add_and_norm_rows(
    norm: RMSNorm, x_RD: Tensor, added_RD: Tensor, gate_RD: Tensor, *modulation_and_y: Tensor
) -> None:
    first, last = (x_RD, added_RD, gate_RD), modulation_and_y
    arrays = (*map(as_array, first), norm.weight.detach().numpy(), norm.eps, *map(as_array, last))
    add_and_norm(*arrays, work=x_RD.shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gated_mlp_is_swiglu(dtype: torch.dtype) -> None:
    mlp, x_RD = SwiGLU(96, 640), torch.randn(MANY, 96).to(dtype)
    bound = with_products_of_single_rows(mlp, dtype)
    y_RD = same_rows(lambda rows: [after(MLPStep(bound, x_RD[:rows]), dtype)])[0]
    torch.testing.assert_close(y_RD.float(), mlp(x_RD.float()), **tolerance(dtype))


def with_products_of_single_rows(module: Module, dtype: torch.dtype) -> Module:
    """A copy that multiplies in `dtype` and row by row, so that no row depends on the others for that."""
    module = copy.deepcopy(module)
    for name, linear in list(module.named_children()):
        if isinstance(linear, nn.Linear):
            delattr(module, name)
            setattr(module, name, partial(multiply_row_by_row, linear.to(dtype)))
    return module


def multiply_row_by_row(linear: nn.Linear, x_RD: Tensor) -> Tensor:
    return torch.cat([linear(x_1D) for x_1D in x_RD.split(1)])


def after(mix: Callable[[], np.ndarray], dtype: torch.dtype) -> Tensor:
    """What a step returns, as a tensor."""
    return torch.from_numpy(mix()).view(dtype)


@pytest.mark.parametrize(("dtype", "kept"), [*zip(DTYPES, DTYPES, strict=True), (torch.float32, torch.bfloat16)])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("rotary", [True, False])
def test_attention_is_that_of_the_module_at_every_position(
    rotary: bool, qk_norm: bool, dtype: torch.dtype, kept: torch.dtype
) -> None:
    torch.manual_seed(0)
    length, positions_LA = 40, torch.cartesian_prod(torch.arange(5), torch.arange(8))
    turn = Rotary(32, positions_LA) if rotary else None
    attention = Attention(96, 3, length, qk_norm, turn, score_factor=1.7)
    if qk_norm:
        for name in ("q_norm", "k_norm"):
            part(attention, name, RMSNorm).weight.uniform_(0.5, 1.5)
    x_LRD = torch.randn(length, MANY, 96).to(dtype)
    expected_RLD = attention(x_LRD.float().transpose(0, 1))
    bound = with_products_of_single_rows(attention, dtype)

    def run(rows: int) -> list[Tensor]:
        state = attention.init_state(rows, Cursor("cpu"), kept)
        state.kv_2BHLE.fill_(torch.nan)  # what it has not written, it must not read
        x_RD = torch.empty(rows, 96, dtype=dtype)
        step = AttentionStep(bound, state, x_RD)
        y_LRD = []
        for position in range(length):
            state.cursor.position = position
            x_RD.copy_(x_LRD[position, :rows])
            y_LRD.append(after(step, dtype).clone())
        return [torch.stack(y_LRD, 1), state.kv_2BHLE.transpose(0, 1).float()]

    y_RLD, kv_R2HLE = same_rows(run)
    torch.testing.assert_close(y_RLD.float(), expected_RLD, **tolerance(kept))
    assert kv_R2HLE.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("conv_bias", [True, False])
def test_mamba2_is_that_of_the_module_at_every_position(conv_bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mamba = Mamba2(96, d_state=24, headdim=16, conv_bias=conv_bias)
    mamba.D.uniform_(0.5, 1.5)
    mamba.norm.weight.uniform_(0.5, 1.5)
    x_LRD = torch.randn(12, MANY, 96).to(dtype)
    plain = mamba.init_state(MANY)
    expected_LRD = torch.stack([mamba.step(x_RD.float(), plain) for x_RD in x_LRD])
    bound = with_products_of_single_rows(mamba, dtype)

    def run(rows: int) -> list[Tensor]:
        state = mamba.init_state(rows)
        x_RD = torch.empty(rows, 96, dtype=dtype)
        step = Mamba2Step(bound, state, x_RD)
        y_LRD = []
        for position in range(len(x_LRD)):
            x_RD.copy_(x_LRD[position, :rows])
            y_LRD.append(after(step, dtype).clone())
        return [torch.stack(y_LRD, 1), state.conv_BKC, state.ssm_BGNJ]

    y_RLD, conv_BKC, ssm_BGNJ = same_rows(run)
    torch.testing.assert_close(y_RLD.float(), expected_LRD.transpose(0, 1), **tolerance(dtype))
    torch.testing.assert_close(conv_BKC, plain.conv_BKC, **tolerance(dtype))
    torch.testing.assert_close(ssm_BGNJ, plain.ssm_BGNJ, **tolerance(dtype))
