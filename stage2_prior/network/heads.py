"""The heads that attention needs, of the product of a layer's input with its weights.

Shapes: B batch, L length, H heads, E width of a head, F = E / 2 rotary frequencies, X = 3 * H * E: queries, keys and
values, each head by head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from shared.kernels.arrays import as_array, numbers_of, suit_kernels
from shared.kernels.heads import BLOCK, differentiate_split, split_into_heads
from shared.layers.positions import turned
from shared.layers.wide import wide

Heads = tuple[Tensor, Tensor, Tensor]


class NormedHeads(torch.autograd.Function):
    """(B, L, X) -> queries, keys and values (B, H, L, E): queries and keys RMS-normalised and then turned.

    On a CPU, one pass over memory each way, where PyTorch's operations take a dozen.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv_BLX: Tensor, weights_2E: Tensor, eps: float, cos_LF: Tensor, sin_LF: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(qkv_BLX, weights_2E, cos_LF, sin_LF)
        ctx.eps = eps
        if not suit_kernels(qkv_BLX, weights_2E):
            return tuple(x_BHLE.contiguous() for x_BHLE in _plain(qkv_BLX, weights_2E, eps, cos_LF, sin_LF))
        batch, length, width = qkv_BLX.shape
        headdim = weights_2E.shape[1]
        heads = [qkv_BLX.new_empty(batch, width // 3 // headdim, length, headdim) for _ in range(3)]
        given = as_array(qkv_BLX.contiguous()), numbers_of(weights_2E), eps, cos_LF.numpy(), sin_LF.numpy()
        split_into_heads(*given, *map(as_array, heads), work=(batch * length, width))
        return tuple(heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dheads: Tensor) -> tuple[Tensor | None, ...]:
        qkv_BLX, weights_2E, cos_LF, sin_LF = ctx.saved_tensors
        if not suit_kernels(qkv_BLX, weights_2E, *dheads):
            return *_plain_gradients(dheads, qkv_BLX, weights_2E, ctx.eps, cos_LF, sin_LF), None, None, None
        batch, length, width = qkv_BLX.shape
        dqkv_BLX = torch.empty_like(qkv_BLX, memory_format=torch.contiguous_format)
        dweights_T2E = torch.empty(-(-batch * length // BLOCK), *weights_2E.shape)
        given = as_array(qkv_BLX.contiguous()), numbers_of(weights_2E), ctx.eps, cos_LF.numpy(), sin_LF.numpy()
        gradients = as_array(dqkv_BLX), dweights_T2E.numpy()
        differentiate_split(
            *(as_array(dx_BHLE.contiguous()) for dx_BHLE in dheads), *given, *gradients,
            work=(len(dweights_T2E), BLOCK * width),
        )  # fmt: skip
        return dqkv_BLX, dweights_T2E.sum(0).to(weights_2E.dtype), None, None, None


def split(qkv_BLX: Tensor, heads: int) -> Heads:
    """(B, L, X) -> queries, keys and values (B, H, L, E), as they are; views."""
    q_BHLE, k_BHLE, v_BHLE = qkv_BLX.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return q_BHLE, k_BHLE, v_BHLE


def _plain(qkv_BLX: Tensor, weights_2E: Tensor, eps: float, cos_LF: Tensor, sin_LF: Tensor) -> Heads:
    """What the kernel computes, by PyTorch's operations."""
    shape = weights_2E.shape[1:]
    q_BHLE, k_BHLE, v_BHLE = split(qkv_BLX, qkv_BLX.shape[-1] // 3 // shape[0])
    normed_q_BHLE, normed_k_BHLE = (
        F.rms_norm(wide(x_BHLE), shape, wide(weight_E), eps)
        for x_BHLE, weight_E in zip((q_BHLE, k_BHLE), weights_2E, strict=True)
    )
    turned_q_BHLE, turned_k_BHLE = turned(normed_q_BHLE, cos_LF, sin_LF), turned(normed_k_BHLE, cos_LF, sin_LF)
    return turned_q_BHLE.to(q_BHLE.dtype), turned_k_BHLE.to(k_BHLE.dtype), v_BHLE


def _plain_gradients(
    dheads: tuple[Tensor, ...], qkv_BLX: Tensor, weights_2E: Tensor, eps: float, cos_LF: Tensor, sin_LF: Tensor
) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        inputs = qkv_BLX.detach().requires_grad_(), weights_2E.detach().requires_grad_()
        return torch.autograd.grad(_plain(*inputs, eps, cos_LF, sin_LF), inputs, dheads)
