"""Curves and their labels."""

import pytest

from stage1_tokenizer.comparing.report import Panel, curve, moved_apart


def test_a_logarithm_leaves_out_zeros() -> None:
    lines = [{"images": 1, "codebook": 0.0}, {"images": 2, "codebook": 0.5}, {"images": 2, "validation/psnr": 9.0}]
    assert curve(lines, Panel("codebook", "codebook", log=True)) == ([2], [0.5])


def test_labels_move_apart_and_no_further_than_they_must() -> None:
    assert moved_apart([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert moved_apart([0.1, 0.5, 0.5, 0.5], 0.1) == pytest.approx([0.1, 0.4, 0.5, 0.6])
    assert moved_apart([0.4, 0.49, 0.5], 0.1) == pytest.approx([1.09 / 3 + step for step in (0.0, 0.1, 0.2)])
