"""The size of a prior: the largest that has enough tokens for each of its weights."""

from dataclasses import replace

import pytest
import torch

from planning.choice.prior_size import CPU, GPU, TOKENS_A_WEIGHT, PriorSize, largest_worth, prior_sizes
from stage2_prior.prior import Prior
from tests.planning.samples import MACHINE, pictures
from tests.support.tiny import prior_config


@pytest.mark.parametrize("sizes", [CPU, GPU, GPU[:1]])
def test_the_largest_with_enough_tokens(sizes: tuple[PriorSize, ...]) -> None:
    for tokens in (10**power for power in range(3, 13)):
        chosen = largest_worth(sizes, tokens)
        seen = {size: tokens * sizes[0].weights / size.weights for size in sizes}  # in as much time
        enough = [size for size in sizes if seen[size] >= TOKENS_A_WEIGHT * size.weights]
        assert chosen == max(enough or sizes[:1], key=lambda size: size.weights)


@pytest.mark.parametrize("size", CPU)
def test_weights_are_those_of_the_blocks(size: PriorSize) -> None:
    config = prior_config("gpt", depth=size.depth, width=size.width, heads=size.heads, head="full")
    prior = Prior(config, 8, (2, 2), 0, torch.zeros(8, 4))
    counted = sum(weight.numel() for block in prior.blocks for weight in block.parameters() if weight.ndim == 2)
    assert size.weights == pytest.approx(counted, rel=0.03)


def test_sizes_grow() -> None:
    for sizes in (CPU, GPU):
        weights = [size.weights for size in sizes]
        assert weights == sorted(set(weights))
    assert prior_sizes(pictures(), MACHINE) == CPU
    assert prior_sizes(pictures(train=1_000_000), replace(MACHINE, kind="cuda")) == GPU[1:]
