"""How large a prior is: as large as there are tokens in the hours to train it with."""

from typing import NamedTuple

from planning.survey.machine import Machine
from planning.survey.pictures import MANY, Pictures

TOKENS_A_WEIGHT = 3  # seen in training: with fewer, a smaller prior that sees more grids learns more (docs/plan.md)


class PriorSize(NamedTuple):
    """Of a GPT: blocks, channels and attention heads."""

    depth: int
    width: int
    heads: int

    @property
    def weights(self) -> int:
        """Those of the blocks, which cost nearly all of the time."""
        return 12 * self.depth * self.width**2


CPU = (PriorSize(4, 128, 2), PriorSize(4, 192, 3), PriorSize(6, 256, 4), PriorSize(8, 384, 6))
GPU = (PriorSize(9, 512, 8), PriorSize(12, 768, 12))


def prior_sizes(pictures: Pictures, machine: Machine) -> tuple[PriorSize, ...]:
    """What a prior could be, smallest first. No plan was measured on a GPU yet: there, it is as in the presets."""
    if machine.kind == "cpu":
        return CPU
    return GPU[:1] if pictures.train < MANY else GPU[1:]


def largest_worth(sizes: tuple[PriorSize, ...], tokens: float) -> PriorSize:
    """The largest size with enough tokens for each weight. tokens: that the smallest would see in its training."""
    return next(
        (
            size
            for size in reversed(sizes)
            if tokens * sizes[0].weights / size.weights >= TOKENS_A_WEIGHT * size.weights  # time goes by weights
        ),
        sizes[0],
    )
