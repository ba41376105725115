"""What lies in a clone's root, and in the package `tessera` of an installed wheel: configurations and scripts."""

import os
from pathlib import Path

HOME = Path(__file__).parents[1]
FOLDERS = (HOME / "tessera", HOME)  # of an installed wheel, and of a clone; configs/ is in one of them


def find_config(path: str) -> Path:
    """The file at `path`, or where there is none the one of that name that comes with Tessera, which is said.

    As it is where there is neither: reading it says so.
    """
    given = Path(path)
    if given.exists() or given.is_absolute():
        return given
    found = next((folder / given for folder in FOLDERS if (folder / given).is_file()), None)
    if found is None:
        return given
    if os.environ.get("RANK", "0") == "0":  # once, where several processes train together
        print(f"configuration: {found}, which comes with Tessera (there is no {given} here)", flush=True)
    return found


def in_clone() -> bool:
    """Whether this runs from a clone, where the scripts are files of its root; else they are modules of `tessera`."""
    return (HOME / "pyproject.toml").is_file()
