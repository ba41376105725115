"""Memory that a training frees is there for its next step."""

import platform
import subprocess
import sys

import pytest

from tests.support.launch import ROOT

PAGES_ASKED_FOR = """
import resource
from shared.training.devices.allocator import keep_freed_memory
if {keep}: keep_freed_memory()
for _ in range(20):
    bytearray(b'x') * (24 * 2**20), bytearray(b'x') * (64 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt * resource.getpagesize() / 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is kept where the C library is glibc")
def test_freed_memory_is_not_asked_for_again() -> None:
    kept, given_back = (megabytes_asked_for(keep) for keep in (True, False))
    assert given_back > 20 * 64
    assert kept < 2 * (24 + 64) + 100  # the interpreter's own among it


def megabytes_asked_for(keep: bool) -> float:
    command = [sys.executable, "-c", PAGES_ASKED_FOR.format(keep=keep)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)
