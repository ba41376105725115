"""How long a thread that has nothing to do stays awake before it sleeps.

PyTorch's and Numba's threads (OpenMP's) wait for one another many times in a step, and spin meanwhile: for milliseconds
with GNU's runtime. Beside another busy process that is lost, as the thread waited for is one that the system has put
aside, and the core it could run on is the one that spins. A short spin bridges the usual wait, and then gives the core
away.
"""

import os
from collections.abc import MutableMapping

SPINS = 10_000  # turns of GNU's runtime; see `make bench BENCH=neighbour`
SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # of a user, who knows better


def spin_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set it for this process and those that it starts, unless the user did.

    The runtime reads it when it is loaded, which PyTorch does: this has to come first.
    """
    if not any(name in environment for name in SETTINGS):
        environment["GOMP_SPINCOUNT"] = str(SPINS)
