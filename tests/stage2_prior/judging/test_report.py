"""The page of a prior's run."""

import re
from pathlib import Path

import torch

from shared.runs.token_cache import open_cache
from shared.runs.weights import read_weights
from stage1_tokenizer import train as stage1
from stage1_tokenizer.cache import cache_tokens
from stage1_tokenizer.tokenizer import load_tokenizer
from stage2_prior import train as stage2
from stage2_prior.judging.report import write_report
from stage2_prior.judging.subject import Subject
from stage2_prior.prior import load_prior
from stage2_prior.train import draw_grids
from tests.tiny import prior_run, tokenizer_run


def test_the_page_shows_the_run(drawings: Path) -> None:
    tokenizer, _ = stage1.train(tokenizer_run(drawings))
    tokens = cache_tokens(tokenizer.path)
    run, _ = stage2.train(prior_run(evaluate_every=32))
    assert {path.name for path in run.samples.glob("*.safetensors")} == {
        "000000032.safetensors",
        "000000064.safetensors",
    }
    prior, info = load_prior(run.path)
    subject = Subject(run.path, "last", prior, info, load_tokenizer(tokenizer.path))
    text = write_report(subject, open_cache(tokens)).read_text()
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
    last = read_weights(run.samples / "000000064.safetensors")["tokens"].long()
    assert torch.equal(last, draw_grids(prior, open_cache(tokens)))
