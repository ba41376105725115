"""What a step is given and when something is due: pure functions of the images seen."""

import math

import torch

from shared.training.config import TrainingConfig

PRIME_1, PRIME_2, PRIME_5 = 11400714785074694791, 14029467366897019727, 2870177450012600261  # xxHash64's
BITS_64, MERSENNE_61 = 2**64 - 1, 2**61 - 1


def learning_rate(images: int, config: TrainingConfig, total: int | None = None) -> float:
    """Linear warm-up, then cosine decay to final_learning_rate; a pure function of images seen.

    total: images of the run, if not `config.images`.
    """
    if images < config.warm_up:
        return config.learning_rate * (images + 1) / (config.warm_up + 1)
    progress = min(1.0, (images - config.warm_up) / max(1, (total or config.images) - config.warm_up))
    floor = config.final_learning_rate
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def seed_step(seed: int, images: int, rank: int) -> None:
    """Make everything random in the coming step a function of (seed, images seen, rank)."""
    torch.manual_seed(mixed(seed, images, rank) & 0x7FFF_FFFF_FFFF_FFFF)


def mixed(*numbers: int) -> int:
    """64 bits that depend on every number (each 0 or more) and its position.

    xxHash64's rounds (Collet 2012), a number a round. It is what CPython 3.8 and later give as the hash of a tuple, and
    what runs began with, written out so that a run resumes with the same random numbers whatever interpreter it is on.
    """
    total = PRIME_5
    for number in numbers:
        total = (total + number % MERSENNE_61 * PRIME_2) & BITS_64
        total = (total << 31 | total >> 33) & BITS_64
        total = total * PRIME_1 & BITS_64
    total = (total + (len(numbers) ^ PRIME_5 ^ 3527539)) & BITS_64
    return 1546275796 if total == BITS_64 else total


def crossed(every: int, images: int, step_images: int) -> bool:
    """Whether the step that ended at `images` passed a multiple of `every`."""
    return images // every > (images - step_images) // every


def rise(time: float, start: float, length: float) -> float:
    """0 up to `start`, linearly to 1 over `length`, then 1; a step at `start` where the length is 0."""
    if time < start:
        return 0.0
    return min(1.0, (time - start) / length) if length else 1.0
