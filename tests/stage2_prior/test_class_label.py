import pytest

from shared.errors import UserError
from stage2_prior.class_label import class_label, class_labels

NAMES = ["cat", "caf\udce9", "0"]


@pytest.mark.parametrize(
    ("wanted", "label"), [(None, None), ("cat", 0), ("caf\udce9", 1), ("caf\\xe9", 1), ("1", 1), ("0", 2)], ids=ascii
)
def test_a_class_is_asked_for_by_name_as_it_is_or_is_shown_or_by_number(wanted: str | None, label: int | None) -> None:
    assert class_label(wanted, NAMES) == label


def test_a_class_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(UserError, match=r"class dog: there is no such class; known are 0 cat, 1 caf\\xe9, 2 0"):
        class_label("dog", NAMES)


def test_a_class_label_for_an_unlabelled_prior_is_refused() -> None:
    with pytest.raises(UserError, match="trained without classes"):
        class_label("faces", None)


def test_several_classes_or_all() -> None:
    assert class_labels([], NAMES) == {}
    assert class_labels([NAMES[2], "cat"], NAMES) == {NAMES[2]: 2, "cat": 0}
    assert class_labels(["all"], NAMES) == {name: number for number, name in enumerate(NAMES)}
    assert class_labels(["all"], ["one", "all"]) == {"all": 1}  # a class of that name comes first
    with pytest.raises(UserError, match="trained without classes"):
        class_labels(["all"], None)
