"""Sizes that are tried: whole patches, about as many pixels whatever the ratio, never larger than the pictures."""

from hypothesis import given
from hypothesis import strategies as st

from planning.choice.shape import needed, shape_of, shapes
from tests.planning.samples import MACHINE, pictures


@given(st.sampled_from([16, 24, 32, 48, 64, 96, 128, 256]), st.floats(0.25, 4))
def test_a_shape_has_whole_patches_and_about_the_pixels_and_the_ratio(size: int, ratio: float) -> None:
    shape = shape_of(size, ratio)
    assert shape.height % shape.patch == shape.width % shape.patch == 0
    assert shape.tokens * shape.patch**2 == shape.pixels
    assert 0.7 < shape.pixels / size**2 < 1.4
    assert 0.7 < shape.width / shape.height / ratio < 1.45


def test_no_larger_than_the_pictures_are() -> None:
    assert [shape.height for shape in shapes(pictures(height=70, width=80), MACHINE)] == [64, 48]
    assert [shape.height for shape in shapes(pictures(height=20, width=20), MACHINE)] == [16]
    assert [shape.height for shape in shapes(pictures(height=5, width=5), MACHINE)] == [16]
    assert [shape.height for shape in shapes(pictures(height=5, width=5, drawn=True), MACHINE)] == [96, 64, 48]


def test_few_pictures_need_less() -> None:
    assert needed(pictures(distinct=50)) == (5_000, 5_000)
    assert needed(pictures()) == (20_000, 30_000)
