"""Which settings draw what is most like unseen images: a search over temperature, top-p and guidance.

It begins with the usual settings, or without their autoguidance where that takes drawings too far from real images: a
little is what it costs where it is a gain to the eye (docs/drawing.md). Then one setting after the other is changed,
and the best value of each is kept. All candidates draw with the same random numbers, so that their differences are
not those of luck; whether the end is better than the beginning is then asked again with other random numbers.

Drawings are held against what the tokenizer makes of unseen images, since no setting can draw what it cannot decode.

Shapes: N images, D features, h x w tokens.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from accelerate import Accelerator
from torch import Tensor

from shared.data.dataset import ImageDataset
from shared.errors import UserError
from shared.reporting.feature_networks import Extractor
from shared.reporting.set_distances import SMALLEST_SET, kernel_distance
from stage2_prior.decoding.settings import DrawingSettings, usual_settings
from stage2_prior.judging.codec import decoded
from stage2_prior.judging.copies import between_features, copying, nearest
from stage2_prior.judging.drawing import Drawing, drawn_tokens
from stage2_prior.judging.features import Networks, features_of
from stage2_prior.judging.nearest_images import held_out_features, reconstructed, some_of, training_views
from stage2_prior.judging.real_features import RealFeatures
from stage2_prior.judging.reference import reference_images
from stage2_prior.judging.subject import Subject

TEMPERATURES = (0.95, 0.9, 0.85, 0.8, 0.7, 1.05)
TOP_PS = (0.98, 0.95, 0.9, 0.8)
SCALES = (1.25, 1.5, 2.0, 3.0)
SIMPLER = 0.03  # kernel distance that autoguidance may cost: faces cost it 0.01, and creatures that became blobs 0.10
MORE_COPYING = 0.01  # that a setting may have than the usual ones
MOST_REAL = 1_000  # held-out images that drawings are held against, and training images that they may be copies of


class Score(NamedTuple):
    """distance: kernel distance from decoded real images; copying: from 0.5, as new as unseen ones, to 1, copies, where
    it was asked for.
    """

    distance: float
    copying: float = math.nan


class Tried(NamedTuple):
    """Settings, the seed of what was drawn with them, and its score."""

    settings: DrawingSettings
    seed: int
    score: Score


@dataclass(frozen=True)
class Search:
    """Draws `images` images for each candidate and holds them against decoded ones, in the features of VGG16: what
    `SIMPLER` means depends on the network.
    """

    subject: Subject
    network: Extractor
    images: int
    batch_size: int
    accelerator: Accelerator

    def run(self) -> tuple[DrawingSettings, list[Tried]]:
        """The best settings, and everything that was tried. Every process must call it.

        Raises UserError where there are too few held-out images to measure by.
        """
        judge = self._judge()
        tried: list[Tried] = []

        def score(settings: DrawingSettings, seed: int = 0) -> Score:
            for known, of_seed, found in tried:
                if (known, of_seed) == (settings, seed):
                    return found
            tried.append(Tried(settings, seed, judge.score(self._drawn(settings, seed))))
            return tried[-1].score

        first = best = guided_or_not(self._usual(), score)
        most_copying = score(first).copying + MORE_COPYING
        for changes in self._changes(first):
            candidates = [changed(best, change) for change in changes]
            allowed = [settings for settings in candidates if score(settings).copying <= most_copying]
            best = min([best, *allowed], key=lambda settings: score(settings).distance)
        if best != first and score(best, seed=1).distance >= score(first, seed=1).distance:
            best = first
        return best, tried

    def autoguidance(self) -> tuple[DrawingSettings, list[Tried]]:
        """The usual settings, or the same without autoguidance, by as many decoded images of those trained on.

        Every process must call it. Raises UserError where there is nothing to choose, or too little to measure by.
        """
        if self._usual().autoguidance == 1:
            raise UserError(f"{self.subject.run} kept no early weights: it is drawn from without autoguidance")
        training = some_of(reference_images(self.subject.info, "train"), self.images)
        _check_enough(training, "training images are too few to measure by: give more")
        real = reconstructed(training, self.subject.codec, self.batch_size, self.accelerator)
        decoded_ND = self._seen(real, len(training), "looking at reconstructions")
        tried: list[Tried] = []

        def score(settings: DrawingSettings) -> Score:
            tried.append(Tried(settings, 0, Score(kernel_distance(self._drawn(settings, 0), decoded_ND)[0])))
            return tried[-1].score

        return guided_or_not(self._usual(), score), tried

    def _usual(self) -> DrawingSettings:
        return usual_settings(self.subject.run)

    def _changes(self, first: DrawingSettings) -> Iterator[list[dict[str, dict[str, float]]]]:
        yield [{"sampling": {"temperature": value}} for value in TEMPERATURES]
        yield [{"sampling": {"top_p": value}} for value in TOP_PS]
        towards_classes = self.subject.prior.classes and self.subject.prior.config.label_dropout
        if towards_classes and first.autoguidance == 1:
            yield [{"guidance": {"scale": value}} for value in SCALES]

    def _drawn(self, settings: DrawingSettings, seed: int) -> Tensor:
        """Features (N, D) of images drawn so, each class as often as it occurs."""
        drawing = Drawing(
            images=self.images, seed=seed, batch_size=self.batch_size, sampling=settings.sampling,
            guidance=settings.guidance, autoguidance=settings.autoguidance, candidates=settings.candidates,
        )  # fmt: skip
        training = reference_images(self.subject.info, "train")
        tokens_nhw = drawn_tokens(self.subject.prior, training, drawing, self.accelerator)
        images = decoded(tokens_nhw, self.subject.codec, self.batch_size)
        return self._seen(images, self.images, f"looking at {settings}")

    def _seen(self, batches: Iterator[Tensor], total: int, doing: str) -> Tensor:
        """Features (N, D) of `total` images, of which these are this process's."""
        return features_of(batches, self._networks, total, self.accelerator, doing)[0][self.network.name]

    @property
    def _networks(self) -> Networks:
        return Networks([self.network], {})

    def _judge(self) -> "Judge":
        held_out = reference_images(self.subject.info, "validation")
        _check_enough(held_out, "held-out images are too few to search by: raise data.validation_fraction")
        real, name = RealFeatures(self._networks, self.batch_size, self.accelerator), self.network.name
        views = training_views(real, self.subject.info, MOST_REAL)[name]
        return Judge(views, held_out_features(real, self.subject.info, self.subject.codec, MOST_REAL)[name])


