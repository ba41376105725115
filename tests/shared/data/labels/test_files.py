"""Rows are read from every kind of file that people keep labels in."""

import json
from pathlib import Path

import pytest

from shared.data.labels.files import NoRows, columns_of, read_rows

ROWS = [{"file_name": "a.png", "label": "cat"}, {"file_name": "b/c.png", "label": "dog"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "file_name,label\na.png,cat\nb/c.png,dog\n"),
        ("x.csv", "\ufefffile_name;label\r\na.png; cat\r\nb/c.png;dog\r\n"),  # as a spreadsheet saves it
        ("x.tsv", "file_name\tlabel\na.png\tcat\nb/c.png\tdog\n"),
        ("x.txt", "file_name,label\na.png,cat\nb/c.png,dog\n"),
        ("x.txt", "2\nlabel\na.png   cat\nb/c.png dog\n"),  # as CelebA has it
        ("x.txt", "file_name label\na.png cat\nb/c.png dog"),
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
        ("x.csv", "", "no rows"),
        ("x.csv", "one\n1\n", "one column"),
        ("x.jsonl", "{", "Expecting"),
        ("x.json", "3", "does not hold rows"),
        ("x.xlsx", "", r"none of \.csv"),
        ("x.parquet", "x", "Parquet"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, name: str, text: str, why: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(NoRows, match=why):
        read_rows(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8", "cp1252"])
def test_text_in_the_encodings_of_spreadsheets(tmp_path: Path, encoding: str) -> None:
    text = ("\ufeff" if encoding == "utf-16-le" else "") + "file_name,label\na.png,\u00e9pagneul\n"
    (tmp_path / "x.csv").write_bytes(text.encode(encoding))
    assert read_rows(tmp_path / "x.csv") == [{"file_name": "a.png", "label": "\u00e9pagneul"}]


def test_a_caption_may_hold_other_separators_of_lines(tmp_path: Path) -> None:
    rows = [{"file_name": "a.png", "label": 1, "caption": "one\u2028two\x85three"}]
    (tmp_path / "x.jsonl").write_text(json.dumps(rows[0], ensure_ascii=False), encoding="utf-8")
    assert read_rows(tmp_path / "x.jsonl") == rows


def test_columns_are_those_of_all_rows() -> None:
    assert columns_of([{"file": "a"}, {"file": "b", "label": 1}]) == ["file", "label"]


def test_fields_without_a_column_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(",file,label\n0,a.png,cat,more\n")
    assert read_rows(tmp_path / "x.csv") == [{"file": "a.png", "label": "cat"}]


def test_large_columns_of_parquet_are_not_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = {"file_name": ["a"], "label": [b"cat"], "embedding": [[0.5] * 9], "bytes": [b"x"], "box": [{"x": 1}]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "x.parquet")
    assert read_rows(tmp_path / "x.parquet") == [{"file_name": "a", "label": b"cat"}]
