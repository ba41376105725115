"""A set of pictures, a machine and a plan of them, made up."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from planning.choice.prior_size import CPU, PriorSize
from planning.choice.setting import Setting, nested
from planning.choice.shape import Shape
from planning.choice.stage import Stage
from planning.plan import Plan, Request
from planning.survey.machine import Machine
from planning.survey.pictures import Pictures
from planning.trial import make_plan
from shared.training.devices.memory import DoesNotFit

PICTURES = Pictures(
    train=9_500, held_out=500, held_out_share=0.05, distinct=9_500,
    height=96, width=96, lowest=0.9, highest=1.1, classes=0, grey=False,
    drawn=False,
)  # fmt: skip
MACHINE = Machine(kind="cpu", name="a processor", cores=2, memory=2**34, bfloat16=False, disk=2**36)


def pictures(**changes: Any) -> Pictures:
    """`PICTURES`, but for some changes."""
    return replace(PICTURES, **changes)


def plan_of(
    hours: float = 2.0, speed: float = 1.0, changes: tuple[str, ...] = (), fits: int = 10**9,
    timed: list[tuple[Stage, Shape, int]] | None = None, **of_pictures: Any,
) -> Plan:  # fmt: skip
    """A plan on a machine that, at speed 1, trains on 40 images of 256 tokens and 40 such grids a second, and trains a
    decoder alone on 20.

    The grids are those of the smallest prior; a larger one takes as much longer as it has more weights.

    fits: pixels of the largest images that its memory can hold. timed: gets what was timed, and the prior's width.
    """

    def timing(stage: Stage, settings: Mapping[Stage, Sequence[Setting]], shape: Shape, changes: object) -> float:
        if shape.pixels > fits:
            raise DoesNotFit(str(shape))
        model = nested(settings["prior"])["model"]
        if timed is not None:
            timed.append((stage, shape, model["width"]))
        smaller = CPU[0].weights / PriorSize(model["depth"], model["width"], 1).weights
        images = speed * 40 * 256 / shape.tokens
        return {"tokenizer": images, "decoder": images / 2, "prior": smaller * images}[stage]

    return make_plan("mine", Request("~/pictures", hours, changes), pictures(**of_pictures), MACHINE, timing)
