"""Compile each kernel of a step for a GPU that is not here: python -m tests.stage2_prior.decoding.gpu.compiles 90

Prints a JSON object: kernel -> the most shared memory, in bytes, that a launch of it takes.
"""

import json
import sys
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from stage2_prior.decoding.choosing.filters import SamplingConfig
from stage2_prior.decoding.gpu.choose import choose_on_gpu
from stage2_prior.decoding.gpu.device import Gpu
from stage2_prior.decoding.gpu.step import StaticWeights
from stage2_prior.prior import Prior
from tests.support.tiny import prior_config

SHARED_MEMORY = {80: 163 * 2**10, 89: 99 * 2**10, 90: 227 * 2**10}  # CUDA C++ programming guide, table 24
EVERYTHING = prior_config(
    kind="hybrid", pattern="ma", depth=2, width=256, heads=4, positions="rotary", conditioning="norm"
)
CONFIG = SamplingConfig(temperature=0.9, top_k=9, top_p=0.9, min_p=0.1)


def main() -> None:
    capability = int(sys.argv[1])
    stand_in(capability)
    taken: dict[str, int] = {}
    run = JITFunction.run

    def compile_only(self: JITFunction, *arguments: Any, warmup: bool, **options: Any) -> None:
        kernel = run(self, *arguments, warmup=True, **options)
        taken[self.__name__] = max(taken.get(self.__name__, 0), kernel.metadata.shared)

    JITFunction.run = compile_only  # type: ignore[method-assign]
    with torch.inference_mode():
        prior = Prior(EVERYTHING, 500, (4, 4), classes=3)
        for exact in (True, False):
            step(prior, 64, exact)
        step(Prior(prior_config(kind="gpt", depth=1, width=96, heads=2, qk_norm=False), 500, (4, 4)), 1, exact=False)
        choose_on_gpu(torch.randn(2, 500), torch.rand(2, 3).double(), None, SamplingConfig(temperature=0))
        choose_on_gpu(torch.randn(4, 16_384), torch.rand(2, 5).double(), torch.ones(1), CONFIG)
    print(json.dumps(taken))


def stand_in(capability: int) -> None:
    """Let Triton and our kernels take this machine for one with a GPU."""
    target = GPUTarget("cuda", capability, 32)
    triton.runtime.driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: target,
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
        )
    )
    found = Gpu(108, SHARED_MEMORY[capability], overlap=capability >= 90)
    for module in ("product", "norm", "attend", "recur"):
        sys.modules[f"stage2_prior.decoding.gpu.{module}"].gpu = lambda device: found  # type: ignore[attr-defined]


def step(prior: Prior, rows: int, exact: bool) -> None:
    """Compile what a step calls; what it computes here means nothing."""
    weights = StaticWeights(prior, exact)
    weights.step(prior.init_state(rows, dtype=weights.dtype))(torch.zeros(rows, dtype=torch.long))


if __name__ == "__main__":
    main()
