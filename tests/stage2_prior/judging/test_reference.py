"""Real images that drawn ones are held against, and classes drawn as often as theirs."""

from collections import Counter
from pathlib import Path

import pytest

from shared.errors import UserError
from shared.runs.token_cache import TokenInfo
from stage2_prior.judging.reference import labels_like, reference_images
from tests.support.narrow import present


def info_of(drawings: Path) -> TokenInfo:
    return TokenInfo(
        grid=(4, 4), codes=64, code_dim=8, tokenizer="nowhere", fingerprint="0", source="drawings",
        preprocessing={"source": str(drawings), "image_size": 32, "validation_fraction": 0.2, "augment": {"flip": 0.5}},
        views=2, class_names=["animals", "faces"],
    )  # fmt: skip


def test_classes_are_drawn_as_often_as_they_occur(drawings: Path) -> None:
    dataset = reference_images(info_of(drawings), "train")
    occur = Counter(present(dataset.source.labels)[index] for index in dataset.indices.tolist())
    assert Counter(labels_like(dataset, 3 * len(dataset)).tolist()) == {k: 3 * n for k, n in occur.items()}


def test_classes_that_are_gone_are_missed(drawings: Path) -> None:
    flat = drawings.with_name("flat")
    flat.mkdir()
    for file in drawings.rglob("*.png"):
        file.rename(flat / file.name)
    with pytest.raises(UserError, match="has no classes any more"):
        labels_like(reference_images(info_of(flat), "train"), 4)


def test_the_splits_share_no_image_and_are_not_augmented(drawings: Path) -> None:
    train, validation = (reference_images(info_of(drawings), split) for split in ("train", "validation"))
    assert sorted([*train.indices.tolist(), *validation.indices.tolist()]) == list(range(12))
    assert train.config.augment is None
