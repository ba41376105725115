"""Sizes that are tried: whole patches, about as many pixels whatever the ratio, never larger than the pictures."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from planning.choice.shape import SHAPES, SMALLER, needed, shape_of, shapes
from tests.planning.samples import MACHINE, pictures

SIZES = [
    *(shape for kind in SHAPES.values() for shape in kind),
    *SMALLER,
    *((size, 2 * patch) for size, patch in SMALLER),
]


@given(st.sampled_from(SIZES), st.floats(0.25, 4))
def test_a_shape_has_whole_patches_and_about_the_pixels_and_the_ratio(
    size_patch: tuple[int, int], ratio: float
) -> None:
    size, patch = size_patch
    shape = shape_of(size, patch, ratio)
    assert shape.patch == patch
    assert shape.height % shape.patch == shape.width % shape.patch == 0
    assert shape.tokens * shape.patch**2 == shape.pixels
    assert 0.7 < shape.pixels / size**2 < 1.4
    assert 0.7 < shape.width / shape.height / ratio < 1.45


def test_no_larger_than_the_pictures_are() -> None:
    def tried(**of_pictures: Any) -> list[tuple[int, int]]:
        return [(shape.height, shape.patch) for shape in shapes(pictures(**of_pictures), MACHINE)]

    assert tried(height=70, width=80) == [(64, 4), (64, 8)]
    assert tried(height=50, width=50) == [(48, 4), (48, 8)]
    assert tried(height=20, width=20) == [(16, 2), (16, 4)]
    assert tried(height=5, width=5) == [(16, 2), (16, 4)]
    assert tried(height=5, width=5, drawn=True) == [(96, 4), (96, 6), (64, 4), (96, 8), (64, 8)]


def test_few_pictures_need_less_and_few_tokens_fewer_grids() -> None:
    fine, coarse = shape_of(64, 4, 1), shape_of(96, 8, 1)
    assert needed(pictures(distinct=50), fine) == (5_000, 5_000)
    assert needed(pictures(), fine) == (12_000, 300 * 256)
    assert needed(pictures(), coarse) == (12_000, 300 * 144)


def test_the_most_tokens_are_tried_first() -> None:
    for kind in SHAPES.values():
        tokens = [shape_of(size, patch, 1).tokens for size, patch in kind]
        assert tokens == sorted(tokens, reverse=True)
