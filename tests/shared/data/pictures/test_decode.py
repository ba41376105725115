import io
import pickle

import numpy as np
import pytest
from PIL import Image

from shared.data.pictures.decode import Reading, UnreadableImage, decode_rgb
from tests.support.pictures import encoded, picture

BIG = 10**8


def decoded(data: bytes, max_pixels: int = BIG) -> np.ndarray:
    image = decode_rgb(io.BytesIO(data), Reading(max_pixels))
    assert image.mode == "RGB"
    return np.asarray(image)


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
    image = decode_rgb(io.BytesIO(encoded(gradient, format, **options)), Reading(BIG, enough=8))
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
    image = decode_rgb(io.BytesIO(encoded(gradient, "JPEG", quality=95, exif=exif)), Reading(BIG, enough))
    assert image.size == (size[1], size[0])
    expected = decode_rgb(io.BytesIO(encoded(gradient, exif=exif)), Reading(BIG)).reduce(640 // size[0])
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
