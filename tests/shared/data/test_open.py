"""What people bring, and the line that says what was understood of it."""

import io
import json
import logging
import shutil
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared.data.config import DataConfig
from shared.data.dataset import ImageDataset
from shared.data.open import open_datasets
from shared.data.sources.archive import read_archive
from shared.errors import UserError
from shared.text import shown
from tests.support.pictures import encoded

HEIC = struct.pack(">I", 24) + b"ftypheic" + struct.pack(">I", 0) + b"mif1heic" + bytes(400)


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("hf")))
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path_factory.mktemp("tessera")))


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the packages that read HEIC and JPEG XL are not installed."""
    from shared.data.pictures import decode, header, suffixes

    monkeypatch.setattr(header, "READABLE_SUFFIXES", suffixes.IMAGE_SUFFIXES)
    formats = {Image.EXTENSION[suffix] for suffix in suffixes.IMAGE_SUFFIXES & Image.EXTENSION.keys()}
    monkeypatch.setattr(decode, "FORMATS", tuple(formats))


def drawing(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8))


def folder(place: Path, count: int, first: int = 0, suffix: str = ".png") -> None:
    """Different pictures, numbered."""
    place.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        (place / f"{number:03}{suffix}").write_bytes(encoded(drawing(number)))


def found(source: Path, caplog: pytest.LogCaptureFixture, **options: Any) -> tuple[ImageDataset, ImageDataset, str]:
    """The sets, and the line that was said."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        train, held_out = open_datasets(DataConfig(source=str(source), image_size=8, **options), seed=0)
    (line,) = caplog.messages
    return train, held_out, line.removeprefix(f"{shown(str(source))}: ")


def names(dataset: ImageDataset) -> set[str]:
    return {dataset.source.names[index] for index in dataset.indices.tolist()}


def test_the_line_says_what_was_found_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, no_plugins: None
) -> None:
    for number, kind in enumerate(("cat", "dog", "fox")):
        folder(tmp_path / kind, 20, 100 * number)
    for number in range(7):
        (tmp_path / "cat" / f"{number}.HEIC").write_bytes(HEIC)
    (tmp_path / "fox" / "a.png").write_bytes(b"no picture")
    (tmp_path / "fox" / "a.txt").write_text("a fox")
    folder(tmp_path / "@eaDir", 4)
    _, _, line = found(tmp_path, caplog)
    assert line == (
        "60 images, 3 classes (cat, dog, fox); 57 train, 3 held out; left out: 7 HEIC (to read them: "
        "pip install pillow-heif), 4 in @eaDir, 1 unreadable (fox/a.png (not an image)); other files: 1 .txt"
    )


# Splits


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    for number, (split, count) in enumerate((("Train", 8), ("val", 3), ("test", 2))):
        for other, kind in enumerate(("cat", "dog")):
            folder(tmp_path / split / kind, count, 100 * number + 50 * other)
    return tmp_path


def test_splits_are_not_classes_and_training_uses_train(splits: Path, caplog: pytest.LogCaptureFixture) -> None:
    train, held_out, line = found(splits, caplog)
    assert train.source.class_names == ["cat", "dog"]
    assert len(train.source) == 16
    assert all(name.startswith("Train/") for name in train.source.names)
    assert names(train) | names(held_out) == set(train.source.names)
    assert "folders are splits: train (16), val (6), test (4); used: train (data.split)" in line
    for index, name in enumerate(train.source.names):
        assert train.source.labels[index] == ["cat", "dog"].index(name.split("/")[1])  # type: ignore[index]


@pytest.mark.parametrize("asked", ["test", "Testing"])
def test_measuring_uses_the_split_that_is_asked_for(splits: Path, caplog: pytest.LogCaptureFixture, asked: str) -> None:
    train, held_out, line = found(splits, caplog, held_out=asked)
    assert {name.split("/")[0] for name in names(held_out)} == {"test"}
    assert len(held_out) == 4
    assert len(train) == 16
    assert "16 train, 4 held out" in line
    both, held_out, _ = found(splits, caplog, split="train+val", held_out=asked)
    assert (len(both), len(held_out)) == (22, 4)


