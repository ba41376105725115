"""Triton's choice of a token against PyTorch's filters and draw; without a GPU, in its interpreter."""

import pytest
import torch

from stage2_prior.decoding.choosing.draw import draw, uniforms
from stage2_prior.decoding.choosing.filters import SamplingConfig, filter_logits
from stage2_prior.decoding.choosing.guidance import guide
from tests.stage2_prior.decoding.choosing.test_choice import CONFIGS
from tests.stage2_prior.decoding.choosing.test_filters import random_logits

pytest.importorskip("triton", reason="Triton is not installed, so the choice on a GPU cannot be tested")
from stage2_prior.decoding.gpu.choose import choose_on_gpu

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("codes", [1, 9, 1000, 16_384])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_it_chooses_what_filters_and_draw_choose(config: SamplingConfig, codes: int, dtype: torch.dtype) -> None:
    rows = 64 if DEVICE.type == "cuda" else 2
    logits_RV, uniforms_RU = random_logits(rows, codes).to(dtype), torch.from_numpy(uniforms(0, 0, rows, codes))
    chosen_R = choose_on_gpu(logits_RV.to(DEVICE), uniforms_RU.to(DEVICE), None, config)
    assert torch.equal(chosen_R.cpu(), draw(filter_logits(logits_RV.float(), config), uniforms_RU))


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_comes_first(scale: float) -> None:
    config, scale_1 = SamplingConfig(temperature=0.7, top_k=50, top_p=0.9), torch.tensor([scale])
    logits_RV, uniforms_BU = random_logits(8, 1000), torch.from_numpy(uniforms(0, 0, 4, 1000))
    chosen_B = choose_on_gpu(logits_RV.to(DEVICE), uniforms_BU.to(DEVICE), scale_1.to(DEVICE), config)
    assert torch.equal(chosen_B.cpu(), draw(filter_logits(guide(logits_RV, scale_1), config), uniforms_BU))


def test_top_p_of_equals_takes_the_lowest_ids() -> None:
    logits_RV = torch.tensor([[-1.0], [0.0], [2.0]]).repeat(8, 8).to(DEVICE)
    uniforms_RU = torch.rand(len(logits_RV), 1, dtype=torch.float64, device=DEVICE)
    chosen_R = choose_on_gpu(logits_RV, uniforms_RU, None, SamplingConfig(top_p=0.5))
    assert sorted(set(chosen_R.tolist())) == [0, 1, 2, 3]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_logits_that_are_not_numbers_choose_some_code(config: SamplingConfig) -> None:
    logits_RV = torch.tensor([[torch.nan], [torch.inf], [-torch.inf]]).repeat(1, 60).to(DEVICE)
    uniforms_RU = torch.full((3, 2), 1.0, dtype=torch.float64, device=DEVICE)  # more than any uniform is
    chosen_R = choose_on_gpu(logits_RV, uniforms_RU, None, config)
    assert ((chosen_R >= 0) & (chosen_R < 60)).all()
