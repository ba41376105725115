"""More than 8 bits a value: scaled by a rule that is said, or refused by name; never a black picture."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.data.config import DataConfig
from shared.data.open import open_source
from shared.data.pictures.decode import Reading, UnreadableImage, decode_rgb
from shared.data.pictures.values import white_of
from shared.errors import UserError

RAMP = np.linspace(0, 1, 256).reshape(16, 16)  # each of 8 bits' levels once
LEVELS = np.arange(256).reshape(16, 16)


def tiff(values_HW: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(values_HW).save(file, "TIFF")
    file.seek(0)
    return file


def read(values_HW: np.ndarray, value_range: tuple[float, float] | None = None) -> np.ndarray:
    return np.asarray(decode_rgb(tiff(values_HW), Reading(10**6, value_range=value_range)))[..., 0]


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_floats_up_to_1_or_255_or_65535_are_the_same_picture(white: int) -> None:
    assert np.array_equal(read((RAMP * white).astype(np.float32)), LEVELS)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("type_", [np.uint16, np.int32])
def test_integers_of_any_number_of_used_bits_are_the_same_picture(bits: int, type_: type) -> None:
    values_HW = (RAMP * (2**bits - 1)).round().astype(type_)
    assert np.abs(read(values_HW).astype(int) - LEVELS).max() <= (bits < 10)


def test_a_range_that_is_given_goes_before_any_rule() -> None:
    values_HW = (1000 + RAMP * 500).astype(np.float32)
    assert np.array_equal(read(values_HW, value_range=(1000, 1500)), LEVELS)
    with pytest.raises(UnreadableImage, match=r"values from 1000 to 1500, where 0 is black and 255 white"):
        read(values_HW, value_range=(0, 255))


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("floats", 0, 4), ("floats", -3, 1), ("floats", 0, 1e6), ("integers", 0, 70000), ("integers", -9000, 60000)],
)
def test_what_fits_no_scale_is_refused_with_what_to_do(kind: str, low: float, high: float) -> None:
    with pytest.raises(ValueError, match=rf"{kind} from {low:g} to .*data\.value_range"):
        white_of(kind, low, high)  # type: ignore[arg-type]


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_no_number_is_no_brightness(odd: float) -> None:
    values_HW = RAMP.astype(np.float32)
    values_HW[3, 3] = odd
    with pytest.raises(UnreadableImage, match="no numbers"):
        read(values_HW)


def test_a_little_overshoot_of_resampling_is_cut_off() -> None:
    values_HW = np.array([[-0.03, 0, 0.5, 1, 1.04]], dtype=np.float32)
    assert read(values_HW).tolist() == [[0, 0, 128, 255, 255]]


def test_pillow_keeps_8_of_16_bits_a_colour_so_12_used_ones_are_refused(tmp_path: Path) -> None:
    """Pillow itself cannot write 16 bits a colour: a PNG of one, by hand."""
    import struct
    import zlib

    def png(value: int) -> io.BytesIO:
        def chunk(name: bytes, body: bytes) -> bytes:
            return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

        rows = b"".join(b"\0" + struct.pack(">3H", value, value, value) * 4 for _ in range(4))
        header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
        body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        return io.BytesIO(b"\x89PNG\r\n\x1a\n" + body)

    assert decode_rgb(png(65535), Reading(100)).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(UnreadableImage, match="at most 14 are used"):
        decode_rgb(png(4095), Reading(100))


def test_a_set_has_one_scale_whatever_the_brightness_of_a_picture(tmp_path: Path) -> None:
    for number, brightest in enumerate([4000, 900, 200, 3000]):
        Image.fromarray((RAMP * brightest).astype(np.uint16)).save(tmp_path / f"{number}.png")
    source = open_source(DataConfig(source=str(tmp_path)))
    assert [int(np.asarray(source[number]).max()) for number in range(4)] == [
        round(brightest / 4095 * 255) for brightest in [4000, 900, 200, 3000]
    ]
    assert any("0 is taken as black and 4095 (12 bits) as white" in note for note in source.notes)


def test_a_set_without_a_scale_is_refused_whole(tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray((RAMP * 5 + number / 10).astype(np.float32)).save(tmp_path / f"{number}.tif")
    with pytest.raises(UserError, match=r"floats from 0 to 5\.2 have no scale known here.*data\.value_range"):
        open_source(DataConfig(source=str(tmp_path)))
    source = open_source(DataConfig(source=str(tmp_path), value_range=(0, 5.2)))
    assert np.asarray(source[0]).max() == round(5 / 5.2 * 255)
