"""The training order: permutations that can be entered anywhere, of blocks too."""

from collections import Counter
from itertools import islice

import pytest
import torch

from shared.data.order import Blocks, ImageBatches, epoch_order

BLOCKS = Blocks(torch.arange(40).repeat_interleave(torch.arange(5, 45)), window=6)  # 40 blocks of 5 to 44 images
COUNT = len(BLOCKS.of_N)


def take(batches: ImageBatches, count: int) -> list[list[tuple[int, int]]]:
    return list(islice(batches, count))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_together_see_each_image_once_an_epoch(world_size: int) -> None:
    count, epochs = 30, 3
    ranks = [ImageBatches(count, 5, seed=1, rank=rank, world_size=world_size) for rank in range(world_size)]
    steps = epochs * count // (5 * world_size)
    seen = [item for rank in ranks for batch in take(rank, steps) for item in batch]
    assert sorted(seen) == [(epoch, position) for epoch in range(epochs) for position in range(count)]


def test_restart_at_any_position_equals_the_straight_run() -> None:
    straight = [item for batch in take(ImageBatches(11, 4, seed=3), 20) for item in batch]
    for start in range(40):
        again = [item for batch in take(ImageBatches(11, 4, seed=3, start_image=start), 5) for item in batch]
        assert again == straight[start : start + 20]


def test_global_order_does_not_depend_on_the_number_of_ranks() -> None:
    alone = take(ImageBatches(13, 6, seed=0, start_image=5), 4)
    pair = [take(ImageBatches(13, 3, seed=0, start_image=5, rank=rank, world_size=2), 4) for rank in range(2)]
    woven = [[item for both in zip(*step, strict=True) for item in both] for step in zip(*pair, strict=True)]
    assert woven == alone


def test_epochs_and_seeds_differ_and_are_permutations() -> None:
    orders = [epoch_order(seed, epoch, 50).tolist() for seed in range(2) for epoch in range(2)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_a_batch_may_be_larger_than_the_data() -> None:
    (batch,) = take(ImageBatches(3, 8, seed=0), 1)
    assert [epoch for epoch, _ in batch] == [0, 0, 0, 1, 1, 1, 2, 2]


# Blocks


def test_blocks_give_a_permutation_of_its_own_for_each_seed_and_epoch() -> None:
    orders = [epoch_order(seed, epoch, COUNT, BLOCKS).tolist() for seed in range(2) for epoch in range(2)]
    assert all(sorted(order) == list(range(COUNT)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_blocks_that_are_all_at_hand_are_shuffled_like_single_images() -> None:
    at_hand = Blocks(BLOCKS.of_N, window=40)
    assert torch.equal(epoch_order(3, 1, COUNT, at_hand), epoch_order(3, 1, COUNT))


def test_each_block_is_read_once_or_for_the_few_across_the_seam_twice() -> None:
    """A reader that keeps the window and one block more, the least recently used making way."""
    for seed in range(5):
        reads: Counter[int] = Counter()
        at_hand: list[int] = []
        for block in BLOCKS.of_N[epoch_order(seed, 0, COUNT, BLOCKS)].tolist():
            reads[block] += block not in at_hand
            at_hand = [*(other for other in at_hand if other != block), block][-BLOCKS.window - 1 :]
        assert sum(reads.values()) <= 40 * 1.5
        assert max(reads.values()) <= 4


def test_neighbours_are_of_as_many_blocks_as_are_at_hand_from_the_start_on() -> None:
    order = BLOCKS.of_N[epoch_order(0, 0, COUNT, BLOCKS)]
    for start in range(0, COUNT - 100, 50):
        assert 4 <= len(order[start : start + 100].unique()) <= BLOCKS.window + 6


def test_every_place_in_the_epoch_is_as_likely_for_every_image() -> None:
    places = torch.stack([epoch_order(seed, 0, COUNT, BLOCKS).argsort() for seed in range(400)]).double()
    mean, deviation = places.mean(0) / COUNT, places.std(0) / COUNT
    assert (mean - 0.5).abs().max() < 4.5 / 12**0.5 / 400**0.5 + 0.02
    assert (deviation - 1 / 12**0.5).abs().max() < 0.06


def test_a_restart_within_blocks_equals_the_straight_run_on_any_ranks() -> None:
    straight = [item for batch in take(ImageBatches(COUNT, 8, seed=3, blocks=BLOCKS), 250) for item in batch]
    for start in (0, 7, COUNT - 3, COUNT + 20):
        ranks = [ImageBatches(COUNT, 4, 3, start, rank, 3, BLOCKS) for rank in range(3)]
        steps = [zip(*step, strict=True) for step in zip(*(take(rank, 20) for rank in ranks), strict=True)]
        assert [item for step in steps for turn in step for item in turn] == straight[start : start + 240]
