"""Causal self-attention in two forms of one set of weights: the whole sequence at once, and one input at a time.

Shapes: B batch, L length, D width, H heads, E width of a head, W positions so far, N numbers or B * H.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.layers.attend import attend
from shared.layers.positions import Rotary
from shared.layers.rms_norm import RMSNorm
from stage2_prior.network.heads import Heads, NormedHeads, split


class Cursor:
    """Where decoding stands, the same for every layer: after `position` inputs.

    A step captured in a CUDA graph is replayed at every position, so it finds there where it is.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.position = 0
        self.index_1 = torch.zeros(1, dtype=torch.long, device=device)  # `position`, on the device

    def advance(self, count: int = 1) -> None:
        self.position += count
        self.index_1.add_(count)

    def reset(self) -> None:
        self.position = 0
        self.index_1.zero_()


class KVCache:
    """Keys and values of one attention layer, allocated once, (batch, heads, time, headdim), and written in place.

    On a CPU, attention reads time-before-heads at half the speed, and a cache grown by `cat` becomes the main cost.
    """

    def __init__(self, batch: int, shape_HLE: tuple[int, int, int], memory_2N: Tensor, cursor: Cursor) -> None:
        self.batch, self.shape_HLE, self.memory_2N, self.cursor = batch, shape_HLE, memory_2N, cursor
        size = batch * math.prod(shape_HLE)
        self.kv_2BHLE = memory_2N[:, :size].view(2, batch, *shape_HLE)

    def fill(self, k_BHLE: Tensor, v_BHLE: Tensor) -> None:
        """Write the first keys and values."""
        self.kv_2BHLE[0, :, :, : k_BHLE.shape[2]] = k_BHLE
        self.kv_2BHLE[1, :, :, : k_BHLE.shape[2]] = v_BHLE

    def append(self, k_BH1E: Tensor, v_BH1E: Tensor) -> tuple[Tensor, Tensor]:
        """Write the next key and value; returns all that the next query looks at, as views."""
        seen, (k_BHLE, v_BHLE) = self.cursor.position + 1, self.kv_2BHLE
        k_BHLE.index_copy_(2, self.cursor.index_1, k_BH1E.to(k_BHLE.dtype))
        v_BHLE.index_copy_(2, self.cursor.index_1, v_BH1E.to(v_BHLE.dtype))
        return k_BHLE[:, :, :seen], v_BHLE[:, :, :seen]

    def reset(self) -> None:
        """Nothing to do: what the cursor has not reached is not looked at."""

    def put(self, rows_N: Tensor, alone: "KVCache") -> None:
        """Make these sequences that of a cache of one."""
        self.kv_2BHLE[:, rows_N] = alone.kv_2BHLE

    def reorder(self, from_B: Tensor) -> None:
        """Make each sequence a copy of one of them."""
        seen_2BHtE = self.kv_2BHLE[..., : self.cursor.position, :]
        seen_2BHtE[:] = seen_2BHtE[:, from_B]

    def rows(self, count: int) -> "KVCache":
        """A cache of `count` sequences in the same memory."""
        return KVCache(count, self.shape_HLE, self.memory_2N, self.cursor)


