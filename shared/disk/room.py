"""Whether a disk has room, asked before hours of work and not after."""

import shutil
from pathlib import Path

from shared.errors import UserError


def check_room(folder: Path, needed: int, what: str, otherwise: str) -> None:
    """UserError where `needed` bytes are more than are free in a folder. otherwise: what helps besides making room."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{what} need {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free: make room, {otherwise}"
        )