def guided_or_not(usual: DrawingSettings, score: Callable[[DrawingSettings], Score]) -> DrawingSettings:
    """The usual settings, or plain ones where autoguidance takes drawings further than `SIMPLER` from real images."""
    plain = DrawingSettings()
    if usual.autoguidance == 1 or score(usual).distance - score(plain).distance <= SIMPLER:
        return usual
    return plain


def _check_enough(images: ImageDataset, otherwise: str) -> None:
    if len(images) < SMALLEST_SET:
        raise UserError(f"{len(images)} {otherwise}")


class Judge:
    """Scores drawn images by features of the views of training images (M, D), and of decoded held-out ones (H, D)."""

    def __init__(self, views: Sequence[Tensor], decoded_HD: Tensor) -> None:
        self.views, self.decoded_HD = views, decoded_HD
        self.usual_H = nearest(decoded_HD, *views, distance=between_features).distances_N

    def score(self, drawn_ND: Tensor) -> Score:
        """How far these are from decoded held-out images, and how much nearer to training images than those are."""
        near_N = nearest(drawn_ND, *self.views, distance=between_features).distances_N
        return Score(kernel_distance(drawn_ND, self.decoded_HD)[0], copying(near_N, self.usual_H))


def changed(settings: DrawingSettings, change: dict[str, dict[str, float]]) -> DrawingSettings:
    """The settings with some values in the place of theirs."""
    parts = {name: getattr(settings, name).model_copy(update=values) for name, values in change.items()}
    return settings.model_copy(update=parts)


def as_markdown(tried: Sequence[Tried]) -> str:
    """A table of everything that was tried."""
    lines = [
        f"| {settings} | {seed} | {distance:.4f} | {'not asked' if math.isnan(copying) else f'{copying:.3f}'} |"
        for settings, seed, (distance, copying) in tried
    ]
    return "\n".join(["| settings | seed | kernel distance | copying |", "|---|---:|---:|---:|", *lines])
