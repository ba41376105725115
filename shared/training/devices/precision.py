"""In what precision a device multiplies matrices fast."""

from typing import Literal

import torch

Precision = Literal["bf16", "fp32"]


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware does. Where it does not, a step in bfloat16 takes a CPU up to 17 times as long."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "xpu" and torch.xpu.is_bf16_supported(including_emulation=False)


def usable(wanted: Precision, device: torch.device) -> Precision:
    """The precision to train in: that which is wanted, or float32 where the device does not multiply bfloat16."""
    return wanted if multiplies_bfloat16(device) else "fp32"


def widest(device: torch.device) -> torch.dtype:
    """What sums are kept in: float64, or float32 on MPS, which has no wider numbers."""
    return torch.float32 if device.type == "mps" else torch.float64
