"""Stage one's training: what it writes, and that a resumed run is the same run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.checkpoint import RunDirectory
from shared.errors import UserError
from stage1_tokenizer import train as training
from stage1_tokenizer.tokenizer import load_tokenizer
from stage1_tokenizer.train import train
from tests.tiny import tokenizer_run


def test_a_run_writes_what_the_design_says(drawings: Path) -> None:
    run, report = train(tokenizer_run(drawings, evaluate_every=48))
    files = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    assert {"config.yaml", "model.safetensors", "ema.safetensors", "metrics.jsonl"} <= files
    assert {"samples/000000048.png", "samples/reconstructions.png"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    losses = [line["l2"] for line in lines if "l2" in line]
    assert losses[-1] < losses[0]
    assert report.psnr > 5
    assert next(line["codes_replaced"] for line in lines if "codes_replaced" in line) == 64
    load_tokenizer(run.path)


class Killed(Exception):
    """Stands for a kill between two steps."""


PATCHGAN = {"kind": "patchgan", "width": 8, "layers": 2}
STYLEGAN = {"kind": "stylegan", "width": 8}


@pytest.mark.parametrize(
    ("changes", "discriminator"),
    [
        ({"precision": "fp32"}, None),
        ({"precision": "bf16"}, None),
        ({"precision": "bf16"}, STYLEGAN),
        ({"precision": "fp32", "batch_size": 4, "accumulation": 2}, PATCHGAN),
    ],
    ids=str,
)
def test_k_kill_resume_k_equals_2k_bit_for_bit(
    drawings: Path,
    own_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    discriminator: dict[str, Any] | None,
) -> None:
    config = tokenizer_run(drawings, save_every=32, **changes)
    if discriminator:
        # It begins to learn before the checkpoint that the run goes on from; its weight rises on both sides of it.
        adversarial = {"discriminator": discriminator, "start": 0.25, "warm_up": 0.25, "ramp": 0.4, "lecam": 0.1}
        loss = training.LossConfig.model_validate({"adversarial": adversarial})
        config = config.model_copy(update={"loss": loss})
    straight, _ = train(config)
    shutil.move(straight.path, own_directory / "straight")

    # The kill comes three steps after the second checkpoint: those steps are done again.
    steps = iter(range(11))
    end_step = training.Trainee.end_step

    def end_step_or_die(self: training.Trainee) -> float:
        if next(steps, None) is None:
            raise Killed
        return end_step(self)

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainee, "end_step", end_step_or_die)
        with pytest.raises(Killed):
            train(config)
    run = RunDirectory(Path("runs/tokenizer/tiny"))
    assert run.newest().name == "000000000064"
    resumed, _ = train(config)

    one, other = RunDirectory(own_directory / "straight"), resumed
    for ours, theirs in zip(one.load(one.newest()), other.load(other.newest()), strict=True):
        assert_equal(ours, theirs)
    kept = [json.loads(line) for line in other.metrics.read_text().splitlines()]
    assert kept == [json.loads(line) for line in one.metrics.read_text().splitlines()]


def assert_equal(one: object, other: object) -> None:
    """The same tensors, numbers and containers, bit for bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for ours, theirs in zip(one, other, strict=True):
            assert_equal(ours, theirs)
    else:
        assert one == other


def test_accumulation_takes_the_same_images_into_one_step(drawings: Path) -> None:
    run, _ = train(tokenizer_run(drawings, images=64, batch_size=4, accumulation=2))
    assert run.newest().name == "000000000064"


def test_a_finished_run_is_left_as_it_is(drawings: Path) -> None:
    config = tokenizer_run(drawings, images=48)
    run, first = train(config)
    before = (run.path / "ema.safetensors").read_bytes()
    _, second = train(config)
    assert (run.path / "ema.safetensors").read_bytes() == before
    assert first == second


def test_an_image_size_the_patch_does_not_divide_is_refused_before_training(drawings: Path) -> None:
    config = tokenizer_run(drawings)
    data = config.data.model_copy(update={"image_size": 36})
    with pytest.raises(UserError, match=r"36 x 36 pixels.*patch is 8"):
        train(config.model_copy(update={"data": data}))


def test_a_gradient_that_is_not_finite_stops_the_run_and_says_what_to_try(
    drawings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "reconstruction_loss", lambda x_hat, x, _: (x_hat - x).sum() * float("nan"))
    with pytest.raises(UserError, match=r"gradient is nan after 0 images.*training\.learning_rate"):
        train(tokenizer_run(drawings))


def test_a_run_too_short_to_initialise_its_codebook_is_refused(drawings: Path) -> None:
    with pytest.raises(UserError, match=r"training\.images=16 is too short: the codebook is initialised after 32"):
        train(tokenizer_run(drawings, images=16))


def test_weights_missing_after_a_kill_are_published_again(drawings: Path) -> None:
    config = tokenizer_run(drawings)
    run, _ = train(config)
    for name in ("ema.safetensors", "model.safetensors"):
        (run.path / name).unlink()
    (run.path / "model.safetensors").write_bytes(b"of an older state")
    train(config)
    for name in ("ema.safetensors", "model.safetensors"):
        assert (run.path / name).read_bytes() == (run.newest() / name).read_bytes()


def test_a_second_process_on_one_run_is_refused(drawings: Path) -> None:
    run, _ = train(tokenizer_run(drawings))
    script = (
        "from pathlib import Path; from shared.checkpoint import RunDirectory; from shared.config import Config; "
        f"RunDirectory(Path({str(run.path.resolve())!r})).begin(Config(), set())"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    refused = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert "another process is training" in refused.stderr
