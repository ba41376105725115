"""FLOPs that are counted against those that formulas give."""

import torch
from torch import nn

from shared.training.devices.flops import count_flops


def test_flops_of_linear_attention_and_depthwise_convolution() -> None:
    with torch.no_grad():
        x_BLD = torch.randn(2, 5, 8)
        assert count_flops(lambda: nn.Linear(8, 3)(x_BLD)) == 2 * (2 * 5) * 8 * 3
        q_BHLP = torch.randn(2, 4, 5, 8)
        attend = nn.functional.scaled_dot_product_attention
        assert count_flops(lambda: attend(q_BHLP, q_BHLP, q_BHLP)) == 2 * 2 * (2 * 4) * 5 * 5 * 8
        conv = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        assert count_flops(lambda: conv(torch.randn(1, 8, 6, 6))) == 2 * 36 * 8 * 9
