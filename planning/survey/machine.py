"""What a machine is, as far as a plan depends on it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from shared.environment import cores, processor
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
    device = Accelerator().device
    return Machine(
        kind=device.type,
        name=torch.cuda.get_device_name() if device.type == "cuda" else processor(),
        cores=len(cores()),
        memory=total_memory(device),
        bfloat16=multiplies_bfloat16(device),
        disk=shutil.disk_usage(folder).free,
    )
