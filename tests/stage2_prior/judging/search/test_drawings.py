"""How much goes on in images, against loops."""

import pytest
import torch

from stage2_prior.judging.search.drawings import detail


def test_detail_is_the_mean_step_in_brightness_down_and_across() -> None:
    images_BCHW = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    for image_CHW, found in zip(images_BCHW, detail(images_BCHW), strict=True):
        y_HW = [[sum(float(image_CHW[c, i, j]) for c in range(3)) / 3 for j in range(5)] for i in range(4)]
        down = [abs(y_HW[i + 1][j] - y_HW[i][j]) for i in range(3) for j in range(5)]
        across = [abs(y_HW[i][j + 1] - y_HW[i][j]) for i in range(4) for j in range(4)]
        assert found == pytest.approx(sum(down) / len(down) + sum(across) / len(across), rel=1e-5)
    assert detail(torch.full((1, 3, 4, 4), 0.5)) == 0
