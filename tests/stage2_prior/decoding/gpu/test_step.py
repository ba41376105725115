"""Triton's kernels of a decoding step against the modules whose steps they are; without a GPU, in its interpreter."""

from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from shared.layers.mamba2 import Mamba2
from shared.layers.positions import Rotary
from shared.layers.rms_norm import RMSNorm
from shared.layers.swiglu import SwiGLU
from stage2_prior.network.attention import Attention, Cursor
from tests.support.narrow import part

pytest.importorskip("triton", reason="Triton is not installed, so the steps on a GPU cannot be tested")
from stage2_prior.decoding.gpu import attend
from stage2_prior.decoding.gpu.norm import Added, add_and_norm
from stage2_prior.decoding.gpu.product import Product
from stage2_prior.decoding.gpu.step import AttentionStep, Mamba2Step, MLPStep

Module = TypeVar("Module", bound=nn.Module)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.bfloat16]
NO_GPU = pytest.mark.skipif(DEVICE.type == "cpu", reason="Triton's interpreter does not multiply matrices of bfloat16")
MULTIPLIED = [torch.float32, pytest.param(torch.bfloat16, marks=NO_GPU)]
ROWS = 2


@pytest.fixture(autouse=True)
def _without_gradients() -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def tolerance(dtype: torch.dtype) -> dict[str, Any]:
    return {"atol": 2e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 3e-2, "rtol": 3e-2}


def random(*shape: int) -> Tensor:
    return torch.randn(*shape).to(DEVICE)


def narrowed(module: Module, dtype: torch.dtype) -> Module:
    """With matrices of `dtype`, which the module then has rounded to it."""
    for linear in (m for m in module.modules() if isinstance(m, nn.Linear)):
        linear.weight.copy_(linear.weight.to(dtype))
    return module.to(DEVICE)


