"""Classes are the folders or the rows that speak of them, and whatever is not used is said."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from shared.data.config import DataConfig
from shared.data.labels.classes import NO_CLASSES
from shared.data.sources.folder_labels import FolderClasses, classes_in, folder_classes, without_strays
from shared.data.sources.walk import Walk
from shared.errors import UserError


def pictures(*folders: str, each: int = 10) -> list[str]:
    return [f"{folder}/{number:03}.png" for folder in folders for number in range(each)]


def labelled(folder: Path, names: Sequence[str], **options: str) -> FolderClasses:
    """The classes of these names, beside whatever files `folder` has at its top."""
    metadata = sorted(file.name for file in folder.iterdir() if file.name.startswith("metadata."))
    found = Walk(folder, pictures=list(names), metadata=metadata)
    return classes_in(found, names, names, DataConfig(source=str(folder), **options))  # type: ignore[arg-type]


def said(classes: FolderClasses) -> str:
    return "; ".join(classes.notes)


# Folders


@pytest.mark.parametrize("above", ["", "images/", "data/images/"])
def test_a_few_stray_pictures_do_not_take_the_classes(tmp_path: Path, above: str) -> None:
    names = [f"{above}stray.png", *pictures(f"{above}cat", f"{above}dog")]
    classes = labelled(tmp_path, names)
    assert (classes.classes.class_names, classes.classes.labels) == (["cat", "dog"], [0] * 10 + [1] * 10)
    assert list(classes.kept) == list(range(1, 21))
    assert f"1 image lies beside the folders of the classes and is left out: {above}stray.png" in said(classes)


def test_strays_at_several_levels_count_together(tmp_path: Path) -> None:
    names = ["a.png", "images/b.png", *pictures("images/cat", "images/dog", each=30)]
    classes = labelled(tmp_path, names)
    assert classes.classes.class_names == ["cat", "dog"]
    assert list(classes.kept) == list(range(2, 62))
    assert "2 images lie beside the folders of the classes and are left out: a.png, images/b.png" in said(classes)


def test_many_pictures_beside_the_folders_mean_no_classes(tmp_path: Path) -> None:
    names = [*pictures("cat", "dog", each=19), "1.png", "2.png"]  # exactly a twentieth
    assert labelled(tmp_path, names).classes.class_names == ["cat", "dog"]
    classes = labelled(tmp_path, [*names, "3.png"])
    assert classes.classes == NO_CLASSES
    assert len(classes.kept) == 41
    assert "no classes: 3 images lie beside the sub-folders, not in one" in said(classes)
    assert folder_classes(["a/1.png", "2.png"])[1] == ["no classes: 1 image lies beside the sub-folders, not in one"]


@pytest.mark.parametrize(
    "names", [pictures("cat", each=40), ["1.png", *pictures("cat", each=40)], ["1.png"] * 40, pictures("cat", "dog")]
)
def test_nothing_is_left_out_where_that_gives_no_classes(names: list[str]) -> None:
    assert list(without_strays(names)[0]) == list(range(len(names)))


@pytest.mark.parametrize(("above", "stray"), [("", []), ("", ["preview.png"]), ("laion/", []), ("train/", ["x.png"])])
@pytest.mark.parametrize("noted", [".parquet", "_stats.json"])
def test_parts_of_a_download_are_no_classes(tmp_path: Path, above: str, stray: list[str], noted: str) -> None:
    names = [*pictures(f"{above}00000", f"{above}00001", each=20), *stray]
    found = Walk(tmp_path, pictures=names, tables=[f"{above}00000{noted}", f"{above}00001{noted}"])
    rest = [name.removeprefix("train/") for name in names]
    classes = classes_in(found, names, rest, DataConfig(source=str(tmp_path)))
    assert classes.classes == NO_CLASSES
    assert len(classes.kept) == len(names)
    assert f"{above}00000, {above}00001 are parts of a download, not classes" in said(classes)
    taken = classes_in(found, names, rest, DataConfig(source=str(tmp_path), labels="folders"))
    assert taken.classes.class_names == ["00000", "00001"]


# Files


def test_labels_of_one_folder_are_not_given_to_another(tmp_path: Path) -> None:
    rows = "".join(f"a/{number:03}.png,{'xy'[number % 2]}\n" for number in range(6))
    (tmp_path / "labels.csv").write_text(f"file,label\n{rows}")
    classes = labelled(tmp_path, pictures("a", "b", each=6), labels="labels.csv")
    assert list(classes.kept) == list(range(6))
    assert classes.classes == ([0, 1] * 3, ["x", "y"])


def test_rows_that_could_mean_several_pictures_are_counted(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label\n000.png,x\n001.png,y\n")
    names = ["a/000.png", "b/000.png", "a/001.png"]
    classes = labelled(tmp_path, names, labels="labels.csv")
    assert list(classes.kept) == [2]
    assert "2 images have the name of a row that others share" in said(classes)
    with pytest.raises(UserError, match=r"no row of .*labels.csv names an image: .* 2 images have the name of a row"):
        labelled(tmp_path, names[:2], labels="labels.csv")


def test_pictures_whose_label_is_missing_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").write_text(
        '{"file": "000.png"}\n{"file": "001.png", "label": NaN}\n{"file": "002.png", "label": 3}\n'
    )
    classes = labelled(tmp_path, ["000.png", "001.png", "002.png"], labels="labels.jsonl")
    assert (list(classes.kept), classes.classes) == ([2], ([0], ["3"]))
    with pytest.raises(UserError, match="all values are missing"):
        labelled(tmp_path, ["000.png", "001.png"], labels="labels.jsonl")


def test_a_file_that_is_asked_for_and_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("just a note\n")
    with pytest.raises(UserError, match=r"the labels in .*labels.csv cannot be read: it has no rows"):
        labelled(tmp_path, ["000.png"], labels="labels.csv")


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("metadata.csv", "", "it has no rows"),
        ("metadata.csv", "note\nhello\n", "it has one column"),
        ("metadata.csv", "who,when\nme,today\n", "no column of .* names the pictures"),
        ("metadata.csv", "file_name,label\ncat/000.png,a\ncat/000.png,b\n", "it gives cat/000.png two labels"),
        ("metadata.jsonl", "[1]\n", "it does not hold rows"),
        ("metadata.parquet", "x", "Parquet"),
    ],
)
def test_a_metadata_file_of_another_kind_is_only_noted(tmp_path: Path, name: str, text: str, why: str) -> None:
    (tmp_path / name).write_text(text)
    names = pictures("cat", "dog")
    classes = labelled(tmp_path, names)
    assert classes.classes.class_names == ["cat", "dog"]
    assert f"{name} not used: " in said(classes)
    with pytest.raises(UserError, match=f"data.label=label: {name} cannot be used: .*{why}"):
        labelled(tmp_path, names, label="label")


@pytest.mark.parametrize("files", ["file_name", "filename", "photo"])
def test_metadata_with_absolute_paths_and_any_column_of_files(tmp_path: Path, files: str) -> None:
    names = pictures("cat", "dog", each=2)
    rows = "".join(f"{tmp_path}/{name},{label}\n" for name, label in zip(names, "xyxy", strict=True))
    (tmp_path / "metadata.csv").write_text(f"{files},label\n{rows}")
    assert labelled(tmp_path, names).classes == ([0, 1, 0, 1], ["x", "y"])


def test_columns_of_signs_in_metadata_are_said(tmp_path: Path) -> None:
    rows = "".join(f"{number}.png,{(-1) ** number},1\n" for number in range(6))
    (tmp_path / "metadata.csv").write_text(f"image_id,Smiling,Male\n{rows}")
    names = [f"{number}.png" for number in range(6)]
    assert "metadata.csv: not used as classes: Smiling (data.label=Smiling)" in said(labelled(tmp_path, names))
    assert labelled(tmp_path, names, label="Smiling").classes == ([1, 0] * 3, ["-1", "1"])


def test_a_metadata_row_in_json_may_lack_the_label(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{"file_name": "b.png", "label": 1}\n')
    classes = labelled(tmp_path, ["a.png", "b.png"])
    assert "column 'label' of metadata.jsonl not used: 1 of 2 images have no label there" in said(classes)
    assert labelled(tmp_path, ["b.png"]).classes == ([0], ["1"])


def test_tables_at_any_depth_are_named(tmp_path: Path) -> None:
    tables = ["annotations/labels.csv", "notes.json", "train/_classes.csv", "x/dataset.json", "y.tsv"]
    found = Walk(tmp_path, labels=tables)
    notes = said(classes_in(found, ["a.png"], ["a.png"], DataConfig(source=str(tmp_path))))
    assert "annotations/labels.csv, train/_classes.csv, x/dataset.json and 1 more not read (data.labels=" in notes
