"""x"""

import numpy as np

from shared.kernels.compiler import compiled


@compiled
def hash_bits(bits_N, before):
    """A hash of uint32 numbers, behind those of which `before` (uint64) is the hash.

    FNV-1a, with a shift that brings a sign's bit to others; 64 of them go side by side, as fast as memory is read.
    """
    lanes, whole = np.full(64, 0x811C9DC5, np.uint32), len(bits_N) // 64 * 64
    for i in range(0, whole, 64):
        for lane in range(64):
            lanes[lane] = _mixed(lanes[lane], bits_N[i + lane])
    for lane in range(len(bits_N) - whole):
        lanes[lane] = _mixed(lanes[lane], bits_N[whole + lane])
    for lane in range(64):
        before = (before ^ np.uint64(lanes[lane])) * np.uint64(0x100000001B3)
    return before


@compiled
def _mixed(hashed, number):
    product = np.uint32((hashed ^ number) * np.uint32(0x01000193))
    return product ^ (product >> np.uint32(15))
