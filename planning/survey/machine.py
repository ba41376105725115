"""What a machine is, as far as a plan depends on it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from shared.environment import cores, device_name
from shared.training.devices.device import best_device
from shared.training.devices.memory import total_memory
from shared.training.devices.precision import multiplies_bfloat16


@dataclass(frozen=True)
class Machine:
    """kind: "cpu", "cuda" or what else accelerate found. memory, disk: bytes of the device, and free for runs."""

    kind: str
    name: str
    cores: int
    memory: int
    bfloat16: bool
    disk: int

    def __str__(self) -> str:
        multiplies = "multiplies" if self.bfloat16 else "does not multiply"
        return (
            f"{self.name} ({self.kind}; {self.cores} cores; {self.memory / 2**30:.0f} GiB of memory; {multiplies} "
            f"bfloat16), {self.disk / 1e9:.0f} GB free on the disk"
        )


def this_machine(folder: Path = Path()) -> Machine:
    """This one; runs are to be written into `folder`."""
    device = best_device()
    return Machine(
        kind=device.type,
        name=device_name(device),
        cores=len(cores()),
        memory=total_memory(device),
        bfloat16=multiplies_bfloat16(device),
        disk=shutil.disk_usage(folder).free,
    )
