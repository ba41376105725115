"""What to read from a folder: its images, its tables, or its shards; one stray file of another sort decides nothing."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from shared.data.sources.archive import read_archive
from shared.data.sources.walk import Walk
from shared.errors import UserError

Format = Literal["images", "tables", "shards"]
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "images", "photo", "image_bytes", "bytes")


class Choice(NamedTuple):
    """format: what to read. notes: what lies there besides, and how to choose it."""

    format: Format
    notes: list[str]


def choose(found: Walk, wanted: Format | None) -> Choice:
    """What a folder is read as: what is asked for, or else what holds the most images.

    Raises UserError where what is asked for is not there.
    """
    there = {"images": len(found.pictures), "tables": len(found.tables), "shards": len(found.shards)}
    if wanted is not None:
        if not there[wanted]:
            raise UserError(f"data.format={wanted}, but {found.folder} holds none: it has {_listed(there)}")
        return Choice(wanted, [])
    if found.tables and is_saved(found.folder):
        return Choice("tables", [])
    kinds: list[Format] = [kind for kind, files in there.items() if files]  # type: ignore[misc]
    if len(kinds) < 2:
        return Choice(kinds[0] if kinds else "images", [])
    images = {"images": there["images"], "tables": _rows(found), "shards": _members(found)}
    best = max(kinds, key=lambda kind: images[kind] or 0)
    return Choice(best, [_beside(kind, there[kind], images[kind]) for kind in kinds if kind != best])


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote this folder."""
    return (path / "dataset_dict.json").exists() or all(
        (path / name).exists() for name in ("state.json", "dataset_info.json")
    )


def may_hold_images(path: Path, column: str | None) -> bool:
    """Whether a Parquet file has a column of images, or that very column; also where it cannot be read."""
    schema = _schema(path)
    return schema is None or (column in schema.names if column else any(map(_holds_images, schema)))


def _beside(kind: Format, files: int, images: int | None) -> str:
    what = {"images": "image file", "tables": "Parquet or Arrow file", "shards": "tar archive"}[kind]
    named = f"{files} {what}{'' if files == 1 else 's'}"
    if images:
        holding = "" if kind == "images" else f" with about {images} images"
        return f"not read: {named}{holding} (data.format={kind} reads those instead)"
    if images is None:
        return f"not read: {named}, broken or compressed (tar -cf packs without compressing)"
    return f"not read: {named} in which no images were found"


def _rows(found: Walk) -> int:
    """Rows of the tables that have a column of images."""
    return sum(_rows_of(found.folder / name) for name in found.tables)


def _rows_of(path: Path) -> int:
    import pyarrow  # not above: most folders have no tables
    import pyarrow.parquet

    schema = _schema(path)
    if schema is None or not any(map(_holds_images, schema)):
        return 0
    with path.open("rb") as file:
        if path.suffix.lower() != ".arrow":
            return int(pyarrow.parquet.read_metadata(file).num_rows)
        return sum(batch.num_rows for batch in pyarrow.ipc.open_stream(file))


def _schema(path: Path) -> Any:
    """The columns of a Parquet file or an Arrow stream; None where it is neither."""
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as file:
            if path.suffix.lower() != ".arrow":
                return pyarrow.parquet.read_schema(file)
            return pyarrow.ipc.open_stream(file).schema
    except (OSError, pyarrow.ArrowException):
        return None


def _holds_images(field: Any) -> bool:
    import pyarrow

    kind, named = field.type, field.name in IMAGE_COLUMNS
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind, named = kind.field("bytes").type, True
    return named and (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


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
