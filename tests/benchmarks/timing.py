"""How benchmarks measure: medians of steps that take turns, and the memory that a step holds at its worst moment."""

import statistics
import time
from collections.abc import Callable, Mapping
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

CPU = torch.device("cpu")
Step = Callable[[], object]


def interleaved_medians(steps: Mapping[str, Step], device: torch.device = CPU, rounds: int = 5) -> dict[str, float]:
    """Median seconds of each step. They take turns, so that a slow spell of the machine falls on all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            synchronize(device)
            start = time.perf_counter()
            step()
            synchronize(device)
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mb(step: Step, device: torch.device = CPU) -> float:
    """The most memory that torch held during the step beyond what it held before, in MB (10^6 bytes)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return round((torch.cuda.max_memory_allocated(device) - before) / 1e6, 1)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    changes = [event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return round(max(accumulate(changes)) / 1e6, 1)
