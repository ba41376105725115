"""What a run ran on: the machine and the versions of what did the work."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from shared.training.devices.device import best_device

PACKAGES = ("torch", "torchvision", "accelerate", "datasets", "numpy", "x-transformers", "mamba-ssm", "triton")


def machine() -> str:
    """The device, cores, system, and versions of Python and torch."""
    system = f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"
    return f"{device_name(best_device())}, {torch.get_num_threads()} of {os.cpu_count()} cores, {system}"


def cores() -> set[int]:
    """The cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def versions() -> dict[str, str]:
    """Of the packages that take part, where they are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def device_name(device: torch.device) -> str:
    """What a device is called: a GPU's name, or that of the CPU."""
    if device.type in ("cuda", "xpu"):
        return torch.get_device_module(device).get_device_name(device)
    return processor() if device.type == "cpu" else f"{processor()} ({device.type})"


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def now() -> str:
    """The time of a result, to the minute."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
