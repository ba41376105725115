"""The nearest training images by tokens, where they are known, with a stand-in for the tokenizer."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shared.data.config import DataConfig
from shared.data.open import open_datasets
from stage2_prior.judging.nearest_images import KnownGrids, copies_by_tokens, some_of


class Grey:
    """An image of one pixel for each token, 0 black and 1 white."""

    device = torch.device("cpu")

    def tokenize(self, images_BCHW: Tensor) -> Tensor:
        return (images_BCHW[:, 0] > 0).long()

    def detokenize(self, tokens_Bhw: Tensor) -> Tensor:
        return (2.0 * tokens_Bhw - 1)[:, None].expand(-1, 3, -1, -1)


def test_held_out_grids_are_no_more_than_those_drawn() -> None:
    training_ML, held_out_HL = np.zeros((3, 4), np.uint16), np.array([[1] * 4, [0] * 4, [0, 0, 1, 1], [0] * 4, [0] * 4])
    drawn_NL = torch.tensor([[0, 0, 0, 1], [0] * 4])
    found = copies_by_tokens(drawn_NL, KnownGrids(training_ML, held_out_HL), (2, 2), Grey())
    assert found.measures["shared_tokens_50"] == 0.875
    assert found.measures["shared_tokens_100"] == 1
    assert found.measures["shared_tokens_held_out_50"] == 0.5  # of the first and of the fourth
    assert found.measures["shared_tokens_held_out_100"] == 1
    copied_CHW = Grey().detokenize(torch.zeros(1, 2, 2, dtype=torch.long))[0]
    assert found.nearest_BCHW.shape == (2, 3, 2, 2)
    assert (found.nearest_BCHW - copied_CHW).abs().max() < 1 / 127


def test_some_of_many_images_are_spread_evenly(drawings: Path) -> None:
    train, _ = open_datasets(DataConfig(source=str(drawings), image_size=32, augment=None), seed=0)
    assert some_of(train, None) is train
    assert some_of(train, len(train)) is train
    few = some_of(train, 3)
    assert few.indices.tolist() == [train.indices[place * len(train) // 3] for place in range(3)]
    torch.testing.assert_close(few[0, 0][0], train[0, 0][0])
