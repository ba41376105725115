"""Stage two's training: which views it sees when, and which weights it keeps."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from shared.errors import UserError
from shared.runs.run_directory import RunDirectory
from shared.runs.token_cache import AS_IT_IS, AUGMENTED, Rows, Split, TokenCache, TokenInfo, open_cache, write_cache
from shared.runs.weights import read_weights
from shared.training.config import TrainingConfig
from stage2_prior import train as stage2
from stage2_prior.decoding import settings
from stage2_prior.decoding.early import kept_early
from stage2_prior.evaluate import TokenPrediction, evaluate_run
from stage2_prior.prior import load_early, load_prior
from stage2_prior.run_config import PriorRun
from tests.support.narrow import present
from tests.support.tiny import logged, prior_run

INFO = TokenInfo(
    grid=(3, 4), codes=20, code_dim=8, tokenizer="nowhere", fingerprint="0", source="none",
    preprocessing={"image_size": [24, 32], "augment": None}, views=3, class_names=None,
)  # fmt: skip


def write_random_cache(info: TokenInfo = INFO, grids: int = 18) -> None:
    tokens_Bhw = torch.randint(20, (grids, 3, 4))
    rows: dict[Split, Rows] = {"train": [(tokens_Bhw, None)], "validation": [(tokens_Bhw[:5], None)]}
    write_cache(Path("tokens"), info, torch.randn(20, 8), rows)


def test_every_epoch_has_each_image_once_and_in_its_next_view() -> None:
    images, views, epochs = 10, 3, 6
    # Grid i of view v is all 16 * v + i, so that a batch tells which it holds.
    numbers = np.add.outer(16 * np.arange(views), np.arange(images)).flatten()
    cache = TokenCache(Path(), INFO, {"train": np.repeat(numbers[:, None], 12, 1)}, {"train": None}, torch.empty(0))
    config = TrainingConfig(images=1, batch_size=5)
    batches = stage2.token_batches(cache, config, start=0, rank=0, ranks=1)
    drawn = [next(batches) for _ in range(2 * epochs)]
    seen = [divmod(int(number), 16) for tokens_BL, _, _ in drawn for number in tokens_BL[:, 0]]
    told = [view for _, _, views_B in drawn for view in views_B.tolist()]
    assert told == [AUGMENTED if view else AS_IT_IS for view, _ in seen]  # nothing is mirrored here
    by_epoch = [seen[images * epoch : images * (epoch + 1)] for epoch in range(epochs)]
    for epoch in by_epoch:
        assert sorted(image for _, image in epoch) == list(range(images))
        assert len({view for view, _ in epoch}) == views
    for before, after in pairwise(by_epoch):
        assert {((view + 1) % views, image) for view, image in before} == set(after)
    assert set(Counter(seen).values()) == {epochs // views}


def test_a_cache_whose_views_do_not_add_up_is_refused() -> None:
    write_random_cache(grids=17)
    with pytest.raises(UserError, match="17 training grids, which are not 3 views each"):
        open_cache(Path("tokens"))


def test_a_tokenizers_run_in_place_of_its_cache_is_told_where_that_is() -> None:
    write_random_cache()
    Path("run").mkdir()
    Path("tokens").rename("run/tokens")
    with pytest.raises(UserError, match="run is a tokenizer's run, .*: tokens=run/tokens$"):
        stage2.train(prior_run().model_copy(update={"tokens": "run"}))


def scripted(bits: list[float], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Let evaluations find `bits`, one after the other; returns the weights that they were given."""
    left, given = iter(bits), []

    def evaluate(prior: Any, *_: Any, **__: Any) -> TokenPrediction:
        given.append({name: tensor.clone() for name, tensor in prior.state_dict().items()})
        return TokenPrediction(next(left), 0.0, 0.0, 5, [])

    monkeypatch.setattr(stage2, "evaluate", evaluate)
    return given


