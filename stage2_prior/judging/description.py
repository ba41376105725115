"""What a prior is made of and what it costs, before it is trained: weights, tokens, FLOPs, memory.

Shown by `python -m stage2_prior.train CONFIG --describe [--json]`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from shared.reporting.description import Description, weights_by_part
from shared.runs.token_cache import TokenInfo
from shared.text import shown
from shared.training.devices.flops import count_flops
from shared.training.devices.precision import Precision
from stage2_prior.config import PriorConfig
from stage2_prior.memory import training_memory
from stage2_prior.prior import Prior, build_prior
from stage2_prior.run_config import PriorRun
from stage2_prior.tokens import Amount, open_tokens

# The reference recipe's tokens, with as many classes as ImageNet has.
ASSUMED = TokenInfo(
    grid=(16, 16), codes=16_384, code_dim=16, tokenizer="", fingerprint="", source="", preprocessing={}, views=1,
    class_names=[str(number) for number in range(1000)],
)  # fmt: skip


@dataclass(frozen=True)
class PriorDescription(Description):
    """Its `flops` are of a forward pass over one grid; drawing a grid takes as many. A training step, which also goes
    back, takes about three times as many for each of its grids.

    table_flops: what `head: codes` takes besides, once a batch, for the vectors of all codes. amount: what there is to
    learn from, cached in `tokens`; both None while no tokens are cached.
    """

    table_flops: int
    amount: Amount | None
    tokens: str | None

    unit: ClassVar[str] = "grid"

    def lines(self) -> dict[str, str]:
        """What is shown, by its title."""
        lines = super().lines()
        if self.table_flops:
            lines["GFLOPs"] += f"; {self.table_flops / 1e9:.3f} a batch for the table of codes"
        if self.tokens is not None:
            return {**lines, "cache": f"{shown(self.tokens)}: {self.amount}"}
        rows, columns = ASSUMED.grid
        assumed = f"{rows} x {columns} tokens out of {ASSUMED.codes:,} codes and {len(ASSUMED.class_names or ()):,}"
        return {**lines, "cache": f"none yet: {assumed} classes are assumed"}


def describe(config: PriorRun) -> PriorDescription:
    """Of the prior that `config` would train: over the tokens that `find_tokens` finds, or `ASSUMED` ones.

    Raises UserError where the tokens cannot be used, or the prior cannot be built for them.
    """
    cache = open_tokens(config.tokens)
    if cache is None:
        return description_of(config.model, ASSUMED, config.training.precision)
    return description_of(config.model, cache.info, config.training.precision, Amount.of(cache), str(cache.path))


def description_of(
    config: PriorConfig,
    info: TokenInfo,
    precision: Precision = "bf16",
    amount: Amount | None = None,
    tokens: str | None = None,
) -> PriorDescription:
    """Of a prior of `config` over the tokens that `info` describes, by running one that has shapes and no contents.

    amount, tokens: what there is to learn from, and where it is cached. Raises UserError where it cannot be built.
    """
    with FakeTensorMode():
        prior = build_prior(config, info, torch.zeros(info.codes, info.code_dim)).eval()
        flops, table_flops = forward_flops(prior)
    memory = training_memory(config, info, precision)
    return PriorDescription(
        weights=weights_by_part(prior),
        grid=info.grid,
        codes=info.codes,
        flops=flops,
        activation_bytes=memory.grid,
        weight_bytes=memory.weights + memory.once,
        table_flops=table_flops,
        amount=amount,
        tokens=tokens,
    )


@torch.no_grad()
def forward_flops(prior: Prior) -> tuple[dict[str, int], int]:
    """FLOPs from the tokens of one grid to its logits, in the blocks and in the head; and those of the codes' table."""
    inputs_1L = prior.inputs(torch.zeros(1, prior.length, dtype=torch.int64))
    table_KR = prior.vocabulary.table()
    table = count_flops(prior.vocabulary.table)
    blocks = count_flops(lambda: prior.hidden(inputs_1L, table_KR))
    whole = count_flops(lambda: prior(inputs_1L))
    return {"blocks": blocks, "head": whole - blocks - table}, table
