from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from shared.data.config import DataConfig
from shared.data.open import open_source
from shared.data.pictures.decode import UnreadableImage
from shared.data.sources.source import ImageSource
from shared.errors import UserError
from tests.support.pictures import encoded, picture

if TYPE_CHECKING:
    import datasets


def open_(source: Path | str, **options: object) -> ImageSource:
    return open_source(DataConfig(**dict(source=str(source), image_size=16, max_bad_fraction=0.5) | options))


def table(**columns: list[Any]) -> "datasets.Dataset":
    import datasets

    images = [encoded(picture(colour=(index * 20, 0, 0))) for index in range(4)]
    return datasets.Dataset.from_dict({"image": [{"bytes": data, "path": None} for data in images], **columns})


def check(source: ImageSource, labels: list[int] | None, class_names: list[str] | None) -> None:
    assert [source[index].getpixel((0, 0)) for index in range(4)] == [(0, 0, 0), (20, 0, 0), (40, 0, 0), (60, 0, 0)]
    assert (source.labels and list(source.labels), source.class_names) == (labels, class_names)


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("hf")))
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path_factory.mktemp("tessera")))


def test_parquet_folder_with_string_labels(tmp_path: Path) -> None:
    table(label=["b", "a", "b", "c"]).to_parquet(tmp_path / "train.parquet")
    check(open_(tmp_path), [1, 0, 1, 2], ["a", "b", "c"])


def test_parquet_of_plain_bytes(tmp_path: Path) -> None:
    import pandas

    images = [encoded(picture(colour=(index * 20, 0, 0))) for index in range(4)]
    pandas.DataFrame({"img": images, "text": list("abcd")}).to_parquet(tmp_path / "part.parquet")
    check(open_(tmp_path), None, None)


def test_saved_dataset_with_class_names_and_splits(tmp_path: Path) -> None:
    import datasets

    data = table(kind=[1, 0, 1, 1]).cast_column("image", datasets.Image())
    data = data.cast_column("kind", datasets.ClassLabel(names=["cat", "dog"]))
    data.save_to_disk(tmp_path / "one")
    check(open_(tmp_path / "one"), [1, 0, 1, 1], ["cat", "dog"])
    datasets.DatasetDict(test=data).save_to_disk(tmp_path / "several")
    check(open_(tmp_path / "several", split="test"), [1, 0, 1, 1], ["cat", "dog"])
    with pytest.raises(UserError, match=r"no split 'train'.*one of test"):
        open_(tmp_path / "several")


def test_table_columns_that_are_not_there(tmp_path: Path) -> None:
    table(label=[1, 0, 1, 1]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"no image column 'photo'.*one of image, label"):
        open_(tmp_path, image_column="photo")
    with pytest.raises(UserError, match=r"no label column 'kind'.*one of image, label"):
        open_(tmp_path, label_column="kind")
    with pytest.raises(UserError, match=r"split 'nope'.*train"):
        open_(tmp_path, split="nope")


def test_table_columns_of_the_wrong_type(tmp_path: Path) -> None:
    table(score=[0.5, 1.5, 2.5, 3.5]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"column 'score' .* not images"):
        open_(tmp_path, image_column="score")
    with pytest.raises(UserError, match=r"label column 'score' .* must hold numbers or names"):
        open_(tmp_path, label_column="score")


def test_empty_cell_is_unreadable(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_dict({"image": [None, encoded(picture())]}).cast_column("image", datasets.Image())
    data.save_to_disk(tmp_path)
    source = open_(tmp_path)
    assert source[1].size == (8, 6)
    with pytest.raises(UnreadableImage, match="empty"):
        source[0]
