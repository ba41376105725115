"""judge.py: measures of drawn images against the same taken by hand, on one process and two; the page of a run."""

import json
import math
import operator
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

import judge
from shared.data.pixels import to_float, to_uint8
from shared.errors import UserError
from shared.reporting.set_distances import distances
from shared.runs.token_cache import Split, TokenCache, open_cache
from stage1_tokenizer import train as stage1
from stage1_tokenizer.cache import cache_tokens
from stage1_tokenizer.judging.networks import Vgg16, open_networks
from stage1_tokenizer.tokenizer import load_tokenizer
from stage2_prior import evaluate
from stage2_prior import train as stage2
from stage2_prior.decoding.choosing.filters import SamplingConfig
from stage2_prior.decoding.decoder import Decoder
from stage2_prior.decoding.early import early_name
from stage2_prior.decoding.settings import STRONG, DrawingSettings, read_settings
from stage2_prior.judging.drawing import Drawing
from stage2_prior.judging.reference import labels_like, reference_images
from stage2_prior.judging.search import autoguidance
from stage2_prior.judging.search import judge as judges
from stage2_prior.judging.search.autoguidance import strengths
from stage2_prior.judging.search.tried import Guided, Score
from stage2_prior.judging.titles import MEASURES, TITLES
from stage2_prior.prior import load_prior
from tests.support.launch import ROOT
from tests.support.tiny import generate, prior_run, tokenizer_run

EARLY = (0.3, 0.9)  # after the first step, and after the second


@pytest.fixture
def run(drawings: Path) -> Path:
    tokenizer, _ = stage1.train(tokenizer_run(drawings, images=40))
    cache_tokens(tokenizer.path)
    return stage2.train(prior_run(images=16, early=EARLY))[0].path


@pytest.mark.usefixtures("closed_network")
def test_every_measure_is_that_of_the_images_drawn(run: Path) -> None:
    drawing = Drawing(images=6, seed=3, batch_size=4, sampling=SamplingConfig(temperature=0.9))
    found = judge.judge_samples(run, "last", drawing, None, Accelerator())
    prior, info = load_prior(run)
    dataset = reference_images(info, "train")
    labels_N = labels_like(dataset, 6)
    with torch.inference_mode():
        tokens = generate(prior, range(6), 3, drawing.sampling, labels_B=labels_N)
        tokenizer = load_tokenizer(Path(info.tokenizer))
        drawn = to_uint8(tokenizer.detokenize(tokens))
        real = torch.stack([dataset[0, position][0] for position in range(len(dataset))])
        [vgg] = open_networks((32, 32), None, "cpu")[0]
        expected = dict(zip(MEASURES["vgg16"], distances(vgg(drawn), vgg(real)), strict=True))
        held_out = reference_images(info, "validation")
        unseen = to_float(torch.stack([held_out[0, place][0] for place in range(len(held_out))]))
        decoded = to_uint8(tokenizer.detokenize(tokenizer.tokenize(unseen)))
        training = torch.cat([vgg(real), vgg(real.flip(-1))])
        near, usual = (torch.cdist(vgg(images), training).min(1).values for images in (drawn, decoded))
        expected["copying_vgg16"] = float((near[:, None] < usual).float().mean())
        new = torch.cdist(vgg(drawn), vgg(to_uint8(unseen)))
        expected["nearest_held_out"] = float((new.min(1).values < near).float().mean())
        cache = open_cache(run.parents[1] / "tokenizer/tiny/tokens")
        expected |= expected_shares(tokens.flatten(1), cache)
    assert found.measures == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert set(found.not_measured) == {*MEASURES["inception"], "copying"}
    assert all("no route to host" in reason for reason in found.not_measured.values())
    assert {*expected, *MEASURES["inception"], "copying"} == set(TITLES)
    saved = json.loads((run / "evaluation/samples.json").read_text())
    assert saved == found.as_dict()
    assert saved["reference"].startswith(f"{len(dataset)} train images of ")
    assert saved["seeds"]["drawing"] == 3
    assert saved["sampling"]["temperature"] == 0.9
    assert "| precision in ST-LPIPS' VGG16 |" in (run / "evaluation/samples.md").read_text()
    assert Image.open(run / "evaluation/samples.png").size == (8 * 36, 36)
    assert Image.open(run / "evaluation/nearest.png").size == (6 * 36, 3 * 36)
    names = [dataset.source.names[int(index)] for index in dataset.indices]
    of_held_out = [held_out.source.names[int(index)] for index in held_out.indices]
    lines = ["| drawn image | nearest real image |", "|---:|---|"]
    for number in range(6):
        is_new = bool(new[number].min() < near[number])
        place = int(new[number].argmin() if is_new else torch.cdist(vgg(drawn), training)[number].argmin() % len(names))
        kin = f"{of_held_out[place]} (held out)" if is_new else f"{names[place]} (trained on)"
        lines.append(f"| {number} | {kin} |")
    assert (run / "evaluation/nearest.md").read_text().splitlines() == lines


