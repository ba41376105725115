"""Drawing token grids from a prior.

Shapes: B images, K prefix length, L grid length.
"""

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from shared.errors import UserError
from shared.runs.run_directory import EARLY
from stage2_prior.decoding.candidates import check_candidates, typical
from stage2_prior.decoding.choosing.choice import autoguided_chooser, chooser
from stage2_prior.decoding.choosing.draw import uniforms
from stage2_prior.decoding.choosing.filters import SamplingConfig
from stage2_prior.decoding.choosing.guidance import autoguidance_scales, check_guidances
from stage2_prior.decoding.engine import Engine, lay_out
from stage2_prior.decoding.particles import (
    Hole,
    Particles,
    classes_of_particles,
    resampling_offsets,
    weights_by_class,
)
from stage2_prior.decoding.step import Weights
from stage2_prior.prior import Prior, load_early


class Decoder:
    """Draws from a prior with the weights that it has now, `rows` images side by side, on the device where it is.

    Weights are laid out once, here: a prior that was trained on needs another decoder. Unless `exact`, they are rounded
    to what the hardware is fast with, bfloat16 or (on a CPU that does not multiply that) float16, and keys and values
    to bfloat16; recurrent states are float32. Where `backend_of` the device has no kernels, all is float32. Memory for
    a batch comes with the first call, and is kept for the next. One thread draws with a decoder at a time. `early`
    names the file of the prior's run with what autoguidance draws against. Raises UserError for fewer than one row.
    """

    @torch.inference_mode()
    def __init__(self, prior: Prior, rows: int = 16, exact: bool = False, early: str = EARLY) -> None:
        if rows < 1:
            raise UserError(f"{rows} images cannot be drawn side by side: rows must be 1 or more")
        self.rows, self.exact, self.run = rows, exact, prior.run
        self.weights = lay_out(prior, exact)
        self.early_name = early
        self.early: Weights | None = None
        self.engine: Engine | None = None

    @torch.inference_mode()
    def generate(
        self,
        images: Sequence[int],
        seed: int = 0,
        config: SamplingConfig | None = None,
        *,
        labels_B: Tensor | None = None,
        cfg_scale: float | Tensor = 1.0,
        autoguidance: float = 1.0,
        candidates: int = 1,
        prefix_tokens_BK: Tensor | None = None,
        hole: Hole | None = None,
        progress: Callable[[int], None] | None = None,
        on_row: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Token grids (B, h, w) int64, on the CPU, of the images numbered `images`, one for each number.

        Image k depends on `seed` and k alone: not on how many are drawn side by side, nor on which; on a CPU to the
        last bit, and on any number of threads. `labels_B` are their classes, `prefix_tokens_BK` their first K tokens,
        which are kept. With a `cfg_scale` other than 1, each image takes two rows of a batch; it may also be a tensor
        (L,), the scale at each position. An `autoguidance` above 1 draws what the prior finds likelier than it did
        early in its training, early + scale (prior - early) of what the filters leave (after Karras et al. 2024,
        "Guiding a Diffusion Model with a Bad Version of Itself"). The scale rises over the grid
        (`autoguidance_scales`), and the early weights are those of the run that the prior was loaded from. Of several
        `candidates` for each image, one that the prior finds neither unlikely nor too likely is kept (`candidates.py`);
        the first of them is what is drawn without any others. Of a `hole`, what is around it is kept, and particles
        (`particles.py`) take the place of prefix and candidates. `progress` is called with the number of tokens just
        drawn, `on_row` with the rows (B, r, w) of a batch's first candidates so far, on the prior's device, each time
        that a row of them is whole.

        Raises UserError for labels or prefixes that do not fit the prior, guidance without labels, both kinds of
        guidance, autoguidance where no early weights were kept, no candidates, or a hole that does not fit.
        """
        prior = self.weights.model
        if hole is not None:
            _check_hole(prior, hole, len(images), candidates, prefix_tokens_BK)
            prefix_tokens_BK = hole.tokens_IL[:, : hole.first]
        prefix_BK = torch.empty(len(images), 0, dtype=torch.long) if prefix_tokens_BK is None else prefix_tokens_BK
        scale_L = torch.as_tensor(cfg_scale, dtype=torch.float32).expand(prior.length)
        guided = bool((scale_L[prefix_BK.shape[1] :] != 1).any())
        _check_request(prior, images, seed, labels_B, scale_L, prefix_BK)
        check_guidances(autoguidance, guided)
        check_candidates(candidates)
        against_early = autoguidance != 1
        if against_early:
            scale_L = autoguidance_scales(autoguidance, prior.length)
        each = 1 if hole is None else hole.particles
        rows = _Rows(prior, images, seed, candidates, each, labels_B, prefix_BK, guided)
        log_weights_N = torch.zeros(len(rows))
        if hole is not None and labels_B is None and (classes_P := classes_of_particles(prior, each)) is not None:
            rows.labels_N = classes_P.repeat(len(images))
            log_weights_N = weights_by_class(prior, hole, classes_P).flatten()
        side_by_side = min(max(1, self.rows // each) * each, len(rows))
        engine = self._engine(side_by_side * (2 if guided else 1), against_early)
        choose = (autoguided_chooser if against_early else chooser)(config or SamplingConfig())
        guidance = scale_L if guided or against_early else None
        grids = []
        for start in range(0, len(rows), side_by_side):
            part = slice(start, start + side_by_side)
            show = on_row and _first_rows(on_row, len(images) - start // each)
            particles = None if hole is None else rows.particles(part, hole, log_weights_N[part])
            with torch.cuda.device_of(prior.norm.weight):  # kernels are launched on the current device, whichever it is
                grids.append(engine.decode(*rows.of(part), choose, guidance, progress, show, particles))
        tokens_NL = torch.cat(grids)
        if candidates > 1:
            tokens_NL = typical(prior, tokens_NL.unflatten(0, (candidates, -1)), labels_B)
        return tokens_NL.unflatten(1, prior.grid)

    def _engine(self, rows: int, against_early: bool) -> Engine:
        """Memory for that many rows: the last one's, where it is enough."""
        early = self._early_weights() if against_early else None
        if self.engine is None or self.engine.rows < rows or self.engine.early is not early:
            self.engine = None  # its memory goes before the new one's comes
            self.engine = Engine(self.weights, rows, early)
        return self.engine

    def _early_weights(self) -> Weights:
        """What autoguidance draws against, read when it is first needed."""
        if self.early is None:
            with torch.random.fork_rng():  # a training that draws keeps its random numbers
                early = load_early(self.run, self.early_name)
            self.early = lay_out(early.to(self.weights.model.norm.weight.device), self.exact)
        return self.early


class _Rows:
    """N drawings of a request: a candidate of each image, then another of each; or all particles of each image."""

    def __init__(
        self,
        prior: Prior,
        images: Sequence[int],
        seed: int,
        candidates: int,
        each: int,
        labels_B: Tensor | None,
        prefix_BK: Tensor,
        guided: bool,
    ) -> None:
        self.prior, self.seed, self.guided, self.each = prior, seed, guided, each
        places = [place for _ in range(candidates) for place in range(len(images)) for _ in range(each)]
        of_each = [range(start, start + each) for start in range(candidates) for _ in images]
        self.numbers = [(images[place], number) for place, number in zip(places, chain(*of_each), strict=True)]
        self.labels_N = None if labels_B is None else labels_B[places]
        self.prefix_NK = prefix_BK[places]

    def __len__(self) -> int:
        return len(self.numbers)

    def of(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """What an engine decodes some of them from: starts, those without a class last; prefixes; random numbers."""
        prior, numbers = self.prior, self.numbers[part]
        starts = [prior.start_tokens(None if self.labels_N is None else self.labels_N[part], len(numbers))]
        if self.guided:
            starts.append(prior.start_tokens(None, len(numbers)))
        streams = [uniforms(self.seed, image, prior.length, prior.codes, candidate) for image, candidate in numbers]
        return torch.cat(starts), self.prefix_NK[part], torch.from_numpy(np.stack(streams))

    def particles(self, part: slice, hole: Hole, log_weights_B: Tensor) -> Particles:
        """Those of some images, whole ones."""
        images = [image for image, number in self.numbers[part] if number == 0]
        offsets = [resampling_offsets(self.seed, image, self.prior.grid[0]) for image in images]
        first = part.start // self.each
        offsets_hI = torch.from_numpy(np.stack(offsets)).T
        return Particles(hole, slice(first, first + len(images)), offsets_hI, log_weights_B)


def _first_rows(on_row: Callable[[Tensor], None], count: int) -> Callable[[Tensor], None] | None:
    """Calls `on_row` with the first `count` of the grids; None where there are none to show."""
    return (lambda tokens_Brw: on_row(tokens_Brw[:count])) if count > 0 else None


def _check_request(
    prior: Prior,
    images: Sequence[int],
    seed: int,
    labels_B: Tensor | None,
    scale_L: Tensor,
    prefix_BK: Tensor,
) -> None:
    if not images or min(images) < 0:
        raise UserError(
            f"{len(images)} images were asked for, numbered {list(images)}: give one number or more, from 0 on"
        )
    if seed < 0:
        raise UserError(f"seed is {seed}: it must be 0 or more")
    for scale in scale_L.tolist():
        if not 0 <= scale <= 1000:
            raise UserError(f"the guidance scale is {scale:g}: it must be from 0 to 1000 (1: no guidance)")
        if labels_B is None and scale != 1:
            raise UserError(
                f"the guidance scale is {scale:g}, but guidance needs a class label: give one, or a scale of 1"
            )
    if labels_B is not None:
        _check_labels(prior, labels_B, len(images))
    _check_prefix(prior, prefix_BK, len(images))


def _check_hole(prior: Prior, hole: Hole, count: int, candidates: int, prefix_BK: Tensor | None) -> None:
    if candidates != 1 or prefix_BK is not None:
        raise UserError("a hole takes neither candidates nor a prefix: its particles and its tokens are in their place")
    if hole.hole_L.shape != (prior.length,) or hole.tokens_IL.shape != (count, prior.length):
        raise UserError(f"a hole is of {prior.length} places and has tokens for each of {count} images")
    _check_prefix(prior, hole.tokens_IL, count)


def _check_labels(prior: Prior, labels_B: Tensor, count: int) -> None:
    if len(labels_B) != count:
        raise UserError(f"{len(labels_B)} class labels were given for {count} images: give one for each")
    if not prior.classes:
        raise UserError("a class label was given, but this prior was trained without classes: leave it out")
    if labels_B.min() < 0 or labels_B.max() >= prior.classes:
        wrong = next(label for label in labels_B.tolist() if not 0 <= label < prior.classes)
        raise UserError(f"class label {wrong} is unknown: this prior's labels are 0 to {prior.classes - 1}")


def _check_prefix(prior: Prior, prefix_BK: Tensor, count: int) -> None:
    if len(prefix_BK) != count:
        raise UserError(f"{len(prefix_BK)} prefixes were given for {count} images: give one for each")
    if prefix_BK.shape[1] > prior.length:
        raise UserError(f"the prefix holds {prefix_BK.shape[1]} tokens, more than an image's {prior.length}")
    if prefix_BK.numel() and (prefix_BK.min() < 0 or prefix_BK.max() >= prior.codes):
        raise UserError(f"the prefix holds tokens outside this prior's codes 0 to {prior.codes - 1}")
