"""One line on what was found in a source: how many images of which classes, how they are divided, what was left out."""

from torch import Tensor

from shared.data.sources.source import ImageSource, some

CLASSES_SHOWN = 5


def what_was_found(source: ImageSource, train_N: Tensor, held_out_N: Tensor) -> str:
    """For example: "312 images, 3 classes (cat, dog, fox); 296 train, 16 held out; left out: 40 HEIC, 3 unreadable"."""
    parts = [
        f"{len(source)} images, {_classes(source)}",
        f"{len(train_N)} train, {len(held_out_N)} held out",
        *_left_out(source),
        *source.notes,
        *_untrained(source, train_N),
    ]
    return "; ".join(parts)


def _classes(source: ImageSource) -> str:
    names = source.class_names
    if names is None:
        return "no classes"
    return f"{len(names)} {'class' if len(names) == 1 else 'classes'} ({some(names, CLASSES_SHOWN, ', ')})"


def _left_out(source: ImageSource) -> list[str]:
    kinds = [f"{count} {kind}" for kind, count in source.left_out.most_common() if count]
    if source.unreadable:
        kinds.append(f"{len(source.unreadable)} unreadable ({some(source.unreadable, 3)})")
    return [f"left out: {', '.join(kinds)}"] if kinds else []


def _untrained(source: ImageSource, train_N: Tensor) -> list[str]:
    """The classes that have no image to train on."""
    if source.labels is None or source.class_names is None:
        return []
    trained = {source.labels[index] for index in train_N.tolist()}
    without = [name for label, name in enumerate(source.class_names) if label not in trained]
    return [f"classes without an image to train on: {some(without, CLASSES_SHOWN, ', ')}"] if without else []
