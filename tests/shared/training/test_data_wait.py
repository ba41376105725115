"""How long a training waits for its data: against a clock that is set by hand, and in training itself."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from shared.training import data_wait
from shared.training.config import TrainingConfig
from shared.training.data_wait import DataWait
from shared.training.devices.accelerator import make_accelerator
from shared.training.trainee import Trainee
from stage1_tokenizer import train as stage1
from stage2_prior import train as stage2
from tests.stage2_prior.test_train import write_random_cache
from tests.support.tiny import prior_run, tokenizer_run


class Clock:
    """Stands for the clock; what takes time moves it on."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def batches(self, seconds: float) -> Iterator[int]:
        for number in range(1000):
            self.now += seconds
            yield number


def test_it_is_the_part_of_the_steps_that_batches_took_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(data_wait, "time", clock)
    wait, batches = DataWait(make_accelerator()), clock.batches(0.5)
    for _ in range(3):
        wait.begin_step()
        assert wait.next(batches) + 1 == wait.next(batches)
        clock.now += 3.0  # the work
        wait.end_step()
        clock.now += 50.0  # an evaluation
    assert wait.take() == {"data_wait": 0.25}
    wait.begin_step()
    clock.now += 1.0
    wait.end_step()
    assert wait.take() == {"data_wait": 0.0}


def test_a_step_waits_for_each_batch_it_accumulates(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(data_wait, "time", clock)
    trainee = Trainee(nn.Linear(1, 1), TrainingConfig(images=8, batch_size=1, accumulation=4), make_accelerator())
    trainee.begin_step()
    for _ in trainee.accumulate(clock.batches(1.0)):
        trainee.backward(trainee.wrapped(torch.ones(1, 1)).sum())
        clock.now += 3.0
    trainee.end_step()
    assert trainee.data_wait.take() == {"data_wait": 0.25}


def test_both_stages_log_it(drawings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    backward = Trainee.backward

    def slow(batches: Iterator[object]) -> Iterator[object]:
        for batch in batches:
            clock.now += 3.0
            yield batch

    def work(trainee: Trainee, loss: torch.Tensor) -> None:
        clock.now += 1.0
        backward(trainee, loss)

    training_batches, token_batches = stage1.training_batches, stage2.token_batches
    monkeypatch.setattr(data_wait, "time", clock)
    monkeypatch.setattr(Trainee, "backward", work)
    monkeypatch.setattr(stage1, "training_batches", lambda *those: slow(training_batches(*those)))
    monkeypatch.setattr(stage2, "token_batches", lambda *those: slow(token_batches(*those)))
    write_random_cache()
    prior = prior_run(images=32).model_copy(update={"tokens": "tokens"})
    for run, _ in (stage1.train(tokenizer_run(drawings, images=48)), stage2.train(prior)):
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        logged = [line["data_wait"] for line in lines if "lr" in line]
        assert len(logged) >= 2
        assert set(logged) == {0.75}
