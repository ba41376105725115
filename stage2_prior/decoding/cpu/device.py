"""What a CPU can do: which products it has, and what its weights are best rounded to."""

from functools import cache

import torch
from llvmlite import binding

from shared.training.devices.precision import multiplies_bfloat16


def narrowest() -> torch.dtype:
    """What weights may be rounded to so that this CPU's products are fastest."""
    if can_pack() and multiplies_bfloat16(torch.device("cpu")):
        return torch.bfloat16
    return torch.float16 if converts_halves() else torch.float32


@cache
def can_pack() -> bool:
    """Whether PyTorch brings oneDNN's packed products in bfloat16 for this CPU; most without AVX-512 have none."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(1, 1, dtype=torch.bfloat16), 1)
    except RuntimeError:  # its message names the instructions that are missing
        return False
    return True


def converts_halves() -> bool:
    """Whether this CPU turns float16 into float32 in hardware."""
    return bool(binding.get_host_cpu_features().get("f16c")) or binding.get_process_triple().startswith("aarch64")
