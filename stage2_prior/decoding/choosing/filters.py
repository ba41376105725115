"""Logit filters. They have one signature and act in this order: temperature, top-k, top-p, min-p.

What they remove gets the logit -inf. Shapes: B batch, V codes.
"""

import math

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor

from shared.config import Config
from shared.errors import UserError

SMALLEST_TEMPERATURE = 1e-6  # that and less is 0 to float32


class SamplingConfig(Config):
    """How a token is drawn from its logits. An option left at None (temperature: at 1) changes nothing.

    The command line and the page are made from these fields. `slider` is (least, most, step) on the page (none: a
    number is typed), `off` what stands there for None. Raises UserError naming the option where a value is out of its
    range.
    """

    model_config = ConfigDict(allow_inf_nan=True)  # so that they too get the message below

    temperature: float = Field(
        1.0, description="below 1: likelier codes; 0: always the likeliest", json_schema_extra={"slider": [0, 2, 0.05]}
    )
    top_k: int | None = Field(
        None, description="keep only the K likeliest codes", json_schema_extra={"slider": None, "off": 0}
    )
    top_p: float | None = Field(
        None,
        description="keep the likeliest codes, up to a total probability of P",
        json_schema_extra={"slider": [0, 1, 0.01], "off": 1},
    )
    min_p: float | None = Field(
        None,
        description="keep codes at least P times as likely as the likeliest",
        json_schema_extra={"slider": [0, 1, 0.01], "off": 0},
    )

    @model_validator(mode="after")
    def _in_range(self) -> "SamplingConfig":
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}: it must be 0 (always the likeliest code) or more")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}: it must be 1 or more, or left out to keep every code")
        for name, value in (("top_p", self.top_p), ("min_p", self.min_p)):
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name} is {value}: it is a probability, from 0 to 1")
        return self


def temperature(logits_BV: Tensor, value: float) -> Tensor:
    """Divide by `value`; 0 keeps the likeliest code only (the first of equals)."""
    if value > SMALLEST_TEMPERATURE:
        # Relative to the largest logit, a tiny temperature gives -inf for the others and never inf for the best.
        return (logits_BV - logits_BV.amax(-1, keepdim=True)) / value
    best_B1 = logits_BV.argmax(-1, keepdim=True)
    return torch.full_like(logits_BV, -math.inf).scatter_(-1, best_B1, 0.0)


def top_k(logits_BV: Tensor, value: int) -> Tensor:
    """Keep the `value` likeliest codes, and those as likely as the last of them (Fan et al. 2018)."""
    if value >= logits_BV.shape[-1]:
        return logits_BV
    least_B1 = logits_BV.topk(value, dim=-1).values[..., -1:]
    return logits_BV.masked_fill(logits_BV < least_B1, -math.inf)


def top_p(logits_BV: Tensor, value: float) -> Tensor:
    """Keep the fewest likeliest codes that together have a probability of at least `value` (Holtzman et al. 2020).

    At least the best one stays; of equals, the lower id comes first.
    """
    if value >= 1:
        return logits_BV
    probs_BV, keys_BV = logits_BV.softmax(-1), _ordered(logits_BV)
    # The last key kept is the greatest whose equals and betters have the probability asked for. Halving its range 32
    # times takes a fraction of the time of sorting 16,384 codes on a CPU, and is exact as well.
    low_B1, high_B1 = keys_BV.amin(-1, keepdim=True), keys_BV.amax(-1, keepdim=True)
    for _ in range(32):
        middle_B1 = high_B1 - (high_B1 - low_B1) // 2
        enough_B1 = torch.where(keys_BV >= middle_B1, probs_BV, 0).sum(-1, keepdim=True) >= value
        low_B1 = torch.where(enough_B1, middle_B1, low_B1)
        high_B1 = torch.where(enough_B1, high_B1, middle_B1 - 1)
    better_BV, equal_BV = keys_BV > low_B1, keys_BV == low_B1
    missing_B1 = value - torch.where(better_BV, probs_BV, 0).sum(-1, keepdim=True)
    before_BV = torch.where(equal_BV, probs_BV, 0).cumsum(-1) - probs_BV
    first_BV = equal_BV & (equal_BV.cumsum(-1) == 1)
    return logits_BV.masked_fill(~(better_BV | first_BV | equal_BV & (before_BV < missing_B1)), -math.inf)


def _ordered(logits: Tensor) -> Tensor:
    """Float32 numbers as int64 in the same order."""
    bits = (logits + 0.0).contiguous().view(torch.int32)  # -0 becomes 0
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()


def min_p(logits_BV: Tensor, value: float) -> Tensor:
    """Keep the codes at least `value` times as probable as the best one (Nguyen et al. 2024)."""
    if value == 0:
        return logits_BV
    least_B1 = logits_BV.amax(-1, keepdim=True) + math.log(value)
    return logits_BV.masked_fill(logits_BV < least_B1, -math.inf)


def filter_logits(logits_BV: Tensor, config: SamplingConfig) -> Tensor:
    """Every filter that `config` asks for, in the documented order."""
    if config.temperature != 1:
        logits_BV = temperature(logits_BV, config.temperature)
    if config.top_k is not None:
        logits_BV = top_k(logits_BV, config.top_k)
    if config.top_p is not None:
        logits_BV = top_p(logits_BV, config.top_p)
    if config.min_p is not None:
        logits_BV = min_p(logits_BV, config.min_p)
    return logits_BV