def expected_shares(drawn_NL: torch.Tensor, cache: TokenCache) -> dict[str, float]:
    """The measures by tokens, of grids drawn and of the two held out, one comparison after another."""

    def shares(grids: Iterable[Iterable[int]]) -> list[float]:
        training = cache.tokens["train"].tolist()
        return [max(sum(map(operator.eq, grid, other)) / 16 for other in training) for grid in grids]

    drawn, held_out = shares(drawn_NL.tolist()), shares(cache.tokens["validation"].tolist())
    more = [(mine > other) + (mine == other) / 2 for mine in drawn for other in held_out]
    measures = {"copying_tokens": sum(more) / len(more)}
    for name, values in (("shared_tokens", drawn), ("shared_tokens_held_out", held_out)):
        measures |= {f"{name}_{percent}": float(np.percentile(values, percent)) for percent in (50, 95, 100)}
    return measures


@pytest.mark.usefixtures("closed_network")
@pytest.mark.parametrize("reference", ["train", "validation"])
def test_each_image_is_seen_once_by_a_network(run: Path, reference: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[bytes] = Counter()

    class Network:
        name = "vgg16"
        fingerprint = "none"

        def __call__(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
            seen.update(image.numpy().tobytes() for image in pixels_BCHW)
            return pixels_BCHW.flatten(1)[:, :5].float()

    monkeypatch.setattr(judge, "open_networks", lambda *_: ([Network()], {}))
    judge.judge_samples(run, "last", Drawing(images=4, reference=reference), None, Accelerator())
    train, validation = (reference_images(load_prior(run)[1], split) for split in ("train", "validation"))
    views = [train[0, place][0] for place in range(len(train))]
    views += [image.flip(-1) for image in views]  # a drawing that is its own mirror image counts twice
    if reference == "validation":
        views += [validation[0, place][0] for place in range(len(validation))]
    expected = Counter(image.numpy().tobytes() for image in views)
    assert {image: seen[image] for image in expected} == expected


@pytest.mark.usefixtures("closed_network")
@pytest.mark.parametrize("gone", [False, True])
def test_images_of_a_shared_prior_are_measured_without_its_tokens(
    run: Path, gone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_tokens = judge.judge_samples(run, "last", Drawing(images=4), None, Accelerator())
    load_prior(run)[0].save_pretrained(tmp_path / "shared")
    if gone:
        shutil.rmtree("runs")
    monkeypatch.setattr(sys, "argv", ["judge.py", "--prior", str(tmp_path / "shared"), "--samples", "4", "--json"])
    judge.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["measures"] == pytest.approx(with_tokens.measures, rel=1e-4, abs=1e-5)
    for command, arguments in ((judge, []), (evaluate, ["--json"])):  # which need its tokens
        monkeypatch.setattr(sys, "argv", ["command", "--prior", str(tmp_path / "shared"), *arguments])
        with pytest.raises(UserError, match=r"shared is a shared prior and comes without the tokens .*--samples N"):
            command.main()


@pytest.mark.usefixtures("closed_network")
def test_two_processes_find_what_one_does(run: Path) -> None:
    closed = {"https_proxy": "http://127.0.0.1:9", "TORCH_HOME": str(run), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(ROOT / "judge.py"), "--samples", "5", "sampling.temperature=0.9", "--json"]
    result = subprocess.run(
        command, env=os.environ | closed | {"ACCELERATE_USE_CPU": "1"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout.splitlines()[-1])
    drawing = Drawing(images=5, sampling=SamplingConfig(temperature=0.9))
    alone = judge.judge_samples(run, "last", drawing, None, Accelerator())
    assert alone.measures
    assert figures["processes"] == 2
    assert figures["measures"] == pytest.approx(alone.measures, rel=1e-4, abs=1e-5)


@pytest.mark.usefixtures("closed_network")
def test_real_images_are_looked_at_once_for_all_priors(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    looked = Vgg16.__call__

    def count(self: Vgg16, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels_BCHW))
        return looked(self, pixels_BCHW)

    monkeypatch.setattr(Vgg16, "__call__", count)
    found = [judge.judge_samples(run, "last", Drawing(images=4), None, Accelerator()).measures for _ in range(2)]
    dataset, held_out = (reference_images(load_prior(run)[1], split) for split in ("train", "validation"))
    every = 2 * len(dataset) + len(held_out)  # mirrored as well
    assert sum(seen) == every + 2 * (4 + len(held_out))  # drawings, and reconstructions of those held out
    assert found[0] == found[1]


@pytest.mark.usefixtures("closed_network")
def test_a_search_keeps_what_draws_most_like_unseen_images(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(judge, "SEARCHED", 12)
    strongest = Guided(STRONG, early_name(0.9))
    monkeypatch.setattr(autoguidance, "ASKED", 8)
    monkeypatch.setattr(autoguidance, "likeliest", lambda early, score: (strongest, score(strongest))[0])
    monkeypatch.setattr(judges, "SMALLEST_SET", 2)
    monkeypatch.setattr(sys, "argv", ["judge.py", "--search", "--json"])
    judge.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    against = " from early-0.9"
    scores = {
        (one["settings"].removesuffix(against), one["seed"]): (one["distance"], one["copying"])
        for one in found["tried"]
        if one["images"] == 12
    }
    assert [one["images"] for one in found["tried"]] == [8] + [12] * len(scores)
    first = "top_p 0.98, autoguidance 3.0"
    tried = {setting for setting, seed in scores if seed == 0}
    assert tried >= {first, f"temperature 0.9, {first}", f"temperature 0.7, {first}"}
    assert all("autoguidance 3.0" in settings for settings in tried)
    assert (run / "early.safetensors").read_bytes() == (run / "early-0.9.safetensors").read_bytes()
    kept = read_settings(run)
    assert json.loads((run / "drawing.json").read_text())["settings"] == found["settings"] == kept.model_dump()
    allowed = [key for key, (_, copying) in scores.items() if not key[1] and copying <= scores[first, 0][1] + 0.01]
    best = min(allowed, key=lambda key: scores[key][0])[0]
    if best != first and scores[best, 1][0] >= scores[first, 1][0]:
        best = first
    assert str(kept) == best
    drawing = Drawing(
        images=12, batch_size=16, sampling=kept.sampling, guidance=kept.guidance, autoguidance=kept.autoguidance
    )
    measured = judge.judge_samples(run, "last", drawing, None, Accelerator()).measures
    assert measured["copying_vgg16"] <= 1  # the settings found can be measured


@pytest.mark.usefixtures("closed_network")
@pytest.mark.parametrize("place", [0, 2, 6])
def test_a_search_may_ask_for_autoguidance_alone(
    place: int, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(autoguidance, "ASKED", 8)
    early = [early_name(share) for share in EARLY]
    tried = [Guided(DrawingSettings(), early[0]), *strengths(early, sure=False)]
    of_scores: list[Score] = []

    def likeliest(names: list[str], score: Callable[[Guided], Score]) -> Guided:
        assert names == early
        of_scores.extend(score(guided) for guided in tried)
        return tried[place]

    monkeypatch.setattr(autoguidance, "likeliest", likeliest)
    monkeypatch.setattr(sys, "argv", ["judge.py", "--search", "autoguidance", "--json"])
    judge.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["settings"] for one in found["tried"]] == [str(guided) for guided in tried]
    assert found["best"] == str(tried[place])
    assert read_settings(run) == tried[place].settings
    assert (run / early[0]).read_bytes() != (run / early[1]).read_bytes()
    assert (run / "early.safetensors").read_bytes() == (run / early[place == 6]).read_bytes()
    drawn = [generated(run, guided) for guided in tried]
    assert [score.bits for score in of_scores] == pytest.approx([bits_of(run, tokens_nhw) for tokens_nhw in drawn])


def generated(run: Path, guided: Guided) -> torch.Tensor:
    """(8, L): the first drawings, each class as often as it occurs."""
    prior, info = load_prior(run)
    settings = guided.settings
    labels_B = labels_like(reference_images(info, "train"), 8)
    decoder = Decoder(prior, early=guided.early)
    tokens_Bhw = decoder.generate(range(8), 0, settings.sampling, labels_B=labels_B, autoguidance=settings.autoguidance)
    return tokens_Bhw.flatten(1)


def bits_of(run: Path, tokens_BL: torch.Tensor) -> float:
    """Per token of the median drawing, from the prior's logits."""
    prior, info = load_prior(run)
    labels_B = labels_like(reference_images(info, "train"), 8)
    with torch.no_grad():
        logp_BLK = prior(prior.inputs(tokens_BL, labels_B)).log_softmax(-1)
    nats_B = -logp_BLK.gather(2, tokens_BL.unsqueeze(2)).squeeze(2).mean(1)
    return float(nats_B.median()) / math.log(2)


def test_options_of_a_drawing_that_do_not_exist_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, said in [
        (["--samples", "0"], "images"),
        (["--samples", "4", "sampling.temprature=1"], "did you mean 'temperature'"),
        (["reference=validation"], "images: this key is needed"),
        (["--search", "--samples", "4"], "--search draws as many images as it needs"),
        (["--inception", "file"], "--inception is for measuring samples: say how many with --samples N"),
    ]:
        monkeypatch.setattr(sys, "argv", ["judge.py", *options])
        with pytest.raises(UserError, match=said):
            judge.main()


@pytest.mark.parametrize("weights", ["last", "best"])
def test_without_samples_it_writes_the_page(
    run: Path, weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["judge.py", "--weights", weights, "--json"])
    judge.main()
    said, found = capsys.readouterr().out.splitlines()[-2:]
    page = "runs/prior/tiny/report.html"
    assert said == f"wrote {page}: open it in a browser"
    assert json.loads(found) == {"prior": str(run), "weights": weights, "report": page}
    text = (run / "report.html").read_text()
    assert text.count('class="tile"') == 2 * 16
    assert ("those that did best on held-out grids" in text) == (weights == "best")


def test_a_page_of_other_tokens_than_it_was_trained_on_is_refused(
    run: Path, drawings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (drawings / "faces/1F600.png").unlink()
    cache_tokens(Path("runs/tokenizer/tiny"))
    monkeypatch.setattr(sys, "argv", ["judge.py"])
    with pytest.raises(UserError, match="was made anew"):
        judge.main()
