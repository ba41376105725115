"""The device and the processes of a training."""

import atexit
import gc

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from shared.training.devices.allocator import keep_freed_memory
from shared.training.devices.device import best_device


def plain_accelerator() -> Accelerator:
    """Device and processes, as `accelerate launch` (or nothing) set them up, for what only measures or draws."""
    best_device()  # says what is to be said of it
    return Accelerator(mixed_precision="no")


def make_accelerator() -> Accelerator:
    """The same for a training. Precision is `Trainee.autocast`'s."""
    atexit.register(_leave_the_others)
    best_device()
    # Codebook statistics are each rank's own until they are reduced on purpose.
    own_buffers = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[own_buffers])
    if accelerator.device.type == "cpu":
        keep_freed_memory()
        # A prior that is sure of its tokens has gradients of 1e-40, with which a CPU multiplies some ten times slower
        # than with zeros. Threads inherit this from the one that starts them, so it comes before any of them.
        torch.set_flush_denormal(True)
    return accelerator


def _leave_the_others() -> None:
    """End the threads of gloo while Python still runs: one that frees a tensor afterwards aborts the process.

    They end with the last reference to their group, and a model wrapped for several processes holds one in a cycle.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()
