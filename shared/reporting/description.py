"""What a model is made of and what it costs, before it is trained: what `--describe` shows for either stage."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import nn


@dataclass(frozen=True)
class Description:
    """`weights` by part; `grid` rows and columns of tokens out of `codes`; `flops` by part, of a forward pass of one
    image or grid, a multiply-add counted as two, elementwise work not counted; `activation_bytes` kept for the backward
    pass of each, besides `weight_bytes` for weights, gradients, moments and average.

    unit: what a batch is made of. without: what `activation_bytes` leaves out.
    """

    weights: dict[str, int]
    grid: tuple[int, int]
    codes: int
    flops: dict[str, int]
    activation_bytes: int
    weight_bytes: int

    unit: ClassVar[str] = "image"
    without: ClassVar[str] = ""

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, with the totals."""
        totals = {"total_weights": sum(self.weights.values()), "total_flops": sum(self.flops.values())}
        return {**asdict(self), "grid": list(self.grid), **totals}

    def lines(self) -> dict[str, str]:
        """What is shown, by its title."""
        parts = ", ".join(f"{name} {count:,}" for name, count in self.weights.items())
        costs = ", ".join(f"{name} {count / 1e9:.3f}" for name, count in self.flops.items())
        bits = math.prod(self.grid) * math.log2(self.codes)
        an = "an" if self.unit[0] in "aeiou" else "a"
        return {
            "weights": f"{sum(self.weights.values()):,}: {parts}",
            "tokens": f"{self.grid[0]} x {self.grid[1]} out of {self.codes:,}: {bits:.0f} bits an image",
            "GFLOPs": f"{sum(self.flops.values()) / 1e9:.3f} {an} {self.unit}: {costs}",
            "training": f"{self.activation_bytes / 2**20:.1f} MiB {an} {self.unit} of a batch{self.without}, and "
            f"{self.weight_bytes / 2**20:.1f} MiB for weights, gradients, moments and average",
        }

    def __str__(self) -> str:
        return "\n".join(f"  {title:<9} {line}" for title, line in self.lines().items())

    def show(self, name: str, as_json: bool) -> None:
        """Print it as what the run `name` is made of; for programs too, as JSON on the last line."""
        print(f"{name}:\n{self}")
        if as_json:
            print(json.dumps({"name": name, **self.as_dict()}))


def weights_by_part(model: nn.Module) -> dict[str, int]:
    """How many weights each part of a model has, by its name; parts without any are left out."""
    counts = {name: sum(weight.numel() for weight in part.parameters()) for name, part in model.named_children()}
    return {name: count for name, count in counts.items() if count}
