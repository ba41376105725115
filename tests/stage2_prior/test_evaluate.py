"""Evaluation against plain arithmetic, its command, and configurations it must refuse."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from shared.errors import UserError
from shared.runs.token_cache import TokenCache, TokenInfo, write_cache
from stage2_prior import evaluate as command
from stage2_prior.evaluate import Accuracy, evaluate
from stage2_prior.prior import Prior
from stage2_prior.train import train
from tests.support.launch import ROOT
from tests.support.tiny import prior_config, prior_run

INFO = TokenInfo(
    grid=(3, 4), codes=20, code_dim=8, tokenizer="nowhere", fingerprint="0", source="none",
    preprocessing={"image_size": [24, 32]}, views=1, class_names=["a", "b"],
)  # fmt: skip


def random_cache(train: int = 7, validation: int = 5) -> TokenCache:
    generator = np.random.default_rng(0)
    tokens = {
        "train": generator.integers(0, 20, (train, 12)),
        "validation": generator.integers(0, 20, (validation, 12)),
    }
    labels: dict[str, np.ndarray | None] = {
        split: generator.integers(0, 2, len(grids)) for split, grids in tokens.items()
    }
    return TokenCache(Path("tokens"), INFO, tokens, labels, torch.zeros(20, 8))


def random_prior() -> Prior:
    torch.manual_seed(0)
    prior = Prior(prior_config(kind="gpt", depth=2, width=32, heads=2, dropout=0.3), 20, (3, 4), classes=2)
    with torch.no_grad():
        for parameter in prior.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return prior


def brute_force(prior: Prior, cache: TokenCache, rows: list[int], positions: range) -> Accuracy:
    """Token by token, from the definitions."""
    bits, first, five = [], [], []
    for row in rows:
        tokens_BL, labels_B = cache.batch("validation", torch.tensor([row]))
        with torch.no_grad():
            probs_LV = prior(prior.inputs(tokens_BL, labels_B))[0].double().softmax(-1).tolist()
        for position in positions:
            token, probs = int(tokens_BL[0, position]), probs_LV[position]
            bits.append(-math.log2(probs[token]))
            place = sorted(probs, reverse=True).index(probs[token])
            first.append(place == 0)
            five.append(place < 5)
    return Accuracy(*(math.fsum(values) / len(values) for values in (bits, first, five)))


def assert_close(got: Accuracy, expected: Accuracy) -> None:
    for name in ("bits_per_token", "top1", "top5"):
        assert getattr(got, name) == pytest.approx(getattr(expected, name), rel=1e-5), name


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_figures_are_their_definitions(batch_size: int) -> None:
    prior, cache = random_prior(), random_cache()
    got = evaluate(prior, cache, "validation", batch_size)
    assert got.grids == 5
    assert_close(got, brute_force(prior, cache, list(range(5)), range(12)))
    for number, row in enumerate(got.rows):
        assert_close(row, brute_force(prior, cache, list(range(5)), range(4 * number, 4 * number + 4)))


def test_part_of_a_split_is_spread_over_it() -> None:
    prior, cache = random_prior(), random_cache(validation=10)
    assert_close(evaluate(prior, cache, "validation", 2, 4), brute_force(prior, cache, [0, 2, 5, 7], range(12)))
    assert evaluate(prior, cache, "validation", 4, 99).grids == 10


def test_fewer_than_five_codes_are_all_among_the_first_five() -> None:
    cache = random_cache()
    cache = TokenCache(
        cache.path, INFO, {"validation": cache.tokens["validation"] % 3}, cache.labels, torch.zeros(3, 8)
    )
    prior = Prior(prior_config(kind="gpt", depth=1, width=32, heads=2), 3, (3, 4), classes=2)
    assert evaluate(prior, cache, "validation").top5 == 1


@pytest.fixture
def run(own_directory: Path) -> Path:
    """A tiny prior, trained for a moment on random grids."""
    grids = [(torch.randint(20, (16, 3, 4)), torch.randint(2, (16,)))]
    write_cache(Path("tokens"), INFO, torch.randn(20, 8), {"train": grids, "validation": grids})
    return train(prior_run().model_copy(update={"tokens": "tokens"}))[0].path


def evaluate_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    command.main()


def test_the_command_reports_both_splits(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_command(monkeypatch, "--json", "--weights", "best")
    text = capsys.readouterr().out
    figures = json.loads(text.splitlines()[-1])
    assert json.loads((run / "evaluation.json").read_text()) == figures
    assert figures["weights"] == "best"
    assert figures["train"] == figures["validation"]  # they are the same grids here
    assert figures["gap"] == 0
    assert figures["train"]["bits_per_dim"] == pytest.approx(figures["train"]["bits_per_token"] * 12 / (3 * 24 * 32))
    assert len(figures["train"]["rows"]) == 3
    assert f"{figures['train']['bits_per_token']:.3f}" in text
    evaluate_command(monkeypatch, "--grids", "4")
    assert json.loads((run / "evaluation.json").read_text())["train"]["grids"] == 4


def test_two_processes_report_what_one_does(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_command(monkeypatch, "--grids", "5", "--json")
    alone = json.loads(capsys.readouterr().out.splitlines()[-1])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", "stage2_prior.evaluate", "--grids", "5", "--json"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout.splitlines()[-1])
    for split in ("train", "validation"):
        assert figures[split].pop("rows") == [pytest.approx(row) for row in alone[split].pop("rows")]
        assert figures[split] == pytest.approx(alone[split])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, "does not say which tokens .*tokens: None"),
        ({"tokens": 5}, "does not say which tokens .*tokens: 5"),
        ({"tokens": "elsewhere"}, "elsewhere is no token cache"),
        ({"model": None}, "config.yaml, model is not a valid configuration"),
        ({"model": {"kind": "mamba", "layers": 3}}, "layers: there is no such key"),
    ],
)
def test_configurations_changed_by_hand_are_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, message: str
) -> None:
    path = run / "config.yaml"
    values = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    with pytest.raises(UserError, match=message):
        evaluate_command(monkeypatch)


def test_a_cache_made_anew_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grids = [(torch.randint(20, (16, 3, 4)), torch.randint(2, (16,)))]
    other = INFO.model_copy(update={"source": "other images"})
    write_cache(Path("tokens"), other, torch.randn(20, 8), {"train": grids, "validation": grids})
    with pytest.raises(UserError, match="was made anew"):
        evaluate_command(monkeypatch)


@pytest.mark.parametrize(("option", "value"), [("--batch-size", "0"), ("--grids", "-1")])
def test_numbers_below_one_are_refused(monkeypatch: pytest.MonkeyPatch, option: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{option} must be at least 1"):
        evaluate_command(monkeypatch, option, value)
