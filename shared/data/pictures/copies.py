"""Exact copies: images whose files are the same, byte for byte, under several names."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from shared.threads import threaded

COMPARED = 4096  # bytes of the middle of a file that tell most files of one length apart


def sample_of(content: bytes, size: int) -> bytes:
    """What is equal for equal files: of some of their bytes and their length."""
    return hashlib.blake2b(b"%d " % size + content, digest_size=16).digest()


def copies_among(samples: Sequence[bytes], content: Callable[[int], bytes]) -> dict[int, int]:
    """Which files are copies: the number of each, but the first of its kind, and the number of that first one.

    samples: equal for equal files. content: reads a file whole; only those are read whose sample is another's too.
    """
    alike = defaultdict(list)
    for number, sample in enumerate(samples):
        alike[sample].append(number)
    candidates = [number for group in alike.values() if len(group) > 1 for number in group]
    found = threaded(lambda number: _digest(content, number), candidates)
    return copies_of({number: digest for number, digest in zip(candidates, found, strict=True) if digest})


def _digest(content: Callable[[int], bytes], number: int) -> bytes | None:
    """None for a file that has gone, or cannot be read, since it was found."""
    try:
        return hashlib.sha256(content(number)).digest()
    except OSError:
        return None


def copies_of(digests: Mapping[int, bytes]) -> dict[int, int]:
    """The same, of files whose digests are known."""
    first: dict[bytes, int] = {}
    return {number: first[digest] for number, digest in digests.items() if first.setdefault(digest, number) != number}
