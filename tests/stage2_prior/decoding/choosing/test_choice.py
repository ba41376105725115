"""The compiled choice of a token against PyTorch's filters and draw, and against brute-force definitions."""

from itertools import product

import pytest
import torch

from shared.kernels.arrays import as_array
from stage2_prior.decoding.choosing.draw import draw, uniforms
from stage2_prior.decoding.choosing.filters import SamplingConfig, filter_logits
from stage2_prior.decoding.cpu.choose import choose_on_cpu, weigh
from tests.stage2_prior.decoding.choosing.test_filters import brute_filters, random_logits

CONFIGS = [
    SamplingConfig(),
    SamplingConfig(temperature=0),
    SamplingConfig(temperature=0.7),
    SamplingConfig(top_k=20),
    SamplingConfig(top_p=0.9),
    SamplingConfig(min_p=0.05),
    SamplingConfig(temperature=1.3, top_k=500, top_p=0.8, min_p=0.01),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("codes", [1, 2, 9, 1000, 16_384])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_it_chooses_what_filters_and_draw_choose(config: SamplingConfig, codes: int, dtype: torch.dtype) -> None:
    rows = 64
    logits_RV = random_logits(rows, codes).to(dtype)
    uniforms_RU = torch.from_numpy(uniforms(0, 0, rows, codes))
    chosen_R = choose_on_cpu(logits_RV, uniforms_RU, config)
    assert torch.equal(chosen_R, draw(filter_logits(logits_RV.float(), config), uniforms_RU))
    for few in (1, 2, 7):
        assert torch.equal(choose_on_cpu(logits_RV[:few], uniforms_RU[:few], config), chosen_R[:few])


@pytest.mark.parametrize("value", [0, 0.3, 1, 20])
def test_weights_are_those_of_all_filters_together_at_their_edges(value: float) -> None:
    for logits_V in random_logits():
        for k, p, least in product((None, 1, 7, 31, 10_000), (None, 0, 1e-9, 0.6, 0.999999, 1), (None, 0, 0.2, 1)):
            config = SamplingConfig(temperature=value, top_k=k, top_p=p, min_p=least)
            weights_V = weights_of(logits_V, config)
            kept = sorted(brute_filters(logits_V.double().tolist(), config))
            assert weights_V.nonzero().flatten().tolist() == kept
            expected_K = (logits_V[kept].double() / (value or 1)).softmax(-1)
            torch.testing.assert_close(weights_V[kept].double() / weights_V.sum(), expected_K, atol=1e-7, rtol=1e-5)


def weights_of(logits_V: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    options = (config.temperature, config.top_k or len(logits_V), 1.0 if config.top_p is None else config.top_p)
    tree = weigh(as_array(logits_V), *options, config.min_p or 0.0, 0)
    return torch.from_numpy(tree)


def test_top_p_of_equals_takes_the_lowest_ids() -> None:
    for logit in (-1.0, 0.0, 2.0):
        kept_V = weights_of(torch.full((8,), logit), SamplingConfig(top_p=0.5)) > 0
        assert kept_V.tolist() == [True] * 4 + [False] * 4
    signs_V = torch.tensor([-0.0, 0.0, -0.0, 0.0])
    assert (weights_of(signs_V, SamplingConfig(top_p=0.5)) > 0).tolist() == [True, True, False, False]


def test_logits_that_are_not_numbers_choose_some_code() -> None:
    for logit in (torch.nan, torch.inf, -torch.inf):
        for config in CONFIGS:
            chosen_R = choose_on_cpu(torch.full((4, 64), logit), torch.rand(4, 2, dtype=torch.float64), config)
            assert ((chosen_R >= 0) & (chosen_R < 64)).all()