def test_splits_can_be_meant_as_classes(splits: Path, caplog: pytest.LogCaptureFixture) -> None:
    train, _, line = found(splits, caplog, labels="folders")
    assert train.source.class_names == ["Train", "test", "val"]
    assert line.startswith("26 images, 3 classes (Train, test, val)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "unseen"}, "no split 'unseen' (data.split): set it to one of test, train, val"),
        ({"held_out": "unseen"}, "no split 'unseen' (data.held_out)"),
        ({"split": "val", "held_out": "val"}, "leave nothing to train on"),
        ({"split": "val", "labels": "folders"}, "has no split 'val'"),
    ],
)
def test_splits_that_are_not_there(splits: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as error:
        open_datasets(DataConfig(source=str(splits), **options), seed=0)
    assert message in str(error.value)


# Files


def test_a_folder_of_which_most_is_left_out_is_refused(tmp_path: Path, no_plugins: None) -> None:
    folder(tmp_path, 4)
    for number in range(40):
        (tmp_path / f"IMG_{number}.HEIC").write_bytes(HEIC)
    with pytest.raises(UserError, match=r"most pictures .*40 HEIC \(to read them: pip install pillow-heif.*; 4 can"):
        open_datasets(DataConfig(source=str(tmp_path)), seed=0)


def test_a_jpeg_called_heic_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(10):
        (tmp_path / f"IMG_{number}.HEIC").write_bytes(encoded(drawing(number), "JPEG"))
    assert found(tmp_path, caplog)[2] == "10 images, no classes; 9 train, 1 held out"


def test_a_real_heic_is_read_where_the_package_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    for number in range(10):
        pillow_heif.from_pillow(Image.new("RGB", (64, 64), (20 * number, 90, 90))).save(tmp_path / f"{number}.heic")
    train, _, line = found(tmp_path, caplog)
    assert line.startswith("10 images, no classes; 9 train, 1 held out; 10 of 10 pictures looked at are one colour")
    assert abs(train.source[4].getpixel((5, 5))[0] - 80) <= 3  # type: ignore[index]


def test_camera_raws_are_not_taken_for_their_thumbnails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder(tmp_path, 10)
    (tmp_path / "a.NEF").write_bytes(encoded(drawing(0), "TIFF"))
    (tmp_path / "b.svg").write_text("<svg/>")
    (tmp_path / "c.nef").write_bytes(encoded(drawing(50), "JPEG"))  # is what its content is
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("a.NEF", "c.nef"):
            archive.add(tmp_path / name, name)
    assert [member.name for member in read_archive(tmp_path / "x.tar").members] == ["c.nef"]
    (tmp_path / "x.tar").unlink()
    _, _, line = found(tmp_path, caplog)
    assert line.startswith("11 images")
    assert "1 .nef (camera raw" in line
    assert "1 .svg (not read here" in line


def test_exact_copies_stay_on_one_side_and_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder(tmp_path, 20)
    for number in range(10):
        for copy in range(3):
            shutil.copy(tmp_path / f"{number:03}.png", tmp_path / f"copy {copy} of {number}.png")
    train, held_out, line = found(tmp_path, caplog, validation_fraction=0.3)
    contents = [{(tmp_path / name).read_bytes() for name in names(dataset)} for dataset in (train, held_out)]
    assert contents[0].isdisjoint(contents[1])
    assert "30 files are copies of others, byte for byte" in line


def test_copies_in_tables_and_shards_stay_on_one_side_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import datasets
    import pandas

    images = [encoded(drawing(number % 15)) for number in range(40)]
    (tmp_path / "parquet").mkdir()
    pandas.DataFrame({"image": images}).to_parquet(tmp_path / "parquet" / "a.parquet")
    cells = [{"bytes": image, "path": None} for image in images]
    datasets.Dataset.from_dict({"image": cells}).save_to_disk(tmp_path / "saved")
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "a.tar", "w") as archive:
        for number, image in enumerate(images):
            entry = tarfile.TarInfo(f"{number}.png")
            entry.size = len(image)
            archive.addfile(entry, io.BytesIO(image))
    for kind in ("parquet", "saved", "shards"):
        train, held_out, line = found(tmp_path / kind, caplog, validation_fraction=0.3)
        sides = [{number % 15 for number in dataset.indices.tolist()} for dataset in (train, held_out)]
        assert sides[0].isdisjoint(sides[1])
        assert "25 files are copies of others, byte for byte" in line


def test_copies_of_held_out_images_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder(tmp_path / "train", 9)
    folder(tmp_path / "test", 3, 100)
    shutil.copy(tmp_path / "train/004.png", tmp_path / "test/x.png")
    assert "1 held-out picture is in the training split too: test/x.png" in found(tmp_path, caplog, held_out="test")[2]


