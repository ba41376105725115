"""The prior: an autoregressive model of token grids in raster order. Embedding -> blocks -> logits.

`gpt`, `mamba` and `hybrid` differ by their block pattern only. Each block has two forms of one set of weights: the
whole sequence at once (training), and one token at a time with a state (decoding).

Ids: 0 .. codes-1 are tokens, codes + label starts an image of that class, codes + classes starts one of no class.

Shapes: B batch, L length (h * w), D width, H heads, K codes, V = K logits, R width of the output table, E width of a
head or of a tokenizer code.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from shared.checkpoint import BEST, WEIGHTS, load_for_inference
from shared.config import Config
from shared.errors import UserError
from shared.layers import LearnedPositions, RMSNorm, Rotary, SwiGLU
from shared.mamba2 import Mamba2, Mamba2State
from shared.token_cache import TokenInfo, read_info
from stage2_prior.cross_entropy import linear_cross_entropy

INIT_STD = 0.02  # GPT-2's
Weights = Literal["last", "best"]


class PriorConfig(Config):
    """The model of stage two. `mamba` reads no attention options, `gpt` no Mamba-2 options, `hybrid` both."""

    kind: Literal["mamba", "gpt", "hybrid"] = "mamba"
    depth: int = Field(12, ge=1)
    width: int = Field(768, ge=1)
    positions: Literal["learned", "rotary"] = "learned"  # rotary: over rows and columns, in attention
    dropout: float = Field(0.0, ge=0, lt=1)
    conditioning: Literal["token", "norm"] = "token"  # norm: the class modulates every norm too, beside its start token
    label_dropout: float = Field(0.1, ge=0, le=1)  # share of labels hidden in training, for classifier-free guidance

    heads: int = Field(12, ge=1)
    qk_norm: bool = True
    pattern: str = Field("mmma", pattern=r"^[ma]+$")  # hybrid: m Mamba-2, a attention; repeated over the depth

    d_state: int = Field(128, ge=1)
    headdim: int = Field(64, ge=1)
    expand: int = Field(2, ge=1)
    chunk_size: int = Field(64, ge=1)
    mlp_ratio: float = Field(0.0, ge=0)  # hidden width over width of the MLP behind each Mamba-2 mixer; 0: no MLP

    head: Literal["full", "tied", "codes"] = "full"
    head_rank: int = Field(64, ge=1)  # codes: width of a code's row in the table

    @model_validator(mode="after")
    def _widths_fit(self) -> "PriorConfig":
        has_attention, has_mamba = self.kind != "mamba", self.kind != "gpt"
        if self.kind == "hybrid" and len(set(self.pattern)) == 1:
            name = {"m": "mamba", "a": "gpt"}[self.pattern[0]]
            raise ValueError(f"pattern {self.pattern} has one kind of block: use kind={name}, or both m and a")
        if has_attention and self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if has_attention and self.positions == "rotary" and self.width // self.heads % 4:
            raise ValueError(f"rotary positions need a head width of a multiple of 4, not {self.width // self.heads}")
        inner = self.expand * self.width
        if has_mamba and inner % self.headdim:
            raise ValueError(f"expand * width = {inner} must be a multiple of headdim {self.headdim}")
        if self.kind == "mamba" and self.positions == "rotary":
            raise ValueError("rotary positions belong to attention, which kind mamba has not: use positions=learned")
        return self

    def is_attention(self, layer: int) -> bool:
        """Whether block `layer` mixes by attention, rather than by Mamba-2."""
        return self.kind == "gpt" or (self.kind == "hybrid" and self.pattern[layer % len(self.pattern)] == "a")


class Place:
    """Where decoding stands, the same for every layer: after `position` inputs.

    A step captured in a CUDA graph is replayed at every position, so it writes where a tensor says and looks at a fixed
    `window` of places, masking those still empty. Without a window it looks at exactly those written.
    """

    def __init__(self, length: int, device: torch.device | str) -> None:
        self.position = 0
        self.index_1 = torch.zeros(1, dtype=torch.long, device=device)  # `position`, on the device
        self.window: int | None = None
        self._places_L = torch.arange(length, device=device)

    def advance(self, count: int = 1) -> None:
        self.position += count
        self.index_1.add_(count)

    def reset(self) -> None:
        self.position = 0
        self.index_1.zero_()

    def looks_at(self) -> int:
        """How many places the next input sees, itself included."""
        return self.position + 1 if self.window is None else self.window

    def empty_W(self) -> Tensor | None:
        """(window,) bool, true where the next input must not look."""
        return None if self.window is None else self._places_L[: self.window] > self.index_1


class KVCache:
    """Keys and values of one attention layer, allocated once, (batch, heads, time, headdim), and written in place.

    On a CPU, attention reads time-before-heads at half the speed, and a cache grown by `cat` becomes the main cost.
    Its bfloat16 products take matrices that lie end to end only: a bfloat16 cache there is laid out for the present
    window, and anew when the window grows.
    """

    def __init__(self, batch: int, shape_HLE: tuple[int, int, int], memory_2N: Tensor, place: Place) -> None:
        self.batch, self.shape_HLE, self.memory_2N, self.place = batch, shape_HLE, memory_2N, place
        self.compact = memory_2N.dtype == torch.bfloat16 and memory_2N.device.type == "cpu"
        self.kv_2BHWE = self._laid_out(self.shape_HLE[1])

    def fill(self, k_BHLE: Tensor, v_BHLE: Tensor) -> None:
        """Write the first keys and values."""
        self.kv_2BHWE = self._laid_out(self.shape_HLE[1])
        self.kv_2BHWE[0, :, :, : k_BHLE.shape[2]] = k_BHLE
        self.kv_2BHWE[1, :, :, : k_BHLE.shape[2]] = v_BHLE

    def append(self, k_BH1E: Tensor, v_BH1E: Tensor) -> tuple[Tensor, Tensor]:
        """Write the next key and value; returns all that the next query looks at, as views."""
        window = self.place.looks_at()
        if self.compact and window != self.kv_2BHWE.shape[3]:
            self._lay_out_for(window)
        k_BHWE, v_BHWE = self.kv_2BHWE
        k_BHWE.index_copy_(2, self.place.index_1, k_BH1E.to(k_BHWE.dtype))
        v_BHWE.index_copy_(2, self.place.index_1, v_BH1E.to(v_BHWE.dtype))
        return k_BHWE[:, :, :window], v_BHWE[:, :, :window]

    def reset(self) -> None:
        """Nothing to do: what `place` has not reached is not looked at."""

    def rows(self, count: int) -> "KVCache":
        """A cache of `count` sequences in the same memory."""
        return KVCache(count, self.shape_HLE, self.memory_2N, self.place)

    def _lay_out_for(self, window: int) -> None:
        before_2BHWE = self.kv_2BHWE[:, :, :, :window].clone()
        self.kv_2BHWE = self._laid_out(window).zero_()
        self.kv_2BHWE[:, :, :, : before_2BHWE.shape[3]] = before_2BHWE

    def _laid_out(self, window: int) -> Tensor:
        heads, _, headdim = self.shape_HLE
        size = self.batch * heads * window * headdim
        return self.memory_2N[:, :size].view(2, self.batch, heads, window, headdim)


class Attention(nn.Module):
    """Causal self-attention; queries and keys are RMS-normalised per head where `qk_norm` (Henry et al. 2020)."""

    def __init__(self, width: int, heads: int, length: int, qk_norm: bool, rotary: Rotary | None) -> None:
        super().__init__()
        self.heads, self.headdim, self.length = heads, width // heads, length
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.q_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.rotary = rotary
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self._attend(*self._qkv(x_BLD))

    def init_state(self, batch: int, place: Place, dtype: torch.dtype) -> KVCache:
        size = batch * self.heads * self.length * self.headdim
        memory_2N = torch.zeros(2, size, dtype=dtype, device=place.index_1.device)
        return KVCache(batch, (self.heads, self.length, self.headdim), memory_2N, place)

    def prefill(self, x_BLD: Tensor, state: KVCache) -> Tensor:
        """`forward` from an empty cache, which it fills."""
        q_BHLE, k_BHLE, v_BHLE = self._qkv(x_BLD)
        state.fill(k_BHLE, v_BHLE)
        return self._attend(q_BHLE, k_BHLE, v_BHLE)

    def step(self, x_BD: Tensor, state: KVCache) -> Tensor:
        q_BH1E, k_BH1E, v_BH1E = self._qkv(x_BD[:, None], offset=state.place.index_1)
        keys_BHWE, values_BHWE = state.append(k_BH1E, v_BH1E)
        y_BH1E = attend_once(q_BH1E.to(keys_BHWE.dtype), keys_BHWE, values_BHWE, state.place.empty_W())
        return self.out_proj(y_BH1E.flatten(1))

    def _qkv(self, x_BLD: Tensor, offset: int | Tensor = 0) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv_proj(x_BLD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q_BHLE, k_BHLE, v_BHLE = qkv.unbind(0)
        q_BHLE, k_BHLE = self.q_norm(q_BHLE), self.k_norm(k_BHLE)
        if self.rotary is not None:
            q_BHLE, k_BHLE = self.rotary(q_BHLE, offset), self.rotary(k_BHLE, offset)
        return q_BHLE, k_BHLE, v_BHLE

    def _attend(self, q_BHLE: Tensor, k_BHLE: Tensor, v_BHLE: Tensor) -> Tensor:
        y_BHLE = F.scaled_dot_product_attention(q_BHLE, k_BHLE, v_BHLE, is_causal=True)
        return self.out_proj(y_BHLE.transpose(1, 2).flatten(2))


def attend_once(q_BH1E: Tensor, k_BHWE: Tensor, v_BHWE: Tensor, empty_W: Tensor | None) -> Tensor:
    """Attention of one query a sequence to all places but the empty ones."""
    if q_BH1E.is_cuda:
        mask_W = None if empty_W is None else ~empty_W
        return F.scaled_dot_product_attention(q_BH1E, k_BHWE, v_BHWE, attn_mask=mask_W)
    # For a single query, SDPA's blocks take up to four times as long on a CPU as the two products.
    scores_BH1W = (q_BH1E @ k_BHWE.mT).float() * q_BH1E.shape[-1] ** -0.5
    if empty_W is not None:
        scores_BH1W.masked_fill_(empty_W, -math.inf)
    return scores_BH1W.softmax(-1).to(v_BHWE.dtype) @ v_BHWE


class Block(nn.Module):
    """x + mixer(norm(x)), then, where there is an MLP, x + mlp(norm(x)). Dropout acts on what a branch adds.

    A `modulation` makes of each branch x + gate * branch(norm(x) * scale + shift). It holds the shift, scale and gate
    of the mixer and then of the MLP, along its first axis.
    """

    def __init__(self, width: int, mixer: Attention | Mamba2, mlp: SwiGLU | None, dropout: float) -> None:
        super().__init__()
        self.mixer_norm, self.mixer = RMSNorm(width), mixer
        self.mlp_norm, self.mlp = nn.Identity() if mlp is None else RMSNorm(width), mlp
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor, modulation: Tensor | None = None) -> Tensor:
        return self._run(x_BLD, self.mixer, modulation)

    def prefill(self, x_BLD: Tensor, state: Any, modulation: Tensor | None = None) -> Tensor:
        return self._run(x_BLD, lambda u_BLD: self.mixer.prefill(u_BLD, state), modulation)

    def step(self, x_BD: Tensor, state: Any, modulation: Tensor | None = None) -> Tensor:
        return self._run(x_BD, lambda u_BD: self.mixer.step(u_BD, state), modulation)

    def _run(self, x: Tensor, mixer: Callable[[Tensor], Tensor], modulation: Tensor | None) -> Tensor:
        mixer_modulation, mlp_modulation = (None, None) if modulation is None else (modulation[:3], modulation[3:])
        x = self._add(x, self.mixer_norm, mixer, mixer_modulation)
        return x if self.mlp is None else self._add(x, self.mlp_norm, self.mlp, mlp_modulation)

    def _add(self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor], modulation: Tensor | None) -> Tensor:
        if modulation is None:
            return x + self.dropout(branch(norm(x)))
        shift, scale, gate = modulation
        return x + gate * self.dropout(branch(norm(x) * scale + shift))

    def init_state(self, batch: int, place: Place, dtype: torch.dtype) -> KVCache | Mamba2State:
        """Keys and values of `dtype` (a recurrent state is float32) for `batch` sequences."""
        if isinstance(self.mixer, Attention):
            return self.mixer.init_state(batch, place, dtype)
        return self.mixer.init_state(batch, place.index_1.device)

    def branches(self) -> list[Attention | Mamba2 | SwiGLU]:
        """The modules whose `out_proj` writes into the residual stream."""
        return [self.mixer] if self.mlp is None else [self.mixer, self.mlp]


class ClassModulation(nn.Module):
    """Shift, scale and gate of every branch, and shift and scale of the last norm, by class: adaLN-Zero.

    Peebles & Xie 2023, section 3.2. At first scales are 1 and all else is 0: each block is the identity.
    """

    def __init__(self, classes: int, width: int, branches: Sequence[int]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes + 1, width)  # the last row: no class
        self.blocks = nn.ModuleList(_modulator(width, 3, count) for count in branches)
        self.last = _modulator(width, 2, 1)
        nn.init.normal_(self.embedding.weight, std=INIT_STD)

    def forward(self, classes_B: Tensor) -> list[Tensor]:
        """(B,) classes -> (3 per branch, B, D) for each block, then (2, B, D) for the last norm."""
        c_BD = F.silu(self.embedding(classes_B))
        width = c_BD.shape[1]
        return [linear(c_BD).unflatten(1, (-1, width)).transpose(0, 1) for linear in (*self.blocks, self.last)]


def _modulator(width: int, parts: int, branches: int) -> nn.Linear:
    """To `parts` vectors a branch, the second of which (the scale) is 1 at first, and the others 0."""
    linear = nn.Linear(width, branches * parts * width)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    with torch.no_grad():
        linear.bias.view(branches, parts, width)[:, 1] = 1
    return linear


class FullVocabulary(nn.Module):
    """Embeds ids and scores codes: one free vector per id on the way in, another per code on the way out.

    A vocabulary gives `table()` (K, R), computed once per training step or decoding state; `embed(ids, table)`
    (..., D); and `query(h)` (..., R). The logits are query(h) @ table^T + bias.
    """

    bias_K: Tensor | None = None

    def __init__(self, codes: int, starts: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes + starts, width)
        self.output = nn.Linear(width, codes, bias=False)
        nn.init.normal_(self.embedding.weight, std=INIT_STD)
        nn.init.normal_(self.output.weight, std=INIT_STD)

    def table(self) -> Tensor:
        return self.output.weight

    def embed(self, ids: Tensor, table_KR: Tensor) -> Tensor:
        return self.embedding(ids)

    def query(self, h: Tensor) -> Tensor:
        return h


class TiedVocabulary(nn.Module):
    """The same vector per code on the way in and out (Press & Wolf 2017)."""

    bias_K: Tensor | None = None

    def __init__(self, codes: int, starts: int, width: int) -> None:
        super().__init__()
        self.codes = codes
        self.embedding = nn.Embedding(codes + starts, width)
        nn.init.normal_(self.embedding.weight, std=INIT_STD)

    def table(self) -> Tensor:
        return self.embedding.weight[: self.codes]

    def embed(self, ids: Tensor, table_KR: Tensor) -> Tensor:
        return self.embedding(ids)

    def query(self, h: Tensor) -> Tensor:
        return h


class CodeVocabulary(nn.Module):
    """A code's row is a function of the tokenizer's vector for it, plus a correction of its own.

    Most of 16,384 codes are rare in a small data set: codes that look alike then share what is learned of either.
    The tokenizer's vectors are frozen; they are kept in the checkpoint, standardised to mean 0 and variance 1.
    """

    vectors_KE: Tensor

    def __init__(self, vectors_KE: Tensor, starts: int, width: int, rank: int) -> None:
        super().__init__()
        codes, dim = vectors_KE.shape
        vectors_KE = vectors_KE.detach().float()
        vectors_KE = (vectors_KE - vectors_KE.mean(0)) / vectors_KE.std(correction=0).clamp(min=1e-6)
        self.register_buffer("vectors_KE", vectors_KE)
        self.mlp_in = nn.Linear(dim, 4 * rank)
        self.mlp_out = nn.Linear(4 * rank, rank, bias=False)
        self.free_KR = nn.Parameter(torch.zeros(codes, rank))
        self.free_KR._no_weight_decay = True  # type: ignore[attr-defined]
        self.bias_K = nn.Parameter(torch.zeros(codes))
        self.starts = nn.Embedding(starts, width)
        self.up = nn.Linear(rank, width, bias=False)
        self.down = nn.Linear(width, rank, bias=False)
        self._init_weights()

    def _init_weights(self) -> None:
        for weight in (self.starts.weight, self.up.weight, self.down.weight):
            nn.init.normal_(weight, std=INIT_STD)
        for linear in (self.mlp_in, self.mlp_out):  # table rows of about unit variance
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(self.mlp_in.bias)

    def table(self) -> Tensor:
        return self.mlp_out(F.silu(self.mlp_in(self.vectors_KE))) + self.free_KR

    def embed(self, ids: Tensor, table_KR: Tensor) -> Tensor:
        codes = len(table_KR)
        z = self.up(F.embedding(ids.clamp(max=codes - 1), table_KR))
        return torch.where((ids < codes)[..., None], z, self.starts((ids - codes).clamp(min=0)))

    def query(self, h: Tensor) -> Tensor:
        # As in attention: without the scale the first logits grow with the rank, and the first loss beyond log(codes).
        query = self.down(h)
        return query * query.shape[-1] ** -0.5


@dataclass
class PriorState:
    """What decoding remembers: one state a block, the table of the codes and the product with it that gives logits,
    what the class does to the norms, and how many inputs were taken in.

    Allocated once for a batch and then written in place; `reset` makes it ready for the next batch. Stale as soon as
    the weights change.
    """

    batch: int
    blocks: list[Any]
    table_KR: Tensor
    score: Callable[[Tensor], Tensor]
    modulations: Sequence[Tensor | None]
    place: Place

    def reset(self) -> None:
        """Forget the sequence, keep the memory."""
        self.place.reset()
        for state in self.blocks:
            state.reset()

    def rows(self, count: int) -> "PriorState":
        """The state of the first `count` sequences, in the same memory."""
        modulations = [None if modulation is None else modulation[:, :count] for modulation in self.modulations]
        blocks = [state.rows(count) for state in self.blocks]
        return replace(self, batch=count, blocks=blocks, modulations=modulations)


class Prior(nn.Module):
    """Models p(tokens | label) for grids of `grid` = (h, w) tokens out of `codes`, with `classes` labels (or none).

    `code_vectors_KD` are the tokenizer's codes, needed by `head: codes` only. Raises UserError where they are missing
    or of another number than `codes`.
    """

    def __init__(
        self,
        config: PriorConfig,
        codes: int,
        grid: tuple[int, int],
        classes: int = 0,
        code_vectors_KD: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.config, self.codes, self.grid, self.classes = config, codes, grid, classes
        self.length = grid[0] * grid[1]
        self.vocabulary = _vocabulary(config, codes, classes + 1, code_vectors_KD)
        self.positions = LearnedPositions(self.length, config.width) if config.positions == "learned" else None
        self.dropout = nn.Dropout(config.dropout)
        blocks = nn.ModuleList(_block(config, grid, layer) for layer in range(config.depth))
        self.blocks: Sequence[Block] = blocks  # type: ignore[assignment]
        self.norm = RMSNorm(config.width)
        self._init_blocks()
        self.modulation = self._class_modulation()

    def start_tokens(self, labels_B: Tensor | None, batch: int) -> Tensor:
        """(B,) ids of the first input: of each label's class (0 .. classes-1), or of no class where there are none."""
        if labels_B is not None and not self.classes:
            raise UserError("labels were given, but this prior was trained without classes: leave them out")
        device = self.norm.weight.device
        no_class_B = torch.full((batch,), self.codes + self.classes, device=device)
        return no_class_B if labels_B is None else self.codes + labels_B.to(device)

    def inputs(self, tokens_BL: Tensor, labels_B: Tensor | None = None) -> Tensor:
        """The tokens shifted right by one behind their start token: input i is what is known before token i is drawn.

        In training, each label is hidden with probability `label_dropout` (Ho & Salimans 2021), by torch's global
        generator.
        """
        start_B = self.start_tokens(labels_B, len(tokens_BL))
        if self.training and labels_B is not None:
            hidden_B = torch.rand(len(start_B), device=start_B.device) < self.config.label_dropout
            start_B = start_B.masked_fill(hidden_B, self.codes + self.classes)
        return torch.cat((start_B[:, None], tokens_BL[:, :-1]), dim=1)

    def forward(self, inputs_BL: Tensor, targets_BL: Tensor | None = None) -> Tensor:
        """(B, L) ids from `inputs` -> (B, L, codes) float32 logits of the token that follows each.

        Given the targets (B, L) int64, returns their mean cross-entropy in nats instead; the logits are then never
        whole in memory.
        """
        table_KR = self.vocabulary.table()
        h_BLD = self.hidden(inputs_BL, table_KR)
        if targets_BL is None:
            return F.linear(self.vocabulary.query(h_BLD), table_KR, self.vocabulary.bias_K).float()
        h_NR = self.vocabulary.query(h_BLD).flatten(0, 1)
        return linear_cross_entropy(h_NR, table_KR, self.vocabulary.bias_K, targets_BL.flatten())

    def hidden(self, inputs_BL: Tensor, table_KR: Tensor | None = None) -> Tensor:
        """(B, L) ids -> (B, L, D), the normalised output of the last block."""
        x_BLD = self.dropout(self._embed(inputs_BL, self.vocabulary.table() if table_KR is None else table_KR))
        *modulations, last = _along_length(self._modulations(inputs_BL[:, 0]))
        for block, modulation in zip(self.blocks, modulations, strict=True):
            x_BLD = block(x_BLD, modulation)
        return self._last_norm(x_BLD, last)

    def loss(self, tokens_BL: Tensor, labels_B: Tensor | None = None) -> Tensor:
        """Mean next-token cross-entropy in nats of (B, L) tokens."""
        return self(self.inputs(tokens_BL, labels_B), tokens_BL)

    @torch.no_grad()
    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> PriorState:
        """An empty decoding state for `batch` sequences, on the weights' device unless another is given.

        `dtype` is that of keys, values and modulations, unless given the weights'; recurrent states are float32.
        """
        weight = self.norm.weight
        dtype = dtype or weight.dtype
        place = Place(self.length, weight.device if device is None else device)
        modulations = [m if m is None else m.to(dtype) for m in self._modulations(self.start_tokens(None, batch))]
        table_KR = self.vocabulary.table()
        score = partial(F.linear, weight=table_KR, bias=self.vocabulary.bias_K)
        blocks = [block.init_state(batch, place, dtype) for block in self.blocks]
        return PriorState(batch, blocks, table_KR, score, modulations, place)

    def condition(self, start_B: Tensor, state: PriorState) -> None:
        """Write into an empty state what the classes of these start tokens do to the norms.

        `prefill` and the first `step` do it; only who calls `advance` must.
        """
        for written, modulation in zip(state.modulations, self._modulations(start_B), strict=True):
            if written is not None and modulation is not None:
                written.copy_(modulation)

    def prefill(self, inputs_BL: Tensor, state: PriorState) -> Tensor:
        """Take in the first inputs of each sequence at once; returns (B, codes) logits after the last of them.

        Raises ValueError where the state is not empty.
        """
        if state.place.position:
            given = state.place.position
            raise ValueError(f"prefill needs an empty state, and {given} tokens are in this one: reset it")
        self.condition(inputs_BL[:, 0], state)
        x_BLD = self._embed(inputs_BL, state.table_KR)
        modulations = _along_length(state.modulations[:-1])
        for block, block_state, modulation in zip(self.blocks, state.blocks, modulations, strict=True):
            x_BLD = block.prefill(x_BLD, block_state, modulation)
        state.place.advance(inputs_BL.shape[1])
        return self._score(self._last_norm(x_BLD[:, -1], state.modulations[-1]), state)

    def step(self, token_B: Tensor, state: PriorState) -> Tensor:
        """Take in one more id per sequence, updating `state` in place; returns (B, codes) logits of the next token."""
        if not state.place.position:
            self.condition(token_B, state)
        logits_BV = self.advance(token_B, state)
        state.place.advance()
        return logits_BV

    def advance(self, token_B: Tensor, state: PriorState) -> Tensor:
        """What `step` does on the device, where `state.place` says and without moving it; may be captured."""
        x_BD = self._embed(token_B[:, None], state.table_KR, offset=state.place.index_1)[:, 0]
        for block, block_state, modulation in zip(self.blocks, state.blocks, state.modulations[:-1], strict=True):
            x_BD = block.step(x_BD, block_state, modulation)
        return self._score(self._last_norm(x_BD, state.modulations[-1]), state)

    def _modulations(self, start_B: Tensor) -> Sequence[Tensor | None]:
        """What the classes of these start tokens do to each block, and then to the last norm."""
        if self.modulation is None:
            return [None] * (len(self.blocks) + 1)
        return self.modulation(start_B - self.codes)

    def _last_norm(self, x: Tensor, modulation: Tensor | None) -> Tensor:
        if modulation is None:
            return self.norm(x)
        shift, scale = modulation
        return self.norm(x) * scale + shift

    def _embed(self, ids_BL: Tensor, table_KR: Tensor, offset: int | Tensor = 0) -> Tensor:
        x_BLD = self.vocabulary.embed(ids_BL, table_KR)
        return x_BLD if self.positions is None else self.positions(x_BLD, offset)

    def _score(self, h: Tensor, state: PriorState) -> Tensor:
        return state.score(self.vocabulary.query(h)).float()

    def _class_modulation(self) -> ClassModulation | None:
        if self.config.conditioning == "token":
            return None
        if not self.classes:
            raise UserError("conditioning: norm needs classes, and these tokens have none: use conditioning=token")
        return ClassModulation(self.classes, self.config.width, [len(block.branches()) for block in self.blocks])

    @torch.no_grad()
    def _init_blocks(self) -> None:
        """GPT-2's: N(0, 0.02), and what writes into the residual stream shrunk by 1/sqrt(number of such branches).

        Mamba-2 keeps its own initialisation but for that shrinking, as in mamba_ssm.
        """
        branches = [branch for block in self.blocks for branch in block.branches()]
        for branch in branches:
            if not isinstance(branch, Mamba2):
                for linear in (m for m in branch.modules() if isinstance(m, nn.Linear)):
                    nn.init.normal_(linear.weight, std=INIT_STD)
            branch.out_proj.weight.mul_(len(branches) ** -0.5)


