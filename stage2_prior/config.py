"""The options of a prior: what all have, and what each kind has of its own.

`PriorConfig` is a union told apart by `kind`. An option that the kind does not read is refused.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, field_validator, model_validator

from shared.config import Config, parse_config
from shared.layers.mup import MupConfig

HEAD_RANK = 64  # of head: codes, where it is not given


class PriorOptions(MupConfig):
    """What priors of every kind have."""

    depth: PositiveInt = 12
    """Blocks."""
    width: PositiveInt = 768
    """Channels of the blocks."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of features dropped in training."""
    conditioning: Literal["token", "norm"] = "token"
    """How a class is told: by a start token, or by that and by modulating every norm."""
    label_dropout: float = Field(0.1, ge=0, le=1)
    """Share of labels hidden in training, for classifier-free guidance."""
    told_views: bool = False
    """Whether it learns which grids are mirrored and which augmented; it then draws as of those that are not."""
    head: Literal["full", "tied", "codes"] = "full"
    """How features become logits: full (a free vector for each code), tied (the input's), or codes (through the
    tokenizer's own vectors).
    """
    head_rank: PositiveInt | None = None
    """With head: codes, the width of a code's row in the table; 64 if not given."""

    @model_validator(mode="before")
    @classmethod
    def _rank_of_codes(cls, options: Any) -> Any:
        """What is left open is resolved here, so that a saved configuration says it."""
        if isinstance(options, dict) and options.get("head") == "codes" and options.get("head_rank") is None:
            return {**options, "head_rank": HEAD_RANK}
        return options

    @model_validator(mode="after")
    def _rank_is_read(self) -> Self:
        if self.head_rank is not None and self.head != "codes":
            raise ValueError(
                f"head_rank {self.head_rank} is read by head: codes only, and this is head: {self.head}: leave it out"
            )
        return self


class AttentionOptions(PriorOptions):
    """Of blocks that mix by attention."""

    positions: Literal["learned", "rotary"] = "learned"
    """Learned for each place, or rotary over rows and columns."""
    heads: PositiveInt = 12
    """Attention heads."""
    qk_norm: bool = True
    """Whether queries and keys are normalised."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.positions == "rotary" and self.width // self.heads % 4:
            raise ValueError(f"rotary positions need a head width of a multiple of 4, not {self.width // self.heads}")
        return self


class MambaOptions(PriorOptions):
    """Of blocks that mix by Mamba-2."""

    d_state: PositiveInt = 128
    """Numbers of state for each channel."""
    headdim: PositiveInt = 64
    """Channels of a head."""
    expand: PositiveInt = 2
    """Inner width over width."""
    chunk_size: PositiveInt = 64
    """Tokens that the scan takes at a time; the result is the same."""
    mlp_ratio: float = Field(0.0, ge=0)
    """Hidden width over width of the MLP behind each Mamba-2 mixer; 0: no MLP."""

    @model_validator(mode="after")
    def _heads_of_mamba_fit(self) -> Self:
        inner = self.expand * self.width
        if inner % self.headdim:
            raise ValueError(f"expand * width = {inner} must be a multiple of headdim {self.headdim}")
        return self


class GptConfig(AttentionOptions):
    """Attention in every block."""

    kind: Literal["gpt"] = "gpt"


class MambaConfig(MambaOptions):
    """Mamba-2 in every block."""

    kind: Literal["mamba"] = "mamba"
    positions: Literal["learned"] = "learned"
    """Learned for each place."""

    @field_validator("positions", mode="before")
    @classmethod
    def _nothing_to_rotate(cls, positions: Any) -> Any:
        if positions == "rotary":
            raise ValueError("rotary positions belong to attention, which kind mamba has not: use positions=learned")
        return positions


class HybridConfig(AttentionOptions, MambaOptions):
    """Mamba-2 in some blocks and attention in the others."""

    kind: Literal["hybrid"] = "hybrid"
    pattern: str = Field("mmma", pattern=r"^[ma]+$")
    """m for Mamba-2 and a for attention, repeated over the depth."""

    @model_validator(mode="after")
    def _both_are_there(self) -> Self:
        if len(set(self.pattern)) == 1:
            name = {"m": "mamba", "a": "gpt"}[self.pattern[0]]
            raise ValueError(f"pattern {self.pattern} has one kind of block: use kind={name}, or both m and a")
        return self

    def is_attention(self, layer: int) -> bool:
        """Whether block `layer` mixes by attention, rather than by Mamba-2."""
        return self.pattern[layer % len(self.pattern)] == "a"


KINDS: dict[Any, type[PriorOptions]] = {"gpt": GptConfig, "mamba": MambaConfig, "hybrid": HybridConfig}
# Every key that a run saved while all kinds shared one configuration; muP's two are read by all, and not in every run.
ONE_FOR_ALL = {
    "kind", "depth", "width", "positions", "dropout", "conditioning", "label_dropout", "heads", "qk_norm", "pattern",
    "d_state", "headdim", "expand", "chunk_size", "mlp_ratio", "head", "head_rank",
}  # fmt: skip


def _of_its_kind(options: Any) -> Any:
    """`kind: mamba` unless said, and without what a run of before saved and its kind does not read.

    Such a run is known by having every key there was: nobody writes them all by hand. Anything less is taken at its
    word, and what its kind does not read is refused.
    """
    if not isinstance(options, dict):
        return options
    options = {"kind": "mamba", **options}
    if not options.keys() >= ONE_FOR_ALL or options["kind"] not in KINDS:
        return options
    read = set(KINDS[options["kind"]].model_fields) - ({"head_rank"} if options["head"] != "codes" else set())
    return {key: value for key, value in options.items() if key in read or key not in ONE_FOR_ALL}


PriorConfig = Annotated[
    GptConfig | MambaConfig | HybridConfig, Field(discriminator="kind"), BeforeValidator(_of_its_kind)
]


class _Part(Config):
    model: PriorConfig


def parse_prior(values: Any, where: str) -> PriorConfig:
    """Plain `values` as the configuration of a prior; `where` names their origin in the message of a UserError."""
    return parse_config(_Part, {"model": values}, where).model
