"""The device is the one that accelerate finds, and one that Tessera was never run on is said to be so."""

from types import SimpleNamespace

import pytest
import torch

from shared.training.devices import device
from shared.training.devices.device import best_device


@pytest.mark.parametrize(
    ("kind", "hip", "said"),
    [("cpu", None, None), ("cuda", None, None), ("cuda", "6.4", "ROCm"), ("mps", None, "mps"), ("xpu", None, "xpu")],
)
def test_what_is_not_tested_is_said_once(
    kind: str, hip: str | None, said: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = SimpleNamespace(is_main_process=True, device=torch.device(kind))
    monkeypatch.setattr(device, "Accelerator", lambda **options: found)
    monkeypatch.setattr(torch.version, "hip", hip)
    device._say_where_untested.cache_clear()
    assert [best_device() for _ in range(2)] == [torch.device(kind)] * 2
    expected = f"device: {said}, on which Tessera is not tested; ACCELERATE_USE_CPU=true takes the CPU\n"
    assert capsys.readouterr().out == (expected if said else "")
    device._say_where_untested.cache_clear()


def test_the_cpu_is_taken_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("accelerate.state.is_mps_available", lambda: True)
    assert best_device() == torch.device("cpu")
    AcceleratorState._reset_state(reset_partial_state=True)
