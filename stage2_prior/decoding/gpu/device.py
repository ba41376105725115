"""What a GPU can do, and how one kernel overlaps with the next.

A step's kernels take a few microseconds each: what counts is that memory is never idle. Where the GPU can (Hopper and
later), a kernel starts while the one before it ends, and asks for its weights or state before it waits for results.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl

LINE = 128  # bytes, which memory moves at once
PROGRAMS = 1024  # with which a GPU is busy


@dataclass(frozen=True)
class Gpu:
    """The numbers that kernels are shaped by."""

    multiprocessors: int
    shared_memory: int  # bytes, of one of them
    overlap: bool

    @property
    def options(self) -> dict[str, bool]:
        """Of the launch of a kernel that calls `wait`."""
        return {"OVERLAP": True, "launch_pdl": True} if self.overlap else {"OVERLAP": False}


@cache
def gpu(device: torch.device) -> Gpu:
    """The GPU that `device` is; for Triton's interpreter, a Hopper one that does not overlap."""
    if device.type != "cuda":
        return Gpu(132, 227 * 2**10, overlap=False)
    found = torch.cuda.get_device_properties(device)
    shared_memory = getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block)  # not of AMD's
    return Gpu(found.multi_processor_count, shared_memory, overlap=torch.version.cuda is not None and found.major >= 9)


@triton.jit
def wait(OVERLAP: tl.constexpr):
    """Let the next kernel start, and wait for all kernels before this one.

    Before it, a kernel reads only what no other kernel of the step writes, and writes only what no other one touches.
    Steps do not overlap: other operations lie between them.
    """
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def fetch(address):
    """Bring the lines at these addresses into the cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [address.to(tl.int64, bitcast=True)],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip
