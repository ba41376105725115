"""Fewer threads beside busy processes, and the threads of before afterwards."""

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch

from shared.environment import cores
from stage2_prior.decoding.cpu import spare_cores
from stage2_prior.decoding.cpu.spare_cores import LOOK_EVERY, SpareCores, busy_seconds, threads_beside


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("others", "count", "most", "threads"),
    [
        (0, 2, 2, 2), (0.3, 2, 2, 2), (0.7, 2, 2, 1), (1, 2, 2, 1), (2, 2, 2, 1), (-0.1, 2, 2, 2),
        (0, 64, 8, 8), (50, 64, 8, 8), (60, 64, 8, 4), (90, 64, 8, 1),
    ],
)  # fmt: skip
def test_others_take_their_cores(others: float, count: int, most: int, threads: int) -> None:
    assert threads_beside(others, count, most) == threads


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("others", "threads"), [(0.0, 2), (1.0, 1)])
def test_what_others_did_since_the_last_look_decides(
    others: float, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of accounts kept here: this process works on one of two cores all the time, and others on `others` of them."""
    clock = [100.0]
    monkeypatch.setattr(spare_cores, "cores", lambda: {0, 1})
    monkeypatch.setattr(spare_cores, "busy_seconds", lambda: 1000 + (1 + others) * clock[0])
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(time, "process_time", lambda: 3 + clock[0])
    with SpareCores().adapting() as adapt:
        adapt()
        clock[0] += 0.9 * LOOK_EVERY
        adapt()
        assert torch.get_num_threads() == 2  # too early to tell
        clock[0] += 0.2 * LOOK_EVERY
        adapt()
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems keep no such accounts")
def test_a_busy_process_is_in_the_accounts() -> None:
    before, start = busy_seconds(), time.perf_counter()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"], check=True)
    passed = time.perf_counter() - start
    assert 0.4 < busy_seconds() - before < len(cores()) * passed + 0.1


@pytest.mark.usefixtures("two_threads")
def test_where_there_are_no_accounts_threads_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr(spare_cores, "_STAT", tmp_path_factory.mktemp("none") / "stat")
    assert busy_seconds() == 0
    with SpareCores().adapting() as adapt:
        adapt()
        time.sleep(1.1 * LOOK_EVERY)
        adapt()
        assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_an_error_gives_the_threads_back() -> None:
    def fail() -> None:
        with SpareCores().adapting():
            torch.set_num_threads(1)
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert torch.get_num_threads() == 2
