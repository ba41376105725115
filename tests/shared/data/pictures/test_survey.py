"""What a look at some pictures says."""

import struct
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from shared.data.pictures.decode import Reading, UnreadableImage, decode_rgb
from shared.data.pictures.survey import survey
from tests.support.pictures import encoded

READING = Reading(10**6)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_pictures_of_several_frames_are_said(kind: str) -> None:
    buffer = BytesIO()
    frames = [Image.linear_gradient("L").rotate(90 * number).resize((20, 20)) for number in range(3)]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    still = encoded(frames[1])
    files = {"moving": buffer.getvalue(), "still": still, "other": still}
    sample = [(name, lambda index: BytesIO(list(files.values())[index]), index) for index, name in enumerate(files)]
    assert survey(sample, READING, "here").notes == [
        "1 of 3 pictures looked at have several frames or pages, such as moving: the first of each is used"
    ]


def float64_tiff() -> bytes:
    """One strip of 2 x 2 floats of 64 bits, which Pillow has no mode for."""
    tags = [(256, 3, 2), (257, 3, 2), (258, 3, 64), (259, 3, 1), (262, 3, 1), (273, 4, 200), (277, 3, 1), (278, 3, 2)]
    tags += [(279, 4, 32), (339, 3, 3)]
    entries = b"".join(
        struct.pack("<HHI", tag, kind, 1) + (struct.pack("<HH", value, 0) if kind == 3 else struct.pack("<I", value))
        for tag, kind, value in tags
    )
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return head.ljust(200, b"\0") + struct.pack("<4d", 0.1, 0.4, 0.6, 1.0)


def test_a_tiff_that_is_not_read_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(float64_tiff())
    for file in (tmp_path / "a.tif", BytesIO(float64_tiff())):
        with pytest.raises(UnreadableImage, match="^a TIFF of a kind that is not read here, such as floats of 64 bits"):
            decode_rgb(file, READING)
