"""Cross-entropy of a linear output layer over many codes, without ever holding all of its logits.

4,096 positions x 16,384 codes are 256 MiB of logits, and as much again for their gradient. Here rows are taken a tile
at a time, and a tile's gradients are computed right after its loss, while its logits are still in cache: nothing is
recomputed in backward. (Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models", whose kernel
recomputes instead; gradients in forward as in Liger Kernel, Hsu et al. 2024.)

Shapes: N positions, T positions of one tile, K codes, R width of the last layer.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from shared.kernels.arrays import as_array, numbers_of, suit_kernels
from shared.kernels.cross_entropy import BLOCK, turn_into_errors

TILE_ELEMENTS = {"cpu": 2**22, "cuda": 2**26}  # logits a tile: 16 MiB stays in a CPU's last cache, 256 MiB fills a GPU


@torch.compiler.disable
def linear_cross_entropy(h_NR: Tensor, table_KR: Tensor, bias_K: Tensor | None, targets_N: Tensor) -> Tensor:
    """Mean over N of -log softmax(h @ table^T + bias)[target], in nats; a scalar of float32 or wider.

    Equal to `F.cross_entropy(F.linear(h, table, bias), targets)`, with gradients for h, table and bias. Matrix products
    run in autocast's dtype where it is on; softmax, loss and accumulation are at least float32.
    """
    kind = h_NR.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else h_NR.dtype
    with_grads = torch.is_grad_enabled()
    with torch.autocast(kind, enabled=False):
        return _LinearCrossEntropy.apply(h_NR, table_KR, bias_K, targets_N, dtype, with_grads)


class _LinearCrossEntropy(torch.autograd.Function):
    """Of logits l = h table^T + bias with softmax p, the loss of a row with target t is log sum_k exp(l_k) - l_t.

    Its gradient with regard to l, the row's "errors", is e = p - onehot(t). So dh = e table, dtable = sum of e^T h,
    dbias = sum of e over the rows; all divided by their number N, and times the gradient that comes in.
    """

    @staticmethod
    def forward(
        ctx: Any, h_NR: Tensor, table_KR: Tensor, bias_K: Tensor | None, targets_N: Tensor, dtype: Any, with_grads: bool
    ) -> Tensor:
        tiles = _Tiles(h_NR, table_KR, bias_K, targets_N, dtype)
        grads = tiles.new_gradients() if with_grads else None
        loss = torch.stack([tiles.loss_of(rows, grads) for rows in tiles.rows()]).sum() / len(h_NR)
        if grads is not None:
            grad_h_NR, grad_table_KR, grad_bias_K = (grad.div_(len(h_NR)) for grad in grads)
            ctx.save_for_backward(grad_h_NR.to(h_NR.dtype), grad_table_KR.to(table_KR.dtype), grad_bias_K)
            ctx.bias_dtype = None if bias_K is None else bias_K.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_h_NR, grad_table_KR, grad_bias_K = ctx.saved_tensors
        grad_bias = None if ctx.bias_dtype is None else (grad_bias_K * grad).to(ctx.bias_dtype)
        return grad_h_NR * grad, grad_table_KR * grad, grad_bias, None, None, None


class _Tiles:
    """The rows of one call in tiles, and the buffers every tile reuses."""

    def __init__(
        self, h_NR: Tensor, table_KR: Tensor, bias_K: Tensor | None, targets_N: Tensor, dtype: torch.dtype
    ) -> None:
        self.h_NR, self.table_KR, self.targets_N = h_NR.to(dtype), table_KR.to(dtype), targets_N
        self.wide = torch.promote_types(dtype, torch.float32)
        self.bias_K = None if bias_K is None else bias_K.to(self.wide)
        budget = TILE_ELEMENTS.get(h_NR.device.type, TILE_ELEMENTS["cuda"])
        self.size = min(len(h_NR), max(1, budget // len(table_KR)))
        self.products_TK = h_NR.new_empty(self.size, len(table_KR), dtype=dtype)
        self.compiled = suit_kernels(self.products_TK)
        if not self.compiled:
            self.logits_TK = self.products_TK if dtype == self.wide else self.products_TK.to(self.wide)
            self.probs_TK = torch.empty_like(self.logits_TK)

    def rows(self) -> list[slice]:
        return [slice(start, start + self.size) for start in range(0, len(self.h_NR), self.size)]

    def new_gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the summed loss: h is written tile by tile, table and bias gather over the tiles."""
        grad_h_NR = torch.empty_like(self.h_NR, dtype=self.wide)
        grad_table_KR = torch.zeros_like(self.table_KR, dtype=self.wide)
        return grad_h_NR, grad_table_KR, grad_table_KR.new_zeros(len(grad_table_KR))

    def loss_of(self, rows: slice, grads: tuple[Tensor, Tensor, Tensor] | None) -> Tensor:
        """Summed loss of one tile; its gradients are added into `grads`."""
        h_TR = self.h_NR[rows]
        products_TK = torch.mm(h_TR, self.table_KR.T, out=self.products_TK[: len(h_TR)])
        loss_and_errors = self._loss_and_errors_by_kernel if self.compiled else self._loss_and_errors
        loss, errors_TK = loss_and_errors(products_TK, self.targets_N[rows], None if grads is None else grads[2])
        if grads is not None:
            self._add_gradients(rows, errors_TK, *grads[:2])
        return loss

    def _loss_and_errors(
        self, products_TK: Tensor, target_T: Tensor, grad_bias_K: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The errors are the gradient of the logits, softmax - one-hot, in the memory of the products."""
        target_T1, logits_TK = target_T[:, None], self.logits_TK[: len(products_TK)]
        if logits_TK.dtype != products_TK.dtype:
            logits_TK.copy_(products_TK)
        if self.bias_K is not None:
            logits_TK += self.bias_K
        probs_TK = torch.softmax(logits_TK, dim=1, out=self.probs_TK[: len(target_T1)])
        top_T1, argmax_T1 = logits_TK.max(dim=1, keepdim=True)
        # The best code's probability is at least 1/K, so this log never underflows as log(probs[target]) could.
        loss = (top_T1 - probs_TK.gather(1, argmax_T1).log_() - logits_TK.gather(1, target_T1)).sum()
        if grad_bias_K is not None:
            probs_TK.scatter_add_(1, target_T1, probs_TK.new_tensor(-1.0).expand_as(target_T1))
            grad_bias_K += probs_TK.sum(0)
        return loss, products_TK.copy_(probs_TK)

    def _loss_and_errors_by_kernel(
        self, products_TK: Tensor, target_T: Tensor, grad_bias_K: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        rows, codes = products_TK.shape
        losses_T = torch.empty(rows, dtype=torch.float32)
        bias_K = np.empty(0, np.float32) if self.bias_K is None else numbers_of(self.bias_K)
        parts_PK = torch.empty(-(-rows // BLOCK), len(bias_K))
        arrays = (as_array(products_TK), bias_K, target_T.numpy(), losses_T.numpy(), parts_PK.numpy())
        turn_into_errors(*arrays, work=(len(parts_PK), BLOCK * codes))
        if grad_bias_K is not None and len(bias_K):
            grad_bias_K += parts_PK.sum(0)
        return losses_T.sum(), products_TK

    def _add_gradients(self, rows: slice, errors_TK: Tensor, grad_h_NR: Tensor, grad_table_KR: Tensor) -> None:
        if errors_TK.dtype == self.wide:
            torch.mm(errors_TK, self.table_KR, out=grad_h_NR[rows])
            grad_table_KR.addmm_(errors_TK.T, self.h_NR[rows])
        else:
            grad_h_NR[rows] = errors_TK @ self.table_KR
            grad_table_KR += errors_TK.T @ self.h_NR[rows]
