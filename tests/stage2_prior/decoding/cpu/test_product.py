"""Packed products against float64, and the choice of what to round weights to."""

import pytest
import torch
import torch.nn.functional as F

from shared.training.devices.precision import multiplies_bfloat16
from stage2_prior.decoding.cpu.device import can_pack, converts_halves
from stage2_prior.decoding.cpu.product import pack

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 5e-4}


def usable_dtypes() -> list[torch.dtype]:
    """What this CPU can multiply weights in."""
    halves = [torch.float16] if converts_halves() else []
    return [torch.float32, *halves, *([torch.bfloat16] if can_pack() and multiplies_bfloat16(CPU) else [])]


def packed_dtypes() -> list[torch.dtype]:
    """What weights can be packed in here; oneDNN has bfloat16 for CPUs too that have no instruction for it."""
    return list(dict.fromkeys([*usable_dtypes(), *([torch.bfloat16] if can_pack() else [])]))


@pytest.mark.parametrize("inputs", [96, 1536])  # of more than a thousand, oneDNN sums up a single row differently
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_packed_products_are_products_and_rows_do_not_depend_on_each_other(
    dtype: torch.dtype, bias: bool, inputs: int
) -> None:
    if dtype not in packed_dtypes():
        pytest.skip(f"this CPU has no packed products of {dtype}")
    x_BI, weight_OI, bias_O = torch.randn(33, inputs), torch.randn(200, inputs), torch.randn(200) if bias else None
    product = pack(weight_OI, bias_O, dtype)
    y_BO = product(x_BI)
    expected_BO = F.linear(x_BI.double(), weight_OI.double(), None if bias_O is None else bias_O.double())
    tolerance = TOLERANCE[dtype] * (inputs / 96) ** 0.5  # rounding goes with the root of how many numbers are summed up
    assert (y_BO - expected_BO).abs().max() < tolerance * expected_BO.abs().max()
    for rows in (1, 2, 7, 16, 32):
        assert torch.equal(product(x_BI[:rows]), y_BO[:rows])
        assert torch.equal(product(x_BI[-rows:]), y_BO[-rows:])
    assert torch.equal(product(x_BI[None]), y_BO[None])
