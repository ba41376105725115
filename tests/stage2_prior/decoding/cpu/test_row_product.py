"""Products with weights in float16 or float32, against float64 ones with the same rounded weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.kernels import kernel
from stage2_prior.decoding.cpu.device import converts_halves
from stage2_prior.decoding.cpu.product import RowLinear
from stage2_prior.decoding.cpu.row_product import MOST_ROWS, STRIP

DTYPES = [torch.float32, *([torch.float16] if converts_halves() else [])]


def exact(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor:
    return F.linear(x.double(), weight_OI.to(dtype).double(), None if bias_O is None else bias_O.double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", [1, 96])
@pytest.mark.parametrize("outputs", [1, STRIP // 2, STRIP - 1, STRIP, STRIP + 1, 200])
def test_any_number_of_rows_inputs_and_outputs(outputs: int, inputs: int, dtype: torch.dtype) -> None:
    weight_OI, bias_O = torch.randn(outputs, inputs), torch.randn(outputs)
    product = RowLinear(weight_OI, bias_O, dtype)
    for rows in range(4 * MOST_ROWS):  # none at all among them
        x_RI = torch.randn(rows, inputs)
        torch.testing.assert_close(product(x_RI).double(), exact(x_RI, weight_OI, bias_O, dtype), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("serial", [2**14, 2**40], ids=["shared", "alone"])
def test_a_row_has_the_same_bits_whatever_is_beside_it(
    serial: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "SERIAL", serial)
    product, x_RI = RowLinear(torch.randn(300, 384), torch.randn(300), dtype), torch.randn(40, 384)
    y_RO = product(x_RI)
    for rows in range(1, 40):
        assert torch.equal(product(x_RI[:rows]), y_RO[:rows])
        assert torch.equal(product(x_RI[rows:]), y_RO[rows:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_shape_and_layout_and_infinities(dtype: torch.dtype) -> None:
    weight_OI, x_RSI = torch.randn(48, 33), torch.randn(33, 5, 3).permute(2, 1, 0)
    assert not x_RSI.is_contiguous()
    y_RSO = RowLinear(weight_OI, None, dtype)(x_RSI)
    assert y_RSO.shape == (3, 5, 48)
    torch.testing.assert_close(y_RSO.double(), exact(x_RSI, weight_OI, None, dtype), rtol=1e-5, atol=1e-5)
    x_RSI[0, 0, 0], x_RSI[1, 1, 1] = torch.inf, torch.nan
    y_RSO = RowLinear(weight_OI, None, dtype)(x_RSI)
    assert torch.equal(y_RSO.isfinite().all(dim=-1), x_RSI.isfinite().all(dim=-1))


@pytest.mark.skipif(not converts_halves(), reason="this CPU does not convert float16")
def test_weights_beyond_float16_are_its_largest() -> None:
    y_RO = RowLinear(torch.tensor([[1e5, 0.0], [-1e5, 0.0]]), None, torch.float16)(torch.eye(2))
    assert y_RO.tolist() == [[65504.0, -65504.0], [0.0, 0.0]]
