"""The nearest code of each vector as one Triton kernel: a running arg-max over tiles of codes, all in registers.

`tl.dot(..., input_precision="ieee")` multiplies full float32 whatever TF32 settings say. Ties go to the lowest index:
within a tile by `tie_break_left`, between tiles because only a strictly larger similarity replaces the best so far.
Runs on a CPU in Triton's interpreter (TRITON_INTERPRET=1), which is how it is tested without a GPU.
Shapes: N vectors, K codes, D dimensions; n, k, d those of one tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 64  # vectors of one program
CODES = 128  # codes it looks at together
MAX_DIMS = 64  # dimensions it multiplies together; longer vectors are summed over several products


@triton.jit
def _nearest_kernel(
    x_ND, codes_KD, tokens_N, N, K, D, ROWS: tl.constexpr, CODES: tl.constexpr, DIMS: tl.constexpr
):  # fmt: skip
    row_n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    best_n = tl.full([ROWS], float("-inf"), tl.float32)
    token_n = tl.zeros([ROWS], tl.int32)
    for first_code in range(0, K, CODES):
        code_k = first_code + tl.arange(0, CODES)
        similarity_nk = tl.zeros([ROWS, CODES], tl.float32)
        for first_dim in range(0, D, DIMS):
            dim_d = first_dim + tl.arange(0, DIMS)
            x_nd = tl.load(
                x_ND + row_n[:, None] * D + dim_d[None, :], (row_n[:, None] < N) & (dim_d[None, :] < D), other=0.0
            )
            codes_dk = tl.load(
                codes_KD + code_k[None, :].to(tl.int64) * D + dim_d[:, None],
                (code_k[None, :] < K) & (dim_d[:, None] < D),
                other=0.0,
            )
            similarity_nk = tl.dot(x_nd, codes_dk, similarity_nk, input_precision="ieee")
        # NaN is not equal to itself. Like a code beyond the last it must never win: indices stay in range.
        valid_nk = (code_k[None, :] < K) & (similarity_nk == similarity_nk)
        similarity_nk = tl.where(valid_nk, similarity_nk, float("-inf"))
        tile_best_n, tile_token_n = tl.max(similarity_nk, 1, return_indices=True, return_indices_tie_break_left=True)
        better_n = tile_best_n > best_n
        token_n = tl.where(better_n, first_code + tile_token_n, token_n)
        best_n = tl.where(better_n, tile_best_n, best_n)
    tl.store(tokens_N + row_n, token_n.to(tl.int64), row_n < N)


# One opaque operator, so that torch.compile neither traces into it nor breaks its graph there.
@torch.library.custom_op("tessera::nearest_codes", mutates_args=())
def nearest_codes_triton(x_ND: Tensor, codes_KD: Tensor) -> Tensor:
    """`lookup.nearest_codes` of float32 tensors on one CUDA device (any device in the interpreter)."""
    x_ND, codes_KD = x_ND.contiguous(), codes_KD.contiguous()
    tokens_N = torch.empty(len(x_ND), dtype=torch.int64, device=x_ND.device)
    dims = min(MAX_DIMS, max(16, triton.next_power_of_2(x_ND.shape[1])))
    if len(x_ND):
        with torch.cuda.device_of(x_ND):
            _nearest_kernel[(triton.cdiv(len(x_ND), ROWS),)](
                x_ND, codes_KD, tokens_N, len(x_ND), *codes_KD.shape, ROWS, CODES, dims
            )
    return tokens_N


@nearest_codes_triton.register_fake
def _(x_ND: Tensor, codes_KD: Tensor) -> Tensor:
    return x_ND.new_empty(len(x_ND), dtype=torch.int64)
