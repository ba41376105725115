"""What is timed to make a plan: nothing twice, and nothing that cannot change the choice."""

from typing import Any

import pytest

from planning.choice.shape import Shape
from planning.choice.stage import STAGES, Stage
from tests.planning.samples import plan_of

Timed = list[tuple[Stage, Shape, int]]


@pytest.mark.parametrize("of_pictures", [{}, {"train": 300, "distinct": 300}, {"train": 40_000, "distinct": 40_000}])
@pytest.mark.parametrize("hours", [0.1, 0.5, 2, 8, 50])
def test_all_stages_are_timed_at_the_shape_that_is_chosen_and_hardly_any_elsewhere(
    hours: float, of_pictures: dict[str, Any]
) -> None:
    timed: Timed = []
    plan = plan_of(hours, timed=timed, **of_pictures)
    assert len(set(timed)) == len(timed)
    assert [stage for stage in STAGES for known, shape, _ in timed if (known, shape) == (stage, plan.shape)][:2] == [
        "tokenizer", "decoder",
    ]  # fmt: skip
    assert ("prior", plan.shape, plan.size.width) in timed
    ruled_out = [stage for stage, shape, _ in timed if shape != plan.shape]
    assert len(ruled_out) <= 1 + len(STAGES)
    assert timed[0][0] == "prior"


def test_a_prior_of_few_tokens_is_timed_first_and_rules_out_what_has_more() -> None:
    timed: Timed = []
    plan = plan_of(0.5, timed=timed)
    assert [shape for _, shape, _ in timed] == [plan.shape] * len(timed)
    assert [stage for stage, _, _ in timed[:3]] == ["prior", "tokenizer", "decoder"]


def test_of_fewer_tokens_than_are_chosen_a_prior_alone_is_timed() -> None:
    timed: Timed = []
    plan = plan_of(8, timed=timed)
    assert [stage for stage, shape, _ in timed if shape.tokens < plan.shape.tokens] == ["prior"]
