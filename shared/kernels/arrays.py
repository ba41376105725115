"""Tensors as arrays that kernels work on.

Numbers come in float32 or in bfloat16, which NumPy does not know: uint16 holds its bits.
"""

import numpy as np
import torch
from torch import Tensor


def as_array(x: Tensor) -> np.ndarray:
    """The same memory for a kernel; bfloat16 as uint16."""
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def as_rows(x: Tensor) -> np.ndarray:
    """The same numbers for a kernel, (..., D) as (N, D); the same memory, where it is contiguous."""
    return as_array(x.detach().contiguous().flatten(0, -2))


def numbers_of(weight: Tensor) -> np.ndarray:
    """A copy in float32: memory that NumPy has seen can no longer be resized, as FSDP does with weights."""
    return weight.detach().to(torch.float32, copy=True).numpy()


def suit_kernels(*tensors: Tensor) -> bool:
    """Whether kernels can work on these: on a CPU, in float32 or bfloat16, and while nobody traces or counts PyTorch's
    operations.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    return all(t.device.type == "cpu" and t.dtype in (torch.float32, torch.bfloat16) for t in tensors)
