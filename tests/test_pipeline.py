"""Images to tokens to a prior to images: the whole way, on a tiny budget, through the commands a user types."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

import sample
from shared.config import parse_config
from shared.data.config import DataConfig
from shared.errors import UserError
from shared.runs.fingerprint import fingerprint
from shared.runs.run_directory import read_yaml
from shared.runs.token_cache import open_cache, read_info
from stage1_tokenizer import train as stage1
from stage1_tokenizer.cache import cache_tokens, open_views
from stage1_tokenizer.judging.images import datasets_of
from stage1_tokenizer.judging.quality import reconstruction_quality
from stage1_tokenizer.tokenizer import Tokenizer, load_tokenizer
from stage2_prior import train as stage2
from stage2_prior.evaluate import evaluate
from stage2_prior.prior import build_prior, load_prior
from tests.support.launch import ROOT
from tests.support.narrow import present
from tests.support.tiny import QUANTISERS, logged, prior_run, tokenizer_run


@pytest.fixture
def tokens(drawings: Path) -> Path:
    run, _ = stage1.train(tokenizer_run(drawings))
    return cache_tokens(run.path)


def test_the_cache_holds_each_image_once_a_view(tokens: Path) -> None:
    cache = open_cache(tokens)
    tokenizer = load_tokenizer(tokens.parent)
    assert cache.info.fingerprint == fingerprint(tokenizer)
    assert cache.info.class_names == ["animals", "faces"]
    assert len(cache.tokens["train"]) == 2 * (12 - len(cache.tokens["validation"]))
    views, validation = stage1_views(tokens.parent)
    for number in range(len(validation)):
        pixels, label = validation[0, number]
        expected = tokenizer.tokenize(pixels[None].float() / 127.5 - 1).flatten()
        got, labels = cache.batch("validation", torch.tensor([number]))
        assert torch.equal(got[0], expected)
        assert present(labels).item() == label
    # The second view is the mirror image.
    for number in range(len(views[0])):
        mirrored = views[0][0, number][0].flip(-1)
        got, _ = cache.batch("train", torch.tensor([len(views[0]) + number]))
        assert torch.equal(got[0], tokenizer.tokenize(mirrored[None].float() / 127.5 - 1).flatten())
    assert (tokens.parent / "tokens.png").stat().st_size > 0


def stage1_views(run: Path) -> tuple:
    return open_views(parse_config(DataConfig, read_yaml(run / "config.yaml")["data"], where="test"), count=2)


def test_a_whole_cache_is_left_as_it_is(tokens: Path) -> None:
    before = (tokens / "tokens.json").stat().st_mtime_ns
    assert cache_tokens(tokens.parent) == tokens
    assert (tokens / "tokens.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("kind", ["mamba", "gpt", "hybrid"])
def test_every_kind_of_prior_trains_saves_and_loads(tokens: Path, kind: str) -> None:
    run, report = stage2.train(prior_run(kind))
    prior, info = load_prior(run.path)
    assert info == read_info(tokens)
    assert evaluate(prior, open_cache(tokens), "validation") == report
    assert report.bits_per_token < 8


def test_an_absurd_batch_of_grids_is_one_message(tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"does not fit.*batch_size=500000000 training\.accumulation=2"):
        stage2.train(prior_run(batch_size=10**9))
    assert not Path("runs/prior").exists()
    stage2.train(prior_run())
    said = capsys.readouterr().out
    assert "memory: about" in said
    assert "\ntokens: runs/tokenizer/tiny/tokens, classes: 2; " in said


def test_stage_two_resumes_bit_for_bit(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = prior_run("hybrid", save_every=24)
    straight, _ = stage2.train(config)
    expected = straight.load(present(straight.newest()))[0]
    straight.path.rename("straight")
    end_step, steps = stage2.Trainee.end_step, iter(range(5))

    def end_step_or_die(self: stage2.Trainee) -> float:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return end_step(self)

    with monkeypatch.context() as patch:
        patch.setattr(stage2.Trainee, "end_step", end_step_or_die)
        with pytest.raises(KeyboardInterrupt):
            stage2.train(config)
    resumed, _ = stage2.train(config)
    weights = resumed.load(present(resumed.newest()))[0]
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def run_sample(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sample.py", *arguments])
    sample.main()


def test_sample_draws_the_same_pictures_at_every_batch_size(
    tokens: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage2.train(prior_run())
    run_sample(monkeypatch, "--num", "5", "--batch-size", "5", "--out", "five")
    assert "images/s" in capsys.readouterr().out
    run_sample(monkeypatch, "--num", "3", "--batch-size", "2", "--out", "three")
    assert len(list(Path("five").glob("seed0-*.png"))) == 5
    for number in range(3):
        pictures = [np.asarray(Image.open(f"{out}/seed0-{number:04d}.png")) for out in ("five", "three")]
        assert pictures[0].shape == (32, 32, 3)
        assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 1  # the decoder's last bits may round either way


def test_sample_refuses_what_does_not_fit(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage2.train(prior_run())
    for arguments, said in [
        (["--temperature", "-1"], "temperature is -1"),
        (["--top-p", "1.5"], "top_p is 1.5"),
        (["--top-k", "0"], "top_k is 0"),
        (["--num", "0"], "--num must be at least 1"),
        (["--class-label", "dogs"], "class dogs: there is no such class; known are 0 animals, 1 faces"),
        (["--cfg-scale", "2"], "guidance needs a class label"),
        (["--prior", "runs/prior/none"], "runs/prior/none"),
    ]:
        with pytest.raises(UserError, match=said):
            run_sample(monkeypatch, *arguments)
    run_sample(monkeypatch, "--num", "2", "--class-label", "faces", "--cfg-scale", "2", "--temperature", "0")


def test_both_stages_begin_with_what_was_trained_before(tokens: Path, drawings: Path) -> None:
    before, cache = load_tokenizer(tokens.parent), open_cache(tokens)
    tokenizer = Tokenizer(before.config)
    assert "begin at random" not in stage1.begin_with(tokenizer, str(tokens.parent), [])
    assert fingerprint(tokenizer) == fingerprint(before)
    assert tokenizer.quantiser.initialised
    stage1.begin_with(tokenizer, str(tokens.parent), ["decoder"])

    run, _ = stage2.train(prior_run("gpt", head="full", images=16))
    trained, info = load_prior(run.path)
    ids_BL = torch.randint(64, (2, 16))
    labelled, unlabelled = (
        build_prior(trained.config, info.model_copy(update={"class_names": names}), cache.code_vectors_KD).eval()
        for names in (info.class_names, None)
    )
    assert "begin at random" not in stage2.begin_with(labelled, cache.info, str(run.path), [])
    inputs_BL = labelled.inputs(ids_BL, torch.tensor([0, 1]))
    assert torch.equal(labelled(inputs_BL), trained(inputs_BL))
    without_classes = cache.info.model_copy(update={"class_names": None})
    assert "vocabulary" not in stage2.begin_with(unlabelled, without_classes, str(run.path), [])
    tables = [one.state_dict()["vocabulary.embedding.weight"][: info.codes] for one in (unlabelled, trained)]
    assert torch.equal(*tables)
    elsewhere = cache.info.model_copy(update={"fingerprint": "another"})
    assert "another tokenizer's" in stage2.begin_with(labelled, elsewhere, str(run.path), [])

    begun = {"name": "second", "init": str(tokens.parent)}
    second, _ = stage1.train(tokenizer_run(drawings, images=16, log_every=8).model_copy(update=begun))
    runs = (tokens.parent, second.path)
    errors = [next(line["l2"] for line in logged(run) if "l2" in line) for run in runs]  # of the first step
    assert errors[1] < 0.9 * errors[0]
    with pytest.raises(UserError, match="is a prior's run"):
        stage1.begin_with(tokenizer, str(run.path), [])
    with pytest.raises(UserError, match="is not a prior's run"):
        stage2.begin_with(labelled, cache.info, str(tokens.parent), [])


@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_every_quantiser_caches_primes_a_prior_and_samples(
    drawings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quantiser: str
) -> None:
    run, held_out = stage1.train(tokenizer_run(drawings, quantiser))
    last = [line for line in map(json.loads, run.metrics.read_text().splitlines()) if "usage" in line][-1]
    assert 0.02 < last["usage"] <= 1 < last["perplexity"] <= 64
    tokenizer = load_tokenizer(run.path)
    assert reconstruction_quality(tokenizer, datasets_of(run.path, "validation"), Accelerator()) == held_out.quality()
    cache = open_cache(cache_tokens(run.path))
    _, validation = stage1_views(run.path)
    pixels_BCHW = torch.stack([validation[0, number][0] for number in range(len(validation))]).float() / 127.5 - 1
    tokens_BL, _ = cache.batch("validation", torch.arange(len(validation)))
    assert torch.equal(tokens_BL, tokenizer.tokenize(pixels_BCHW).flatten(1))
    assert cache.info.grid == (4, 8 if quantiser in ("lfq", "residual") else 4)
    assert cache.code_vectors_KD.shape == (cache.info.codes, cache.info.code_dim)
    prior, report_of_prior = stage2.train(prior_run(head="codes"))
    assert evaluate(load_prior(prior.path)[0], cache, "validation") == report_of_prior
    run_sample(monkeypatch, "--num", "2")
    assert "images/s" in capsys.readouterr().out


def test_a_prior_whose_cache_came_from_another_tokenizer_is_refused(
    tokens: Path, drawings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage2.train(prior_run())
    other = tokenizer_run(drawings, images=40).model_copy(update={"name": "other"})
    stage1.train(other)
    with pytest.raises(UserError, match="fingerprint"):
        run_sample(monkeypatch, "--num", "1", "--tokenizer", "runs/tokenizer/other")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "https_proxy": "http://127.0.0.1:9", "TORCH_HOME": "."}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)


def test_the_commands_report_json_and_end_mistakes_in_one_message(tokens: Path) -> None:
    report = command("-m", "stage1_tokenizer.evaluate", "--json")
    assert report.returncode == 0, report.stderr
    assert json.loads(report.stdout.splitlines()[-1])["images"] > 0
    refused = command("-m", "stage1_tokenizer.train", str(ROOT / "configs/demo/tokenizer.yaml"), "training.imges=3")
    assert refused.returncode == 1
    assert "did you mean 'images'" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_prior_never_goes_on_with_other_tokens_than_it_began_with(tokens: Path, drawings: Path) -> None:
    run, _ = stage2.train(prior_run())
    before = (run.path / "tokens.json").read_text()
    shutil.rmtree(tokens.parent)
    stage1.train(tokenizer_run(drawings, seed=1))
    cache_tokens(tokens.parent)
    with pytest.raises(UserError, match=r"was begun on the tokens of tokenizer.*name of its own"):
        stage2.train(prior_run())
    assert (run.path / "tokens.json").read_text() == before


def test_pictures_that_changed_make_a_new_cache_and_are_named_to_a_prior(tokens: Path, drawings: Path) -> None:
    stage2.train(prior_run())
    picture = next((drawings / "faces").iterdir())
    picture.write_bytes(picture.read_bytes() + b"more")
    before = read_info(tokens)
    cache_tokens(tokens.parent)
    assert read_info(tokens).contents != before.contents
    with pytest.raises(UserError, match=r"contents changed\): give this prior a name of its own"):
        stage2.train(prior_run())


def test_tokens_recorded_before_a_key_came_are_the_same_tokens(tokens: Path) -> None:
    run, _ = stage2.train(prior_run())
    info = json.loads((run.path / "tokens.json").read_text())
    del info["preprocessing"]["buffer_gb"], info["preprocessing"]["augment"]["autocontrast"]
    (run.path / "tokens.json").write_text(json.dumps(info))
    stage2.train(prior_run())
    assert read_info(run.path) == read_info(tokens)


@pytest.mark.parametrize("damage", ["tokens.json", "codebook.safetensors", "train"])
def test_a_damaged_cache_is_made_anew_by_the_command_its_error_names(tokens: Path, damage: str) -> None:
    path = tokens / damage
    shutil.rmtree(path) if path.is_dir() else path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(UserError):
        open_cache(tokens)
    cache_tokens(tokens.parent)
    assert len(open_cache(tokens).tokens["train"]) > 0
