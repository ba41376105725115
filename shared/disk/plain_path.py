"""A path by another name, for libraries that read patterns and addresses into the names of files."""

import hashlib
import os
import re
from pathlib import Path

from shared.disk.cache_folder import cache_folder


def plain_path(path: Path) -> Path:
    """The path itself where its name is plain; or else that of a link to it, which is made on first need.

    Plain is what `glob`, fsspec and UTF-8 take as it stands: no "a [x]", "50%?", "a::b" or bytes that are no text.
    """
    absolute = os.path.abspath(path)
    if re.fullmatch(r"[\w/.+ ,=@-]+", absolute) and absolute.isprintable() and _is_text(absolute):
        return path
    link = cache_folder() / "links" / hashlib.sha256(os.fsencode(absolute)).hexdigest()[:16]
    if not (link.is_symlink() and os.readlink(link) == absolute):
        link.parent.mkdir(parents=True, exist_ok=True)
        new = link.with_name(f"{link.name}-{os.getpid()}")
        new.symlink_to(absolute)
        os.replace(new, link)  # at once: other processes may be about to use it
    return link


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
