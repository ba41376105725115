"""Linear maps of few rows on a CPU: the weights are rounded, and laid out for the products, once instead of in each.

With few rows, a product takes as long as its weights take to read, and laying them out would take longer than that.
Shapes: I inputs, O outputs; N panels of P of them.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.kernels.arrays import as_array
from stage2_prior.decoding.cpu.device import can_pack
from stage2_prior.decoding.cpu.half_product import PANEL, STRIP, multiply

PACKED_FOR = 32  # rows; always the same, so that the bits of a row do not depend on how many others are drawn with it


class PackedLinear:
    """x @ weight^T + bias by oneDNN, (..., I) -> (..., O), all in `dtype`."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().to(dtype), PACKED_FOR)
        self.bias_O = None if bias_O is None else bias_O.detach().to(dtype, copy=True)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, self.bias_O, "none", [], "")


class HalfLinear:
    """x @ weight^T + bias, (..., I) -> (..., O), both float32, of weights in float16: half of float32's memory to read.

    Rows do not depend on one another, to the last bit. (Of FBGEMM's products of this kind, which PyTorch brings, one or
    two rows are summed up in another order than more are.)
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self.outputs, self.inputs = weight_OI.shape
        # The last strip ends with the last output: some outputs are in the one before as well, and computed twice.
        self.width = max(self.outputs, STRIP)
        starts = torch.arange(0, self.outputs, STRIP).clamp(max=self.width - STRIP)
        places_NP = (starts[:, None] + torch.arange(STRIP)).view(-1, PANEL).clamp(max=self.outputs - 1)
        bias_O = weight_OI.new_zeros(self.outputs) if bias_O is None else bias_O
        most = torch.finfo(torch.float16).max  # what is beyond it would be infinite
        halves_OI = weight_OI.detach().clamp(-most, most).half()
        self.weight_NIP = halves_OI[places_NP].mT.contiguous().view(torch.uint16).numpy()
        self.bias_NP = as_array(bias_O.detach().float()[places_NP])

    def __call__(self, x: Tensor) -> Tensor:
        numbers = as_array(x.float())
        x_RI = numbers.reshape(-1, self.inputs)
        y_RO = np.empty((len(x_RI), self.width), np.float32)
        work = (len(self.weight_NIP) // 2, STRIP * x_RI.size)
        multiply(x_RI, self.weight_NIP, self.bias_NP, y_RO, work=work)
        if self.width > self.outputs:
            y_RO = np.ascontiguousarray(y_RO[:, : self.outputs])
        return torch.from_numpy(y_RO.reshape(*numbers.shape[:-1], self.outputs))


def pack(weight_OI: Tensor, bias_O: Tensor | None, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """x @ weight^T + bias, (..., I) -> (..., O), with weights rounded to this dtype as they are now."""
    if dtype == torch.float16:
        return HalfLinear(weight_OI, bias_O)
    if can_pack():
        return PackedLinear(weight_OI, bias_O, dtype)
    bias_O = None if bias_O is None else bias_O.detach().clone()
    return partial(F.linear, weight=weight_OI.detach().clone(), bias=bias_O)