def equal(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def test_the_weights_that_did_best_are_kept_beside_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    write_random_cache()
    config = prior_run(evaluate_every=16, save_every=16).model_copy(update={"tokens": "tokens"})
    given = scripted([3.0, 2.0, 2.5, 2.2], monkeypatch)
    run, report = stage2.train(config)
    assert report.bits_per_token == 2.2
    assert stage2.best_so_far(run) == (2.0, 32)
    assert equal(read_weights(run.path / "best.safetensors"), given[1])
    assert equal(load_prior(run.path, "best")[0].state_dict(), given[1])
    assert equal(load_prior(run.path)[0].state_dict(), given[3])


def test_a_resumed_run_keeps_the_best_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    write_random_cache()
    config = prior_run(evaluate_every=16, save_every=16).model_copy(update={"tokens": "tokens"})
    given = scripted([3.0, 2.0], monkeypatch)  # the third evaluation finds none and ends the run
    with pytest.raises(StopIteration):
        stage2.train(config)
    best = given[1]
    scripted([2.5, 2.2], monkeypatch)
    run, _ = stage2.train(config)
    assert stage2.best_so_far(run) == (2.0, 32)
    assert equal(read_weights(run.path / "best.safetensors"), best)


def test_weights_of_early_in_the_training_are_kept_also_where_it_was_resumed() -> None:
    write_random_cache()
    config = prior_run(early=[0.45, 0.7], save_every=16).model_copy(update={"tokens": "tokens"})
    stage2.train(config, ended=lambda grids: grids == 16)
    assert kept_early(Path("runs/prior/tiny")) == []
    then: dict[int, dict[str, torch.Tensor]] = {}

    def ended(grids: int) -> bool:
        if grids % 16 == 0:
            then[grids] = read_weights(RunDirectory(Path("runs/prior/tiny")).state_after(grids) / "ema.safetensors")
        return False

    run, _ = stage2.train(config, ended=ended)  # 0.45 and 0.7 of 64 grids are 28.8 and 44.8, and steps have 8
    assert kept_early(run.path) == ["early-0.45.safetensors", "early-0.7.safetensors"]
    assert equal(read_weights(run.path / "early-0.45.safetensors"), then[32])
    assert equal(read_weights(run.path / "early-0.7.safetensors"), then[48])
    assert equal(load_early(run.path).state_dict(), then[32])


def test_no_early_weights_are_kept_where_none_are_asked_for() -> None:
    write_random_cache()
    run, _ = stage2.train(prior_run(early=[]).model_copy(update={"tokens": "tokens"}))
    assert not list(run.path.glob("early*"))


@pytest.mark.parametrize(("share", "seen", "kept"), [(0.5, 16, True), (0.2, 24, False)])
def test_early_weights_are_kept_a_little_late_where_a_training_is_shortened(
    share: float, seen: int, kept: bool
) -> None:
    write_random_cache()
    config = prior_run(early=[share], images=128, save_every=8).model_copy(update={"tokens": "tokens"})
    stage2.train(config, ended=lambda grids: grids == seen)
    shorter = prior_run(early=[share], images=32, save_every=8).model_copy(update={"tokens": "tokens"})
    run, _ = stage2.train(shorter)  # a half is 16 of 32, and the next step ends at 24; a fifth is 7, and it ends at 32
    assert bool(kept_early(run.path)) is kept


@pytest.mark.parametrize("sure", [True, False])
def test_how_a_prior_is_drawn_follows_its_training(sure: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "SURE_BITS", 100.0 if sure else 0.0)
    write_random_cache()
    config = prior_run(early=[0.5]).model_copy(update={"tokens": "tokens"})
    run, _ = stage2.train(config)
    assert settings.read_settings(run.path) == (settings.SURE if sure else settings.USUAL)
    for by in ("plan", "search"):
        settings.write_settings(run.path, settings.STRONG, by, {})  # type: ignore[arg-type]
        stage2.train(config)
        assert settings.read_settings(run.path) == settings.STRONG  # the same training
    shutil.rmtree(run.path / "state")
    stage2.train(config)
    assert settings.read_settings(run.path) == (settings.SURE if sure else settings.USUAL)


def test_early_weights_of_another_beginning_do_not_stay() -> None:
    write_random_cache()
    stale = Path("runs/prior/tiny")
    stale.mkdir(parents=True)
    for name in ("early-0.5.safetensors", "early.safetensors"):
        (stale / name).write_text("stale")
    run, _ = stage2.train(prior_run(early=[0.5]).model_copy(update={"tokens": "tokens"}))
    assert (run.path / "early.safetensors").read_bytes() == (run.path / "early-0.5.safetensors").read_bytes()
    load_early(run.path)


def test_a_run_of_before_may_keep_other_shares_when_it_resumes() -> None:
    write_random_cache()
    config = prior_run(early=0.03, save_every=32).model_copy(update={"tokens": "tokens"})
    stage2.train(config, ended=lambda grids: grids == 32)
    run, _ = stage2.train(prior_run(early=[0.03, 0.9], save_every=32).model_copy(update={"tokens": "tokens"}))
    assert kept_early(run.path) == ["early-0.03.safetensors", "early-0.9.safetensors"]


@pytest.mark.parametrize(("given", "shares"), [(0.03, (0.03,)), (0, ()), ([0.1, 0.3], (0.1, 0.3))])
def test_a_number_is_one_share_as_in_runs_of_before(given: Any, shares: tuple[float, ...]) -> None:
    assert prior_run(early=given).training.early == shares


@pytest.mark.parametrize("given", [1, [0.0], [0.1, 1.0]])
def test_a_share_lies_within_the_training(given: Any) -> None:
    with pytest.raises(UserError, match=r"training\.early"):
        prior_run(early=given)


def test_the_end_is_evaluated_and_logged_whatever_the_interval() -> None:
    write_random_cache()
    run, report = stage2.train(prior_run(evaluate_every=10_000).model_copy(update={"tokens": "tokens"}))
    last = json.loads(run.metrics.read_text().splitlines()[-1])
    assert last["images"] == 64
    assert last["validation/bits_per_token"] == report.bits_per_token
    again, same = stage2.train(prior_run(evaluate_every=10_000).model_copy(update={"tokens": "tokens"}))
    assert same == report
    assert len(again.metrics.read_text().splitlines()) == len(run.metrics.read_text().splitlines())
    assert equal(read_weights(run.path / "best.safetensors"), read_weights(run.path / "ema.safetensors"))


def test_bits_that_are_not_finite_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    write_random_cache()
    config = prior_run(evaluate_every=10_000, save_every=32).model_copy(update={"tokens": "tokens"})
    for bits in (float("nan"), float("inf")):
        scripted([bits], monkeypatch)
        with pytest.raises(UserError, match=r"bits per token after 64 grids: .*of no use.*name=.*learning_rate"):
            stage2.train(config)
    assert [state.name for state in stage2.RunDirectory(Path("runs/prior/tiny")).states()] == ["000000000032"]


def test_evaluating_weights_of_no_use_is_an_error() -> None:
    write_random_cache()
    run, _ = stage2.train(prior_run().model_copy(update={"tokens": "tokens"}))
    shutil.rmtree(run.state)
    weights = read_weights(run.path / "ema.safetensors")
    (run.path / "ema.safetensors").unlink()
    save_file({name: tensor * float("nan") for name, tensor in weights.items()}, run.path / "ema.safetensors")
    with pytest.raises(UserError, match="has nan bits per token on train grids"):
        evaluate_run(run.path, "last", 8, 100, Accelerator())
    assert not (run.path / "evaluation.json").exists()


def test_a_lengthened_prior_that_is_stopped_and_resumed_is_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_random_cache()
    short = prior_run(save_every=24).model_copy(update={"tokens": "tokens"})
    longer = short.model_copy(update={"training": short.training.model_copy(update={"images": 160})})
    run, _ = stage2.train(short)
    shutil.copytree(run.path, "begun")
    capsys.readouterr()
    straight, _ = stage2.train(longer)
    assert "was to end after 64 images, has seen 64, and now ends after 160" in capsys.readouterr().out
    expected, lines = straight.load(present(straight.newest())), logged(run.path)
    assert expected.training["images"] == 160
    shutil.rmtree(run.path)
    Path("begun").rename(run.path)
    # Before the first checkpoint behind the lengthening, and after two of them.
    resumed = trained_with_stops(longer, (2, 5, 6), monkeypatch)
    for one, other in zip(expected, resumed.load(present(resumed.newest())), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert logged(run.path) == lines
    with pytest.raises(UserError, match="has seen 160 images, and training.images=64 are fewer"):
        stage2.train(short)


def test_adapters_change_matrices_of_attention_and_mlps_by_a_rank_and_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    write_random_cache()
    plain = prior_run("gpt", save_every=24).model_copy(update={"tokens": "tokens", "name": "first"})
    first, _ = stage2.train(plain)
    training = plain.training.model_copy(update={"low_rank": 2})
    config = plain.model_copy(update={"name": "second", "init": str(first.path), "training": training})
    straight, _ = stage2.train(config)
    before, after = (read_weights(run.path / "ema.safetensors") for run in (first, straight))
    expected = straight.load(present(straight.newest()))
    adapted = [name for name in after if name.startswith("blocks.") and after[name].ndim == 2]
    assert len(adapted) >= 4
    for name in adapted:
        changes = torch.linalg.svdvals(expected.model[name] - before[name])
        assert changes[1] > 1e-4 > changes[2], name
    others = [name for name in after if name not in adapted and not torch.equal(before[name], after[name])]
    assert any(name.startswith("vocabulary.") for name in others)
    shutil.rmtree(straight.path)
    resumed = trained_with_stops(config, (2, 5), monkeypatch)
    for one, other in zip(expected, resumed.load(present(resumed.newest())), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("model", "training"),
    [
        ({"told_views": True}, {}),
        ({}, {"label_smoothing": 0.3}),
        ({}, {"context_noise": 0.5, "label_smoothing": 0.3, "noise_neighbours": 4}),
    ],
)
def test_what_a_prior_is_told_and_shown_is_the_same_where_it_resumes(
    model: dict[str, Any], training: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_random_cache()
    config = prior_run("gpt", save_every=24, **training)
    config = config.model_copy(update={"tokens": "tokens", "model": config.model.model_copy(update=model)})
    straight, _ = stage2.train(config)
    expected, lines = straight.load(present(straight.newest())), logged(straight.path)
    if model:
        assert expected.model["views.weight"].abs().sum() > 0  # they begin at 0
    shutil.rmtree(straight.path)
    resumed = trained_with_stops(config, (2, 5), monkeypatch)
    for one, other in zip(expected, resumed.load(present(resumed.newest())), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert logged(resumed.path) == lines


def trained_with_stops(config: PriorRun, stops: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A run that was stopped after so many steps each time it was started, and then ended."""
    for steps in stops:
        with monkeypatch.context() as patch:
            stop_after(steps, patch)
            with pytest.raises(KeyboardInterrupt):
                stage2.train(config)
    return stage2.train(config)[0]


def stop_after(steps: int, patch: pytest.MonkeyPatch) -> None:
    end_step, left = stage2.Trainee.end_step, iter(range(steps))

    def end_step_or_stop(trainee: stage2.Trainee) -> float:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return end_step(trainee)

    patch.setattr(stage2.Trainee, "end_step", end_step_or_stop)