def test_files_of_one_length_and_one_middle_are_no_copies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(8):
        pixels = np.zeros((200, 200), np.uint8)
        pixels[0, 0] = number
        Image.fromarray(pixels).save(tmp_path / f"{number}.bmp")
    assert "copies" not in found(tmp_path, caplog)[2]


def test_a_class_without_an_image_to_train_on_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder(tmp_path / "many", 20)
    for number in range(8):
        folder(tmp_path / f"rare{number}", 1, 100 + number)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"")
    train, held_out, line = found(tmp_path, caplog, validation_fraction=0.4, max_bad_fraction=0.1)
    untrained = {name.split("/")[0] for name in names(held_out)} - {name.split("/")[0] for name in names(train)}
    assert untrained
    assert "classes without an image to train on: " + ", ".join(sorted(untrained)[:5]) in line
    assert "no readable image in broken" in line


def test_a_wrapper_is_no_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("cat", "dog"):
        folder(tmp_path / "archive" / "images" / kind, 5, 10 * (kind == "dog"))
    assert found(tmp_path, caplog)[0].source.class_names == ["cat", "dog"]


# Labels


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_beside_images_gives_the_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    import pandas

    folder(tmp_path / "train", 10, suffix=".jpg")
    table = pandas.DataFrame(
        {
            "file_name": [f"{number:03}.jpg" for number in range(10)],
            "label": ["cat" if number % 2 else "dog" for number in range(10)],
            "age_class": [number % 3 for number in range(10)],
            "text": [f"picture {number}" for number in range(10)],
        }
    )
    path = tmp_path / "train" / f"metadata.{suffix}"
    if suffix == "csv":
        table.to_csv(path, index=False)
    elif suffix == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
    train, _, line = found(tmp_path, caplog)
    assert train.source.class_names == ["cat", "dog"]
    assert list(train.source.labels or ()) == [1, 0] * 5
    assert f"classes from column 'label' of train/metadata.{suffix}" in line
    assert "not used as classes: age_class (data.label=age_class)" in line
    train, _, _ = found(tmp_path, caplog, label="age_class")
    assert train.source.class_names == ["0", "1", "2"]
    assert list(train.source.labels or ()) == [number % 3 for number in range(10)]
    with pytest.raises(UserError, match="no label column 'nope': set data.label to one of label, age_class, text"):
        found(tmp_path, caplog, label="nope")


def test_a_metadata_file_that_misses_images_is_not_used_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder(tmp_path, 10)
    (tmp_path / "metadata.csv").write_text("file_name,label\n" + "".join(f"{number:03}.png,a\n" for number in range(7)))
    train, _, line = found(tmp_path, caplog)
    assert train.source.labels is None
    assert "column 'label' of metadata.csv not used: 3 of 10 images have no label there" in line
    train, _, line = found(tmp_path, caplog, labels="metadata.csv")
    assert "left out: 3 without a label in metadata.csv" in line
    assert len(train.source) == 7


def test_labels_from_a_table_that_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder(tmp_path / "images", 10)
    text = "id,breed\n" + "".join(f"{number:03},{'pug' if number < 4 else 'boxer'}\n" for number in range(12))
    (tmp_path / "images" / "labels.csv").write_text(text)
    _, _, line = found(tmp_path / "images", caplog)
    assert f"labels.csv not read (data.labels={tmp_path / 'images' / 'labels.csv'} takes its classes)" in line
    train, _, line = found(tmp_path / "images", caplog, labels=str(tmp_path / "images" / "labels.csv"))
    assert train.source.class_names == ["boxer", "pug"]
    assert list(train.source.labels or ()) == [1] * 4 + [0] * 6
    assert "2 rows of" in line
    with pytest.raises(UserError, match="there is no file 'no.csv'"):
        found(tmp_path / "images", caplog, labels="no.csv")
    (tmp_path / "other.csv").write_text("id,breed\nx,y\n")
    with pytest.raises(
        UserError, match=r"no row of .*other.csv names an image: it says 'x', and the first image is '000"
    ):
        found(tmp_path / "images", caplog, labels=str(tmp_path / "other.csv"))


def test_sidecars_are_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder(tmp_path / "10_girl", 10)
    for number in range(10):
        (tmp_path / "10_girl" / f"{number:03}.txt").write_text("1girl, solo")
        (tmp_path / "10_girl" / f"{number:03}.npz").write_bytes(b"PK")
    train, _, line = found(tmp_path, caplog)
    assert (len(train.source), train.source.class_names) == (10, ["10_girl"])
    assert "other files: 10 .txt, 10 .npz" in line


# Other files beside images


