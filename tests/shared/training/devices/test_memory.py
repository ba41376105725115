"""What a training takes, told before it starts."""

import pytest
import torch
from torch import nn

from shared.errors import UserError
from shared.training.devices.memory import check_fits, kept_for_backward, total_memory

CPU = torch.device("cpu")
GIB = 2**30


def test_what_is_kept_is_what_the_backward_pass_needs() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.Sigmoid(), nn.Linear(20, 1))
    x_NC = torch.zeros(64, 10)
    # By hand: Linear keeps its input, Sigmoid its output, which is also the next Linear's input; a mean keeps nothing.
    assert kept_for_backward(model, lambda: model(x_NC).mean(), "fp32") == 4 * 64 * (10 + 20)


def test_the_line_names_what_it_takes_and_what_there_is() -> None:
    line = check_fits(GIB, GIB // 64, batch_size=16, accumulation=1, device=CPU)
    assert line.startswith(f"memory: about 1.25 GiB of {total_memory(CPU) / GIB:,.3g} GiB (cpu): 1 GiB for weights")
    assert line.endswith("16 MiB for each of the 16 images of a forward pass")
    assert "32 grids" in check_fits(GIB, GIB // 64, batch_size=32, accumulation=1, device=CPU, unit="grid")


def test_a_batch_that_does_not_fit_is_refused_with_the_setting_that_halves_it() -> None:
    with pytest.raises(UserError, match=r"does not fit.*training\.batch_size=500000000 training\.accumulation=4 takes"):
        check_fits(GIB, GIB // 64, batch_size=10**9, accumulation=2, device=CPU)


def test_a_model_that_does_not_fit_is_not_helped_by_a_smaller_batch() -> None:
    with pytest.raises(UserError, match="narrower or shallower model"):
        check_fits(10**6 * GIB, GIB // 64, batch_size=16, accumulation=1, device=CPU)


def test_the_total_is_what_the_system_says() -> None:
    with open("/proc/meminfo") as file:
        kib = int(file.readline().split()[1])
    assert 0 < total_memory(CPU) <= 1024 * kib


def test_mps_has_the_memory_of_the_system() -> None:
    mps = torch.device("mps")
    assert total_memory(mps) == total_memory(CPU)
    with pytest.raises(UserError, match="does not fit"):
        check_fits(GIB, GIB // 64, batch_size=10**9, accumulation=2, device=mps)
