"""A picture gets the label of the row that means it, and of no other."""

import unicodedata
from pathlib import Path

import pytest

from shared.data.labels.matching import FileLabels, file_column, match
from shared.errors import UserError


def matched(pictures: list[str], written: list[str], *, exactly: bool = False) -> dict[str, str]:
    found = match(pictures, written, exactly=exactly).of_N
    return {picture: written[row] for picture, row in zip(pictures, found, strict=True) if row is not None}


@pytest.mark.parametrize(
    ("picture", "row"),
    [
        ("x/1.png", "x/1.png"),
        ("x/1.png", "x/1"),
        ("x/1.png", "1.png"),
        ("x/1.png", "1"),
        ("x/1.png", "x/1.jpg"),
        ("x/1.png", "X/1.PNG"),
        ("x/1.png", "/home/me/x/1.png"),
        ("x/1.png", "C:/me/x/1.jpg"),
        ("deep/x/1.png", "x/1.png"),
        ("001.png", "1"),
        ("001.png", "1.0"),
        ("x/001.png", "1"),
        ("x/001.png", "x/1"),
        ("v1.5.png", "v1.5"),
        ("0a1b2c", "0a1b2c.jpg"),
    ],
)
def test_a_row_may_be_written_in_many_ways(picture: str, row: str) -> None:
    assert matched([picture, "other/z.png"], [row, "nothing"]) == {picture: row}


@pytest.mark.parametrize(
    ("picture", "row"),
    [("b/1.png", "a/1.png"), ("x1.png", "1.png"), ("10.png", "1"), ("a/1.png", "a"), ("v1.5.png", "v1")],
)
def test_another_name_is_another_picture(picture: str, row: str) -> None:
    assert matched([picture], [row]) == {}


def test_rows_of_one_folder_say_nothing_of_another() -> None:
    pictures = [f"{folder}/{number:03}.png" for folder in "ab" for number in range(6)]
    rows = [f"a/{number:03}.png" for number in range(6)]
    assert matched(pictures, rows) == {row: row for row in rows}


def test_the_most_exact_row_goes_first() -> None:
    pictures = ["1.png", "1.jpg", "01.png", "a/1.png"]
    assert matched(pictures, ["1.jpg", "1.png", "1", "a/1.png"]) == {
        name: name for name in ["1.png", "1.jpg", "a/1.png"]
    }
    assert matched(["1.png", "a/1.png"], ["/data/a/1.png", "/data/1.png"]) == {
        "1.png": "/data/1.png",
        "a/1.png": "/data/a/1.png",
    }


@pytest.mark.parametrize(
    ("pictures", "rows", "unclear"),
    [
        (["a/1.png", "b/1.png"], ["1.png"], 2),
        (["1.png"], ["x/1.png", "y/1.png"], 1),
        (["x/a/1.png", "y/a/1.png"], ["a/1.png"], 2),
        (["1.png", "1.jpg"], ["1"], 2),
        (["1.png"], ["2.png"], 0),
    ],
)
def test_what_could_be_several_is_none(pictures: list[str], rows: list[str], unclear: int) -> None:
    assert match(pictures, rows) == ([None] * len(pictures), unclear)


def test_exactly_means_the_whole_path() -> None:
    pictures = ["train/001.png", "002.png"]
    for row in ["001.png", "x/002.png", "b/train/001.png"]:
        assert matched(pictures, [row], exactly=True) == {}
    for row in ["train/001.png", "train/001", "Train/1", "/data/train/001.png", "D:/train/001.png"]:
        assert matched(pictures, [row], exactly=True) == {"train/001.png": row}


def test_composed_and_decomposed_letters_are_the_same() -> None:
    name = "caf\u00e9.png"
    for picture, row in [("NFC", "NFD"), ("NFD", "NFC")]:
        labels = FileLabels([{"f": unicodedata.normalize(row, name), "l": "x"}], "f", "l", "x.csv")  # type: ignore[arg-type]
        assert labels.of([unicodedata.normalize(picture, name)])[0] == ["x"]  # type: ignore[arg-type]


def test_a_name_in_a_western_code_page_is_found() -> None:
    labels = FileLabels([{"f": "caf\u00e9.png", "l": "x"}], "f", "l", "x.csv")
    assert labels.of([b"caf\xe9.png".decode(errors="surrogateescape")])[0] == ["x"]


def test_labels_by_file() -> None:
    rows = [{"f": name, "l": name} for name in ["./x/1.png", "y\\1.png"]] + [{"f": "3", "l": float("nan")}] * 2
    labels = FileLabels(rows, "f", "l", "x.csv", base="b/")
    assert labels.of(["b/x/1.png", "b/y/1.png", "b/3.png", "1.png"])[0] == ["./x/1.png", "y\\1.png", None, None]
    assert (len(labels), labels.example) == (3, "b/x/1.png")
    with pytest.raises(UserError, match="x.csv gives a two labels, 1 and 2"):
        FileLabels([{"f": "a", "l": 1}, {"f": "a", "l": 2}], "f", "l", "x.csv")


NAMES = [f"{number:03}.png" for number in range(6)]


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({"mask_file_name": NAMES, "file_name": ["x"] * 6}, "file_name"),
        ({"id": [f"n{number}" for number in range(6)], "name": list("abcdef"), "photo": NAMES}, "photo"),
        ({"label": [0, 1] * 3, "id": range(6)}, "id"),
        ({"label": list("ab") * 3, "Filename": NAMES}, "Filename"),
        ({"breed": ["a"] * 6, "id": list("uvwxyz")}, "id"),  # names none, and is called so
    ],
)
def test_the_column_of_files_is_the_one_that_names_pictures(columns: dict[str, list[object]], chosen: str) -> None:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    assert file_column(rows, NAMES, Path("x.csv")) == chosen


def test_a_table_without_names_of_pictures_or_columns_is_refused() -> None:
    with pytest.raises(UserError, match=r"no column of x.csv names the pictures \(it has a, b\)"):
        file_column([{"a": "1", "b": "z"}], ["cat.png"], Path("x.csv"))
    with pytest.raises(UserError, match="the first line of x.csv is a row"):
        file_column([{"000.png": "001.png", "cat": "dog"}], NAMES, Path("x.csv"))
