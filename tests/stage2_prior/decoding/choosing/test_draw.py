"""Draws, of PyTorch and of the kernel, against their distribution."""

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from stage2_prior.decoding.choosing.draw import draw, uniforms
from stage2_prior.decoding.choosing.filters import SamplingConfig
from stage2_prior.decoding.cpu.choose import choose_on_cpu
from tests.stage2_prior.decoding.choosing.test_filters import random_logits

Draw = Callable[[Tensor, Tensor], Tensor]


def compiled(logits_BV: Tensor, uniforms_BU: Tensor) -> Tensor:
    return choose_on_cpu(logits_BV.contiguous(), uniforms_BU, SamplingConfig())


both = pytest.mark.parametrize("draw", [draw, compiled])


@both
@pytest.mark.parametrize("codes", [2, 8, 10, 100])
def test_draws_follow_the_distribution(codes: int, draw: Draw) -> None:
    logits_1V = random_logits(1, codes) / 2
    logits_1V[0, codes // 2] = -math.inf
    n = 40_000
    draws = draw(logits_1V.expand(n, -1), torch.from_numpy(uniforms(0, 0, n, codes)))
    counts, expected = draws.bincount(minlength=codes).double(), logits_1V[0].double().softmax(-1) * n
    assert counts[codes // 2] == 0
    chi_square = ((counts - expected).square() / expected.clamp(min=1e-9)).sum().item()
    assert chi_square <= codes + 4 * math.sqrt(2 * codes)  # mean and four standard deviations


@both
@pytest.mark.parametrize("codes", [1, 2, 7, 8, 9, 64, 65, 1000])
def test_no_uniform_number_draws_a_removed_code(codes: int, draw: Draw) -> None:
    edges = [0.0, 1e-300, 0.5, math.nextafter(1, 0), 1.0]
    levels = uniforms(0, 0, 1, codes).shape[1]
    edges_BU = torch.tensor(list(product(edges, repeat=levels)), dtype=torch.float64)
    for only in {0, codes // 2, codes - 1}:
        logits_BV = torch.full((len(edges_BU), codes), -math.inf)
        logits_BV[:, only] = -3.0
        assert draw(logits_BV, edges_BU).eq(only).all()


@both
def test_last_bits_of_the_logits_hardly_ever_change_a_draw(draw: Draw) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_BV = torch.randn(1, 16_384, generator=generator).mul(3).expand(400, -1)
    shaken_BV = logits_BV + torch.randn(400, 16_384, generator=generator) * 1e-5
    draws_BU = torch.from_numpy(uniforms(0, 0, 400, 16_384))
    assert torch.equal(draw(logits_BV, draws_BU), draw(shaken_BV, draws_BU))


def test_uniforms_differ_by_seed_and_by_image() -> None:
    assert (uniforms(3, 5, 8, 50) == uniforms(3, 5, 8, 50)).all()
    assert (uniforms(3, 5, 8, 50) == uniforms(3, 5, 9, 50)[:8]).all()
    streams = [uniforms(seed, image, 8, 50)[0, 0] for seed in range(20) for image in range(20)]
    assert len(set(streams)) == 400
