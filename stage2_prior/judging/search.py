"""Which settings draw what is most like unseen images: a search over temperature, top-p and guidance.

It begins with the autoguidance whose drawings the prior finds likeliest, of those that do not take them too far from
real images: too little leaves drawings torn, which is unlikely, too much makes them flat, which is far from real ones
(docs/drawing.md). Then one setting after the other is changed, and the best value of each is kept. All candidates draw
with the same random numbers, so that their differences are not those of luck; whether the end is better than the
beginning is then asked again with other random numbers.

Drawings are held against what the tokenizer makes of unseen images, since no setting can draw what it cannot decode.

Shapes: N images, D features, h x w tokens.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from torch import Tensor

from shared.data.dataset import ImageDataset
from shared.errors import UserError
from shared.reporting.feature_networks import Extractor
from shared.reporting.set_distances import SMALLEST_SET, kernel_distance
from shared.runs.run_directory import EARLY
from shared.training.devices.gather import gather_rows
from stage2_prior.decoding.candidates import log_likelihoods
from stage2_prior.decoding.early import kept_early, share_of
from stage2_prior.decoding.settings import MILD, STRONG, USUAL, DrawingSettings
from stage2_prior.judging.codec import decoded
from stage2_prior.judging.copies import between_features, copying, nearest
from stage2_prior.judging.drawing import Drawing, drawn_tokens
from stage2_prior.judging.features import Networks, features_of
from stage2_prior.judging.nearest_images import held_out_features, reconstructed, some_of, training_views
from stage2_prior.judging.real_features import RealFeatures
from stage2_prior.judging.reference import labels_like, reference_images
from stage2_prior.judging.subject import Subject

TEMPERATURES = (0.95, 0.9, 0.85, 0.8, 0.7, 1.05)
TOP_PS = (0.98, 0.95, 0.9, 0.8)
SCALES = (1.25, 1.5, 2.0, 3.0)
STRENGTHS, LATER = (MILD, USUAL, STRONG), 0.05  # the last of them only from weights after that share of a training
ASKED = 48  # images drawn with each strength of autoguidance
SIMPLER = 0.08  # kernel distance that autoguidance may cost; docs/drawing.md has the priors that it was read off
MORE_COPYING = 0.01  # that a setting may have than the usual ones
MOST_REAL = 1_000  # held-out images that drawings are held against, and training images that they may be copies of


class Guided(NamedTuple):
    """Settings, and the file of the run with the early weights that autoguidance draws against."""

    settings: DrawingSettings
    early: str = EARLY

    def __str__(self) -> str:
        against = "" if self.settings.autoguidance == 1 or self.early == EARLY else f" from {Path(self.early).stem}"
        return f"{self.settings}{against}"


class Score(NamedTuple):
    """distance: kernel distance from decoded real images. Where they were asked for, copying: from 0.5, as new as
    unseen ones, to 1, copies; and bits: what the prior finds the median drawing to take, per token.
    """

    distance: float
    copying: float = math.nan
    bits: float = math.nan


class Tried(NamedTuple):
    """How many were drawn and how, the seed, and the score."""

    guided: Guided
    images: int
    seed: int
    score: Score


@dataclass(frozen=True)
class Search:
    """Draws `images` images for each candidate, and `ASKED` for each strength of autoguidance, and holds them against
    decoded ones, in the features of VGG16: what `SIMPLER` means depends on the network.
    """

    subject: Subject
    network: Extractor
    images: int
    batch_size: int
    accelerator: Accelerator

    def run(self, start: Guided) -> tuple[Guided, list[Tried]]:
        """The best settings from there on, and everything that was tried. Every process must call it.

        Raises UserError where there are too few held-out images to measure by.
        """
        judge = self._judge()
        first, early = start
        tried: list[Tried] = []

        def score(settings: DrawingSettings, seed: int = 0) -> Score:
            guided = Guided(settings, early)
            for known, _, of_seed, found in tried:
                if (known, of_seed) == (guided, seed):
                    return found
            tokens_nhw = self._drawn(guided, self.images, seed)
            tried.append(Tried(guided, self.images, seed, judge.score(self._features(tokens_nhw, self.images, guided))))
            return tried[-1].score

        best = first
        most_copying = score(first).copying + MORE_COPYING
        for changes in self._changes(first):
            candidates = [changed(best, change) for change in changes]
            allowed = [settings for settings in candidates if score(settings).copying <= most_copying]
            best = min([best, *allowed], key=lambda settings: score(settings).distance)
        if best != first and score(best, seed=1).distance >= score(first, seed=1).distance:
            best = first
        return Guided(best, early), tried

    def autoguidance(self) -> tuple[Guided, list[Tried]]:
        """How much autoguidance, and from when, by as many decoded images of those trained on.

        Every process must call it. Raises UserError where there is nothing to choose, or too little to measure by.
        """
        early = kept_early(self.subject.run)
        if not early:
            raise UserError(f"{self.subject.run} kept no early weights: it is drawn from without autoguidance")
        training = some_of(reference_images(self.subject.info, "train"), ASKED)
        _check_enough(training, "training images are too few to measure by: give more")
        real = reconstructed(training, self.subject.codec, self.batch_size, self.accelerator)
        decoded_ND = self._seen(real, len(training), "looking at reconstructions")
        tried: list[Tried] = []

        def score(guided: Guided) -> Score:
            tokens_nhw = self._drawn(guided, ASKED, 0)
            distance, _ = kernel_distance(self._features(tokens_nhw, ASKED, guided), decoded_ND)
            tried.append(Tried(guided, ASKED, 0, Score(distance, bits=self._bits(tokens_nhw, ASKED))))
            return tried[-1].score

        return likeliest(strengths(early), score), tried

    def _changes(self, first: DrawingSettings) -> Iterator[list[dict[str, dict[str, float]]]]:
        yield [{"sampling": {"temperature": value}} for value in TEMPERATURES]
        yield [{"sampling": {"top_p": value}} for value in TOP_PS]
        towards_classes = self.subject.prior.classes and self.subject.prior.config.label_dropout
        if towards_classes and first.autoguidance == 1:
            yield [{"guidance": {"scale": value}} for value in SCALES]

    def _drawn(self, guided: Guided, images: int, seed: int) -> Tensor:
        """This process's share (n, h, w) of so many grids drawn so, each class as often as it occurs."""
        settings = guided.settings
        drawing = Drawing(
            images=images, seed=seed, batch_size=self.batch_size, sampling=settings.sampling,
            guidance=settings.guidance, autoguidance=settings.autoguidance, candidates=settings.candidates,
        )  # fmt: skip
        training = reference_images(self.subject.info, "train")
        return drawn_tokens(self.subject.prior, training, drawing, self.accelerator, guided.early)

    def _features(self, tokens_nhw: Tensor, total: int, guided: Guided) -> Tensor:
        """(N, D) of the images of all processes' grids."""
        images = decoded(tokens_nhw, self.subject.codec, self.batch_size)
        return self._seen(images, total, f"looking at {guided}")

    def _bits(self, tokens_nhw: Tensor, total: int) -> float:
        """Per token of the median of all processes' grids, as the prior itself predicts them."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        prior, info = self.subject.prior, self.subject.info
        labels_n = labels_like(reference_images(info, "train"), total)[rank::ranks] if prior.classes else None
        nats_n = -log_likelihoods(prior, tokens_nhw.flatten(1), labels_n)
        return float(gather_rows(self.accelerator, nats_n, total).median()) / math.log(2)

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


def strengths(early: Sequence[str]) -> list[Guided]:
    """What is tried: no autoguidance, and some from each of the early weights (`kept_early`)."""
    tried = [
        Guided(settings, name)
        for name in early
        for settings in STRENGTHS
        if settings != STRONG or share_of(name) >= LATER
    ]
    return [Guided(DrawingSettings(), early[0]), *tried]


def likeliest(tried: Sequence[Guided], score: Callable[[Guided], Score]) -> Guided:
    """What draws with the fewest bits, of what is at most `SIMPLER` further from real images than the first."""
    scores = [score(guided) for guided in tried]
    most = scores[0].distance + SIMPLER
    near = [place for place, found in enumerate(scores) if found.distance <= most]
    return tried[min(near, key=lambda place: scores[place].bits)]


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
        f"| {guided} | {images} | {seed} | {distance:.4f} | {_shown(copying)} | {_shown(bits)} |"
        for guided, images, seed, (distance, copying, bits) in tried
    ]
    head = [
        "| settings | drawings | seed | kernel distance | copying | bits per token |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    return "\n".join([*head, *lines])


def _shown(value: float) -> str:
    return "not asked" if math.isnan(value) else f"{value:.3f}"
