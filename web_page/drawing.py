"""What a visitor asks to be drawn, and the drawing of it.

Shapes: B batch, C image channels (3), H and W pixels, w the width of the token grid, r rows of it, L its tokens,
K those that are given first.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import torch
from pydantic.fields import FieldInfo
from torch import Tensor

from shared.errors import UserError
from stage1_tokenizer.judging.pictures import decode_rows
from stage2_prior.class_label import class_label
from stage2_prior.decoding.choosing.filters import SamplingConfig
from stage2_prior.decoding.choosing.guidance import GuidanceConfig
from stage2_prior.decoding.particles import Hole
from stage2_prior.decoding.stream import stream
from web_page.run import BATCH, Run

ANY_CLASS = "any"
DRAWING_WIDTH = 110  # CSS pixels at least


class Request(NamedTuple):
    """What the sampling controls say, in their order on the page.

    each: how many are drawn of each image: candidates, or of a hole particles.
    """

    num: int
    seed: int | None
    label: str
    filters: Sequence[float]
    autoguidance: float
    each: int
    scale: float
    schedule: str
    power: float
    guide_from: int
    guide_to: int

    @classmethod
    def of(cls, values: Sequence[Any]) -> "Request":
        """From the values of all controls."""
        num, seed, label, *others = values
        filters = len(SamplingConfig.model_fields)
        return cls(num, seed, label, others[:filters], *others[filters:])

    def sampling(self) -> SamplingConfig:
        """How a token is drawn. Raises UserError for what is out of range."""
        named = zip(SamplingConfig.model_fields.items(), self.filters, strict=True)
        chosen = {name: value for (name, field), value in named if value not in (None, page_options(field).get("off"))}
        return SamplingConfig(**chosen)

    def guidance(self) -> GuidanceConfig:
        """How the tokens of a grid are guided. Raises UserError for what is out of range."""
        schedule: Any = self.schedule
        power = self.power if schedule == "power-cosine" else None
        return GuidanceConfig(
            scale=self.scale, schedule=schedule, power=power, interval=(self.guide_from, self.guide_to)
        )


def page_options(field: FieldInfo) -> dict[str, Any]:
    """What a field of `SamplingConfig` says of its control."""
    assert isinstance(field.json_schema_extra, dict)
    return field.json_schema_extra


def growing(run: Run, request: Request, kept: Tensor | Hole | None = None) -> Iterator[Tensor]:
    """All images (num, 3, H, W) of a request in [-1, 1], again and again while they grow; grey where none is drawn yet.

    kept: (1, K), the first tokens of each, or the hole that each is to fill, in one grid. Raises UserError where the
    request cannot be met.
    """
    if request.seed is None:
        raise UserError("the seed is empty: give a whole number, 0 or more")
    label = class_label(None if request.label == ANY_CLASS else request.label, run.info.class_names)
    sampling, scale_L = request.sampling(), request.guidance().scales(run.prior.length)
    images_BCHW = torch.zeros(request.num, 3, *run.size)
    with run.decoder() as decoder:
        at_once = max(1, BATCH // kept.particles) if isinstance(kept, Hole) else BATCH
        for begin in range(0, request.num, at_once):
            numbers = range(begin, min(begin + at_once, request.num))
            draw_batch = partial(
                decoder.generate, numbers, request.seed, sampling, cfg_scale=scale_L, autoguidance=request.autoguidance,
                labels_B=None if label is None else torch.full((len(numbers),), label),
                **_given(request, kept, len(numbers)),
            )  # fmt: skip
            with closing(stream(partial(_telling_rows, draw_batch))) as growing_Brw:  # so no decoder is lent that draws
                for tokens_Brw in growing_Brw:
                    images_BCHW[numbers.start : numbers.stop] = decode_rows(
                        run.tokenizer, tokens_Brw, run.prior.grid[0]
                    )
                    yield images_BCHW


def _given(request: Request, kept: Tensor | Hole | None, count: int) -> dict[str, Any]:
    """What that many images keep, as `Decoder.generate` takes it, and how many are drawn of each."""
    if isinstance(kept, Hole):
        return {"hole": Hole(kept.hole_L, kept.tokens_IL.expand(count, -1), kept.particles)}
    return {"candidates": request.each, "prefix_tokens_BK": None if kept is None else kept.expand(count, -1)}


def _telling_rows(draw_batch: Callable[..., Tensor], on_row: Callable[[Tensor], None]) -> Tensor:
    """`draw_batch`, which tells each row of tokens that it has drawn."""
    return draw_batch(on_row=on_row)
