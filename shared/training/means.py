"""Running means of what a training says of itself."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from shared.training.devices.precision import widest


class Means:
    """Running means of a step's metrics between two log lines; values stay on their device until they are read.

    Each is the mean of its finite values, on all processes. `bad_steps` counts those skipped since the last line. Sums
    are float64 where the device has it, so that they are exact, and the same in any order.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator, self.device = accelerator, accelerator.device
        self.dtype = widest(self.device)
        self.last: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.bad_steps = 0

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add one forward pass's scalars; all processes have the same ones."""
        self.last = {name: value.detach().to(self.dtype) for name, value in metrics.items()}
        for name, value in self.last.items():
            self.sums[name] = value.nan_to_num(0, 0, 0) + self.sums.get(name, 0)
            self.counts[name] = value.isfinite().to(self.dtype) + self.counts.get(name, 0)

    def not_finite(self) -> list[str]:
        """Names of the last forward pass's scalars that are not finite on some process; each must call it."""
        counts = self._over_processes({name: (~value.isfinite()).to(self.dtype) for name, value in self.last.items()})
        return [name for name, count in counts.items() if count]

    def take(self) -> dict[str, float]:
        """The means since the last call, and `bad_steps` if there were any; every process must call it."""
        sums, counts = self._over_processes(self.sums), self._over_processes(self.counts)
        means = {name: float(total / counts[name]) for name, total in sums.items()}
        bad = {"bad_steps": float(self.bad_steps)} if self.bad_steps else {}
        self.sums, self.counts, self.bad_steps = {}, {}, 0
        return means | bad

    def state_dict(self) -> dict[str, Any]:
        """What `take` would make its next line of; every process must call it."""
        sums, counts = self._over_processes(self.sums), self._over_processes(self.counts)
        return {"sums": sums, "counts": counts, "bad_steps": self.bad_steps}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Go on with a line begun before a stop, by any number of processes; the first one takes over its sums."""
        mine = float(self.accelerator.is_main_process)
        self.sums, self.counts = (
            {
                name: mine * torch.as_tensor(value, dtype=self.dtype, device=self.device)
                for name, value in state_dict[key].items()
            }
            for key in ("sums", "counts")
        )
        self.bad_steps = state_dict["bad_steps"]

    def _over_processes(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums over all processes, on the CPU."""
        if not values:
            return {}
        summed = torch.stack([value.to(self.device) for value in values.values()])
        return dict(zip(values, self.accelerator.reduce(summed, "sum").cpu(), strict=True))
