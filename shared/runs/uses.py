"""How often each code of a tokenizer occurs: counted in its token cache, and saved with it where it is shared.

Shapes: N grids, L tokens of a grid, Q tokens of one place, K codes that a token may name.
"""

import logging
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from shared.code_counts import count_codes
from shared.errors import UserError
from shared.runs.token_cache import TokenCache, open_cache
from shared.runs.weights import read_weights

log = logging.getLogger(__name__)

USES = "uses.safetensors"  # of a shared tokenizer, which comes without its cache


def uses_of(tokenizer: Path, fingerprint: str) -> Tensor | None:
    """How often each code occurs, (K,) int64: in the tokenizer's cache, or else as it was shared with the tokenizer.

    fingerprint: of the tokenizer; a cache that another one made does not count. Returns None, and logs why, where
    neither is there to tell. Raises UserError where the shared file cannot be read.
    """
    try:
        cache = open_cache(tokenizer / "tokens")
        if cache.info.fingerprint != fingerprint:
            raise UserError(f"{cache.path} was made by another tokenizer")
        return count_uses(cache).view(-1, cache.info.codes).sum(0)  # the tokens of a place share their ids
    except UserError as error:
        if (tokenizer / USES).exists():
            return read_uses(tokenizer / USES)
        log.warning("how often codes are used is not known: %s", error)
        return None


def read_uses(path: Path) -> Tensor:
    """How often each code occurs, as `save_uses` wrote it."""
    saved = read_weights(path)
    if "uses_K" not in saved:
        raise UserError(f"{path} does not hold how often codes occur (uses_K): remove it, or share the tokenizer again")
    return saved["uses_K"].long()


def count_uses(cache: TokenCache) -> Tensor:
    """How often each code occurs in a token cache, all views of all images counted: (Q * K,) int64 (`count_codes`)."""
    codes, per_place = cache.info.codes, cache.info.tokens_per_place
    counts = (count_codes(tokens_NL, codes, per_place) for tokens_NL in cache.pieces())
    return sum(counts, start=torch.zeros(per_place * codes, dtype=torch.int64))


def save_uses(tokenizer: Path, fingerprint: str, folder: Path) -> None:
    """Put into `folder` how often the codes of a tokenizer occur, where that is known."""
    if (uses_K := uses_of(tokenizer, fingerprint)) is not None:
        save_file({"uses_K": uses_K.int()}, folder / USES)
