"""Which images are trained on, at which size, and how they are read."""

import math

from pydantic import Field, PositiveInt

from shared.config import Config
from shared.data.augment import AugmentConfig


class DataConfig(Config):
    """Which images, at which size, and what to do with those that cannot be read.

    source: "openmoji", "openmoji:faces+animals", a folder of images (sub-folders are classes), a folder of Parquet or
        Arrow files, or "hf:NAME" for a dataset of the Hugging Face hub.
    image_size: side in pixels, or [height, width].
    split, image_column, label_column: for Hugging Face data; the columns are found by type and name if not given.
    max_pixels: a larger picture counts as unreadable (a small file can unpack to gigabytes).
    buffer_gb: of Parquet files, how many gigabytes of images are at hand on this machine's disk at any time (under
        $TESSERA_CACHE, or else ~/.cache/tessera). A larger set is shuffled by row groups and within that much of it.
    workers: processes that load images; 0 loads them in the training process. The batches are the same.
    """

    source: str = "openmoji"
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 256
    split: str = "train"
    image_column: str | None = None
    label_column: str | None = None
    validation_fraction: float = Field(default=0.05, ge=0, lt=1)
    max_bad_fraction: float = Field(default=0.05, ge=0, lt=1)
    # Above twice its own limit Pillow refuses to open an image at all.
    max_pixels: int = Field(default=120_000_000, gt=0, le=2 * 89_478_485)
    buffer_gb: float = Field(default=8, gt=0)
    workers: int = Field(default=0, ge=0, le=1024)
    augment: AugmentConfig | None = AugmentConfig()

    @property
    def height_width(self) -> tuple[int, int]:
        """The image size as (height, width)."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @property
    def enough_pixels(self) -> int:
        """The length of an image's shorter side at which larger ones need not be decoded any larger.

        JPEGs reduced to 2.5 times `image_size` and more are within 50 dB of whole ones once both have that size
        (measured on drawings). The smallest crop, whose shorter side is sqrt(3/4 of its area), is never enlarged.
        """
        smallest = self.augment.crop_scale[0] if self.augment else 1.0
        return math.ceil(max(2.5, 1 / math.sqrt(0.75 * smallest)) * max(self.height_width))

    @property
    def buffer_bytes(self) -> int:
        """`buffer_gb` in bytes."""
        return round(self.buffer_gb * 1e9)
