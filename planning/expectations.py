"""What can be said of a plan before anything is trained."""

import math

from planning.choice.shape import Shape, enough, needed, shapes
from planning.plan import Plan
from planning.survey.pictures import FEW
from planning.survey.pieces import SIDES
from stage2_prior.tokens import tokens_apart

# dB that tokenizers were better than codes for bare patches of 8 x 8 pixels, and how much better still for half that
# side; each was within UNSURE dB of it (docs/plan.md). Of patches smaller than SMALLEST_PATCH nothing is known.
GAIN, GAIN_OF_HALF, UNSURE, SMALLEST_PATCH = 1.9, 1.2, 1.8, 4
FINER = 1.02  # steps in which the hours for a finer shape are looked for
OF_SHAPE = ("data.image_size", "model.backbone")  # keys with which a user says what shape is wanted


def expectations(plan: Plan) -> list[str]:
    """What can be said before anything is trained, each a sentence without a full stop."""
    pictures, shape = plan.pictures, plan.shape
    apart = tokens_apart(pictures.distinct, shape.tokens, plan.codes)
    (images, grids), seen = needed(pictures, shape), plan.expected_at(shape, plan.request.hours)
    said = [
        f"{apart} of the {shape.tokens} tokens of a picture can tell all {pictures.distinct:,} pictures apart: behind "
        "them a prior learns what pictures have in common, or each by heart"
    ]
    if expected := expected_psnr(plan):
        said.append(
            f"reconstructions of {expected[0]:.1f} to {expected[1]:.1f} dB (PSNR): the nearest of {plan.codes:,} codes "
            f"for each bare patch gives {plan.bare:.1f}, and a tokenizer sees more than a patch"
        )
    if pictures.pieces:
        said.append(
            f"drawings are pieces, 1/{SIDES} of the picture's shorter side wide, not whole pictures: of a single one "
            "there is nothing else to learn"
        )
    elif pictures.distinct < FEW:
        said.append(f"with {pictures.distinct:,} pictures, expect copies: the page at the end shows the nearest ones")
    if not plan.is_enough():
        said.append(
            f"these hours are short: drawings become good from about {images:,} images and {grids:,} grids on, which "
            f"takes {plan.request.hours * max(images / seen[0], grids / seen[1]):.1f} hours here at this size"
        )
    elif finer := finer_shape(plan):
        shape, hours = finer
        said.append(f"{hours:.{0 if hours >= 10 else 1}f} hours would be enough for {shape}")
    if plan.pictures.lowest * 2 < plan.pictures.highest:
        said.append(
            "pictures differ much in shape, and their middle is used: crop them to one shape for better drawings"
        )
    if plan.machine.kind != "cpu":
        said.append("no plan has been measured on this kind of device yet")
    return said


def expected_psnr(plan: Plan) -> tuple[float, float] | None:
    """From and to which PSNR in dB its tokenizer will come on held-out images; None where nothing is known."""
    if plan.bare is None or plan.shape.patch < SMALLEST_PATCH:
        return None
    middle = plan.bare + GAIN + GAIN_OF_HALF * math.log2(8 / plan.shape.patch)
    return middle - UNSURE, middle + UNSURE


def finer_shape(plan: Plan) -> tuple[Shape, float] | None:
    """The next shape of more tokens, and the hours it would take here; None without one, or where one was asked for."""
    if any(change.startswith(OF_SHAPE) for change in plan.request.changes):
        return None
    finer = [shape for shape in shapes(plan.pictures, plan.machine) if shape.tokens > plan.shape.tokens]
    if not finer:
        return None
    shape = min(finer, key=lambda shape: shape.tokens)
    hours = plan.request.hours
    while not enough(*plan.expected_at(shape, hours), plan.pictures, shape):
        hours *= FINER
    return (shape, hours) if hours > plan.request.hours else None  # else it does not fit into the memory
