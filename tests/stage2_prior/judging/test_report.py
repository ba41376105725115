"""The page of a prior's run."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from shared.runs.token_cache import open_cache
from shared.runs.weights import read_weights
from stage1_tokenizer import train as stage1
from stage1_tokenizer.cache import cache_tokens
from stage1_tokenizer.tokenizer import load_tokenizer
from stage2_prior import train as stage2
from stage2_prior.judging.copies import nearest_by_code_vectors
from stage2_prior.judging.reference import reference_images
from stage2_prior.judging.report import kin_list, write_report
from stage2_prior.judging.subject import Subject
from stage2_prior.prior import load_prior
from stage2_prior.train import draw_grids
from tests.support.tiny import prior_run, tokenizer_run


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
    kin = re.findall(r"<li>((?:faces|animals)/\w+\.png) \((held out|trained on)\)</li>", text)
    sides = {"trained on": reference_images(info, "train"), "held out": reference_images(info, "validation")}
    assert len(kin) == 16
    for name, side in kin:
        assert name in {sides[side].source.names[index] for index in sides[side].indices.tolist()}
    # What was drawn in training is what its weights draw.
    last = read_weights(run.samples / "000000064.safetensors")["tokens"].long()
    assert torch.equal(last, draw_grids(prior, open_cache(tokens)))


def test_the_page_is_written_where_the_images_are_gone(drawings: Path) -> None:
    tokenizer, _ = stage1.train(tokenizer_run(drawings))
    tokens = cache_tokens(tokenizer.path)
    run, _ = stage2.train(prior_run())
    shutil.rmtree(drawings)
    prior, info = load_prior(run.path)
    subject = Subject(run.path, "last", prior, info, load_tokenizer(tokenizer.path))
    text = write_report(subject, open_cache(tokens)).read_text()
    assert "What the nearest images are called is not known: there is no folder" in text


def test_a_sample_like_a_held_out_image_is_told_from_one_trained_on(drawings: Path) -> None:
    tokenizer, _ = stage1.train(tokenizer_run(drawings))
    cache = open_cache(cache_tokens(tokenizer.path))
    unlike_ML = np.arange(32).reshape(2, 16) % 64  # this tokenizer gives unlike images the same tokens
    cache = replace(cache, tokens={"train": cache.tokens["train"], "validation": unlike_ML})
    tokens_BL = torch.cat([cache.batch("train", torch.tensor([3]))[0], torch.from_numpy(unlike_ML[1:])])
    listed = kin_list(tokens_BL, nearest_by_code_vectors(tokens_BL, cache), cache)
    assert re.findall(r"\((held out|trained on)\)", listed) == ["trained on", "held out"]
