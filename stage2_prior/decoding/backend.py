"""Whose kernels draw on a device."""

from typing import Literal

import torch

# Numba's, Triton's in a captured graph, or none: PyTorch's operations, and tokens chosen on the CPU.
Backend = Literal["numba", "triton", "plain"]
KERNELS: dict[str, Backend] = {"cpu": "numba", "cuda": "triton"}


def backend_of(device: torch.device) -> Backend:
    """What draws on a device; ROCm's devices are called "cuda" too."""
    return KERNELS.get(device.type, "plain")