def test_one_stray_table_does_not_take_over_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import pandas

    folder(tmp_path / "00000", 20)
    pandas.DataFrame({"url": ["x"] * 30, "key": range(30)}).to_parquet(tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    train, _, line = found(tmp_path, caplog)
    assert len(train.source) == 20
    assert train.source.labels is None
    assert "not read: 1 Parquet or Arrow file in which no images were found" in line
    assert "00000 are parts of a download, not classes" in line


def test_where_both_could_be_meant_the_line_says_what_was_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import pandas

    folder(tmp_path, 3)
    images = [encoded(drawing(number)) for number in range(30)]
    pandas.DataFrame({"image": images}).to_parquet(tmp_path / "train.parquet")
    train, _, line = found(tmp_path, caplog)
    assert len(train.source) == 30
    assert "not read: 3 image files (data.format=images reads those instead)" in line
    train, _, line = found(tmp_path, caplog, format="images")
    assert len(train.source) == 3
    (tmp_path / "train.parquet").unlink()
    with pytest.raises(UserError, match="data.format=tables, but .* holds none: it has 3 images, 0 tables, 0 shards"):
        found(tmp_path, caplog, format="tables")


def test_one_parquet_file_is_a_source(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import pandas

    images = [encoded(drawing(number)) for number in range(12)]
    pandas.DataFrame({"image": images, "y": [True, False] * 6}).to_parquet(tmp_path / "x.parquet")
    train, _, line = found(tmp_path / "x.parquet", caplog)
    assert train.source.class_names == ["False", "True"]
    assert line == "12 images, 2 classes (False, True); 11 train, 1 held out"
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"x\.zip is a file: .*unpacked first"):
        found(tmp_path / "x.zip", caplog)


@pytest.mark.parametrize("name", ["a [x]", "b*c", "a::b", "#2, 50%?", "caf\udce9", "~x"], ids=ascii)
def test_no_folder_s_name_is_a_pattern_or_an_address(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    import pyarrow
    import pyarrow.parquet

    for place in (tmp_path / name, tmp_path / "bxc", tmp_path / "a x"):  # what a pattern could match too
        place.mkdir(exist_ok=True)
        images = [encoded(drawing(number)) for number in range(12)]
        for split in ("train", "test"):
            with (place / f"{split}-0.parquet").open("wb") as file:
                pyarrow.parquet.write_table(pyarrow.table({"image": images}), file)
        folder(place / "images", 12)
    assert len(found(tmp_path / name, caplog, format="tables")[0].source) == 12
    assert len(found(tmp_path / name, caplog, format="images")[0].source) == 12
    assert len(found(tmp_path / name / "train-0.parquet", caplog)[0].source) == 12


def test_tables_beside_images_are_read_where_they_hold_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not by `datasets`, which would take the commonest suffix."""
    import pandas

    folder(tmp_path, 8)
    for number, name in enumerate(["a.parquet", "b.PARQUET", "#recycle/c.parquet"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        images = [encoded(drawing(100 * number + row)) for row in range(30)]
        pandas.DataFrame({"image": images}).to_parquet(tmp_path / name)
    pandas.DataFrame({"emb": [[1.0]] * 30}).to_parquet(tmp_path / "0-features.parquet")
    train, _, line = found(tmp_path, caplog)
    assert len(train.source) == 60
    assert "not read: 8 image files (data.format=images reads those instead)" in line
    assert "not read: 1 of 3 Parquet files, without images" in line


def test_files_of_tables_are_splits_by_their_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import pandas

    for number, name in enumerate(["my-train.parquet", "my-test.parquet"]):
        images = [encoded(drawing(100 * number + row)) for row in range(20)]
        pandas.DataFrame({"image": images, "odd": [{"a": 1}] * 20}).to_parquet(tmp_path / name)
    train, held_out, line = found(tmp_path, caplog)
    assert len(train.source) == 20
    assert "files are splits: test, train; train used" in line
    train, held_out, _ = found(tmp_path, caplog, held_out="test")
    assert (len(train), len(held_out)) == (20, 20)


def test_a_column_of_a_type_that_is_not_needed_does_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import pyarrow
    import pyarrow.parquet

    images = [encoded(drawing(row)) for row in range(12)]
    maps = pyarrow.array([[("a", 1)]] * 12, pyarrow.map_(pyarrow.string(), pyarrow.int64()))
    pyarrow.parquet.write_table(
        pyarrow.table({"m": maps, "image": images, "label": [0, 1] * 6}), tmp_path / "a.parquet"
    )
    assert found(tmp_path, caplog)[0].source.class_names == ["0", "1"]


# Shards


def shard(path: Path, first: int, count: int, **texts: list[bytes]) -> None:
    """A tar archive of examples: a picture, then texts by their suffix."""
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            files = {"png": encoded(drawing(first + number))} | {suffix: of[number] for suffix, of in texts.items()}
            for suffix, content in files.items():
                entry = tarfile.TarInfo(f"./{first + number:06}.{suffix}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


def test_shards_are_read_with_their_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        labels = [str((number + row) % 4).encode() for row in range(10)]
        captions = [b"caption %d" % (10 * number + row) for row in range(10)]
        shard(
            tmp_path / f"{number:05}.tar",
            10 * number,
            10,
            cls=labels,
            txt=captions,
        )
    train, _, line = found(tmp_path, caplog)
    source = train.source
    assert line == "30 images, 4 classes (0, 1, 2, 3); 28 train, 2 held out"
    assert list(source.labels or ()) == [(number + row) % 4 for number in range(3) for row in range(10)]
    for index in (0, 17, 29):
        assert np.array_equal(np.asarray(source[index]), np.asarray(drawing(index)))
    assert source.names[17] == "00001.tar: ./000017.png"
    before = source.contents()
    shard(tmp_path / "00002.tar", 20, 9)
    assert found(tmp_path, caplog)[0].source.contents() != before


def test_shards_with_json_and_what_img2dataset_writes_beside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import pandas

    rows = [json.dumps({"caption": f"c{row}", "kind": "ab"[row % 2], "label": row % 3}).encode() for row in range(12)]
    shard(tmp_path / "00000.tar", 0, 12, json=rows)
    pandas.DataFrame({"url": ["x"] * 12}).to_parquet(tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    train, _, line = found(tmp_path, caplog)
    assert train.source.class_names == ["0", "1", "2"]
    assert "not used as classes: kind (data.label=kind)" in line
    assert "not read: 1 Parquet or Arrow file in which no images were found" in line
    assert found(tmp_path, caplog, label="kind")[0].source.class_names == ["a", "b"]


def test_shards_have_splits_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard(tmp_path / "set-train-000000.tar", 0, 9)
    shard(tmp_path / "set-val-000000.tar", 20, 4)
    train, held_out, _ = found(tmp_path, caplog)
    assert len(train.source) == 9
    train, held_out, _ = found(tmp_path, caplog, held_out="val")
    assert (len(train), len(held_out)) == (9, 4)
    assert all(name.startswith("set-val") for name in names(held_out))


def test_an_archive_beside_the_images_it_held_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder(tmp_path / "cat", 12)
    shard(tmp_path / "images.tar", 0, 12)
    train, _, line = found(tmp_path, caplog)
    assert len(train.source) == 12
    assert "not read: 1 tar archive with about 12 images (data.format=shards reads those instead)" in line


def test_a_compressed_archive_is_refused_by_name(tmp_path: Path) -> None:
    import gzip

    shard(tmp_path / "a.tar", 0, 3)
    (tmp_path / "a.tar").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    with pytest.raises(UserError, match=r"a\.tar is not a tar archive.*unpack it"):
        open_datasets(DataConfig(source=str(tmp_path)), seed=0)


# Pictures of one colour


def test_white_drawings_on_transparency_are_said_and_can_be_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(12):
        pixels = np.full((12, 12, 4), 255, np.uint8)
        pixels[..., 3] = 0
        pixels[number % 4 : 10, number:12, 3] = 255
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    train, _, line = found(tmp_path, caplog, augment=None)
    assert "12 of 12 pictures looked at are one colour all over" in line
    assert "data.background=black" in line
    for background, level in (("black", 0), ("grey", 128), ("#102030", 16)):
        train, _, line = found(tmp_path, caplog, augment=None, background=background)
        assert "one colour" not in line
        assert np.asarray(train.source[5])[0, 0, 0] == level
        assert np.asarray(train.source[5]).max() == 255


def test_pictures_of_one_colour_are_counted_as_they_are_met(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from shared.data.loader import validation_loader

    folder(tmp_path, 200)
    for number in (3, 150):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"{number:03}.png")
    train, held_out, _ = found(tmp_path, caplog)
    with caplog.at_level(logging.WARNING):
        for dataset in (train, held_out):
            list(validation_loader(dataset, 16, workers=2))
    assert {*train.constant, *held_out.constant} == {"003.png", "150.png"}
    assert sum("are one colour all over" in message for message in caplog.messages) >= 1
