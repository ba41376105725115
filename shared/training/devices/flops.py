"""How much a model computes, counted rather than timed."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

# torch counts CUDA's attention kernels, and not the CPU's.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *args, **kwargs: sdpa_flop_count(
        q, k, v
    )
}


def count_flops(function: Callable[[], Any]) -> int:
    """FLOPs of the matrix products and convolutions that `function` does, as torch counts them.

    A multiply-add counts as two, elementwise work is not counted, and causal attention counts as if it were not.
    """
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        function()
    return counter.get_total_flops()
