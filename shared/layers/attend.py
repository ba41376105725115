"""Softmax attention, which trains on a CPU several times as fast as PyTorch's where sequences are short.

Shapes: B batch, H heads, N = B * H, Q queries, W positions that they look at, E width of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from shared.kernels.arrays import as_array, suit_kernels
from shared.kernels.attention import turn_into_score_gradients, turn_into_shares

LONGEST = 640  # positions, up to which this is faster


def attend(q_BHQE: Tensor, k_BHWE: Tensor, v_BHWE: Tensor, *, causal: bool) -> Tensor:
    """softmax(q k / sqrt(E)) v. causal: query i looks at the positions up to i.

    As `F.scaled_dot_product_attention`, which is called wherever it is as fast: without gradients, for long sequences,
    in float32, and on GPUs.
    """
    inputs = q_BHQE, k_BHWE, v_BHWE
    grads = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    bfloat16 = all(x.dtype == torch.bfloat16 for x in inputs)
    on_cpu = q_BHQE.device.type == "cpu" and not torch.compiler.is_compiling()
    if grads and bfloat16 and on_cpu and k_BHWE.shape[2] <= LONGEST:
        return _Attend.apply(*inputs, causal)
    return F.scaled_dot_product_attention(*inputs, is_causal=causal)


class _Attend(torch.autograd.Function):
    """Every share is computed once and kept. PyTorch's blocks keep none, and compute them anew in a backward pass that
    takes 5 to 30 times as long as the forward one.

    With scores s = q k^T, shares p = softmax(c s) and y = p v: dv = p^T dy, dp = dy v^T, ds = c p (dp - sum of p dp),
    dq = ds k and dk = ds^T q.
    """

    @staticmethod
    def forward(ctx: Any, q_BHQE: Tensor, k_BHWE: Tensor, v_BHWE: Tensor, causal: bool) -> Tensor:
        q_NQE, k_NWE, v_NWE = (x.flatten(0, 1).contiguous() for x in (q_BHQE, k_BHWE, v_BHWE))
        scale = q_NQE.shape[-1] ** -0.5
        shares_NQW = _shares(torch.bmm(q_NQE, k_NWE.mT), scale, causal)
        y_NQE = torch.bmm(shares_NQW, v_NWE)
        ctx.save_for_backward(q_NQE, k_NWE, v_NWE, shares_NQW)
        ctx.scale = scale
        return y_NQE.unflatten(0, q_BHQE.shape[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BHQE: Tensor) -> tuple[Tensor | None, ...]:
        q_NQE, k_NWE, v_NWE, shares_NQW = ctx.saved_tensors
        dy_NQE = dy_BHQE.flatten(0, 1).contiguous()
        dv_NWE = torch.bmm(shares_NQW.mT, dy_NQE)
        dscores_NQW = _score_gradients(torch.bmm(dy_NQE, v_NWE.mT), shares_NQW, ctx.scale)
        dq_NQE, dk_NWE = torch.bmm(dscores_NQW, k_NWE), torch.bmm(dscores_NQW.mT, q_NQE)
        return *(x.unflatten(0, dy_BHQE.shape[:2]) for x in (dq_NQE, dk_NWE, dv_NWE)), None


def _shares(scores_NQW: Tensor, scale: float, causal: bool) -> Tensor:
    """softmax(scale * scores), where kernels can in their memory."""
    if suit_kernels(scores_NQW):
        turn_into_shares(as_array(scores_NQW), scale, causal, work=_work(scores_NQW))
        return scores_NQW
    if causal:
        hidden_QW = torch.ones(scores_NQW.shape[1:], dtype=torch.bool).triu(1)
        scores_NQW = scores_NQW.masked_fill(hidden_QW, -torch.inf)
    return (scores_NQW * scale).softmax(-1)


def _score_gradients(dshares_NQW: Tensor, shares_NQW: Tensor, scale: float) -> Tensor:
    """The gradient of the scores of `_shares`, given that of what it returned."""
    if suit_kernels(dshares_NQW, shares_NQW):
        turn_into_score_gradients(as_array(dshares_NQW), as_array(shares_NQW), scale, work=_work(shares_NQW))
        return dshares_NQW
    along_NQ1 = (dshares_NQW * shares_NQW).sum(-1, keepdim=True)
    return (dshares_NQW - along_NQ1) * shares_NQW * scale


def _work(scores_NQW: Tensor) -> tuple[int, int]:
    return len(scores_NQW), scores_NQW[0].numel()
