"""Where what can be made again is kept between runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$TESSERA_CACHE, or else ~/.cache/tessera; it need not exist."""
    return Path(os.environ.get("TESSERA_CACHE") or "~/.cache/tessera").expanduser()
