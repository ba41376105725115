"""Which token cache a run is trained on, and the caches that are refused afterwards."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from shared.errors import UserError
from shared.runs.run_directory import RunDirectory
from shared.runs.token_cache import TokenCache, TokenInfo, write_cache
from stage2_prior.tokens import Amount, find_tokens, open_tokens_of, remember_tokens, tokens_of

INFO = TokenInfo(
    grid=(3, 4), codes=20, code_dim=8, tokenizer="nowhere", fingerprint="0", source="none",
    preprocessing={"image_size": [24, 32]}, views=1, class_names=None,
)  # fmt: skip


@pytest.fixture
def tokens(own_directory: Path) -> Path:
    grids = [(torch.randint(20, (6, 3, 4)), None)]
    write_cache(Path("tokens"), INFO, torch.randn(20, 8), {"train": grids, "validation": grids})
    return Path("tokens")


def run_on(tokens: object) -> Path:
    run = Path("run")
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump({"tokens": tokens}))
    return run


def test_what_a_run_was_trained_on_is_found_and_opened(tokens: Path) -> None:
    run = run_on("tokens")
    assert tokens_of(run) == tokens
    assert open_tokens_of(run, INFO).info == INFO
    assert find_tokens("tokens") == tokens
    remember_tokens(RunDirectory(run), open_tokens_of(run, INFO))
    assert TokenInfo.model_validate_json((run / "tokens.json").read_text()) == INFO


def test_without_a_name_the_cache_is_that_of_the_training_started_last(own_directory: Path) -> None:
    for second, name in enumerate(("cached_last", "started_last", "not_cached")):
        run = Path("runs/tokenizer", name)
        (run / "tokens").mkdir(parents=True)
        (run / "config.yaml").write_text("")
        os.utime(run / "config.yaml", (second, second))
    for name in ("started_last", "cached_last"):
        Path("runs/tokenizer", name, "tokens/tokens.json").write_text("{}")
    assert find_tokens(None) == Path("runs/tokenizer/started_last/tokens")


def test_other_tokens_than_it_was_trained_on_are_refused(tokens: Path) -> None:
    before = INFO.model_copy(update={"source": "other images", "fingerprint": "1"})
    with pytest.raises(UserError, match="tokens was made anew, .* since run was trained on it"):
        open_tokens_of(run_on("tokens"), before)
    assert before.differences(INFO) == ["fingerprint", "source"]


def test_tokens_are_the_same_whatever_decodes_them(tokens: Path) -> None:
    of_another = INFO.model_copy(update={"tokenizer": "elsewhere", "tokenizing": "2"})
    assert open_tokens_of(run_on("tokens"), of_another).info.is_like(of_another)
    refined = of_another.model_copy(update={"fingerprint": "3"})
    assert refined.is_like(of_another)
    assert not refined.is_like(INFO)  # a cache that does not say what made its tokens
    assert not refined.is_like(of_another.model_copy(update={"tokenizing": "4"}))


def test_a_shared_prior_has_no_tokens_and_is_told_what_does_without(tokens: Path) -> None:
    run = run_on("tokens")
    (run / "tokenizer").mkdir()
    with pytest.raises(UserError, match=r"run is a shared prior .*`python judge.py --prior run --samples N`"):
        open_tokens_of(run, INFO)


@pytest.mark.parametrize("value", [None, 5])
def test_a_configuration_that_does_not_say_is_refused(own_directory: Path, value: object) -> None:
    with pytest.raises(UserError, match=f"does not say which tokens .*tokens: {value}"):
        tokens_of(run_on(value))


@pytest.mark.parametrize(
    ("images", "views", "codes", "said"),
    [
        (2376, 2, 16_384, "2,376 images of 64 tokens each, in 2 views; a code of the 16,384 comes 9.3 times .*: 1"),
        (33_431, 1, 1024, "33,431 images of 64 tokens each, in 1 view; a code of the 1,024 comes 2,089.4 times .*: 2"),
        (1, 1, 16, "a code of the 16 comes 4.0 times a view; tokens that can tell all images apart: 1"),
        (9, 1, 1, "a code of the 1 comes 576.0 times a view; tokens that can tell all images apart: 64"),
    ],
)  # fmt: skip
def test_how_much_there_is_to_learn_from_is_told(images: int, views: int, codes: int, said: str) -> None:
    info = TokenInfo(
        grid=(8, 8), codes=codes, code_dim=8, tokenizer="nowhere", fingerprint="0", source="none", preprocessing={},
        views=views, class_names=None,
    )  # fmt: skip
    grids = np.zeros((images * views, 64), np.uint16)
    cache = TokenCache(Path(), info, {"train": grids}, {"train": None}, torch.empty(0))
    assert re.search(f"{said}$", str(Amount.of(cache)))
