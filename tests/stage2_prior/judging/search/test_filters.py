"""The search for temperature, top-p and guidance: scores against their parts, and what is kept of candidates."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shared.reporting.set_distances import kernel_distance
from stage2_prior.decoding.settings import USUAL, DrawingSettings
from stage2_prior.judging.search import filters
from stage2_prior.judging.search.filters import SCALES, Judge, changed, changes_from, search_filters
from stage2_prior.judging.search.tried import Guided, Score


def test_a_score_is_the_distance_from_unseen_images_and_the_chance_of_a_copy() -> None:
    training_MD, held_out_HD = torch.randn(30, 5), torch.randn(20, 5)
    judge = Judge([training_MD, training_MD.flip(1)], held_out_HD)
    copies = judge.score(training_MD[:12])
    assert copies.copying == 1
    assert judge.score(training_MD[:12].flip(1)).copying == 1  # of another view
    assert copies.distance == pytest.approx(kernel_distance(training_MD[:12], held_out_HD)[0])
    assert judge.score(held_out_HD).copying == 0.5


def test_a_change_leaves_the_other_settings() -> None:
    settings = changed(changed(DrawingSettings(), {"sampling": {"temperature": 0.8}}), {"guidance": {"scale": 2.0}})
    assert str(settings) == "temperature 0.8, guidance scale 2.0"
    assert str(changed(settings, {"sampling": {"top_p": 0.9}})) == "temperature 0.8, top_p 0.9, guidance scale 2.0"


def test_guidance_is_tried_towards_classes_and_not_beside_autoguidance() -> None:
    scales = [{"guidance": {"scale": scale}} for scale in SCALES]
    assert list(changes_from(DrawingSettings(), towards_classes=True))[2:] == [scales]
    assert len(list(changes_from(DrawingSettings(), towards_classes=False))) == 2
    assert len(list(changes_from(USUAL, towards_classes=True))) == 2


PLAIN, WARM, COLD = "temperature 1.0", "temperature 0.9", "temperature 0.8"


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({}, PLAIN),
        ({(WARM, 0): Score(0.5, 0.5), (WARM, 1): Score(0.9, 0.5)}, WARM),
        ({(WARM, 0): Score(0.5, 0.5), (WARM, 1): Score(1.0, 0.5)}, PLAIN),  # by luck
        ({(WARM, 0): Score(0.5, 0.6), (COLD, 0): Score(0.9, 0.51), (COLD, 1): Score(0.9, 0.51)}, COLD),  # no copies
        (
            {
                (WARM, 0): Score(0.5, 0.5),
                (f"{WARM}, top_p 0.9", 0): Score(0.4, 0.5),
                (f"{WARM}, top_p 0.9", 1): Score(0.4, 0.5),
            },
            f"{WARM}, top_p 0.9",
        ),
    ],
)
def test_the_best_that_copies_no_more_is_kept_if_it_is_so_again(
    scores: dict[tuple[str, int], Score], best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """scores: of settings and a seed; what is not there is 1 from real images, and no copy."""
    monkeypatch.setattr(filters, "TEMPERATURES", (0.9, 0.8))
    monkeypatch.setattr(filters, "TOP_PS", (0.9,))
    drawings: Any = SimpleNamespace(
        towards_classes=False,
        tokens=lambda guided, images, seed: (str(guided), seed),
        features=lambda drawn, total, guided: drawn,
    )
    judge: Any = SimpleNamespace(score=lambda drawn: scores.get(drawn, Score(1.0, 0.5)))
    found, tried = search_filters(drawings, judge, Guided(DrawingSettings()), images=12)
    assert str(found) == best
    assert len({(str(guided), seed) for guided, _, seed, _ in tried}) == len(tried)  # nothing twice
