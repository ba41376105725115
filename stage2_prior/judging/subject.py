"""A prior that is judged, and all that belongs to it."""

from dataclasses import dataclass
from pathlib import Path

from shared.runs.token_cache import TokenInfo
from stage2_prior.judging.codec import Codec
from stage2_prior.prior import Prior, Weights


@dataclass(frozen=True)
class Subject:
    """The prior of `run` with its last or best `weights`, what its tokens are, and what turns them into images.

    Prior and codec are in eval mode and on one device.
    """

    run: Path
    weights: Weights
    prior: Prior
    info: TokenInfo
    codec: Codec
