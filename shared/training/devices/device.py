"""The device that commands train and draw on."""

from functools import cache

import torch
from accelerate import Accelerator


def best_device() -> torch.device:
    """What `accelerate` finds: this process's GPU (CUDA, ROCm), XPU or MPS, or else the CPU.

    ACCELERATE_USE_CPU=true asks for the CPU. The first process says once where Tessera is not tested on the device.
    """
    accelerator = Accelerator(mixed_precision="no")
    if accelerator.is_main_process:
        _say_where_untested(accelerator.device.type)
    return accelerator.device


@cache
def _say_where_untested(kind: str) -> None:
    if kind == "cpu" or (kind == "cuda" and torch.version.hip is None):
        return
    name = "ROCm" if kind == "cuda" else kind
    print(f"device: {name}, on which Tessera is not tested; ACCELERATE_USE_CPU=true takes the CPU", flush=True)
