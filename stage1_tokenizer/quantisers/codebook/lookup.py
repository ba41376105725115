"""The nearest code of each vector: exact in float32, in tiles, so that no (vectors x codes) matrix is ever held.

On the unit sphere the nearest code is the one of the largest inner product. On CUDA a Triton kernel keeps a running
arg-max (lookup_triton.py). Elsewhere: what costs time on a CPU is not the products but the arg-max over 16,384 of them,
so it is taken in two levels: `amax` over blocks of codes, which vectorises, then an exact look inside the one winning
block. Never holds more than one tile of similarities.
Shapes: N vectors, n those of a tile, K codes, k those of a tile, b blocks, D dimensions.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32  # codes in a block; the second level looks at one block a vector
CODE_TILE = 1024
ROW_TILE = 512  # a tile of 1,024 x 512 float32 similarities is 2 MiB: it stays in a core's own cache, or nearly
HAS_TRITON = importlib.util.find_spec("triton") is not None


@torch.no_grad()
def nearest_codes(x_ND: Tensor, codes_KD: Tensor) -> Tensor:
    """Index (N,) int64 of the code with the largest inner product; the lowest index among equals.

    Always computed in float32: rounded to bfloat16, similarities pick another code for about 3% of vectors. Vectors
    must be finite: the token of one that is not means nothing.
    """
    with torch.autocast(x_ND.device.type, enabled=False):
        x_ND, codes_KD = x_ND.float(), codes_KD.float()
        if x_ND.is_cuda and HAS_TRITON:
            from stage1_tokenizer.quantisers.codebook.lookup_triton import nearest_codes_triton

            return nearest_codes_triton(x_ND, codes_KD)
        return nearest_codes_blocked(x_ND, codes_KD)


def nearest_by_distance(x_ND: Tensor, codes_KD: Tensor) -> Tensor:
    """Index (N,) int64 of the code at the smallest Euclidean distance, for vectors of any length.

    |x - c|^2 is smallest where x . c - |c|^2 / 2 is largest: an inner product with one more dimension.
    """
    x_ND, codes_KD = x_ND.float(), codes_KD.float()
    half_KD = -0.5 * codes_KD.square().sum(1, keepdim=True)
    return nearest_codes(F.pad(x_ND, (0, 1), value=1.0), torch.cat([codes_KD, half_KD], dim=1))


def nearest_codes_blocked(x_ND: Tensor, codes_KD: Tensor) -> Tensor:
    """`nearest_codes` by blocked matrix products, on any device; float32 in, int64 out."""
    blocks = pad_to_blocks(codes_KD)
    tokens_N = torch.empty(len(x_ND), dtype=torch.int64, device=x_ND.device)
    # Written over and over: memory touched for the first time costs a CPU as much as the products.
    similarity, best = x_ND.new_empty(CODE_TILE * ROW_TILE), x_ND.new_empty(len(blocks) * ROW_TILE)
    with full_float32():
        for rows in range(0, len(x_ND), ROW_TILE):
            x_nD = x_ND[rows : rows + ROW_TILE]
            best_bn = best[: len(blocks) * len(x_nD)].view(len(blocks), len(x_nD))
            block_n = _best_block(x_nD, blocks, similarity, best_bn)
            tokens_N[rows : rows + ROW_TILE] = _best_in_block(x_nD, blocks, block_n)
    return tokens_N


@contextmanager
def full_float32() -> Iterator[None]:
    """Within the block float32 matrix products are that, whatever allow_tf32 or set_float32_matmul_precision say."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def pad_to_blocks(codes_KD: Tensor) -> Tensor:
    """Codes in blocks, (K / BLOCK, BLOCK, D); the last block is filled up with copies of the last code."""
    missing = -len(codes_KD) % BLOCK
    if missing:
        codes_KD = torch.cat([codes_KD, codes_KD[-1:].expand(missing, -1)])
    return codes_KD.view(-1, BLOCK, codes_KD.shape[1])


def _best_block(x_nD: Tensor, blocks: Tensor, similarity: Tensor, best_bn: Tensor) -> Tensor:
    """The block (n,) that holds each vector's nearest code; `similarity` and `best_bn` are room to work in."""
    per_tile = CODE_TILE // BLOCK
    for tile, best in zip(blocks.split(per_tile), best_bn.split(per_tile), strict=True):
        codes_kD = tile.flatten(0, 1)
        similarity_kn = similarity[: len(codes_kD) * len(x_nD)].view(len(codes_kD), len(x_nD))
        torch.mm(codes_kD, x_nD.T, out=similarity_kn)
        torch.amax(similarity_kn.view(len(tile), BLOCK, len(x_nD)), 1, out=best)
    return best_bn.argmax(0)


def _best_in_block(x_nD: Tensor, blocks: Tensor, block_n: Tensor) -> Tensor:
    similarity = torch.bmm(blocks[block_n], x_nD[:, :, None]).squeeze(2)
    return block_n * BLOCK + similarity.argmax(1)
