import gzip
import io
import json
import random
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from shared.data.config import DataConfig
from shared.data.open import open_source
from shared.data.sources.source import ImageSource
from shared.errors import UserError
from tests.support.brought import drawing
from tests.support.pictures import encoded

RNG = random.Random(0)


def png() -> bytes:
    return encoded(drawing(RNG))


def jpeg() -> bytes:
    return encoded(drawing(RNG), "JPEG")


def pack(path: Path, files: Sequence[tuple[str, bytes]]) -> bytes:
    """A tar archive of these files; its bytes."""
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path.read_bytes()


def open_(source: Path, **options: object) -> ImageSource:
    return open_source(DataConfig(**dict(source=str(source), image_size=16) | options))


def said(source: ImageSource) -> str:
    return "; ".join(source.notes)


def members(source: ImageSource) -> list[str]:
    return [name.partition(": ")[2] for name in source.names]


# What `tarfile` passes over


@pytest.mark.parametrize(
    ("length", "images", "words"),
    [
        (5000, 4, "cut off within 4.png"),
        (5120, 5, "has no mark at its end"),
        (5220, 5, "100 of its 5220 bytes are not read"),
    ],
)
def test_an_archive_cut_off_anywhere_says_so(tmp_path: Path, length: int, images: int, words: str) -> None:
    small = encoded(Image.new("RGB", (8, 8)))  # with its header, two blocks of 512 bytes
    content = pack(tmp_path / "a.tar", [(f"{number}.png", small) for number in range(9)])
    (tmp_path / "a.tar").write_bytes(content[:length])
    source = open_(tmp_path)
    assert len(source) == images
    assert words in said(source)


