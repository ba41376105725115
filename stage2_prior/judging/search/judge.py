"""Scores drawings by how like unseen images they are, and how much more like training images.

They are held against what the tokenizer makes of unseen images, since no setting can draw what it cannot decode.

Shapes: M views of training images, H images held out, N drawn, D features.
"""

from collections.abc import Sequence

from torch import Tensor

from shared.errors import UserError
from shared.reporting.set_distances import SMALLEST_SET, kernel_distance
from stage2_prior.judging.copies import between_features, copying, nearest
from stage2_prior.judging.nearest_images import held_out_features, training_views
from stage2_prior.judging.real_features import RealFeatures
from stage2_prior.judging.reference import reference_images
from stage2_prior.judging.search.drawings import Drawings
from stage2_prior.judging.search.tried import Score

MOST_REAL = 1_000  # held-out images that drawings are held against, and training images that they may be copies of


class Judge:
    """Scores drawn images by features of the views of training images (M, D), and of decoded held-out ones (H, D)."""

    def __init__(self, views: Sequence[Tensor], decoded_HD: Tensor) -> None:
        self.views, self.decoded_HD = views, decoded_HD
        self.usual_H = nearest(decoded_HD, *views, distance=between_features).distances_N

    @classmethod
    def of(cls, drawings: Drawings) -> "Judge":
        """By images of the prior's own set. Raises UserError where too few are held out to measure by."""
        info, codec, name = drawings.subject.info, drawings.subject.codec, drawings.network.name
        held_out = len(reference_images(info, "validation"))
        if held_out < SMALLEST_SET:
            raise UserError(f"{held_out} held-out images are too few to search by: raise data.validation_fraction")
        real = RealFeatures(drawings.networks, drawings.batch_size, drawings.accelerator)
        views = training_views(real, info, MOST_REAL)[name]
        return cls(views, held_out_features(real, info, codec, MOST_REAL)[name])

    def score(self, drawn_ND: Tensor) -> Score:
        """How far these are from decoded held-out images, and how much nearer to training images than those are."""
        near_N = nearest(drawn_ND, *self.views, distance=between_features).distances_N
        return Score(kernel_distance(drawn_ND, self.decoded_HD)[0], copying(near_N, self.usual_H))
