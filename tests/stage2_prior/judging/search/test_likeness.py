"""The search for temperature, top-p and guidance: what is tried, and what is kept of candidates."""

from types import SimpleNamespace
from typing import Any

import pytest

from stage2_prior.decoding.settings import USUAL, DrawingSettings
from stage2_prior.judging.search import likeness
from stage2_prior.judging.search.likeness import SCALES, changed, changes_from, search_likeness
from stage2_prior.judging.search.tried import Guided, Score


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
    monkeypatch.setattr(likeness, "TEMPERATURES", (0.9, 0.8))
    monkeypatch.setattr(likeness, "TOP_PS", (0.9,))
    drawings: Any = SimpleNamespace(
        towards_classes=False,
        tokens=lambda guided, images, seed: (str(guided), seed),
        features=lambda drawn, total, guided: drawn,
    )
    judge: Any = SimpleNamespace(score=lambda drawn: scores.get(drawn, Score(1.0, 0.5)))
    found, tried = search_likeness(drawings, judge, Guided(DrawingSettings()), images=12)
    assert str(found) == best
    assert len({(str(guided), seed) for guided, _, seed, _ in tried}) == len(tried)  # nothing twice
