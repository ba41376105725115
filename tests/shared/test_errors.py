"""What a command says of an error, and what it does not say."""

import signal

import pytest

from shared import signals
from shared.errors import UserError, WorkerDied, run_command


def ended_by(error: BaseException) -> object:
    """The exit status, or the message, of a command that raises."""

    def fail() -> None:
        raise error

    before = {number: signal.getsignal(number) for number in signals.STOP}
    try:
        with pytest.raises(SystemExit) as ended:
            run_command(fail)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return ended.value.code


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
)
def test_only_memory_that_ran_out_is_answered_by_a_smaller_batch(error: Exception) -> None:
    assert "Halve the batch size" in str(ended_by(error))


@pytest.mark.parametrize(
    "words",
    ["CUDA error: an illegal memory access was encountered", "unable to allocate shared memory(shm) for file </x>"],
)
def test_other_errors_of_memory_are_not_taken_for_that(words: str) -> None:
    with pytest.raises(RuntimeError, match="memory"):
        ended_by(RuntimeError(words))


def test_a_worker_that_a_signal_to_all_has_ended_is_no_error_but_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended_by(WorkerDied("it was killed")) == "error: it was killed"
    monkeypatch.setattr(signals, "_asked", signal.SIGTERM)
    assert ended_by(WorkerDied("it was killed")) == signals.RESUME
    assert ended_by(UserError("no such folder")) == "error: no such folder"
