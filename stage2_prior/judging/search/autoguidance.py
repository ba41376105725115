"""How much autoguidance a prior is drawn with, and from which early weights.

Too little leaves drawings torn, which is unlikely to the prior; too much makes them flat, which is far from real
images, or empties some of them. So what takes the fewest bits is kept, of what is neither (docs/drawing.md).
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from shared.errors import UserError
from shared.reporting.set_distances import SMALLEST_SET, kernel_distance
from stage2_prior.decoding.early import kept_early
from stage2_prior.decoding.settings import MILD, STRONG, SURE, SURE_BITS, USUAL, DrawingSettings
from stage2_prior.judging.nearest_images import reconstructed, some_of
from stage2_prior.judging.reference import reference_images
from stage2_prior.judging.search.drawings import Drawings
from stage2_prior.judging.search.tried import Guided, Score, Tried

ASKED = 48  # images drawn with each
SIMPLER = 0.08  # kernel distance that it may cost
MOST_FLAT = 0.11  # share of drawings that it may make flatter than any plain one: 5 of 48


def search_autoguidance(drawings: Drawings) -> tuple[Guided, list[Tried]]:
    """How much, and from when, by as many decoded images of those trained on; and everything that was tried.

    Every process must call it. Raises UserError where there is nothing to choose, or too little to measure by.
    """
    subject = drawings.subject
    early = kept_early(subject.run)
    if not early:
        raise UserError(f"{subject.run} kept no early weights: it is drawn from without autoguidance")
    training = some_of(reference_images(subject.info, "train"), ASKED)
    if len(training) < SMALLEST_SET:
        raise UserError(f"{len(training)} training images are too few to measure by: give more")
    real = reconstructed(training, subject.codec, drawings.batch_size, drawings.accelerator)
    real_ND = drawings.seen(real, len(training), "looking at reconstructions")
    tried: list[Tried] = []
    details: list[Tensor] = []  # the first are those of plain drawings

    def score(guided: Guided) -> Score:
        tokens_nhw = drawings.tokens(guided, ASKED, 0)
        features_ND, detail_N = drawings.features_and_detail(tokens_nhw, ASKED, guided)
        details.append(detail_N)
        flat = float((detail_N < details[0].min()).float().mean())
        distance, _ = kernel_distance(features_ND, real_ND)
        tried.append(Tried(guided, ASKED, 0, Score(distance, bits=drawings.bits(tokens_nhw, ASKED), flat=flat)))
        return tried[-1].score

    return likeliest(early, score), tried


def likeliest(early: Sequence[str], score: Callable[[Guided], Score]) -> Guided:
    """What draws with the fewest bits, of what is at most `SIMPLER` further from real images than plain drawings, and
    of what leaves at most `MOST_FLAT` with less detail than each of those.

    early: the names of the early weights that there are, the earliest first.
    """
    plain = Guided(DrawingSettings(), early[0])
    drawn_plainly = score(plain)
    guided = strengths(early, drawn_plainly.bits < SURE_BITS)
    scores = {plain: drawn_plainly} | {one: score(one) for one in guided}
    most = drawn_plainly.distance + SIMPLER
    allowed = [one for one, found in scores.items() if found.distance <= most and found.flat <= MOST_FLAT]
    return min(allowed, key=lambda one: scores[one].bits)


def strengths(early: Sequence[str], sure: bool) -> list[Guided]:
    """What is tried beside no autoguidance: three from each of the early weights.

    What a prior is sure of, it was soon sure of: then from the earliest only, and also with a filter by likelihood.
    """
    if sure:
        return [Guided(settings, early[0]) for settings in (MILD, USUAL, SURE)]
    return [Guided(settings, name) for name in early for settings in (MILD, USUAL, STRONG)]
