from pathlib import Path
from typing import Any

import pytest

from shared.data.labels.classes import (
    NoClasses,
    classes_of,
    label_column,
    label_columns,
    looks_like_classes,
)
from shared.errors import UserError


@pytest.mark.parametrize(
    ("values", "labels", "names"),
    [
        (["b", "a", "b"], [1, 0, 1], ["a", "b"]),
        ([10, 9, 10], [1, 0, 1], ["9", "10"]),
        ([2.0, 1.0, 2.0], [1, 0, 1], ["1", "2"]),
        ([True, False, True], [1, 0, 1], ["False", "True"]),
        (["10", "9", "10"], [1, 0, 1], ["9", "10"]),
        (["10.0", "2.0", "9.0"], [2, 0, 1], ["2", "9", "10"]),  # as pandas writes integers beside a gap
        (["1.0", "1.5"], [0, 1], ["1.0", "1.5"]),  # versions, say
        ([-1, 1, -1], [0, 1, 0], ["-1", "1"]),  # no and yes, as CelebA has it
        (["-1", "1", "1"], [0, 1, 1], ["-1", "1"]),
        ([-2, -1, 0], [0, 1, 2], ["-2", "-1", "0"]),
        (["007", "10", "9"], [0, 1, 2], ["007", "10", "9"]),  # a name: "7" would be another
        ([b"cat", b"dog"], [0, 1], ["cat", "dog"]),
    ],
)
def test_classes_of_any_type_that_names_things(values: list[Any], labels: list[int], names: list[str]) -> None:
    assert classes_of(values) == (labels, names)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([0.5, 1.0], "0.5 is a float"),
        ([[1], [2]], "is a list"),
        ([2, None, -1], "2 of 3 values are missing"),
        (["-1", "0", "1"], "1 of 3 values are missing"),
        ([-1, -1], "2 of 2 values are missing"),
        (["-1", "cat"], "1 of 2 values are missing"),
        ([None, -1, 1], "1 of 3 values are missing"),
        (["a", ""], "1 of 2 values are missing"),
        ([1.0, float("nan")], "1 of 2 values are missing"),
    ],
)
def test_what_names_nothing_is_no_class(values: list[Any], why: str) -> None:
    with pytest.raises(NoClasses, match=why):
        classes_of(values)


def test_a_column_could_be_classes_if_its_values_come_again() -> None:
    assert looks_like_classes(["a", "b", "a", "b"])
    assert not looks_like_classes(["a", "b", "c", "d"])  # names or captions
    assert not looks_like_classes([0.1, 0.2, 0.1, 0.2])
    assert not looks_like_classes(["a"] * 4)


def test_likely_columns_come_first() -> None:
    assert label_columns(["width", "fine_label", "Class", "text", "label"]) == ["label", "Class", "fine_label"]


def test_the_label_column_is_chosen_by_name() -> None:
    path = Path("x.csv")
    assert label_column(["id", "breed"], "id", None, path) == "breed"
    assert label_column(["id", "text", "label"], "id", None, path) == "label"
    assert label_column(["id", "text", "label"], "id", "text", path) == "text"
    with pytest.raises(UserError, match=r"which column of x.csv is the class\? Set data.label to one of a, b"):
        label_column(["id", "a", "b"], "id", None, path)
    with pytest.raises(UserError, match="no label column 'c': set data.label to one of a, b"):
        label_column(["id", "a", "b"], "id", "c", path)
