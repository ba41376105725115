"""A set of pictures, a machine and a plan of them, made up."""

from dataclasses import replace
from typing import Any

from planning.plan import Plan, Request, make_plan
from planning.survey.machine import Machine
from planning.survey.pace import Rates
from planning.survey.pictures import Pictures
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
    hours: float = 2.0, speed: float = 1.0, changes: tuple[str, ...] = (), fits: int = 10**9, **of_pictures: Any
) -> Plan:
    """A plan on a machine that, at speed 1, trains on 40 images and 18 grids of 256 tokens a second.

    fits: pixels of the largest images that its memory can hold.
    """

    def timing(tokenizer: object, prior: object, shape: Any, changes: object) -> Rates:
        if shape.pixels > fits:
            raise DoesNotFit(str(shape))
        return Rates(speed * 40 * 256 / shape.tokens, speed * 18 * 256 / shape.tokens)

    return make_plan("mine", Request("~/pictures", hours, changes), pictures(**of_pictures), MACHINE, timing)
