"""The page of a prior's run, and its search for copies."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.runs.token_cache import TokenCache, TokenInfo, open_cache
from shared.runs.weights import read_weights
from stage1_tokenizer import train as stage1
from stage1_tokenizer.cache import cache_tokens
from stage2_prior import report
from stage2_prior import train as stage2
from stage2_prior.prior import load_prior
from stage2_prior.report import nearest, write_report
from stage2_prior.train import draw_grids
from tests.tiny import prior_run, tokenizer_run

INFO = TokenInfo(
    grid=(2, 3), codes=20, code_dim=4, tokenizer="nowhere", fingerprint="0", source="none", preprocessing={}, views=1,
    class_names=None,
)  # fmt: skip


def random_cache(train: int = 23) -> TokenCache:
    generator = np.random.default_rng(0)
    tokens = {"train": generator.integers(0, 20, (train, 6)).astype(np.uint16)}
    return TokenCache(Path("tokens"), INFO, tokens, {"train": None}, torch.randn(20, 4))


@pytest.mark.parametrize("tokens_per_place", [1, 2])
def test_the_nearest_training_grid_is_found_piece_by_piece(
    monkeypatch: pytest.MonkeyPatch, tokens_per_place: int
) -> None:
    cache = random_cache()
    cache = replace(cache, info=cache.info.model_copy(update={"tokens_per_place": tokens_per_place}))
    tokens_BL = torch.randint(0, 20, (5, 6))
    monkeypatch.setattr(report, "ROWS", 7)
    rows_B, distances_B = nearest(tokens_BL, cache)
    codebooks = cache.code_vectors_KD.chunk(tokens_per_place, dim=1)
    for tokens_L, row, distance in zip(tokens_BL, rows_B, distances_B, strict=True):
        all_distances = []
        for other in cache.tokens["train"]:
            total = 0.0
            for place, (a, b) in enumerate(zip(tokens_L, other, strict=True)):
                codes = codebooks[place % tokens_per_place]
                total += float((codes[int(a)] - codes[int(b)]).square().sum())
            all_distances.append(total / 6)
        assert int(row) == int(np.argmin(all_distances))
        assert float(distance) == pytest.approx(min(all_distances), rel=1e-5)


def test_a_copy_is_at_distance_nought() -> None:
    cache = random_cache()
    rows_B, distances_B = nearest(torch.from_numpy(cache.tokens["train"][[4, 11]].astype(np.int64)), cache)
    assert rows_B.tolist() == [4, 11]
    assert distances_B.tolist() == [0, 0]


def test_the_page_shows_the_run(drawings: Path) -> None:
    tokenizer, _ = stage1.train(tokenizer_run(drawings))
    tokens = cache_tokens(tokenizer.path)
    run, _ = stage2.train(prior_run(evaluate_every=32))
    assert {path.name for path in run.samples.glob("*.safetensors")} == {
        "000000032.safetensors",
        "000000064.safetensors",
    }
    text = write_report(run.path).read_text()
    captions = re.findall("<figcaption>(.*?)</figcaption>", text)
    assert {"bits per token", "learning rate"} < set(captions)
    assert captions[-4:] == [
        "after 32 token grids",
        "after 64 token grids",
        "above: drawn by the trained prior; below: the nearest training image",
        "distances to the nearest training image",
    ]
    assert text.count('class="tile"') == 3 * 16
    shares = r"\d+% \(median; from \d+% to \d+%\)"
    assert re.search(f"a drawn image has at most {shares} of its 16 tokens in .*, a held-out image {shares}", text)
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    # What was drawn in training is what its weights draw.
    prior, _ = load_prior(run.path)
    last = read_weights(run.samples / "000000064.safetensors")["tokens"].long()
    assert torch.equal(last, draw_grids(prior, open_cache(tokens)))
