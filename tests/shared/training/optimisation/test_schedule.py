"""Learning rate, random numbers and what is due, by images seen."""

import random

import pytest
import torch

from shared.training.config import TrainingConfig
from shared.training.optimisation.schedule import crossed, learning_rate, mixed, seed_step


def test_the_schedule_is_linear_then_cosine_in_images() -> None:
    config = TrainingConfig(images=1100, warm_up=100, learning_rate=1.0, final_learning_rate=0.2)
    assert learning_rate(0, config) == pytest.approx(1 / 101)
    assert learning_rate(49, config) == pytest.approx(50 / 101)
    assert learning_rate(100, config) == 1.0
    assert learning_rate(600, config) == pytest.approx(0.6)
    assert learning_rate(1100, config) == pytest.approx(0.2)


def test_a_steps_randomness_is_a_function_of_seed_images_and_rank() -> None:
    def numbers(*key: int) -> tuple[float, ...]:
        seed_step(*key)
        return tuple(torch.rand(3).tolist())

    keys = [(0, 0, 0), (1, 0, 0), (0, 32, 0), (0, 0, 1)]
    assert len({numbers(*key) for key in keys}) == 4
    assert numbers(0, 32, 0) == numbers(0, 32, 0)


def test_seeds_are_those_that_runs_began_with() -> None:
    """Runs began with CPython's hash of a tuple: on CPython 3.8 and later it is the independent truth."""
    numbers = random.Random(0)
    for _ in range(1000):
        key = tuple(numbers.randrange(2 ** numbers.randrange(1, 64)) for _ in range(3))
        assert mixed(*key) == hash(key) % 2**64
    assert mixed(2**61 - 1, 2**61, 2**63 - 1) == hash((2**61 - 1, 2**61, 2**63 - 1)) % 2**64


def test_crossed_fires_once_for_each_multiple() -> None:
    ends = range(48, 481, 48)
    assert [end for end in ends if crossed(100, end, 48)] == [144, 240, 336, 432]
