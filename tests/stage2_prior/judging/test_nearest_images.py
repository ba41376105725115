"""The nearest training images by tokens, where they are known, with a stand-in for the tokenizer."""

import numpy as np
import torch
from torch import Tensor

from stage2_prior.judging.nearest_images import KnownGrids, copies_by_tokens


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
