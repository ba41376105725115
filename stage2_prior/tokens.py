"""The tokens that a run is trained on: which they are, that they stay the same, and where they are afterwards."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from shared.disk.atomic import write_text
from shared.errors import UserError
from shared.options.commands import command_of
from shared.runs.hub import TOKENIZER
from shared.runs.run_directory import RunDirectory, newest_run, read_yaml, runs_holding
from shared.runs.token_cache import TokenCache, TokenInfo, open_cache, read_info

CACHED = "tokens/tokens.json"  # in the run of a tokenizer, once its images are cached


def find_tokens(tokens: str | None) -> Path:
    """The cache that was asked for; None: that of the tokenizer whose training was started or resumed last.

    UserError where a run was named instead, or no tokenizer has a cache.
    """
    if tokens is None:
        return newest_run("tokenizer", CACHED) / "tokens"
    path = Path(tokens).expanduser()
    if (path / "tokens" / "tokens.json").exists():
        raise UserError(f"{path} is a tokenizer's run, and its token cache is inside of it: tokens={path / 'tokens'}")
    return path


def open_tokens(tokens: str | None) -> TokenCache | None:
    """The cache that `find_tokens` finds; None where none was asked for and there is none yet.

    Raises UserError where it cannot be used.
    """
    if tokens is None and not runs_holding("tokenizer", CACHED):
        return None
    return open_cache(find_tokens(tokens))


def remember_tokens(run: RunDirectory, cache: TokenCache) -> None:
    """Keep beside the weights what says which tokenizer decodes this prior's tokens.

    Raises UserError where the run was begun on other tokens than the cache holds now.
    """
    if run.newest() is None:
        write_text(cache.info.as_json(), run.path / "tokens.json")
        return
    before = read_info(run.path)
    if changed := before.differences(cache.info):
        raise UserError(
            f"{run.path} was begun on the tokens of tokenizer {before.fingerprint} ({before.source}), but {cache.path} "
            f"now holds those of {cache.info.fingerprint} ({cache.info.source}; "
            f"{', '.join(changed)} changed): give this prior a name of its own (name=...), or "
            "remove that directory"
        )


def draw_with(run: Path, info: TokenInfo, tokenizer: Path) -> None:
    """Have the prior of `run` draw with a tokenizer of the same tokens: one whose decoder is another.

    info: what the run says of its tokens, with the hash of what makes them.
    """
    write_text(info.model_copy(update={"tokenizer": str(tokenizer)}).as_json(), run / "tokens.json")


@dataclass(frozen=True)
class Amount:
    """How much there is to learn from: `images` of `length` tokens out of `codes`, in `views` each.

    per_code: how often a code comes in one view of all images, on average. tell_apart: `tokens_apart`.
    """

    images: int
    length: int
    views: int
    codes: int
    per_code: float
    tell_apart: int

    @classmethod
    def of(cls, cache: TokenCache) -> Self:
        info = cache.info
        images, length = len(cache.tokens["train"]) // info.views, info.grid[0] * info.grid[1]
        per_code, apart = images * length / info.codes, tokens_apart(images, length, info.codes)
        return cls(images, length, info.views, info.codes, per_code, apart)

    def __str__(self) -> str:
        views = f"{self.views} view{'s' if self.views > 1 else ''}"
        return (
            f"{self.images:,} images of {self.length} tokens each, in {views}; a code of the {self.codes:,} comes "
            f"{self.per_code:,.1f} times a view; tokens that can tell all images apart: {self.tell_apart}"
        )


def tokens_apart(images: int, length: int, codes: int) -> int:
    """After how many of their `length` tokens N images can all be told apart at the earliest: ceil(log2 N / log2 K).

    A prior learns the tokens behind those by heart, unless images have parts in common ("entropy cliff",
    arXiv 2605.06207). codes: K.
    """
    return min(length, max(1, math.ceil(math.log2(images) / math.log2(codes)))) if codes > 1 else length


def open_tokens_of(run: Path, info: TokenInfo) -> TokenCache:
    """The cache that the prior of `run` was trained on; `info` is what the run says of it.

    Raises UserError where it cannot be had or holds other tokens by now.
    """
    if (run / TOKENIZER).is_dir():
        raise UserError(
            f"{run} is a shared prior and comes without the tokens that it was trained on, which are needed here; "
            f"`{command_of('judge')} --prior {run} --samples N` does without them"
        )
    cache = open_cache(tokens_of(run))
    if not cache.info.is_like(info):
        raise UserError(
            f"{cache.path} was made anew, by another tokenizer or of other images, since {run} was trained on it: "
            "train the prior again under another name"
        )
    return cache


def tokens_of(run: Path) -> Path:
    """The token cache that a run was trained on. Raises UserError where its configuration does not say."""
    tokens = read_yaml(run / "config.yaml").get("tokens")
    if not isinstance(tokens, str):
        raise UserError(
            f"{run / 'config.yaml'} does not say which tokens the prior was trained on (tokens: {tokens!r}): it was "
            "changed, or written by something else. Set `tokens` to the directory of its token cache"
        )
    return Path(tokens)
