"""The prior: an autoregressive model of token grids in raster order. Embedding -> blocks -> logits.

`gpt`, `mamba` and `hybrid` differ by their block pattern only. Each block has two forms of one set of weights: the
whole sequence at once (training), and one token at a time with a state (decoding).

Ids: 0 .. codes-1 are tokens, codes + label starts an image of that class, codes + classes starts one of no class. Where
views are told, the same shifted by view * (classes + 1) starts a grid of that kind of view; drawn is what is of view 0.

Shapes: B batch, L length (h * w), D width, K codes, V = K logits, R width of the output table.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import UserError
from shared.layers.dropout import Dropout
from shared.layers.mamba2 import Mamba2, Mamba2State
from shared.layers.mup import parametrise
from shared.layers.positions import LearnedPositions, Rotary
from shared.layers.rms_norm import RMSNorm
from shared.layers.swiglu import SwiGLU, hidden_width
from shared.runs.hub import Shareable
from shared.runs.run_directory import BEST, EARLY, WEIGHTS
from shared.runs.token_cache import TokenInfo, read_info
from shared.runs.weights import load_for_inference
from stage2_prior.config import (
    AttentionOptions,
    GptConfig,
    HybridConfig,
    MambaConfig,
    MambaOptions,
    PriorConfig,
    parse_prior,
)
from stage2_prior.network.attention import Attention, Cursor, KVCache
from stage2_prior.network.block import INIT_STD, Block, Branch, ClassModulation, MixState
from stage2_prior.network.cross_entropy import linear_cross_entropy
from stage2_prior.network.vocabulary import CodeVocabulary, FullVocabulary, TiedVocabulary

Weights = Literal["last", "best"]
FILES = {"last": WEIGHTS[1], "best": BEST}
TOLD = 2  # kinds of views but that of a grid as it is: mirrored, augmented


@dataclass
class PriorState:
    """What decoding remembers of a batch: of each block, for each of its branches, the state of its mix; what the class
    does to the norms; and how many inputs were taken in.

    Allocated once for a batch and then written in place; `reset` makes it ready for the next batch.
    """

    batch: int
    blocks: list[list[MixState]]
    modulations: Sequence[Tensor | None]
    cursor: Cursor

    def reset(self) -> None:
        """Forget the sequence, keep the memory."""
        self.cursor.reset()
        for state in chain.from_iterable(self.blocks):
            if state is not None:
                state.reset()

    def put(self, rows_N: Tensor, alone: "PriorState") -> None:
        """Make the state of these sequences that of the only one of another, all but the cursor."""
        for written, modulation in zip(self.modulations, alone.modulations, strict=True):
            if written is not None and modulation is not None:
                written[:, rows_N] = modulation
        for state, other in zip(chain.from_iterable(self.blocks), chain.from_iterable(alone.blocks), strict=True):
            match state, other:
                case KVCache(), KVCache():
                    state.put(rows_N, other)
                case Mamba2State(), Mamba2State():
                    state.put(rows_N, other)

    def reorder(self, from_B: Tensor) -> None:
        """Make each sequence a copy of one of them."""
        for modulation in self.modulations:
            if modulation is not None:
                modulation[:] = modulation[:, from_B]
        for state in chain.from_iterable(self.blocks):
            if state is not None:
                state.reorder(from_B)

    def rows(self, count: int) -> "PriorState":
        """The state of the first `count` sequences, in the same memory."""
        modulations = [None if modulation is None else modulation[:, :count] for modulation in self.modulations]
        blocks = [[None if state is None else state.rows(count) for state in states] for states in self.blocks]
        return PriorState(count, blocks, modulations, self.cursor)


class Prior(nn.Module, Shareable):
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
        # Of a grid as it is, view 0, nothing is told: drawing knows no views.
        self.views = nn.Embedding(TOLD, config.width) if config.told_views else None
        self.dropout = Dropout(config.dropout)
        blocks = nn.ModuleList(_block(config, grid, layer) for layer in range(config.depth))
        self.blocks: Sequence[Block] = blocks  # type: ignore[assignment]
        self.norm = RMSNorm(config.width)
        self._init_blocks()
        if self.views is not None:
            nn.init.zeros_(self.views.weight)
        self.modulation = self._class_modulation()
        own = {layer for block in self.blocks if isinstance(block.mixer, Mamba2) for layer in block.mixer.modules()}
        parametrise(
            self,
            config,
            lambda base: Prior(base, codes, grid, classes, code_vectors_KD),
            constant=set(self.modules()) - own,
        )

    @classmethod
    def load(cls, run: Path) -> "Prior":
        """`load_prior`, for `from_pretrained`."""
        return load_prior(run)[0]

    def start_tokens(self, labels_B: Tensor | None, batch: int) -> Tensor:
        """(B,) ids of the first input: of each label's class (0 .. classes-1), or of no class where there are none."""
        if labels_B is not None and not self.classes:
            raise UserError("labels were given, but this prior was trained without classes: leave them out")
        device = self.norm.weight.device
        no_class_B = torch.full((batch,), self.codes + self.classes, device=device)
        return no_class_B if labels_B is None else self.codes + labels_B.to(device)

    def inputs(self, tokens_BL: Tensor, labels_B: Tensor | None = None, views_B: Tensor | None = None) -> Tensor:
        """The tokens shifted right by one behind their start token: input i is what is known before token i is drawn.

        views_B: which kind of view of its image each grid is (`TokenCache.views`); all are as they are, if not given.
        In training, each label is hidden with probability `label_dropout` (Ho & Salimans 2021), by torch's global
        generator.
        """
        start_B = self.start_tokens(labels_B, len(tokens_BL))
        if self.training and labels_B is not None:
            hidden_B = torch.rand(len(start_B), device=start_B.device) < self.config.label_dropout
            start_B = start_B.masked_fill(hidden_B, self.codes + self.classes)
        if self.views is not None and views_B is not None:
            start_B = start_B + views_B.to(start_B.device) * (self.classes + 1)
        return torch.cat((start_B[:, None], tokens_BL[:, :-1]), dim=1)

    def forward(self, inputs_BL: Tensor, targets_BL: Tensor | None = None) -> Tensor:
        """(B, L) ids from `inputs` -> (B, L, codes) float32 logits of the token that follows each.

        Given the targets (B, L) int64, returns their mean cross-entropy in nats instead; the logits are then never
        whole in memory.
        """
        table_KR = self.vocabulary.table()
        h_BLD = self.hidden(inputs_BL, table_KR)
        if targets_BL is None:
            return self.logits(h_BLD, table_KR)
        h_NR = self.vocabulary.query(h_BLD).flatten(0, 1)
        return linear_cross_entropy(h_NR, table_KR, self.vocabulary.bias_K, targets_BL.flatten())

    def compile(self, *arguments: Any, **options: Any) -> None:
        """`nn.Module.compile`, block by block: they are alike, so that one compilation serves them all.

        As one, a model of 46 blocks takes minutes to compile; the work outside of the blocks is in few operations.
        """
        for block in self.blocks:
            block.compile(*arguments, **options)

    def hidden(self, inputs_BL: Tensor, table_KR: Tensor | None = None) -> Tensor:
        """(B, L) ids -> (B, L, D), the normalised output of the last block."""
        views_B, inputs_BL = self._apart(inputs_BL)
        x_BLD = self._embed(inputs_BL, self.vocabulary.table() if table_KR is None else table_KR)
        if self.views is not None:
            told_ED = F.pad(self.views.weight, (0, 0, 1, 0))
            x_BLD = torch.cat((x_BLD[:, :1] + told_ED[views_B][:, None], x_BLD[:, 1:]), dim=1)
        x_BLD = self.dropout(x_BLD)
        *modulations, last = _along_length(self._modulations(inputs_BL[:, 0]))
        for block, modulation in zip(self.blocks, modulations, strict=True):
            x_BLD = block(x_BLD, modulation)
        return self._last_norm(x_BLD, last)

    def logits(self, h: Tensor, table_KR: Tensor) -> Tensor:
        """(..., codes) float32 of the token that follows each `hidden` (..., D); table_KR: the vocabulary's."""
        query = self.vocabulary.query(h).to(table_KR.dtype)  # a decoder's maps may be in bfloat16
        return F.linear(query, table_KR, self.vocabulary.bias_K).float()

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
        cursor = Cursor(weight.device if device is None else device)
        of_none = self._modulations(self.start_tokens(None, batch))
        # Contiguous, because of others a step's kernels are compiled anew, and then sum in another order.
        modulations = [m if m is None else m.to(dtype).contiguous() for m in of_none]
        return PriorState(batch, [block.init_state(batch, cursor, dtype) for block in self.blocks], modulations, cursor)

    def branches(self, state: PriorState) -> Iterator[tuple[Branch, MixState]]:
        """Every branch in its order, modulated, with its state: what a decoding step walks."""
        for block, states, modulation in zip(self.blocks, state.blocks, state.modulations[:-1], strict=True):
            yield from zip(block.branches(modulation), states, strict=True)

    def condition(self, start_B: Tensor, state: PriorState) -> None:
        """Write into an empty state what the classes of these start tokens do to the norms.

        `prefill` and the first `step` do it.
        """
        for written, modulation in zip(state.modulations, self._modulations(start_B), strict=True):
            if written is not None and modulation is not None:
                written.copy_(modulation)

    def prefill(self, inputs_BL: Tensor, state: PriorState, table_KR: Tensor | None = None) -> Tensor:
        """Take in the first inputs of each sequence at once; returns (B, codes) logits after the last of them.

        table_KR: that of the codes, where it is at hand. Raises ValueError where the state is not empty.
        """
        table_KR = self.vocabulary.table() if table_KR is None else table_KR
        return self.logits(self.fill(inputs_BL, state, table_KR), table_KR)

    def fill(self, inputs_BL: Tensor, state: PriorState, table_KR: Tensor) -> Tensor:
        """`prefill` without its logits: (B, D), what they are computed from."""
        if state.cursor.position:
            given = state.cursor.position
            raise ValueError(f"prefill needs an empty state, and {given} tokens are in this one: reset it")
        self.condition(inputs_BL[:, 0], state)
        x_BLD = self._embed(inputs_BL, table_KR)
        modulations = _along_length(state.modulations[:-1])
        for block, states, modulation in zip(self.blocks, state.blocks, modulations, strict=True):
            x_BLD = block.prefill(x_BLD, states, modulation)
        state.cursor.advance(inputs_BL.shape[1])
        return self._last_norm(x_BLD[:, -1], state.modulations[-1])

    def step(self, token_B: Tensor, state: PriorState) -> Tensor:
        """Take in one more id per sequence, updating `state` in place; returns (B, codes) logits of the next token.

        The plain form, which the decoding engine is tested against, and which it takes where it has no kernels;
        `Decoder` draws many times as fast on a CPU and on CUDA.
        """
        if not state.cursor.position:
            self.condition(token_B, state)
        logits_BV = self.take_in(token_B, state, self.vocabulary.table())
        state.cursor.advance()
        return logits_BV

    def take_in(self, token_B: Tensor, state: PriorState, table_KR: Tensor) -> Tensor:
        """`step`, of a state whose classes are known (`condition`), and whose cursor the caller moves."""
        x_BD = self._embed(token_B[:, None], table_KR, offset=state.cursor.index_1)[:, 0]
        for block, states, modulation in zip(self.blocks, state.blocks, state.modulations[:-1], strict=True):
            x_BD = block.step(x_BD, states, modulation)
        return self.logits(self._last_norm(x_BD, state.modulations[-1]), table_KR)

    def _apart(self, inputs_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The kinds of views (B,) that start tokens tell, and the inputs as if they were all of view 0."""
        views_B = (inputs_BL[:, 0] - self.codes) // (self.classes + 1)
        if self.views is None:
            return views_B, inputs_BL
        start_B = inputs_BL[:, 0] - views_B * (self.classes + 1)
        return views_B, torch.cat((start_B[:, None], inputs_BL[:, 1:]), dim=1)

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
        mixes = [branch.mix for block in self.blocks for branch in block.branches()]
        for mix in mixes:
            if not isinstance(mix, Mamba2):
                for linear in (m for m in mix.modules() if isinstance(m, nn.Linear)):
                    nn.init.normal_(linear.weight, std=INIT_STD)
            mix.out_proj.weight.mul_(len(mixes) ** -0.5)


def _along_length(modulations: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The same for sequences: (..., B, D) -> (..., B, 1, D)."""
    return [None if modulation is None else modulation.unsqueeze(-2) for modulation in modulations]


def _vocabulary(
    config: PriorConfig, codes: int, starts: int, code_vectors_KD: Tensor | None
) -> FullVocabulary | TiedVocabulary | CodeVocabulary:
    match config.head:
        case "full":
            return FullVocabulary(codes, starts, config.width)
        case "tied":
            return TiedVocabulary(codes, starts, config.width, config.growth)
        case "codes":
            assert config.head_rank is not None  # the configuration sees to it
            return CodeVocabulary(_checked(code_vectors_KD, codes), starts, config.width, config.head_rank)


def _checked(code_vectors_KD: Tensor | None, codes: int) -> Tensor:
    """The tokenizer's vectors; UserError where they are missing or not as many as there are codes."""
    if code_vectors_KD is None:
        raise UserError("head: codes needs the tokenizer's code vectors, and none were given: use head: full or tied")
    if len(code_vectors_KD) != codes:
        raise UserError(f"head: codes was given {len(code_vectors_KD)} code vectors for a prior over {codes} codes")
    return code_vectors_KD


def _block(config: PriorConfig, grid: tuple[int, int], layer: int) -> Block:
    match config:
        case GptConfig():
            return _attention_block(config, grid)
        case MambaConfig():
            return _mamba_block(config)
        case HybridConfig():
            return _attention_block(config, grid) if config.is_attention(layer) else _mamba_block(config)


def _attention_block(config: AttentionOptions, grid: tuple[int, int]) -> Block:
    rotary = Rotary(config.width // config.heads, _coordinates(grid)) if config.positions == "rotary" else None
    attention = Attention(config.width, config.heads, grid[0] * grid[1], config.qk_norm, rotary, config.score_factor)
    return Block(config.width, attention, SwiGLU(config.width), config.dropout)


def _mamba_block(config: MambaOptions) -> Block:
    mixer = Mamba2(
        d_model=config.width,
        d_state=config.d_state,
        expand=config.expand,
        headdim=config.headdim,
        chunk_size=config.chunk_size,
    )
    mlp = SwiGLU(config.width, hidden_width(config.width, config.mlp_ratio)) if config.mlp_ratio else None
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
    return _load(run, FILES[weights])


def load_early(run: Path | None, name: str = EARLY) -> Prior:
    """The prior of a run directory as it was early in its training. Raises UserError where that was not kept."""
    if run is None or not (run / name).exists():
        raise UserError(
            f"autoguidance needs what {run or 'this prior'} was early in its training, and there is no {name}: train "
            "the prior anew, with training.early=[0.03,0.1], or draw without autoguidance"
        )
    return _load(run, name)[0]


def _load(run: Path, weights: str) -> tuple[Prior, TokenInfo]:
    if not (run / "tokens.json").is_file():
        raise UserError(f"{run} is not a prior's run directory (it holds no tokens.json): `make prior` makes one")
    info = read_info(run)

    def build(config: PriorConfig) -> Prior:
        # The code vectors are a buffer, so they come with the weights.
        dim = info.code_dim
        return build_prior(config, info, torch.zeros(info.codes, dim))

    prior = load_for_inference(run, "model", parse_prior, build, weights)
    prior.run = run
    return prior, info
