"""A prior and its tokenizer in memory, as visitors share them.

Shapes: K codes; RGB colours have 3 channels.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from shared.runs.hub import tokenizer_directory
from shared.runs.run_directory import DRAWING, EARLY, WEIGHTS
from shared.runs.token_cache import TokenInfo
from shared.runs.uses import uses_of
from shared.text import shown
from shared.training.devices.device import best_device
from shipped import BUNDLED
from stage1_tokenizer.judging.pictures import code_colours
from stage1_tokenizer.tokenizer import Tokenizer, matching_tokenizer
from stage2_prior.decoding.decoder import Decoder
from stage2_prior.decoding.settings import DrawingSettings, read_settings
from stage2_prior.prior import Prior, load_prior

BATCH = 16  # images that grow side by side
WIDEST_SHOWN = 1024  # CSS pixels that a picture of the page may have


@dataclass(frozen=True)
class Run:
    """What the page is about; every visitor who chose it reads it, and nothing writes it.

    tokenizer_at: where its tokenizer was said to be, if it was.
    written: when its weights, its early weights and the settings found for it were, in nanoseconds since 1970.
    uses_K: how often each code occurs in the token grids that priors learn from; None where that is not known.
    settings: what the controls begin with.
    """

    name: str
    directory: Path
    tokenizer_at: Path | None
    written: tuple[int | None, ...]
    prior: Prior
    info: TokenInfo
    tokenizer: Tokenizer
    uses_K: Tensor | None
    colours_K3: Tensor
    settings: DrawingSettings = field(default_factory=DrawingSettings)
    idle: deque[Decoder] = field(default_factory=deque)

    @contextmanager
    def decoder(self) -> Iterator[Decoder]:
        """A decoder for one visitor: one that is idle, or another where none is."""
        try:
            decoder = self.idle.pop()
        except IndexError:
            decoder = Decoder(self.prior, rows=BATCH)
        try:
            yield decoder
        finally:
            if decoder.engine is not None and decoder.engine.rows > 2 * BATCH:
                decoder.engine = None  # many particles: their memory is not kept
            self.idle.append(decoder)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        return self.info.data.height_width

    @property
    def token_side(self) -> int:
        """Side of a token in the picture of tokens, in pixels: Gradio takes clicks on no picture shown enlarged."""
        return -(-WIDEST_SHOWN // max(self.prior.grid))

    @property
    def outdated(self) -> bool:
        """Whether it was trained on, or searched for settings, since it was loaded; not where its weights are gone."""
        written = _when_written(self.directory)
        return written != self.written and written[0] is not None


def load_run(prior_run: Path, tokenizer_run: Path | None) -> Run:
    """The prior of a run directory and its tokenizer, on the best device. Raises UserError where they are not."""
    device = best_device()
    when = _when_written(prior_run)  # before they are read: what is written meanwhile is then read again
    prior, info = load_prior(prior_run)
    tokenizer = matching_tokenizer(info, prior_run, tokenizer_run)
    colours_K3 = code_colours(tokenizer.quantiser.codes_KD.detach())
    directory = tokenizer_run or tokenizer_directory(prior_run, info.tokenizer)
    uses_K, settings = uses_of(directory, info.fingerprint), read_settings(prior_run)
    prior, tokenizer = prior.to(device), tokenizer.to(device)
    origin = name_of(prior_run), prior_run, tokenizer_run, when
    return Run(*origin, prior, info, tokenizer, uses_K, colours_K3, settings)


def name_of(prior_run: Path) -> str:
    """What a run is called on the page."""
    return "avatars, the bundled model" if prior_run == BUNDLED else shown(str(prior_run))


def _when_written(prior_run: Path) -> tuple[int | None, ...]:
    """When the files that it is drawn with were written, in nanoseconds since 1970; None for what is not there."""
    return tuple(_written(prior_run / name) for name in (WEIGHTS[1], EARLY, DRAWING))


def _written(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
