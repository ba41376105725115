"""Which images are trained on, at which size, and how they are read."""

import math
from typing import Any, Literal

from PIL import ImageColor
from pydantic import Field, PositiveInt, field_validator, model_validator

from shared.config import Config
from shared.data.augment import AugmentConfig
from shared.data.pictures.decode import Reading


class DataConfig(Config):
    """Which images, at which size, and what to do with those that cannot be read."""

    source: str | list[str] = "openmoji"
    """A folder of images, of Parquet or Arrow files or of WebDataset shards (tar), one such file, "hf:NAME" for a
    dataset of the Hugging Face hub, "openmoji", "openmoji:faces+animals", or "dicebear:lorelei+micah". Several in a
    list are read as one: [openmoji, ~/pictures].
    """
    count: PositiveInt | None = None
    """How many drawings of DiceBear's styles, all styles together; null: 10,000."""
    limit: PositiveInt | None = None
    """Use about this many images, chosen by a hash of what they show: the same on every machine, those of a lower limit
    among those of a higher one. With `held_out`, of those to train on. null: all.
    """
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 256
    """Side in pixels, or [height, width]."""
    format: Literal["images", "tables", "shards"] | None = None
    """What to take from a folder that holds several: its images, its tables (Parquet, Arrow) or its shards; null: what
    has the most images.
    """
    split: str = "train"
    """What is used of a set that has splits: "train", several as in "train+val", or "all". In a folder of images,
    sub-folders train, val and test are splits.
    """
    held_out: str | None = None
    """The split that is measured on; null: a `validation_fraction` of the images used."""
    labels: str | None = None
    """Where classes come from. null: a metadata file that has a column of labels, or else the sub-folders. "folders":
    the sub-folders, even where they are called train and val. "none": nowhere. Or the path of a table (.csv, .tsv,
    .txt, .jsonl, .json, .parquet) that names a file and its label in each row.
    """
    label: str | None = None
    """The column of labels; null: found by type and name."""
    image_column: str | None = None
    """The column of images; null: found by type and name."""
    validation_fraction: float = Field(default=0.05, ge=0, lt=1)
    """The share of images held out for measuring."""
    max_bad_fraction: float = Field(default=0.05, ge=0, lt=1)
    """The share of images that may be unreadable; more are an error."""
    # Above twice its own limit Pillow refuses to open an image at all.
    max_pixels: int = Field(default=120_000_000, gt=0, le=2 * 89_478_485)
    """A larger picture counts as unreadable (a small file can unpack to gigabytes)."""
    background: str = "white"
    """The colour behind transparent pixels, by name or as "#rrggbb"."""
    value_range: tuple[float, float] | None = None
    """What is black and white in pictures of more than 8 bits a value; null: read off a sample."""
    buffer_gb: float = Field(default=8, gt=0)
    """For Parquet files: gigabytes of images on this machine's disk at any time (under $TESSERA_CACHE, or else
    ~/.cache/tessera). A larger set is shuffled by row groups and within that much of it.
    """
    workers: int = Field(default=0, ge=0, le=1024)
    """Processes that load images, in training, caching and measuring; 0 loads them in the main process. The batches are
    the same.
    """
    augment: AugmentConfig | None = AugmentConfig()
    """Random views of each training image; null: none."""

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        """Runs of before 2026-12 call the column of labels `label_column`."""
        if isinstance(values, dict) and "label_column" in values:
            values = {"label": values["label_column"]} | {k: v for k, v in values.items() if k != "label_column"}
        return values

    @field_validator("background")
    @classmethod
    def _colour(cls, background: str) -> str:
        try:
            ImageColor.getrgb(background)
        except ValueError:
            raise ValueError("give a colour, such as white, black, grey or '#102030'") from None
        return background

    @field_validator("source", mode="before")
    @classmethod
    def _some(cls, source: Any) -> Any:
        if not source:
            raise ValueError("text is needed, and there is none")
        if not isinstance(source, str | list):
            raise ValueError("text is needed, or a list of texts: put it in quotes")
        return source

    @field_validator("value_range")
    @classmethod
    def _ordered(cls, ends: tuple[float, float] | None) -> tuple[float, float] | None:
        if ends and not ends[0] < ends[1]:
            raise ValueError("give the value that is black and the larger one that is white, such as [0, 4095]")
        return ends

    @property
    def sources(self) -> list[str]:
        """What is read, one or several."""
        return [self.source] if isinstance(self.source, str) else list(self.source)

    @property
    def where(self) -> str:
        """What to call the source, or sources, in a message."""
        return ", ".join(self.sources)

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
    def reading(self) -> Reading:
        """How a picture of a set is decoded, as far as this says it; the set may have more to say."""
        return Reading(self.max_pixels, self.enough_pixels, self.background, self.value_range)

    @property
    def whole_reading(self) -> Reading:
        """How a single picture is decoded, at its whole size."""
        return Reading(self.max_pixels, None, self.background, self.value_range)

    @property
    def buffer_bytes(self) -> int:
        """`buffer_gb` in bytes."""
        return round(self.buffer_gb * 1e9)