def in_dtype(module: Module, dtype: torch.dtype) -> Module:
    for linear in (m for m in module.modules() if isinstance(m, nn.Linear)):
        linear.to(dtype)
    return module


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 96, 130])
def test_a_norm_adds_norms_and_modulates(width: int, dtype: torch.dtype) -> None:
    norm = RMSNorm(width).to(DEVICE)
    norm.weight.uniform_(0.5, 1.5)
    x_RD, added_SRD, squares_RT = random(ROWS, width), random(3, ROWS, width), random(ROWS, 5).square()
    modulation_R3D = random(ROWS, 3, width).to(dtype)
    shift_RD, scale_RD, gate_RD = modulation_R3D.transpose(0, 1)  # as it comes: rows of one are not side by side
    y_RD = torch.full((ROWS, width), torch.nan, dtype=dtype, device=DEVICE)

    sum_RD = x_RD.clone()
    add_and_norm(sum_RD, y_RD, norm, None, None, None)
    assert torch.equal(sum_RD, x_RD)
    torch.testing.assert_close(y_RD, norm(x_RD).to(dtype), **tolerance(dtype))

    add_and_norm(sum_RD, y_RD, norm, modulation_R3D.transpose(0, 1)[:2], Added(added_SRD, squares_RT), gate_RD)
    expected_RD = x_RD + gate_RD.float() * added_SRD.sum(0) * squares_RT.sum(1, keepdim=True).rsqrt()
    torch.testing.assert_close(sum_RD, expected_RD, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(y_RD, (norm(expected_RD) * scale_RD + shift_RD).to(dtype), **tolerance(dtype))


@pytest.mark.parametrize("dtype", MULTIPLIED)
@pytest.mark.parametrize(("rows", "columns", "inner"), [(1, 64, 64), (3, 70, 300), (17, 100, 8), (70, 5, 1100)])
def test_parts_add_up_to_a_product(rows: int, columns: int, inner: int, dtype: torch.dtype) -> None:
    x_RY, weight_XY = random(rows, inner).to(dtype), random(columns, inner).to(dtype)
    y_SRX = Product(weight_XY)(x_RY)
    expected_RX = x_RY.double() @ weight_XY.double().T
    assert (y_SRX.double().sum(0) - expected_RX).abs().max() < 1e-6 * inner
    assert (len(y_SRX) > 1) == (inner > 128)


@pytest.mark.parametrize("dtype", MULTIPLIED)
def test_a_gated_mlp_is_swiglu(dtype: torch.dtype) -> None:
    mlp, x_RD = narrowed(SwiGLU(96, 640), dtype), random(ROWS, 96).to(dtype)
    expected_RD = mlp(x_RD.float())
    added = MLPStep(in_dtype(mlp, dtype))(x_RD, torch.zeros(1))
    torch.testing.assert_close(added.parts_SRD.sum(0), expected_RD, **tolerance(dtype))


@pytest.mark.parametrize("dtype", MULTIPLIED)
@pytest.mark.parametrize(("rotary", "qk_norm", "programs"), [(True, True, 1), (True, False, 100), (False, True, 100)])
def test_attention_is_that_of_the_module_at_every_position(
    rotary: bool, qk_norm: bool, programs: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attend, "TILE_BYTES", 0)  # four positions at a time
    monkeypatch.setattr(attend, "PROGRAMS", programs)  # in how many parts the positions of a row are looked at
    length, positions_LA = 10, torch.cartesian_prod(torch.arange(2), torch.arange(5))
    turn = Rotary(24, positions_LA) if rotary else None
    attention = Attention(48, 2, length, qk_norm, turn, score_factor=1.7)
    if qk_norm:
        for name in ("q_norm", "k_norm"):
            part(attention, name, RMSNorm).weight.uniform_(0.5, 1.5)
    x_LRD = random(length, ROWS, 48).to(dtype)
    expected_RLD = narrowed(attention, dtype)(x_LRD.float().transpose(0, 1))
    state = attention.init_state(ROWS, Cursor(DEVICE), dtype)
    state.kv_2BHLE.fill_(torch.nan)  # what it has not written, it must not read
    step = AttentionStep(in_dtype(attention, dtype), state)
    assert step.attend.parts == (1 if programs == 1 else 3)
    for position, x_RD in enumerate(x_LRD):
        y_RD = step(x_RD, torch.tensor([position], device=DEVICE)).parts_SRD.sum(0)
        torch.testing.assert_close(y_RD, expected_RLD[:, position], **tolerance(dtype))
    assert state.kv_2BHLE.isfinite().all()


@pytest.mark.parametrize("dtype", MULTIPLIED)
@pytest.mark.parametrize(("headdim", "conv_bias"), [(32, True), (12, False)])
def test_mamba2_is_that_of_the_module_at_every_position(headdim: int, conv_bias: bool, dtype: torch.dtype) -> None:
    mamba = Mamba2(48, d_state=6, headdim=headdim, conv_bias=conv_bias)
    for parameter in (mamba.D, mamba.norm.weight):
        parameter.uniform_(0.5, 1.5)
    narrowed(mamba, dtype)
    x_LRD, plain = random(6, ROWS, 48).to(dtype), mamba.init_state(ROWS)
    expected_LRD = torch.stack([mamba.step(x_RD.float(), plain) for x_RD in x_LRD])
    state = mamba.init_state(ROWS)
    step = Mamba2Step(in_dtype(mamba, dtype), state)
    for position, x_RD in enumerate(x_LRD):
        added = step(x_RD, torch.tensor([position], device=DEVICE))
        assert added.squares_RT is not None
        y_RD = added.parts_SRD.sum(0) * added.squares_RT.sum(1, keepdim=True).rsqrt()
        torch.testing.assert_close(y_RD, expected_LRD[position], **tolerance(dtype))
    torch.testing.assert_close(state.ssm_BGNJ, plain.ssm_BGNJ, **tolerance(dtype))
    torch.testing.assert_close(state.conv_BKC, plain.conv_BKC, **tolerance(dtype))
