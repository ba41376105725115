"""Maximal-update parametrisation (muP): what was tuned on a narrow model holds for a wider one.

Yang et al. 2022, "Tensor Programs V", table 3, for Adam. A model is compared, layer by layer, with itself at its base
width. Where the fan-in of a layer is m times the base's,

    its weights begin at m^-1/2 times the base's, or at 1/m times where its outputs are as many at any width;
    its learning rate is 1/m of the base's;
    its weight decay is m times the base's, because AdamW multiplies it by the learning rate: weights then forget at one
        pace at every width (Wang & Aitchison 2024, "How to set AdamW's weight decay as you scale model and dataset
        size").

Everything else (embeddings, positions, norms, biases, depthwise convolutions, Mamba-2's decays and step sizes) begins
and learns as at the base width. Two things are factors in the forward pass, so decoding has them too: logits of a table
that is the embedding as well are divided by m, and attention is divided by its heads' width instead of the root of it.
Gradients shrink as width grows, so Adam's epsilon does too (Everett et al. 2024, "Scaling Exponents Across
Parameterizations and Optimizers"). At the base width all of it is the standard parametrisation, bit for bit.

Only the width may grow: not depth, nor Mamba-2's d_state (Vankadara et al. 2024, "On Feature Learning in Structured
State Space Models", on what changes when it does).
"""

from collections.abc import Callable, Container
from typing import Self, TypeVar

import torch
from pydantic import PositiveInt, ValidationError, model_validator
from torch import nn

from shared.config import Config

LAYERS = nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d


class MupConfig(Config):
    """Options of a model whose width may grow under muP."""

    width: PositiveInt
    """Channels of the blocks."""
    mup_base_width: PositiveInt | None = None
    """The width at which learning rate and initial weights are what they say; null: the standard parametrisation."""
    mup_base_heads: PositiveInt | None = None
    """Attention heads at that width; null: heads as wide as here."""

    @model_validator(mode="after")
    def _base_is_valid(self) -> Self:
        if self.mup_base_width is None and self.mup_base_heads is not None:
            raise ValueError(f"mup_base_heads {self.mup_base_heads} needs mup_base_width, the width of their model")
        if self.mup_base_heads is not None and "heads" not in type(self).model_fields:
            raise ValueError(f"mup_base_heads {self.mup_base_heads}: this model has no attention heads")
        try:
            self.at_base()
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"at mup_base_width {self.mup_base_width}: {reason}") from None
        return self

    @property
    def growth(self) -> float:
        """Width over the base's; 1 in the standard parametrisation."""
        return self.width / self.at_base().width

    @property
    def score_factor(self) -> float:
        """Of attention's scores beside 1 / sqrt(d): sqrt(base's d / d) for heads of width d, so that they go as 1 / d.

        Queries and keys come to agree in training, and products of vectors that agree grow as d, not as sqrt(d).
        """
        return (self.at_base()._head_width() / self._head_width()) ** 0.5

    def at_width(self, width: int, heads: int | None = None) -> Self:
        """The same model of another width in the standard parametrisation; its heads stay as wide unless counted.

        Raises pydantic.ValidationError where it cannot be of that width.
        """
        values = self.model_dump() | {"width": width, "mup_base_width": None, "mup_base_heads": None}
        if "heads" in values:
            values["heads"] = heads or max(1, round(width * values["heads"] / self.width))
        return type(self).model_validate(values)

    def at_base(self) -> Self:
        """The model that learning rate and initial weights are tuned for: itself in the standard parametrisation."""
        return self if self.mup_base_width is None else self.at_width(self.mup_base_width, self.mup_base_heads)

    def _head_width(self) -> int:
        return self.width // self.model_dump()["heads"]


C = TypeVar("C", bound=MupConfig)


@torch.no_grad()
def parametrise(
    model: nn.Module, config: C, build: Callable[[C], nn.Module], constant: Container[nn.Module] = ()
) -> None:
    """Rescale the initial weights of `model` and mark how fast they learn,
    for `shared.training.optimisation.optimizer`.

    build: makes the same model from another configuration.
    constant: layers whose initial weights are as large at any width. Those of all others shrink with the root of their
        fan-in already, as PyTorch's own do.
    """
    if config.mup_base_width is None:
        return
    with torch.device("meta"):  # only shapes are compared
        base = build(config.at_base())
    for layer, its_base in zip(model.modules(), base.modules(), strict=True):
        if isinstance(layer, LAYERS) and isinstance(its_base, LAYERS) and fan_in(layer) != fan_in(its_base):
            # PyTorch takes a transposed convolution's fan-in from its outputs.
            as_at_base = layer in constant or isinstance(layer, nn.ConvTranspose2d)
            _widen(layer, fan_in(layer) / fan_in(its_base), as_at_base, fan_out(layer) == fan_out(its_base))


def _widen(layer: LAYERS, growth: float, as_at_base: bool, ends_width: bool) -> None:
    """Where `as_at_base`, the weights were drawn as at the base width. `ends_width`: outputs do not grow with width."""
    layer.weight._lr_scale = 1 / growth  # type: ignore[attr-defined]  # read by `shared.training`
    if as_at_base:
        layer.weight.mul_(growth**-0.5)
    elif layer.bias is not None:
        layer.bias.mul_(growth**0.5)  # PyTorch's shrink as the weights do
    if ends_width:
        layer.weight.mul_(growth**-0.5)


def fan_in(layer: LAYERS) -> int:
    """Channels that one output is a sum over."""
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels // layer.groups


def fan_out(layer: LAYERS) -> int:
    """Channels of the output."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
