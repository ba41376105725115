"""Several candidates for an image: drawn like images of their own, and the typical one found by the prior's steps."""

from typing import Any

import pytest
import torch
from torch import Tensor

from shared.errors import UserError
from stage2_prior.decoding import decoder
from stage2_prior.decoding.candidates import log_likelihoods, typical
from stage2_prior.decoding.choosing.draw import draw, uniforms
from stage2_prior.decoding.choosing.filters import filter_logits
from stage2_prior.decoding.decoder import Decoder
from stage2_prior.decoding.settings import DrawingSettings
from stage2_prior.prior import Prior
from tests.stage2_prior.decoding.test_engine import KINDS, SAMPLING, random_prior

IMAGES, CANDIDATES = [0, 3, 4], 4
LABELS_B = torch.tensor([2, 0, 1])


@torch.no_grad()
def drawn_alone(prior: Prior, label: int, image: int, candidate: int) -> tuple[Tensor, float]:
    """One candidate (L,) by the prior's own steps, and what they say of it all, in nats."""
    state, id_1 = prior.init_state(1), prior.start_tokens(torch.tensor([label]), 1)
    stream = torch.from_numpy(uniforms(0, image, prior.length, prior.codes, candidate))
    tokens, nats = [], 0.0
    for position in range(prior.length):
        logits_1K = prior.step(id_1, state)
        id_1 = draw(filter_logits(logits_1K, SAMPLING), stream[None, position])
        nats += logits_1K.double().log_softmax(1)[0, id_1].item()
        tokens.append(id_1)
    return torch.cat(tokens), nats


@pytest.mark.parametrize("rows", [2, 5, 100])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_second_likeliest_of_four_candidates_is_kept(kind: dict[str, Any], rows: int) -> None:
    prior = random_prior(**kind)
    expected, kept = [], []
    for image, label in zip(IMAGES, LABELS_B.tolist(), strict=True):
        candidates = [drawn_alone(prior, label, image, number) for number in range(CANDIDATES)]
        second = sorted(range(CANDIDATES), key=lambda number: -candidates[number][1])[1]
        kept.append(second)
        expected.append(candidates[second][0])
    tokens_BHW = Decoder(prior, rows, exact=True).generate(
        IMAGES, 0, SAMPLING, labels_B=LABELS_B, candidates=CANDIDATES
    )
    assert torch.equal(tokens_BHW.flatten(1), torch.stack(expected))
    assert any(kept)  # not always the first


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_candidates_are_compared_by_rounded_weights_too(kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    prior, seen = random_prior(**kind), list[Tensor]()

    def watching(prior: Prior, tokens_NBL: Tensor, labels_B: Tensor | None) -> Tensor:
        seen.append(tokens_NBL)
        return typical(prior, tokens_NBL, labels_B)

    monkeypatch.setattr(decoder, "typical", watching)
    kept_BL = Decoder(prior).generate(IMAGES, labels_B=LABELS_B, candidates=CANDIDATES).flatten(1)
    exact_NB = torch.stack([log_likelihoods(prior, tokens_BL, LABELS_B) for tokens_BL in seen[0]])
    of_kept_B = log_likelihoods(prior, kept_BL, LABELS_B)
    torch.testing.assert_close(of_kept_B, exact_NB.sort(0, descending=True).values[1], atol=0.05, rtol=0)


def test_the_first_candidate_is_what_is_drawn_without_others_and_what_is_shown() -> None:
    prior, shown, drawn = random_prior(kind="gpt"), list[Tensor](), list[int]()
    decoder = Decoder(prior, rows=4, exact=True)
    alone_BHW = decoder.generate(IMAGES)
    decoder.generate(
        IMAGES, candidates=3, on_row=lambda rows_Brw: shown.append(rows_Brw.clone()), progress=drawn.append
    )
    assert [tuple(rows_Brw.shape) for rows_Brw in shown] == [(3, rows, 5) for rows in (1, 2, 3, 4)]
    assert torch.equal(shown[-1], alone_BHW)
    assert sum(drawn) == 3 * len(IMAGES) * prior.length


def test_of_a_picture_that_is_completed_each_candidate_keeps_what_is_given() -> None:
    prior, prefix_BK = random_prior(kind="mamba"), torch.randint(40, (3, 9))
    tokens_BHW = Decoder(prior).generate(IMAGES, prefix_tokens_BK=prefix_BK, candidates=3)
    assert torch.equal(tokens_BHW.flatten(1)[:, :9], prefix_BK)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_likelihoods_are_those_of_the_loss(kind: dict[str, Any]) -> None:
    prior, tokens_BL = random_prior(**kind), torch.randint(40, (3, 20))
    found_B = log_likelihoods(prior, tokens_BL, LABELS_B)
    for row in range(3):
        nats = prior.loss(tokens_BL[row : row + 1], LABELS_B[row : row + 1]).item()
        assert found_B[row].item() == pytest.approx(-nats, abs=1e-5)


@pytest.mark.parametrize("number", [0, -1, 1001])
def test_a_number_of_candidates_out_of_its_range_is_one_message(number: int) -> None:
    with pytest.raises(UserError, match=f"{number} candidates for an image: it must be from 1 to 1000"):
        Decoder(random_prior(kind="gpt")).generate([0], candidates=number)
    with pytest.raises(UserError, match=f"{number} candidates"):
        DrawingSettings(candidates=number)
