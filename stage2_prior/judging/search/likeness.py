"""Which temperature, top-p and guidance draw what is most like unseen images.

One setting after the other is changed, and the best value of each is kept. All candidates draw with the same random
numbers, so that their differences are not those of luck; whether the end is better than the beginning is then asked
again with other random numbers.
"""

from collections.abc import Iterator

from stage2_prior.decoding.settings import DrawingSettings
from stage2_prior.judging.search.drawings import Drawings
from stage2_prior.judging.search.judge import Judge
from stage2_prior.judging.search.tried import Guided, Score, Tried

TEMPERATURES = (0.95, 0.9, 0.85, 0.8, 0.7, 1.05)
TOP_PS = (0.98, 0.95, 0.9, 0.8)
SCALES = (1.25, 1.5, 2.0, 3.0)
MORE_COPYING = 0.01  # that a setting may have than those that the search begins with


def search_likeness(drawings: Drawings, judge: Judge, start: Guided, images: int) -> tuple[Guided, list[Tried]]:
    """The best settings from `start` on, with `images` drawn for each that is tried, and everything that was tried.

    Every process must call it.
    """
    first, early = start
    tried: list[Tried] = []

    def score(settings: DrawingSettings, seed: int = 0) -> Score:
        guided = Guided(settings, early)
        for known, _, of_seed, found in tried:
            if (known, of_seed) == (guided, seed):
                return found
        tokens_nhw = drawings.tokens(guided, images, seed)
        tried.append(Tried(guided, images, seed, judge.score(drawings.features(tokens_nhw, images, guided))))
        return tried[-1].score

    best = first
    most_copying = score(first).copying + MORE_COPYING
    for changes in changes_from(first, towards_classes=drawings.towards_classes):
        candidates = [changed(best, change) for change in changes]
        allowed = [settings for settings in candidates if score(settings).copying <= most_copying]
        best = min([best, *allowed], key=lambda settings: score(settings).distance)
    if best != first and score(best, seed=1).distance >= score(first, seed=1).distance:
        best = first
    return Guided(best, early), tried


def changes_from(first: DrawingSettings, *, towards_classes: bool) -> Iterator[list[dict[str, dict[str, float]]]]:
    """The values that are tried of one setting after the other. towards_classes: guidance can be."""
    yield [{"sampling": {"temperature": value}} for value in TEMPERATURES]
    yield [{"sampling": {"top_p": value}} for value in TOP_PS]
    if towards_classes and first.autoguidance == 1:
        yield [{"guidance": {"scale": value}} for value in SCALES]


def changed(settings: DrawingSettings, change: dict[str, dict[str, float]]) -> DrawingSettings:
    """The settings with some values in the place of theirs."""
    parts = {name: getattr(settings, name).model_copy(update=values) for name, values in change.items()}
    return settings.model_copy(update=parts)
