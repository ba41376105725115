"""How hours divide: all of them, with no grid tokenized in vain."""

from dataclasses import asdict, replace

import pytest

from planning.choice.budget import (
    CACHING,
    DECODER,
    DRAWING,
    FEW_DECODED,
    MOST_CACHING,
    MOST_DECODER,
    MOST_DRAWING,
    MOST_SEARCH,
    SEARCH,
    SEARCHED,
    SEEN,
    TOKENIZER,
    divide,
    searching,
    tokenized,
)
from planning.survey.pace import Rates
from tests.planning.samples import MACHINE, pictures


@pytest.mark.parametrize("hours", [0.1, 0.5, 2, 24])
@pytest.mark.parametrize("train", [20, 3_000, 31_759, 10_000_000])
@pytest.mark.parametrize("rates", [Rates(39, 12, 20), Rates(130, 45, 60), Rates(4_000, 900, 900)])
def test_no_more_is_tokenized_than_a_prior_learns_from(hours: float, train: int, rates: Rates) -> None:
    def grids(used: int, views: int) -> float:
        return rates.grids * divide(3600 * hours, rates, MACHINE, all_of_them.limited(used), views).prior

    def fits(used: int, views: int) -> bool:
        seconds = used * views / (CACHING * rates.images)
        seen = SEEN if views > 1 else 1
        return used * views * seen <= grids(used, views) and seconds <= MOST_CACHING * 3600 * hours

    all_of_them = pictures(train=train)
    used, views = tokenized(3600 * hours, rates, MACHINE, all_of_them, 4)
    assert fits(used, views)
    if used == train:
        assert views == max(views for views in range(1, 5) if fits(train, views))  # as many views as there is time for
    else:
        assert views == 1
        assert not fits(train, 1)
        assert used >= 0.9 * max(count for count in range(1, train, max(1, train // 1000)) if fits(count, 1))


def test_an_end_is_left_for_however_short_the_hours_are() -> None:
    for hours in (0.02, 0.1, 1, 10):
        budget = divide(3600 * hours, Rates(40, 18, 20), MACHINE, pictures(), 1)
        assert budget.total == pytest.approx(3600 * hours)
        assert min(asdict(budget).values()) > 0


@pytest.mark.parametrize(
    ("hours", "search"),
    [(0.14, 0), (0.15, MOST_SEARCH * 540), (1, SEARCH + SEARCHED / 18), (24, SEARCH + SEARCHED / 18)],
)
def test_how_to_draw_is_searched_for_where_the_hours_are_long_enough(hours: float, search: float) -> None:
    budget = divide(3600 * hours, Rates(40, 18, 20), MACHINE, pictures(), 1)
    assert budget.ending == pytest.approx(min(DRAWING, MOST_DRAWING * 3600 * hours) + search)


def test_fast_machines_search_too() -> None:
    assert searching(3600, Rates(4_000, 900, 900)) == pytest.approx(SEARCH + SEARCHED / 900)


@pytest.mark.parametrize(("hours", "share"), [(0.25, MOST_DECODER), (0.6, None), (2, DECODER)])
def test_a_decoder_sees_enough_images_where_that_is_not_most_of_the_hours(hours: float, share: float | None) -> None:
    """share: of the training; None: as much as those images take."""
    rates = Rates(40, 18, 20)
    budget = divide(3600 * hours, rates, MACHINE, pictures(), 1)
    training = budget.tokenizer + budget.decoder + budget.prior
    assert budget.decoder == pytest.approx(share * training if share else FEW_DECODED / rates.decoded)
    assert budget.tokenizer == pytest.approx(TOKENIZER * training)


def test_what_a_small_tokenizer_does_not_need_is_the_priors() -> None:
    short, long = (divide(3600 * hours, Rates(40, 18, 20), MACHINE, pictures(), 1) for hours in (2, 8))
    assert (short.tokenizer + short.decoder) / short.prior == pytest.approx(0.38 / 0.62)
    assert long.tokenizer == 120_000 / 40
    assert long.decoder / (long.prior + long.tokenizer + long.decoder) == pytest.approx(0.15)
    graphics = replace(MACHINE, kind="cuda")
    assert divide(3600 * 8, Rates(40, 18, 20), graphics, pictures(), 1).tokenizer > 2 * long.tokenizer
