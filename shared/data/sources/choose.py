"""What to read from a folder: its images, its tables, or its shards; one stray file of another sort decides nothing."""

from typing import Literal, NamedTuple

from shared.data.sources.archive import read_archive
from shared.data.sources.walk import Walk
from shared.errors import UserError

Format = Literal["images", "tables", "shards"]
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "images", "photo", "image_bytes", "bytes")


class Choice(NamedTuple):
    """format: what to read. notes: what lies there besides, and how to choose it."""

    format: Format
    notes: list[str]


def choose(found: Walk, wanted: Format | None, saved: bool) -> Choice:
    """What a folder is read as: what is asked for, or else what holds the most images.

    saved: whether `datasets` wrote it. Raises UserError where what is asked for is not there.
    """
    there = {"images": len(found.pictures), "tables": len(found.tables), "shards": len(found.shards)}
    if wanted is not None:
        if not there[wanted]:
            raise UserError(f"data.format={wanted}, but {found.folder} holds none: it has {_listed(there)}")
        return Choice(wanted, [])
    if saved and found.tables:
        return Choice("tables", [])
    kinds: list[Format] = [kind for kind, files in there.items() if files]  # type: ignore[misc]
    if len(kinds) < 2:
        return Choice(kinds[0] if kinds else "images", [])
    images = {"images": there["images"], "tables": _rows(found), "shards": _members(found)}
    best = max(kinds, key=lambda kind: images[kind] or 0)
    return Choice(best, [_beside(kind, there[kind], images[kind]) for kind in kinds if kind != best])


def _beside(kind: Format, files: int, images: int | None) -> str:
    what = {"images": "image file", "tables": "Parquet or Arrow file", "shards": "tar archive"}[kind]
    named = f"{files} {what}{'' if files == 1 else 's'}"
    if images:
        holding = "" if kind == "images" else f" with about {images} images"
        return f"not read: {named}{holding} (data.format={kind} reads those instead)"
    if images is None:
        return f"not read: {named}, broken or compressed (tar -cf packs without compressing)"
    return f"not read: {named} without images"


def _rows(found: Walk) -> int:
    """Rows of the Parquet files that have a column of images."""
    import pyarrow  # not above: most folders have no tables
    import pyarrow.parquet

    rows = 0
    for name in found.tables:
        try:
            with pyarrow.parquet.ParquetFile(found.folder / name) as file:
                rows += file.metadata.num_rows if any(map(_holds_images, file.schema_arrow)) else 0
        except (OSError, pyarrow.ArrowException):
            continue  # no Parquet: it holds no images that could be read
    return rows


def _holds_images(field: "pyarrow.Field") -> bool:  # type: ignore[name-defined]  # noqa: F821
    import pyarrow

    kind = field.type
    if pyarrow.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return field.name in IMAGE_COLUMNS and (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _members(found: Walk) -> int | None:
    """About how many pictures the archives hold: as many each as the first with any. None where all are broken."""
    about = None if found.shards else 0
    for name in found.shards:
        try:
            pictures = read_archive(found.folder / name).members
        except UserError:
            continue
        about = len(pictures) * len(found.shards)
        if pictures:
            break
    return about


def _listed(there: dict[str, int]) -> str:
    return ", ".join(f"{files} {kind}" for kind, files in there.items())