class Attention(nn.Module):
    """Causal self-attention; queries and keys are RMS-normalised per head where `qk_norm` (Henry et al. 2020).

    Scores are q k / sqrt(headdim) times `score_factor`.
    """

    def __init__(
        self, width: int, heads: int, length: int, qk_norm: bool, rotary: Rotary | None, score_factor: float = 1.0
    ) -> None:
        super().__init__()
        self.heads, self.headdim, self.length = heads, width // heads, length
        self.score_factor, self.scale = score_factor, score_factor * self.headdim**-0.5
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.qkv_proj.weight._parts = 3  # type: ignore[attr-defined]  # read by `shared.training.optimisation.muon`
        self.q_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.rotary = rotary
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self._attend(*self._qkv(x_BLD))

    def init_state(self, batch: int, cursor: Cursor, dtype: torch.dtype) -> KVCache:
        size = batch * self.heads * self.length * self.headdim
        memory_2N = torch.zeros(2, size, dtype=dtype, device=cursor.index_1.device)
        return KVCache(batch, (self.heads, self.length, self.headdim), memory_2N, cursor)

    def prefill(self, x_BLD: Tensor, state: KVCache) -> Tensor:
        """`forward` from an empty cache, which it fills."""
        q_BHLE, k_BHLE, v_BHLE = self._qkv(x_BLD)
        state.fill(k_BHLE, v_BHLE)
        return self._attend(q_BHLE, k_BHLE, v_BHLE)

    def step(self, x_BD: Tensor, state: KVCache) -> Tensor:
        q_BH1E, k_BH1E, v_BH1E = self._qkv(x_BD[:, None], offset=state.cursor.index_1)
        keys_BHWE, values_BHWE = state.append(k_BH1E, v_BH1E)
        y_BH1E = attend_once(q_BH1E.to(keys_BHWE.dtype), keys_BHWE, values_BHWE)
        return self.out_proj(y_BH1E.flatten(1))

    def _qkv(self, x_BLD: Tensor, offset: int | Tensor = 0) -> Heads:
        qkv_BLX = self.qkv_proj(x_BLD)
        q_norm, k_norm = self.q_norm, self.k_norm
        eager_on_cpu = x_BLD.device.type == "cpu" and not torch.compiler.is_compiling()
        whole = not isinstance(offset, Tensor) and self.headdim % 2 == 0
        if eager_on_cpu and whole and isinstance(q_norm, RMSNorm) and isinstance(k_norm, RMSNorm):
            return self._normed_heads(qkv_BLX, q_norm, k_norm)
        q_BHLE, k_BHLE, v_BHLE = split(qkv_BLX, self.heads)
        q_BHLE, k_BHLE = q_norm(q_BHLE), k_norm(k_BHLE)
        if self.rotary is not None:
            q_BHLE, k_BHLE = self.rotary(q_BHLE, offset), self.rotary(k_BHLE, offset)
        if self.score_factor != 1:
            q_BHLE = q_BHLE * self.score_factor
        return q_BHLE, k_BHLE, v_BHLE

    def _normed_heads(self, qkv_BLX: Tensor, q_norm: RMSNorm, k_norm: RMSNorm) -> Heads:
        """The same of a sequence from its beginning, in one pass over memory."""
        length, frequencies = qkv_BLX.shape[1], self.headdim // 2
        if self.rotary is None:
            angles_LF = torch.zeros(length, frequencies)
            cos_LF, sin_LF = angles_LF.cos(), angles_LF
        else:
            cos_LF, sin_LF = self.rotary.cos_LF[:length], self.rotary.sin_LF[:length]
        weights_2E = torch.stack((q_norm.weight * self.score_factor, k_norm.weight))
        return NormedHeads.apply(qkv_BLX, weights_2E, q_norm.eps, cos_LF, sin_LF)

    def _attend(self, q_BHLE: Tensor, k_BHLE: Tensor, v_BHLE: Tensor) -> Tensor:
        y_BHLE = attend(q_BHLE, k_BHLE, v_BHLE, causal=True)
        return self.out_proj(y_BHLE.transpose(1, 2).flatten(2))


def attend_once(q_BH1E: Tensor, k_BHWE: Tensor, v_BHWE: Tensor) -> Tensor:
    """Attention of one query a sequence to all positions."""
    if q_BH1E.device.type != "cpu":
        return F.scaled_dot_product_attention(q_BH1E, k_BHWE, v_BHWE)
    # For a single query, SDPA's blocks take up to four times as long there as the two products.
    scores_N1W = torch.bmm(q_BH1E.flatten(0, 1) * q_BH1E.shape[-1] ** -0.5, k_BHWE.flatten(0, 1).mT)
    return torch.bmm(scores_N1W.softmax(-1), v_BHWE.flatten(0, 1)).view_as(q_BH1E)
