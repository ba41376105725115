"""A prior's own tokens: what it predicts, in the places that are replaced and no others; its drawings behind them."""

import pytest
import torch

from stage2_prior.decoding.choosing.filters import SamplingConfig
from stage2_prior.own_tokens import OwnTokens
from stage2_prior.prior import Prior
from tests.support.tiny import prior_config

CODES, GRID = 12, (3, 4)
GREEDY = SamplingConfig(top_k=1)


@pytest.fixture(params=["gpt", "mamba"])
def prior(request: pytest.FixtureRequest) -> Prior:
    torch.manual_seed(0)
    config = prior_config(request.param, depth=2, width=32, heads=2, headdim=16, d_state=16, head="tied")
    prior = Prior(config, CODES, GRID, classes=2).eval()
    with torch.no_grad():
        for weight in prior.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return prior


def own(prior: Prior, sampling: SamplingConfig = GREEDY, replaced: float = 1.0, share: float = 0.0) -> OwnTokens:
    drawings_Nhw = torch.arange(5)[:, None, None].expand(5, *GRID)
    return OwnTokens(prior, sampling, lambda: drawings_Nhw, replaced, share)


def grids(count: int) -> torch.Tensor:
    return torch.randint(CODES, (count, *GRID), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("labels_B", [None, torch.tensor([0, 1, 1])], ids=["no class", "classes"])
def test_a_token_is_drawn_given_the_true_ones_before_it(prior: Prior, labels_B: torch.Tensor | None) -> None:
    tokens_Bhw = grids(3)
    found_BL = own(prior)(tokens_Bhw, labels_B).flatten(1)
    for image, tokens_L in enumerate(tokens_Bhw.flatten(1)):
        state = prior.init_state(1)
        token_1 = prior.start_tokens(None if labels_B is None else labels_B[image : image + 1], 1)
        for place, token in enumerate(tokens_L):  # one at a time, as in drawing
            assert found_BL[image, place] == prior.step(token_1, state).argmax()
            token_1 = token[None]


@torch.no_grad()
def test_tokens_are_drawn_as_often_as_the_prior_says(prior: Prior) -> None:
    sampling = SamplingConfig(temperature=0.7, top_k=5)
    tokens_Bhw = grids(1)
    many_Bhw = tokens_Bhw.expand(4000, *GRID)
    torch.manual_seed(2)
    found_BL = own(prior, sampling).teacher_forced(many_Bhw).flatten(1)
    logits_LK = prior(prior.inputs(tokens_Bhw.flatten(1)))[0] / 0.7
    kept_LK = logits_LK.masked_fill(logits_LK < logits_LK.topk(5).values[:, -1:], -torch.inf)
    shares_LK = torch.nn.functional.one_hot(found_BL, CODES).float().mean(0)
    torch.testing.assert_close(shares_LK, kept_LK.softmax(-1), rtol=0, atol=0.04)  # five standard errors


def test_so_many_are_replaced_and_no_more(prior: Prior) -> None:
    tokens_Bhw = grids(10)
    of_all_Bhw = own(prior).teacher_forced(tokens_Bhw)
    torch.manual_seed(3)
    found_Bhw = own(prior, replaced=0.25).teacher_forced(tokens_Bhw)
    changed = found_Bhw != tokens_Bhw
    assert torch.equal(found_Bhw[changed], of_all_Bhw[changed])
    alike = (of_all_Bhw == tokens_Bhw).float().mean()
    assert 0 < changed.sum() <= 30
    assert changed.sum() >= 30 - 3 * (30 * alike) ** 0.5 - 30 * alike
    assert torch.equal(own(prior, replaced=0.0)(tokens_Bhw), tokens_Bhw)


def test_drawings_come_behind_them(prior: Prior) -> None:
    tokens_Bhw = grids(6)
    torch.manual_seed(4)
    first, second = (own(prior, replaced=0.0, share=1.5)(tokens_Bhw) for _ in range(2))
    assert torch.equal(first[:6], tokens_Bhw)
    assert first.shape == (15, *GRID)
    assert not torch.equal(first[6:], second[6:])
    torch.manual_seed(4)
    assert torch.equal(own(prior, replaced=0.0, share=1.5)(tokens_Bhw), first)  # by the global generator alone


def test_a_prior_without_classes_takes_no_labels() -> None:
    prior = Prior(prior_config("gpt", depth=1, width=32, heads=2, head="tied"), CODES, GRID).eval()
    assert own(prior)(grids(2), torch.tensor([5, 7])).shape == (2, *GRID)
