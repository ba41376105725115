"""The memory that a training takes: estimated before it starts, rather than found out by a killed process; its peak."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import UserError

# Bytes in training for each weight: itself, its gradient, two moments of AdamW and the moving average, in float32.
TRAINING_BYTES = 20
# An estimate beyond this share of the memory is refused. Compiled for CUDA, a model keeps less than is estimated here,
# and running out ends in a message; where it is the system's memory (CPU, MPS), that would kill the process.
REFUSED = {"cuda": 2.0}
REFUSED_ELSEWHERE = 1.0
OF_THEIR_OWN: dict[str, Any] = {"cuda": torch.cuda, "xpu": torch.xpu}  # with memory that is not the system's


class DoesNotFit(UserError):
    """A training that the memory of this machine is too small for."""


def kept_for_backward(model: nn.Module, forward: Callable[[], Tensor], precision: str) -> int:
    """Bytes that `forward`, which returns a loss, keeps for the backward pass, on the CPU; weights are not counted.

    Each storage counts once, however many operations keep a view of it. Fake tensors will do, which have no memory.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # holding on to each storage, so that no number comes twice

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()  # not its address, which fake ones lack
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward().requires_grad_()
    return sum(storage.nbytes() for number, storage in kept.items() if number not in weights)


def check_fits(
    weight_bytes: int, image_bytes: int, batch_size: int, accumulation: int, device: torch.device, unit: str = "image"
) -> str:
    """One line on what a training step takes, with the setting that halves it where it does not fit.

    weight_bytes: for weights, gradients, moments, average; image_bytes: kept of each image (`unit`: what it is called)
    of a forward pass. What the backward pass works with comes on top. Raises DoesNotFit where the step is out of all
    proportion to the memory of `device`.
    """
    needed, total = weight_bytes + batch_size * image_bytes, total_memory(device)
    line = (
        f"memory: about {_size(needed)} of {_size(total)} ({device.type}): {_size(weight_bytes)} for weights, "
        f"gradients, moments and average, {_size(image_bytes)} for each of the {batch_size} {unit}s of a forward pass"
    )
    if needed <= total:
        return line
    if batch_size * image_bytes < weight_bytes or batch_size == 1:
        hint = "it takes a narrower or shallower model (keys below model), or smaller images"
    else:
        hint = (
            f"training.batch_size={batch_size // 2} training.accumulation={accumulation * 2} takes half as much for "
            f"the {unit}s, and trains with as many a step"
        )
    if needed > REFUSED.get(device.type, REFUSED_ELSEWHERE) * total:
        raise DoesNotFit(f"this training does not fit. {line}; {hint}")
    return f"{line}. It may not fit: {hint}"


def total_memory(device: torch.device) -> int:
    """Bytes of memory that `device`, or this process on a CPU, can have at most."""
    if device.type in OF_THEIR_OWN:
        return OF_THEIR_OWN[device.type].mem_get_info(device)[1]
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdecimal() else total


def reset_peak_memory() -> None:
    """Count peak memory from now on: CUDA's or XPU's, or this process's on Linux."""
    if own := _own_memory():
        own.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is in use (man 5 proc)
    except OSError:
        return


def peak_memory() -> float | None:
    """Bytes of CUDA or XPU memory, or of this process, libraries included; None where the system does not say."""
    if own := _own_memory():
        return own.max_memory_allocated()
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * float(lines[0][1]) if lines else None


def _own_memory() -> Any:
    """`torch.cuda` or `torch.xpu`, where there is such a device; None elsewhere."""
    return next((module for module in OF_THEIR_OWN.values() if module.is_available()), None)


def _size(count: int) -> str:
    return f"{count / 2**30:,.3g} GiB" if count >= 2**30 else f"{count / 2**20:,.3g} MiB"
