"""Colour profiles, against the formulas that define the colour spaces."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from shared.data.pictures.decode import Reading, decode_rgb
from shared.data.pictures.profiles import profile_state

# Primaries adapted to D50, as a profile holds them (columns X, Y, Z of red, green and blue).
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
COLOURS = [(200, 60, 50), (60, 160, 70), (230, 150, 40), (90, 60, 160), (128, 128, 128), (255, 255, 255), (0, 0, 0)]


def number(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def profile(space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2."""
    tags |= {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + b"".join(map(number, (0.9642, 1, 0.8249))),
    }
    offset, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    kind = b"mntr" if space == b"RGB " else b"prtr"
    header = struct.pack(">I", offset + len(body)) + b"none" + struct.pack(">I", 0x02400000) + kind + space + connection
    header += bytes(12) + b"acsp" + bytes(28) + b"".join(map(number, (0.9642, 1, 0.8249)))
    return header.ljust(128, b"\0") + table + body


def adobe() -> bytes:
    primaries = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), ADOBE, strict=True))
    tags = {name: b"XYZ \0\0\0\0" + b"".join(map(number, xyz)) for name, xyz in primaries.items()}
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.19921875 * 256))
    return profile(b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def press(cyan_ink: int) -> bytes:
    """Four inks that are all grey: black is black, and all of cyan has this lightness (0 to 100)."""
    entries = bytearray()
    for cell in range(16):  # two points for each ink; black varies fastest, cyan slowest
        lightness = 0 if cell & 1 else cyan_ink if cell & 8 else 100
        entries += bytes((round(255 * lightness / 100), 128, 128))
    ramp = bytes(range(256))
    identity = b"".join(map(number, (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + ramp * 4 + bytes(entries) + ramp * 3
    return profile(b"CMYK", b"Lab ", {b"A2B0": table})


def srgb_of_adobe(colour: tuple[int, ...]) -> np.ndarray:
    """By the definitions: Adobe RGB (1998) to XYZ to sRGB (IEC 61966-2-1)."""
    linear = (np.array(colour) / 255) ** 2.19921875
    light = np.linalg.solve(np.array(SRGB).T, np.array(ADOBE).T @ linear).clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def saved(image: Image.Image, icc: bytes | None, format: str = "PNG") -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, format, icc_profile=icc)
    file.seek(0)
    return file


def read(image: Image.Image, icc: bytes | None, format: str = "PNG") -> np.ndarray:
    return np.asarray(decode_rgb(saved(image, icc, format), Reading(10**6)))[0, 0].astype(int)


@pytest.mark.parametrize("colour", COLOURS)
def test_adobe_rgb_becomes_the_srgb_that_the_definitions_give(colour: tuple[int, int, int]) -> None:
    found = read(Image.new("RGB", (8, 8), colour), adobe())
    assert np.abs(found - srgb_of_adobe(colour)).max() <= 2


def test_a_profile_of_srgb_changes_no_pixel() -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    image = decode_rgb(saved(noise, icc), Reading(1000))
    assert np.array_equal(np.asarray(image), np.asarray(noise))
    assert profile_state(Image.open(saved(noise, icc))) == "sRGB"


@pytest.mark.parametrize(
    "icc", [b"no profile", adobe()[:100], adobe()[:300], press(50)], ids=["text", "cut", "cut2", "inks"]
)
def test_a_profile_that_cannot_be_used_is_passed_over(icc: bytes) -> None:
    image = Image.new("RGB", (8, 8), (200, 60, 50))
    assert read(image, icc).tolist() == [200, 60, 50]
    assert profile_state(Image.open(saved(image, icc))) == "broken"
    assert profile_state(Image.open(saved(image, None))) == "none"


def test_transparency_and_grey_keep_their_profile() -> None:
    clear = Image.new("RGBA", (8, 8), (200, 60, 50, 0))
    assert read(clear, adobe()).tolist() == [255, 255, 255]
    solid = Image.new("RGBA", (8, 8), (200, 60, 50, 255))
    assert np.abs(read(solid, adobe()) - srgb_of_adobe((200, 60, 50))).max() <= 2
    palette = Image.new("RGB", (8, 8), (200, 60, 50)).quantize(4)
    assert np.abs(read(palette, adobe()) - srgb_of_adobe((200, 60, 50))).max() <= 2
    grey = Image.new("L", (8, 8), 100)  # with the profile of colours, as cameras write it
    assert np.abs(read(grey, adobe()) - srgb_of_adobe((100, 100, 100))).max() <= 2


@pytest.mark.parametrize(("lightness", "grey"), [(80, 198), (50, 118.9), (20, 48.5)])  # of CIE L*, as sRGB
def test_four_inks_are_what_their_profile_says(lightness: int, grey: float) -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert np.abs(read(cyan, press(lightness), "TIFF") - grey).max() <= 3
    assert read(cyan, None, "TIFF").tolist() == [0, 255, 255]


def test_lab_pictures_are_colours() -> None:
    red = Image.new("LAB", (4, 4), (138, 128 + 81, 128 + 70))  # sRGB's red at D50: L* 54.3, a* 80.8, b* 69.9
    found = read(red, None, "TIFF")
    assert np.abs(found - (255, 0, 0)).max() <= 6
