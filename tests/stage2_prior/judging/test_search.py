"""The search for settings: scores against their parts, and what is kept of candidates."""

from typing import Any

import pytest
import torch

from shared.reporting.set_distances import kernel_distance
from stage2_prior.decoding.settings import USUAL, DrawingSettings
from stage2_prior.judging.search import SIMPLER, Judge, Score, Search, changed, guided_or_not


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

    def _judge(self) -> Any:
        return self

    def _usual(self) -> DrawingSettings:
        return DrawingSettings()

    def _drawn(self, settings: DrawingSettings, seed: int) -> Any:
        return str(settings), seed

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
    found, tried = Scripted(scores).run()
    assert str(found) == best
    assert len({(settings.model_dump_json(), seed) for settings, seed, _ in tried}) == len(tried)  # nothing twice


@pytest.mark.parametrize(("guided", "kept"), [(0.0, USUAL), (0.9 * SIMPLER, USUAL), (1.1 * SIMPLER, DrawingSettings())])
def test_autoguidance_is_left_out_where_it_takes_drawings_far_from_real_images(
    guided: float, kept: DrawingSettings
) -> None:
    scores = {str(USUAL): Score(0.05 + guided), str(DrawingSettings()): Score(0.05)}
    assert guided_or_not(USUAL, lambda settings: scores[str(settings)]) == kept


def test_without_early_weights_there_is_no_autoguidance_to_leave_out() -> None:
    plain = DrawingSettings()
    assert guided_or_not(plain, lambda _: pytest.fail("nothing need be drawn")) == plain
