"""What a step is given and when something is due: pure functions of the images seen."""

import math

import torch

from shared.training.config import TrainingConfig


def learning_rate(images: int, config: TrainingConfig) -> float:
    """Linear warm-up, then cosine decay to final_learning_rate; a pure function of images seen."""
    if images < config.warm_up:
        return config.learning_rate * (images + 1) / (config.warm_up + 1)
    progress = min(1.0, (images - config.warm_up) / max(1, config.images - config.warm_up))
    floor = config.final_learning_rate
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def seed_step(seed: int, images: int, rank: int) -> None:
    """Make everything random in the coming step a function of (seed, images seen, rank)."""
    torch.manual_seed(hash((seed, images, rank)) & 0x7FFF_FFFF_FFFF_FFFF)


def crossed(every: int, images: int, step_images: int) -> bool:
    """Whether the step that ended at `images` passed a multiple of `every`."""
    return images // every > (images - step_images) // every
