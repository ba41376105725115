"""Linear maps of few rows on a CPU: the weights are rounded, and laid out for the products, once instead of in each.

With few rows, a product takes as long as its weights take to read, and laying them out would take longer than that.
Shapes: I inputs, O outputs.
"""

from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.training.precision import multiplies_bfloat16

PACKED_FOR = 32  # rows; always the same, so that the bits of a row do not depend on how many others are drawn with it


class PackedLinear:
    """x @ weight^T + bias by oneDNN, (..., I) -> (..., O), all in `dtype`."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().to(dtype), PACKED_FOR)
        self.bias_O = None if bias_O is None else bias_O.detach().to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, self.bias_O, "none", [], "")


class HalfLinear:
    """x @ weight^T + bias by FBGEMM, (..., I) -> (..., O) float32, of weights in float16, whose products it sums up in
    float32: half of float32's memory to read, on CPUs that do not multiply bfloat16.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        bias_O = None if bias_O is None else bias_O.detach().float()
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight_OI.detach().float(), bias_O)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(x.float(), self.packed)


def pack(weight_OI: Tensor, bias_O: Tensor | None, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """x @ weight^T + bias, (..., I) -> (..., O), with weights rounded to this dtype."""
    if dtype == torch.float16:
        return HalfLinear(weight_OI, bias_O)
    if can_pack():
        return PackedLinear(weight_OI, bias_O, dtype)
    return partial(F.linear, weight=weight_OI.detach(), bias=bias_O)


def narrowest() -> torch.dtype:
    """What weights may be rounded to so that this CPU's products are fastest."""
    if can_pack() and multiplies_bfloat16(torch.device("cpu")):
        return torch.bfloat16
    return torch.float16 if can_pack_halves() else torch.float32


def can_pack() -> bool:
    """Whether PyTorch brings oneDNN's packed products for this CPU."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")


@cache
def can_pack_halves() -> bool:
    """Whether PyTorch brings FBGEMM's products for this CPU."""
    try:
        HalfLinear(torch.zeros(16, 16), None)
    except (AttributeError, RuntimeError):
        return False
    return True
