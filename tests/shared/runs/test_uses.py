"""How often codes occur: counted one by one, and told without the cache where a tokenizer is shared."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shared.errors import UserError
from shared.runs.token_cache import Rows, Split, TokenInfo, open_cache, write_cache
from shared.runs.uses import USES, count_uses, save_uses, uses_of
from tests.support.narrow import present

TOKENIZER = Path("runs/tokenizer/some")


@pytest.fixture
def grids() -> torch.Tensor:
    """Those of a cache of six images, one of them held out; no code above 14 occurs."""
    return write_grids()


def write_grids(tokens_per_place: int = 1) -> torch.Tensor:
    grids = torch.randint(15, (6, 2, 3))
    info = TokenInfo(
        grid=(2, 3), codes=20, code_dim=4, tokens_per_place=tokens_per_place, tokenizer=str(TOKENIZER),
        fingerprint="its own", source="none", preprocessing={}, views=1, class_names=None,
    )  # fmt: skip
    rows: dict[Split, Rows] = {"train": [(grids[:5], None)], "validation": [(grids[5:], None)]}
    TOKENIZER.mkdir(parents=True)
    write_cache(TOKENIZER / "tokens", info, torch.zeros(20, 4), rows)
    return grids


def test_every_token_of_the_cache_is_counted(grids: torch.Tensor) -> None:
    counted = Counter(grids.flatten().tolist())
    assert present(uses_of(TOKENIZER, "its own")).tolist() == [counted[code] for code in range(20)]


def test_tokens_of_one_place_are_counted_apart_and_told_together() -> None:
    grids = write_grids(tokens_per_place=3)
    apart = Counter((number % 3, code) for number, code in enumerate(grids.flatten().tolist()))
    counted = count_uses(open_cache(TOKENIZER / "tokens"))
    assert counted.tolist() == [apart[place, code] for place in range(3) for code in range(20)]
    assert present(uses_of(TOKENIZER, "its own")).tolist() == [int((grids == code).sum()) for code in range(20)]


def test_they_are_known_where_the_cache_is_not(grids: torch.Tensor, tmp_path: Path) -> None:
    counted_K = present(uses_of(TOKENIZER, "its own"))
    save_uses(TOKENIZER, "its own", tmp_path)
    assert torch.equal(present(uses_of(tmp_path, "whatever it was rounded to")), counted_K)
    (tmp_path / "again").mkdir()
    save_uses(tmp_path, "whatever it was rounded to", tmp_path / "again")
    assert torch.equal(present(uses_of(tmp_path / "again", "")), counted_K)


def test_the_own_cache_comes_before_what_was_shared(grids: torch.Tensor) -> None:
    save_file({"uses_K": torch.zeros(20)}, TOKENIZER / USES)
    assert present(uses_of(TOKENIZER, "its own")).sum() == 36
    assert present(uses_of(TOKENIZER, "another")).sum() == 0


def test_they_are_unknown_without_either_and_by_another_tokenizers_cache(grids: torch.Tensor, tmp_path: Path) -> None:
    assert uses_of(TOKENIZER, "another") is None
    shutil.rmtree(TOKENIZER / "tokens")
    save_uses(TOKENIZER, "its own", tmp_path)
    assert not (tmp_path / USES).exists()


def test_a_file_that_holds_no_uses_is_named(tmp_path: Path) -> None:
    (tmp_path / USES).write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=USES):
        uses_of(tmp_path, "")
    save_file({"something": torch.zeros(20)}, tmp_path / USES)
    with pytest.raises(UserError, match=f"{USES} does not hold"):
        uses_of(tmp_path, "")
