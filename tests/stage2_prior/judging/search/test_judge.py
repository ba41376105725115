"""What drawings are scored by, against its parts."""

import pytest
import torch

from shared.reporting.set_distances import kernel_distance
from stage2_prior.judging.search.judge import Judge


def test_a_score_is_the_distance_from_unseen_images_and_the_chance_of_a_copy() -> None:
    training_MD, held_out_HD = torch.randn(30, 5), torch.randn(20, 5)
    judge = Judge([training_MD, training_MD.flip(1)], held_out_HD)
    copies = judge.score(training_MD[:12])
    assert copies.copying == 1
    assert judge.score(training_MD[:12].flip(1)).copying == 1  # of another view
    assert copies.distance == pytest.approx(kernel_distance(training_MD[:12], held_out_HD)[0])
    assert judge.score(held_out_HD).copying == 0.5
