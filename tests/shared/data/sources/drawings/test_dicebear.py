"""Avatars: each a function of style and number, of free styles only, and split by the parts they are made of."""

import json
import sys
from collections.abc import Callable
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared.data.config import DataConfig
from shared.data.open import open_datasets, open_source
from shared.data.sources.drawings import blocks
from shared.data.sources.drawings.dicebear import credit, free_styles, parts_of, select
from shared.data.sources.source import ImageSource
from shared.errors import UserError

pytest.importorskip("dicebear")
pytest.importorskip("dicebear_styles")
pytest.importorskip("resvg_py")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, with small blocks."""
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path))
    monkeypatch.setattr(blocks, "PER_BLOCK", 10)
    monkeypatch.setattr("shared.data.sources.drawings.dicebear.PER_BLOCK", 10)
    return tmp_path


def open_(styles: str, count: int, **options: Any) -> ImageSource:
    return open_source(DataConfig(source=f"dicebear:{styles}", count=count, image_size=16, **options))


def pixels(source: ImageSource) -> list[bytes]:
    return [source[index].tobytes() for index in range(len(source))]


def drawn_by_the_library(style: str, number: int, background: str) -> tuple[Image.Image, str]:
    """A picture and its SVG, without this project."""
    import resvg_py
    from dicebear import Avatar, Style

    definition = json.loads(files("dicebear_styles").joinpath(f"{style}.json").read_text("utf-8"))
    svg = Avatar(Style(definition), {"seed": str(number)}).to_string()
    png = resvg_py.svg_to_bytes(svg_string=svg, background=background, width=16, height=16, skip_system_fonts=True)
    return Image.open(BytesIO(png)).convert("RGB"), svg


def test_styles_take_turns_and_are_the_classes() -> None:
    source = open_("thumbs+dylan", 25)
    assert len(source) == 25
    assert source.class_names == ["thumbs", "dylan"]
    assert source.labels == [0, 1] * 12 + [0]
    for index in (0, 1, 23, 24):
        style, number = ["thumbs", "dylan"][index % 2], index // 2
        assert source[index].tobytes() == drawn_by_the_library(style, number, "white")[0].tobytes()
        assert source.names[index].startswith(f"{style} {number}: ")


@pytest.mark.parametrize("background", ["black", "#123456"])
def test_transparent_pixels_get_the_background(background: str) -> None:
    source = open_("adventurer", 2, background=background)
    assert source[1].tobytes() == drawn_by_the_library("adventurer", 1, background)[0].tobytes()
    assert source[1].getpixel((0, 0)) == Image.new("RGB", (1, 1), background).getpixel((0, 0))


def test_a_drawing_does_not_depend_on_how_many_there_are_or_of_which_other_styles() -> None:
    few, many = open_("dylan", 4), open_("moods+dylan", 50)
    assert pixels(few) == pixels(many)[1:8:2]
    assert list(few.names) == list(many.names)[1:8:2]


def test_the_same_parts_stay_on_one_side_of_the_split() -> None:
    config = DataConfig(source="dicebear:thumbs", count=200, image_size=16, validation_fraction=0.3, augment=None)
    train, held_out = open_datasets(config, seed=0)
    keys = train.source.keys
    sides = [{keys[int(index)] for index in dataset.indices} for dataset in (train, held_out)]
    assert len(set(keys)) < 200  # some come twice, in other colours
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_parts_are_those_that_are_seen() -> None:
    options = {
        "eyesVariant": "wink",
        "hairVariant": None,
        "animationVariant": "bounce",
        "skinColor": ["#fff"],
        "size": 9,
    }
    assert parts_of(options | {"aVariant": "one"}) == "a=one, eyes=wink"


@pytest.mark.parametrize("broken", [b"", b"half of an array", None])
def test_a_broken_block_is_drawn_again(cache: Path, broken: bytes | None) -> None:
    before = pixels(open_("thumbs", 20))
    path = min(cache.rglob("*.npy"))
    path.write_bytes(path.read_bytes()[:1000] if broken is None else broken)
    assert pixels(open_("thumbs", 20)) == before


def test_missing_package_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dicebear", None)
    with pytest.raises(UserError, match=r"needs dicebear: .*-m pip install 'dicebear-core>"):
        open_("micah", 5)


def test_an_interrupted_drawing_goes_on_where_it_stopped(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pixels(open_("thumbs+dylan", 60))
    made = sorted(cache.rglob("*.npy"))
    assert len(made) == 6
    made[1].unlink()
    made[4].with_suffix(".txt").unlink()  # as where the process ended between the two files
    (made[0].parent / ".0000000.npy.123").write_bytes(b"half")
    kept = {path: path.stat().st_mtime_ns for path in made if path not in (made[1], made[4])}
    assert pixels(open_("thumbs+dylan", 60)) == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept

    def no_more(*_: object) -> None:
        raise AssertionError("everything was there")

    monkeypatch.setattr(blocks.Block, "make", no_more)
    assert pixels(open_("thumbs+dylan", 60)) == whole


def test_one_process_draws_what_several_draw(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several = pixels(open_("sprouts", 30))
    monkeypatch.setenv("TESSERA_CACHE", str(cache / "other"))
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    assert pixels(open_("sprouts", 30)) == several


def test_every_style_on_offer_has_a_free_licence_and_gives_credit() -> None:
    styles = free_styles()
    assert {"lorelei", "notionists", "adventurer", "micah", "personas", "critters"} <= set(styles)
    assert not {"avataaars", "avataaars-neutral", "bottts", "bottts-neutral"} & set(styles)
    assert credit("lorelei") == (
        'lorelei ("Lorelei" by Lisa Wischofsky, https://www.figma.com/community/file/1198749693280469639, CC0 1.0)'
    )
    for style in styles:
        text = credit(style)
        assert text.endswith(("CC0 1.0)", "CC BY 4.0)"))
        assert "None" not in text
    assert credit("adventurer") in open_("adventurer", 1).description


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: open_("", 9), r"^which styles of DiceBear\? Join some by '\+', .* Styles: adventurer, "),
        (lambda: open_("micah+lorelai", 9), "^DiceBear has no style 'lorelai' .*lorelei"),
        (lambda: open_("bottts", 9), "^the licence of DiceBear's style 'bottts' is 'Free for personal and commercial"),
        (lambda: open_("micah+dylan", 1), "^data.count=1: give each of the 2 styles a drawing at least$"),
        (lambda: open_source(DataConfig(source="openmoji", count=5)), "^data.count=5 is for drawings of DiceBear"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call: Callable[[], object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        call()


def test_a_style_named_twice_is_one() -> None:
    assert select("micah + dylan+micah") == ["micah", "dylan"]


def test_a_full_disk_is_told_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"^drawings need 0.0 GB in .*, where 0.0 GB are free: make room"):
        open_("dylan", 5)


def test_a_cache_that_cannot_be_written_to_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "file").touch()
    monkeypatch.setenv("TESSERA_CACHE", str(cache / "file"))
    with pytest.raises(UserError, match=r"^cannot keep drawings in .*: set TESSERA_CACHE to a folder$|Not a directory"):
        open_("dylan", 5)


def test_blocks_hold_uint8_and_a_line_each(cache: Path) -> None:
    open_("dylan", 11)
    first, second = sorted(cache.rglob("*.npy"))
    assert np.load(first).shape == (10, 16, 16, 3)
    assert np.load(second).dtype == np.uint8
    assert len(second.with_suffix(".txt").read_text().splitlines()) == 10