def _along_length(modulations: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The same for sequences: (..., B, D) -> (..., B, 1, D)."""
    return [None if modulation is None else modulation.unsqueeze(-2) for modulation in modulations]


def _vocabulary(
    config: PriorConfig, codes: int, starts: int, code_vectors_KD: Tensor | None
) -> FullVocabulary | TiedVocabulary | CodeVocabulary:
    if config.head == "full":
        return FullVocabulary(codes, starts, config.width)
    if config.head == "tied":
        return TiedVocabulary(codes, starts, config.width)
    if code_vectors_KD is None:
        raise UserError("head: codes needs the tokenizer's code vectors, and none were given: use head: full or tied")
    if len(code_vectors_KD) != codes:
        raise UserError(f"head: codes was given {len(code_vectors_KD)} code vectors for a prior over {codes} codes")
    return CodeVocabulary(code_vectors_KD, starts, config.width, config.head_rank)


def _block(config: PriorConfig, grid: tuple[int, int], layer: int) -> Block:
    if config.is_attention(layer):
        rotary = Rotary(config.width // config.heads, _coordinates(grid)) if config.positions == "rotary" else None
        attention = Attention(config.width, config.heads, grid[0] * grid[1], config.qk_norm, rotary)
        return Block(config.width, attention, SwiGLU(config.width), config.dropout)
    mixer = Mamba2(
        d_model=config.width,
        d_state=config.d_state,
        expand=config.expand,
        headdim=config.headdim,
        chunk_size=config.chunk_size,
    )
    hidden = round(config.mlp_ratio * config.width / 32) * 32
    mlp = SwiGLU(config.width, max(32, hidden)) if config.mlp_ratio else None
    return Block(config.width, mixer, mlp, config.dropout)


def _coordinates(grid: tuple[int, int]) -> Tensor:
    """(L, 2) row and column of each input: the start token at (0, 0), then the tokens from (1, 1) in raster order."""
    rows_columns = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])) + 1
    return torch.cat((torch.zeros(1, 2, dtype=torch.long), rows_columns))[:-1]


def build_prior(config: PriorConfig, info: TokenInfo, code_vectors_KD: Tensor) -> Prior:
    """A fresh prior over the tokens that `info` describes."""
    classes = len(info.class_names) if info.class_names else 0
    return Prior(config, info.codes, info.grid, classes, code_vectors_KD)


def load_prior(run: Path, weights: Weights = "last") -> tuple[Prior, TokenInfo]:
    """The prior of a run directory, with averaged weights, in eval mode on the CPU, and what it says of its tokens.

    `weights` are the last, or those that predicted held-out grids best. Raises UserError where the run cannot be used.
    """
    if not (run / "tokens.json").is_file():
        raise UserError(f"{run} is not a prior's run directory (it holds no tokens.json): `make prior` makes one")
    info = read_info(run)

    def build(config: PriorConfig) -> Prior:
        # The code vectors are a buffer, so they come with the weights.
        dim = info.code_dim
        return build_prior(config, info, torch.zeros(info.codes, dim))

    return load_for_inference(run, "model", PriorConfig, build, BEST if weights == "best" else WEIGHTS[1]), info
