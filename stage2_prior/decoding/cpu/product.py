"""Linear maps of few rows on a CPU: the weights are rounded, and laid out for the products, once instead of in each.

With few rows, a product takes as long as its weights take to read, and laying them out would take longer than that.
Shapes: I inputs, O outputs; N panels of P of them.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.kernels.arrays import as_array
from stage2_prior.decoding.cpu.row_product import PANEL, STRIP, multiply

TOGETHER = 16  # rows of one call of oneDNN; those of a tile of Intel's AMX


class PackedLinear:
    """x @ weight^T + bias by oneDNN in bfloat16, (..., I) -> (..., O).

    oneDNN sums up one row in another order than several, and of a few sizes chooses the order by how many there are. So
    it is always given equally many: zeros beside those that there are.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().bfloat16(), TOGETHER)
        self.bias_O = None if bias_O is None else bias_O.detach().to(torch.bfloat16, copy=True)

    def __call__(self, x: Tensor) -> Tensor:
        x_RI = x.bfloat16().flatten(0, -2)
        count = len(x_RI)
        missing = -count % TOGETHER
        if missing:
            x_RI = F.pad(x_RI, (0, 0, 0, missing))
        parts = [self._multiply(part_TI) for part_TI in x_RI.split(TOGETHER)]
        y_RO = parts[0] if len(parts) == 1 else torch.cat(parts)
        return y_RO[:count].unflatten(0, x.shape[:-1])

    def _multiply(self, x_TI: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x_TI, self.packed, self.bias_O, "none", [], "")


class RowLinear:
    """x @ weight^T + bias, (..., I) -> (..., O), both float32, of weights in float32, or in float16: half of the memory
    to read.

    Rows do not depend on one another, to the last bit. (Of FBGEMM's products of this kind, which PyTorch brings, and of
    oneDNN's and MKL's, one or two rows are summed up in another order than more are.)
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, dtype: torch.dtype) -> None:
        self.outputs, self.inputs = weight_OI.shape
        # The last strip ends with the last output: some outputs are in the one before as well, and computed twice.
        self.width = max(self.outputs, STRIP)
        starts = torch.arange(0, self.outputs, STRIP).clamp(max=self.width - STRIP)
        places_NP = (starts[:, None] + torch.arange(STRIP)).view(-1, PANEL).clamp(max=self.outputs - 1)
        bias_O = weight_OI.new_zeros(self.outputs) if bias_O is None else bias_O
        most = torch.finfo(dtype).max  # what is beyond it would be infinite
        rounded_OI = weight_OI.detach().float().clamp(-most, most).to(dtype)
        weight_NIP = rounded_OI[places_NP].mT.contiguous()
        self.weight_NIP = (weight_NIP.view(torch.uint16) if dtype == torch.float16 else weight_NIP).numpy()
        self.bias_NP = as_array(bias_O.detach().float()[places_NP])

    def __call__(self, x: Tensor) -> Tensor:
        numbers = as_array(x.float())
        x_RI = np.ascontiguousarray(numbers.reshape(-1, self.inputs))
        y_RO = np.empty((len(x_RI), self.width), np.float32)
        work = (len(self.weight_NIP) // 2, STRIP * x_RI.size)
        multiply(x_RI, self.weight_NIP, self.bias_NP, y_RO, work=work)
        if self.width > self.outputs:
            y_RO = np.ascontiguousarray(y_RO[:, : self.outputs])
        return torch.from_numpy(y_RO.reshape(*numbers.shape[:-1], self.outputs))


def pack(weight_OI: Tensor, bias_O: Tensor | None, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """x @ weight^T + bias, (..., I) -> (..., O), with weights rounded to this dtype as they are now.

    A row's bits depend on that row alone.
    """
    return PackedLinear(weight_OI, bias_O) if dtype == torch.bfloat16 else RowLinear(weight_OI, bias_O, dtype)
