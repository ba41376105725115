import json
from pathlib import Path
from typing import Any

import pytest

from shared.data.sources.labels import (
    FileLabels,
    NoClasses,
    classes_of,
    file_column,
    label_column,
    label_columns,
    looks_like_classes,
    read_rows,
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
        ([1, None, -1], "2 of 3 values are missing"),
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


ROWS = [{"file_name": "a.png", "label": "cat"}, {"file_name": "b/c.png", "label": "dog"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "file_name,label\na.png,cat\nb/c.png,dog\n"),
        ("x.csv", "\ufefffile_name;label\r\na.png; cat\r\nb/c.png;dog\r\n"),  # as a spreadsheet saves it
        ("x.tsv", "file_name\tlabel\na.png\tcat\nb/c.png\tdog\n"),
        ("x.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n\n"),
        ("x.json", json.dumps(ROWS)),
        ("x.json", '{"a.png": "cat", "b/c.png": "dog"}'),
        ("x.json", '{"labels": [["a.png", "cat"], ["b/c.png", "dog"]]}'),
    ],
)
def test_rows_of_every_kind_of_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_rows(tmp_path / name) == ROWS


def test_rows_of_parquet(tmp_path: Path) -> None:
    import pandas

    pandas.DataFrame(ROWS).to_parquet(tmp_path / "x.parquet")
    assert read_rows(tmp_path / "x.parquet") == ROWS


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("x.csv", "", "has no rows"),
        ("x.csv", "one\n1\n", "one column"),
        ("x.jsonl", "{", "cannot be read"),
        ("x.json", "3", "does not hold rows"),
        ("x.xlsx", "", r"give a file of .*\.csv"),
        ("x.parquet", "x", "cannot be"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, name: str, text: str, why: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"x\..*{why}"):
        read_rows(tmp_path / name)


def test_columns_are_chosen_by_name() -> None:
    path = Path("x.csv")
    assert file_column(["id", "breed"], path) == "id"
    assert file_column(["label", "Filename"], path) == "Filename"
    assert label_column(["id", "breed"], "id", None, path) == "breed"
    assert label_column(["id", "text", "label"], "id", None, path) == "label"
    assert label_column(["id", "text", "label"], "id", "text", path) == "text"
    with pytest.raises(UserError, match=r"which column of x.csv is the class\? Set data.label to one of a, b"):
        label_column(["id", "a", "b"], "id", None, path)
    with pytest.raises(UserError, match="no label column 'c': set data.label to one of a, b"):
        label_column(["id", "a", "b"], "id", "c", path)
    with pytest.raises(UserError, match="no column of x.csv names the pictures"):
        file_column(["a", "b"], path)


def test_a_picture_is_found_by_path_stem_or_clear_name() -> None:
    rows = [{"f": name, "l": name} for name in ["./x/1.png", "y\\1.png", "two", "deep/er/3.png"]]
    labels = FileLabels(rows, "f", "l", "x.csv")
    assert labels.of("x/1.png") == "./x/1.png"
    assert labels.of("y/1.png") == "y\\1.png"
    assert labels.of("two.jpg") == "two"
    assert labels.of("other/3.png") == "deep/er/3.png"
    assert labels.of("z/1.png") is None  # two of that name
    assert labels.of("other/3.png", exactly=True) is None
    with pytest.raises(UserError, match="x.csv gives a two labels, 1 and 2"):
        FileLabels([{"f": "a", "l": 1}, {"f": "a", "l": 2}], "f", "l", "x.csv")
