"""The token cache: what goes in comes out."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import load_from_disk

from shared.data.config import DataConfig
from shared.disk import atomic, manifest
from shared.errors import UserError
from shared.runs.token_cache import Rows, Split, TokenInfo, open_cache, write_cache
from tests.support.full_disk import largest_file
from tests.support.narrow import present


def info(codes: int = 16_384, class_names: list[str] | None = None) -> TokenInfo:
    return TokenInfo(
        grid=(2, 3), codes=codes, code_dim=4, tokenizer="runs/tokenizer/x", fingerprint="f", source="drawings",
        preprocessing={}, views=1, class_names=class_names,
    )  # fmt: skip


@pytest.mark.parametrize(("codes", "dtype"), [(16_384, np.uint16), (65_536, np.uint16), (65_537, np.uint32)])
def test_tokens_and_labels_round_trip(codes: int, dtype: type, tmp_path: Path) -> None:
    train, validation = torch.randint(codes, (700, 2, 3)), torch.randint(codes, (5, 2, 3))
    train[0, 0, 0] = codes - 1
    labels, vectors = torch.arange(700) % 2, torch.randn(codes, 4)
    rows: dict[Split, Rows] = {
        "train": [(train[:512], labels[:512]), (train[512:], labels[512:])],
        "validation": [(validation, labels[:5])],
    }
    write_cache(tmp_path / "tokens", info(codes, ["a", "b"]), vectors, rows)
    cache = open_cache(tmp_path / "tokens")
    assert cache.tokens["train"].dtype == dtype
    got, got_labels = cache.batch("train", torch.arange(700))
    assert torch.equal(got, train.flatten(1))
    assert torch.equal(present(got_labels), labels)
    assert torch.equal(cache.batch("validation", torch.tensor([4, 0]))[0], validation[[4, 0]].flatten(1))
    assert torch.equal(cache.code_vectors_KD, vectors)
    assert cache.info == info(codes, ["a", "b"])


def test_all_grids_are_one_mapped_array(tmp_path: Path) -> None:
    grids = torch.randint(16_384, (5_000, 2, 3))
    rows: dict[Split, Rows] = {"train": [(part, None) for part in grids.split(7)], "validation": [(grids[:1], None)]}
    write_cache(tmp_path / "tokens", info(), torch.zeros(16_384, 4), rows)
    tokens = open_cache(tmp_path / "tokens").tokens["train"]
    assert np.array_equal(tokens, grids.flatten(1))
    assert not tokens.flags.owndata
    assert not tokens.flags.writeable
    assert load_from_disk(str(tmp_path / "tokens"))["train"][4_321]["tokens"] == grids[4_321].flatten().tolist()


def test_a_cache_that_is_in_many_pieces_reads_the_same(tmp_path: Path) -> None:
    grids = torch.randint(16_384, (2_500, 2, 3))
    rows: dict[Split, Rows] = {"train": [(grids, torch.arange(2_500))], "validation": [(grids[:1], torch.zeros(1))]}
    write_cache(tmp_path / "tokens", info(class_names=["a"]), torch.zeros(16_384, 4), rows)
    load_from_disk(str(tmp_path / "tokens")).save_to_disk(tmp_path / "again")  # as `datasets` writes it
    for split in ("train", "validation"):
        shutil.rmtree(tmp_path / "tokens" / split)
        shutil.move(tmp_path / "again" / split, tmp_path / "tokens" / split)
    manifest.write_manifest(tmp_path / "tokens")
    got, labels = open_cache(tmp_path / "tokens").batch("train", torch.arange(2_500))
    assert torch.equal(got, grids.flatten(1))
    assert torch.equal(present(labels), torch.arange(2_500))


def test_without_class_names_there_are_no_labels(tmp_path: Path) -> None:
    rows = [(torch.zeros(4, 2, 3, dtype=torch.int64), None)]
    write_cache(tmp_path / "tokens", info(), torch.zeros(16_384, 4), {"train": rows, "validation": rows})
    assert open_cache(tmp_path / "tokens").batch("train", torch.tensor([1]))[1] is None


def test_a_failed_write_keeps_the_cache_before_it(tmp_path: Path) -> None:
    rows = [(torch.ones(4, 2, 3, dtype=torch.int64), None)]
    write_cache(tmp_path / "tokens", info(), torch.zeros(16_384, 4), {"train": rows, "validation": rows})

    def full() -> Rows:
        yield rows[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="could not be written"):
        write_cache(tmp_path / "tokens", info(), torch.zeros(16_384, 4), {"train": full(), "validation": rows})
    assert open_cache(tmp_path / "tokens").tokens["train"].shape == (4, 6)
    assert {path.name for path in tmp_path.iterdir() if "token" in path.name} == {"tokens", ".tokens.lock"}


def test_what_is_no_cache_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokens.json"):
        open_cache(tmp_path)


def test_tokens_beyond_the_codebook_are_refused(tmp_path: Path) -> None:
    rows = [(torch.full((4, 2, 3), 99), None)]
    write_cache(tmp_path / "tokens", info(codes=50), torch.zeros(50, 4), {"train": rows, "validation": rows})
    with pytest.raises(UserError, match="holds the token 99, but its tokenizer has 50 codes"):
        open_cache(tmp_path / "tokens")


def test_a_truncated_cache_is_refused_by_name(tmp_path: Path) -> None:
    rows = [(torch.ones(4, 2, 3, dtype=torch.int64), None)]
    write_cache(tmp_path / "tokens", info(), torch.zeros(16_384, 4), {"train": rows, "validation": rows})
    file = next((tmp_path / "tokens/train").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot be read"):
        open_cache(tmp_path / "tokens")


@pytest.mark.parametrize("exchange", [True, False])
def test_a_new_cache_takes_the_place_of_the_old(
    tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:  # as on a file system that cannot
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    for token in (1, 2):
        rows = [(torch.full((4, 2, 3), token), None)]
        write_cache(tmp_path / "tokens", info(), torch.zeros(16_384, 4), {"train": rows, "validation": rows})
    assert open_cache(tmp_path / "tokens").tokens["train"].tolist() == [[2] * 6] * 4
    assert {path.name for path in tmp_path.iterdir() if "token" in path.name} == {"tokens", ".tokens.lock"}


@pytest.mark.parametrize("limit", [0, 100, 600, 1_500, 40_000, 200_000])
def test_a_full_disk_keeps_the_cache_before_it(tmp_path: Path, limit: int) -> None:
    rows = [(torch.ones(40, 2, 3, dtype=torch.int64), None)]
    write_cache(tmp_path / "tokens", info(), torch.zeros(16_384, 4), {"train": rows, "validation": rows})
    with largest_file(limit), pytest.raises(UserError, match=r"tokens could not be written.*Make room"):
        write_cache(tmp_path / "tokens", info(), torch.ones(16_384, 4), {"train": rows, "validation": rows})
    assert open_cache(tmp_path / "tokens").code_vectors_KD.sum() == 0


@pytest.mark.parametrize("name", ["codebook.safetensors", "tokens.json", "train/state.json"])
def test_one_wrong_bit_is_noticed(tmp_path: Path, name: str) -> None:
    rows = [(torch.ones(4, 2, 3, dtype=torch.int64), None)]
    write_cache(tmp_path / "tokens", info(), torch.zeros(16_384, 4), {"train": rows, "validation": rows})
    content = bytearray((tmp_path / "tokens" / name).read_bytes())
    content[-20] ^= 1
    (tmp_path / "tokens" / name).write_bytes(content)
    with pytest.raises(UserError, match=r"make it again|cannot be used"):
        open_cache(tmp_path / "tokens")


def test_what_was_recorded_before_a_key_came_equals_its_default() -> None:
    before = {"source": "openmoji", "image_size": [64, 32], "augment": {"flip": 0.5}}
    now = DataConfig.model_validate(before).model_dump(mode="json")
    assert {"buffer_gb", "max_pixels"} <= now.keys() - before.keys()
    assert preprocessed(now) == preprocessed(before)
    assert preprocessed(now).data.height_width == (64, 32)
    for key, other in (("image_size", 64), ("buffer_gb", 1), ("augment", None), ("augment", {"flip": 0.4})):
        assert preprocessed({**before, key: other}) != preprocessed(before)


def test_how_images_were_read_makes_no_other_cache() -> None:
    read = {"workers": 4, "max_bad_fraction": 0.5, "augment": {"flip": 0.5, "run_on": "device"}}
    assert preprocessed(read) == preprocessed({"augment": {"flip": 0.5}})
    assert preprocessed({"workers": 4, "augment": None}) == preprocessed({"augment": None})


def test_a_key_that_is_gone_is_kept_and_named_when_it_is_asked_for() -> None:
    older = preprocessed({"colours": 3})
    assert older != preprocessed({})
    with pytest.raises(UserError, match="colours: there is no such key"):
        _ = older.data


def preprocessed(values: dict[str, Any]) -> TokenInfo:
    return TokenInfo.model_validate(info().model_dump() | {"preprocessing": values})
