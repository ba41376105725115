"""How the hours of a plan divide: what is trained on, and what lies before, between and after."""

from dataclasses import dataclass

from planning.survey.pace import Rates
from planning.survey.pictures import Pictures

ENDING, SHORTEST_ENDING = 0.05, 60.0  # share and seconds for drawing, the pages and what starts each command
STARTING = 50.0  # seconds in which five commands start
MOST_CACHING = 0.25  # of the hours
TOKENIZER = 0.38  # of the training: a tokenizer is soon as good as it gets, a prior is not
CACHING = 3.0  # times as fast as training, an encoder alone turns images into tokens
MOST_IMAGES = 300_000  # a small tokenizer gains little from more: the rest is the prior's


@dataclass(frozen=True)
class Budget:
    """Seconds for each part of the hours, all of which they fill."""

    tokenizer: float
    caching: float
    prior: float
    ending: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.tokenizer + self.caching + self.prior + self.ending


def most_tokenized(seconds: float, rates: Rates, views: int) -> int:
    """Of how many pictures a quarter of `seconds` can tokenize `views` views."""
    return max(1, int(CACHING * rates.images * MOST_CACHING * seconds / views))


def divide(seconds: float, rates: Rates, pictures: Pictures, views: int) -> Budget:
    """Divide `seconds` at the rates that this machine trains at."""
    ending = max(ENDING * seconds, min(SHORTEST_ENDING, seconds / 4))
    caching = min((pictures.train * views + pictures.held_out) / (CACHING * rates.images), MOST_CACHING * seconds)
    training = seconds - ending - caching - min(STARTING, seconds / 10)
    tokenizer = min(TOKENIZER * training, MOST_IMAGES / rates.images)
    return Budget(tokenizer, caching, training - tokenizer, seconds - training - caching)
