"""How much autoguidance: what is tried, and what is kept of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stage2_prior.decoding.settings import SURE_BITS, DrawingSettings
from stage2_prior.judging.search import autoguidance
from stage2_prior.judging.search.autoguidance import MOST_FLAT, SIMPLER, likeliest, search_autoguidance, strengths
from stage2_prior.judging.search.tried import Guided, Score

EARLY = ["early-0.03.safetensors", "early-0.1.safetensors"]


def test_each_of_the_early_weights_is_tried_with_three_strengths() -> None:
    assert [str(guided) for guided in strengths(EARLY, sure=False)] == [
        "top_p 0.98, autoguidance 1.5 from early-0.03",
        "top_p 0.95, autoguidance 2.0 from early-0.03",
        "top_p 0.98, autoguidance 3.0 from early-0.03",
        "top_p 0.98, autoguidance 1.5 from early-0.1",
        "top_p 0.95, autoguidance 2.0 from early-0.1",
        "top_p 0.98, autoguidance 3.0 from early-0.1",
    ]


def test_a_sure_prior_is_tried_with_the_earliest_weights_and_a_filter_by_likelihood() -> None:
    assert [str(guided) for guided in strengths(EARLY, sure=True)] == [
        "top_p 0.98, autoguidance 1.5 from early-0.03",
        "top_p 0.95, autoguidance 2.0 from early-0.03",
        "min_p 0.2, autoguidance 1.5 from early-0.03",
    ]


@pytest.mark.parametrize("best", range(7))
def test_what_is_likeliest_is_kept_of_what_is_near_real_images(best: int) -> None:
    tried = [Guided(DrawingSettings(), EARLY[0]), *strengths(EARLY, sure=False)]
    scores = [Score(0.05 + 0.9 * SIMPLER, bits=5.0, flat=MOST_FLAT)] * 7
    scores[0] = Score(0.05, bits=5.5, flat=0.0)
    scores[best] = scores[best]._replace(bits=4.0)
    for too_far in {1, 2, 3, 4, 5, 6} - {best, 6}:
        scores[too_far] = Score(0.05 + 1.1 * SIMPLER, bits=3.0, flat=0.0)
    by_name = {str(guided): found for guided, found in zip(tried, scores, strict=True)}
    assert likeliest(EARLY, lambda guided: by_name[str(guided)]) == tried[best]


@pytest.mark.parametrize("sure", [True, False])
def test_a_prior_is_sure_whose_plain_drawings_take_few_bits(sure: bool) -> None:
    bits = SURE_BITS - 0.1 if sure else SURE_BITS
    asked: list[Guided] = []

    def score(guided: Guided) -> Score:
        asked.append(guided)
        return Score(0.0, bits=bits + 1 - len(asked), flat=0.0)

    assert likeliest(EARLY, score) == asked[-1]
    assert asked == [Guided(DrawingSettings(), EARLY[0]), *strengths(EARLY, sure)]


def test_what_leaves_too_many_drawings_flat_is_not_kept() -> None:
    plain, *guided = tried = [Guided(DrawingSettings(), EARLY[0]), *strengths(EARLY, sure=False)]
    scores = {one: Score(0.0, bits=9.0 - place, flat=MOST_FLAT / 2 * place) for place, one in enumerate(tried)}
    assert scores[guided[1]].flat == MOST_FLAT
    assert likeliest(EARLY, scores.__getitem__) == guided[1]
    assert likeliest(EARLY, lambda one: scores[one]._replace(flat=float(one != plain))) == plain


def test_a_drawing_is_flat_that_has_less_detail_than_each_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, *guided = [Guided(DrawingSettings(), EARLY[0]), *strengths(EARLY, sure=False)]
    details = {one: torch.linspace(1, 2, 48) for one in (plain, *guided)}
    details[guided[0]] = torch.linspace(0.9, 5, 48)  # the first two have less than 1
    details[guided[1]] = torch.full((48,), 0.5)
    bits = {one: 9.0 - place for place, one in enumerate((plain, *guided))} | {guided[1]: 1.0, guided[0]: 2.0}
    monkeypatch.setattr(autoguidance, "kept_early", lambda run: EARLY)
    monkeypatch.setattr(autoguidance, "reference_images", lambda info, split: range(99))
    monkeypatch.setattr(autoguidance, "some_of", lambda images, most: images[:most])
    monkeypatch.setattr(autoguidance, "reconstructed", lambda *images: None)
    monkeypatch.setattr(autoguidance, "kernel_distance", lambda drawn_ND, real_ND: (0.0, 0.0))
    drawings: Any = SimpleNamespace(
        subject=SimpleNamespace(run=Path("run"), info=None, codec=None), batch_size=16, accelerator=None,
        seen=lambda batches, total, doing: torch.zeros(total, 3),
        tokens=lambda one, images, seed: one,
        features_and_detail=lambda one, total, guided: (torch.zeros(total, 3), details[one]),
        bits=lambda one, total: bits[one],
    )  # fmt: skip
    best, tried = search_autoguidance(drawings)
    assert [round(one.score.flat * 48) for one in tried] == [0, 2, 48, 0, 0, 0, 0]
    assert best == guided[0]
