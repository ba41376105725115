"""The search for settings: scores against their parts, and what is kept of candidates."""

from typing import Any

import pytest
import torch

from shared.reporting.set_distances import kernel_distance
from stage2_prior.decoding.settings import DrawingSettings
from stage2_prior.judging.search import SIMPLER, Guided, Judge, Score, Search, changed, likeliest, strengths


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


class Scripted(Search):
    """Scores settings by a table; 1 where it has none."""

    table: dict[tuple[str, int], Score]

    def __init__(self, table: dict[tuple[str, int], Score]) -> None:
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "images", 12)

    def _judge(self) -> Any:
        return self

    def _drawn(self, guided: Guided, images: int, seed: int) -> Any:
        return str(guided), seed

    def _features(self, drawn: Any, total: int, guided: Guided) -> Any:
        return drawn

    def score(self, drawn: Any) -> Score:
        return self.table.get(drawn, Score(1.0, 0.5))

    def _changes(self, first: DrawingSettings) -> Any:
        yield [{"sampling": {"temperature": value}} for value in (0.9, 0.8)]
        yield [{"sampling": {"top_p": 0.9}}]


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
    scores: dict[tuple[str, int], Score], best: str
) -> None:
    found, tried = Scripted(scores).run(Guided(DrawingSettings()))
    assert str(found) == best
    assert len({(str(guided), seed) for guided, _, seed, _ in tried}) == len(tried)  # nothing twice


EARLY_ONES = ["early-0.03.safetensors", "early-0.1.safetensors"]


def test_later_weights_are_tried_with_a_stronger_autoguidance_too() -> None:
    assert [str(guided) for guided in strengths(EARLY_ONES)] == [
        PLAIN,
        "top_p 0.98, autoguidance 1.5 from early-0.03",
        "top_p 0.95, autoguidance 2.0 from early-0.03",
        "top_p 0.98, autoguidance 1.5 from early-0.1",
        "top_p 0.95, autoguidance 2.0 from early-0.1",
        "top_p 0.98, autoguidance 3.0 from early-0.1",
    ]


def test_of_weights_whose_share_is_not_known_the_strongest_is_not_tried() -> None:
    of_one = [str(guided) for guided in strengths(["early.safetensors"])]
    assert of_one == [PLAIN, "top_p 0.98, autoguidance 1.5", "top_p 0.95, autoguidance 2.0"]
    assert len(strengths(["early-0.1.safetensors"])) == 4


@pytest.mark.parametrize("best", range(6))
def test_what_is_likeliest_is_kept_of_what_is_near_real_images(best: int) -> None:
    tried = strengths(EARLY_ONES)
    scores = [Score(0.05 + 0.9 * SIMPLER, bits=5.0), *[Score(0.05 + 0.9 * SIMPLER, bits=5.0)] * 5]
    scores[0] = Score(0.05, bits=5.5)
    scores[best] = scores[best]._replace(bits=4.0)
    for too_far in {1, 2, 3, 4, 5} - {best, 5}:
        scores[too_far] = Score(0.05 + 1.1 * SIMPLER, bits=3.0)
    by_name = {str(guided): found for guided, found in zip(tried, scores, strict=True)}
    assert likeliest(tried, lambda guided: by_name[str(guided)]) == tried[best]
