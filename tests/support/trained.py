"""A directory with a tiny tokenizer and a prior of its tokens, trained in seconds."""

from pathlib import Path

import pytest

from stage1_tokenizer import train as stage1
from stage1_tokenizer.cache import cache_tokens
from stage1_tokenizer.run_config import TokenizerRun
from stage2_prior import train as stage2
from tests.support.tiny import prior_run, save_drawings, tokenizer_run


def train_both(place: Path, tokenizer: TokenizerRun | None = None) -> Path:
    """Train both in a directory, below its `runs/`; returns it.

    tokenizer: how the first is trained, if not as `tokenizer_run` says: 4 x 4 tokens of 8 px, and two classes.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("TESSERA_CACHE", str(place / "cache"))
        run, _ = stage1.train(tokenizer or tokenizer_run(save_drawings(place / "drawings")))
        cache_tokens(run.path)
        stage2.train(prior_run())
    return place
