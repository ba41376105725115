"""Rows of all processes, brought together."""

from accelerate import Accelerator
from accelerate.utils import pad_across_processes
from torch import Tensor


def gather_rows(accelerator: Accelerator, rows: Tensor, total: int) -> Tensor:
    """What every process has of `total` rows, dealt out in turns (process r has rows r, r + processes, ...), in order.

    Every process needs at least one row. Returns all rows on every process, on the CPU.
    """
    padded = pad_across_processes(rows.to(accelerator.device), dim=0)
    gathered = accelerator.gather(padded).unflatten(0, (accelerator.num_processes, -1))
    return gathered.transpose(0, 1).flatten(0, 1)[:total].cpu()