def test_a_whole_archive_has_nothing_said_of_it(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", [(f"{number}.png", png()) for number in range(9)])
    assert not open_(tmp_path).notes


def test_a_broken_header_in_the_middle_is_said(tmp_path: Path) -> None:
    small = encoded(Image.new("RGB", (8, 8)))
    content = pack(tmp_path / "a.tar", [(f"{number}.png", small) for number in range(9)])
    (tmp_path / "a.tar").write_bytes(content[:4096] + b"junk" * 128 + content[4608:])
    source = open_(tmp_path)
    assert len(source) == 4
    assert f"a.tar is broken: {len(content) - 4096} of its {len(content)} bytes are not read" in said(source)


def test_joined_archives_are_read_to_the_end(tmp_path: Path) -> None:
    pictures = {f"{number}.png": png() for number in range(12)}
    first = pack(tmp_path / "a.tar", list(pictures.items())[:6])
    second = pack(tmp_path / "a.tar", list(pictures.items())[6:])
    (tmp_path / "a.tar").write_bytes(first + second)
    source = open_(tmp_path)
    assert [source.encoded(number).getvalue() for number in range(12)] == list(pictures.values())  # type: ignore[attr-defined]


def test_hard_links_are_read_and_other_links_counted(tmp_path: Path) -> None:
    content = png()
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        entry = tarfile.TarInfo("./a.png")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
        for name, kind, target in (("b", tarfile.LNKTYPE, "./a.png"), ("c", tarfile.SYMTYPE, "a.png")):
            entry = tarfile.TarInfo(f"./{name}.png")
            entry.type, entry.linkname = kind, target
            archive.addfile(entry)
    source = open_(tmp_path)
    assert members(source) == ["./a.png", "./b.png"]
    assert source.encoded(1).getvalue() == content  # type: ignore[attr-defined]
    assert source.left_out == {"links (tar -h packs what they point to)": 1}


def test_sparse_members_are_left_out_by_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number, content in enumerate([png(), png()]):
            entry = tarfile.TarInfo(f"{number}.png")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        entry = tarfile.TarInfo("holes.bmp")
        entry.pax_headers = {"GNU.sparse.map": "0,512", "GNU.sparse.size": "9999", "GNU.sparse.name": "holes.bmp"}
        entry.size = 512
        archive.addfile(entry, io.BytesIO(bytes(512)))
    source = open_(tmp_path)
    assert members(source) == ["0.png", "1.png"]
    assert source.left_out == {"sparse files (pack them without tar -S)": 1}


# Pictures by their bytes, and what is none


def test_pictures_are_told_by_their_first_bytes_and_the_rest_is_counted(tmp_path: Path) -> None:
    odd = ["0", "1.jpe", "2.heic", "3.mpo", "4.bin", "5.jpg_large"]
    files = [(name, jpeg()) for name in odd] + [("6.apng", png()), ("7.svg", b"<svg/>"), ("8.xyz", b"x"), ("9", b"")]
    pack(tmp_path / "a.tar", files)
    source = open_(tmp_path)
    assert members(source) == [*odd, "6.apng"]
    assert source.left_out == {".svg (not read here: convert them to PNG)": 1}
    assert "other files: 1 .xyz, 1 no suffix" in said(source)


def test_mostly_unreadable_is_refused_with_counts(tmp_path: Path) -> None:
    drawings = [(f"{number}.svg", b"<svg/>") for number in range(20)]
    pack(tmp_path / "a.tar", drawings)
    with pytest.raises(UserError, match=r"no images in the 1 tar archives .*: 20 \.svg"):
        open_(tmp_path)
    pack(tmp_path / "a.tar", [*drawings, ("a.png", png())])
    with pytest.raises(UserError, match=r"most pictures .* cannot be read: 20 \.svg .*; 1 can"):
        open_(tmp_path)


def test_system_folders_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    pack(
        tmp_path / "a.tar", [(f"./{name}", png()) for name in ("0.png", "__MACOSX/p/0.png", "@eaDir/0.png", "._0.png")]
    )
    source = open_(tmp_path)
    assert members(source) == ["./0.png"]
    assert source.left_out == {"in __MACOSX": 1, "in @eaDir": 1, "hidden files": 1}


# Examples


@pytest.mark.parametrize(
    ("names", "used"),
    [
        ([f"IMG.2021.{number}.png" for number in range(6)], 6),
        ([f"v{major}.{minor}.png" for major in range(4) for minor in range(2)], 8),
        ([f"{number % 3}.png" for number in range(6)], 6),
        ([f"{number}.{kind}" for number in range(6) for kind in ("mask.png", "depth.png", "png")], 6),
    ],
    ids=["dots", "numbered", "the same names again", "masks first"],
)
def test_names_are_parted_into_examples(tmp_path: Path, names: list[str], used: int) -> None:
    pack(tmp_path / "a.tar", [(name, png()) for name in names])
    source = open_(tmp_path)
    assert members(source) == (names if used == len(names) else [name for name in names if name.count(".") == 1])
    if used < len(names):
        assert "second pictures are 6 .mask.png, 6 .depth.png" in said(source)


def test_texts_find_their_picture_wherever_they_lie(tmp_path: Path) -> None:
    files = [(f"{number}.png", png()) for number in range(6)] + [
        (f"{number}.cls", b"%d" % (number % 2)) for number in range(6)
    ]
    random.Random(1).shuffle(files)  # as `tar` packs a folder
    pack(tmp_path / "a.tar", files)
    source = open_(tmp_path)
    assert list(source.labels or ()) == [int(name[0]) % 2 for name in members(source)]


# Labels


@pytest.mark.parametrize("ending", ["cls", "CLS", "cls.txt", "class", "label", "category"])
def test_labels_under_other_names(tmp_path: Path, ending: str) -> None:
    pack(tmp_path / "a.tar", [x for n in range(6) for x in ((f"{n}.png", png()), (f"{n}.{ending}", b"%d" % (n % 2)))])
    source = open_(tmp_path)
    assert source.class_names == ["0", "1"]
    assert list(source.labels or ()) == [0, 1, 0, 1, 0, 1]


def test_labels_deep_in_json_are_offered(tmp_path: Path) -> None:
    texts = [json.dumps({"label": {"id": number % 2}}).encode() for number in range(6)]
    pack(tmp_path / "a.tar", [x for n in range(6) for x in ((f"{n}.png", png()), (f"{n}.json", texts[n]))])
    assert "not used as classes: label.id (data.label=label.id)" in said(open_(tmp_path))
    assert open_(tmp_path, label="label.id").class_names == ["0", "1"]


def test_folders_in_an_archive_are_splits_and_classes(tmp_path: Path) -> None:
    names = [f"./{split}/{kind}/{n}.png" for split in ("train", "test") for kind in ("cat", "dog") for n in range(3)]
    pack(tmp_path / "a.tar", [(name, png()) for name in names])
    source = open_(tmp_path)
    assert members(source) == names[:6]
    assert source.class_names == ["cat", "dog"]
    assert "folders in the archives are splits: train (6), test (6)" in said(source)
    assert members(open_(tmp_path, split="test")) == names[6:]
    assert list(open_(tmp_path, held_out="test").held_out or ()) == [6, 7, 8, 9, 10, 11]
    assert open_(tmp_path, labels="folders").class_names == ["test", "train"]
    assert open_(tmp_path, labels="none").class_names is None
    with pytest.raises(UserError, match="data.label=cls names a column, but data.labels=folders reads none"):
        open_(tmp_path, labels="folders", label="cls")


# Several archives


def test_archives_of_splits_without_train_ask_which(tmp_path: Path) -> None:
    for split in ("test", "val"):
        pack(tmp_path / f"{split}-0.tar", [(f"{number}.png", png()) for number in range(4)])
    with pytest.raises(UserError, match=r"no split 'train' \(data\.split\): set it to one of test, val"):
        open_(tmp_path)
    assert all(name.startswith("val-0.tar") for name in open_(tmp_path, split="val").names)


def test_empty_and_compressed_archives_do_not_stop_the_others(tmp_path: Path) -> None:
    content = pack(tmp_path / "c.tar", [(f"{number}.png", png()) for number in range(6)])
    (tmp_path / "a.tar").write_bytes(b"")
    assert len(open_(tmp_path)) == 6
    (tmp_path / "b.tar").write_bytes(gzip.compress(content))
    source = open_(tmp_path)
    assert len(source) == 6
    assert "1 of 3 archives not used: " in said(source)
    assert "b.tar is not a tar archive that can be read in place: it is compressed" in said(source)
    (tmp_path / "0.png").write_bytes(png())  # now the archives are weighed against a picture
    assert "not read: 1 image file " in said(open_(tmp_path))
    (tmp_path / "c.tar").unlink()
    (tmp_path / "a.tar").unlink()
    assert "not read: 1 tar archive, broken or compressed" in said(open_(tmp_path))


def test_the_folder_that_an_archive_was_packed_as_is_no_class(tmp_path: Path) -> None:
    for shard in ("shard-0", "shard-1"):
        pack(tmp_path / f"{shard}.tar", [(f"{shard}/{kind}/{number}.png", png()) for kind in "ab" for number in (1, 2)])
    assert open_(tmp_path).class_names == ["a", "b"]
    for shard in ("shard-0", "shard-1"):
        pack(tmp_path / f"{shard}.tar", [(f"{shard}/{number}.png", png()) for number in range(3)])
    assert open_(tmp_path).class_names is None


def test_broken_json_is_counted(tmp_path: Path) -> None:
    pack(
        tmp_path / "a.tar", [(f"{n}.{e}", c) for n in (1, 2, 3) for e, c in (("png", png()), ("json", b'{"label": 1'))]
    )
    assert "3 .json are broken, and say nothing" in said(open_(tmp_path))
