"""How the hours of a plan divide: what is trained on, and what lies before, between and after."""

from dataclasses import dataclass

from planning.survey.machine import Machine
from planning.survey.pace import Rates
from planning.survey.pictures import Pictures

DRAWING, MOST_DRAWING = 75.0, 1 / 16  # seconds for drawing and the pages, and share of the hours at most
SEARCH, SEARCHED = 45.0, 2_700  # seconds, and those of so many grids more, for finding how much autoguidance to take
MOST_SEARCH = 0.085  # of the hours; where that is less than `SEARCH`, it is not asked
STARTING = 60.0  # seconds in which six commands start
MOST_CACHING = 0.25  # of the hours
SEEN = 2  # times that a prior sees each of several views: to tokenize another takes longer than half of training on it
TOKENIZER, DECODER = 0.23, 0.15  # of the training: a tokenizer is soon as good as it gets, a prior is not
MOST_DECODER, FEW_DECODED = 0.25, 8_000  # up to that share, a decoder is trained on so many images at least
CACHING = 2.0  # times as fast as training (3 without bfloat16), an encoder alone turns images into tokens
MOST_IMAGES = {"cpu": 120_000, "other": 2_000_000}  # a tokenizer of that size, or its decoder, gains little from more


@dataclass(frozen=True)
class Budget:
    """Seconds for each part of the hours, all of which they fill. starting: what commands take to start, spread over
    the parts before the ending.
    """

    tokenizer: float
    decoder: float
    caching: float
    prior: float
    ending: float
    starting: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.tokenizer + self.decoder + self.caching + self.prior + self.ending + self.starting


def tokenized(seconds: float, rates: Rates, machine: Machine, pictures: Pictures, views: int) -> tuple[int, int]:
    """How many pictures are tokenized, and in how many views, `views` at most.

    No more than the prior will learn from, nor more than a quarter of `seconds` can tokenize; several views only if the
    prior sees each of them `SEEN` times; but at least one view of each picture, before any are left out.
    """
    for fewer in range(views, 0, -1):
        used = _used(seconds, rates, machine, pictures, fewer)
        if used == pictures.train:
            return used, fewer
    return used, 1


def _used(seconds: float, rates: Rates, machine: Machine, pictures: Pictures, views: int) -> int:
    """The most pictures for which that holds: the more are tokenized, the fewer the prior has time for."""
    seen = SEEN if views > 1 else 1
    fewest, most = 1, max(1, min(pictures.train, int(CACHING * rates.images * MOST_CACHING * seconds / views)))
    while fewest < most:
        used = (fewest + most + 1) // 2
        grids = rates.grids * divide(seconds, rates, machine, pictures.limited(used), views).prior
        fewest, most = (used, most) if used * views * seen <= grids else (fewest, used - 1)
    return fewest


def drawing(seconds: float) -> float:
    """Of so many, those for drawing and the pages."""
    return min(DRAWING, MOST_DRAWING * seconds)


def searching(seconds: float, rates: Rates) -> float:
    """Of so many, those for finding how much autoguidance to draw with; 0 where they are too few for that."""
    most = MOST_SEARCH * seconds
    return min(SEARCH + SEARCHED / rates.grids, most) if most >= SEARCH else 0.0


def divide(seconds: float, rates: Rates, machine: Machine, pictures: Pictures, views: int) -> Budget:
    """Divide `seconds` at the rates that this machine trains at."""
    ending = drawing(seconds) + searching(seconds, rates)
    caching = min((pictures.train * views + pictures.held_out) / (CACHING * rates.images), MOST_CACHING * seconds)
    starting = min(STARTING, seconds / 10)
    training = seconds - ending - caching - starting
    most = MOST_IMAGES.get(machine.kind, MOST_IMAGES["other"])
    tokenizer = min(TOKENIZER * training, most / rates.images)
    decoder = max(DECODER * training, min(MOST_DECODER * training, FEW_DECODED / rates.decoded))
    decoder = min(decoder, most / rates.decoded)
    return Budget(tokenizer, decoder, caching, training - tokenizer - decoder, ending, starting)
