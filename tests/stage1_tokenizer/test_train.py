"""Stage one's training: what it writes, and that a resumed run is the same run."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shared import signals
from shared.errors import UserError, run_command
from shared.runs.run_directory import RunDirectory
from stage1_tokenizer import train as training
from stage1_tokenizer.judging.quality import ReconstructionQuality
from stage1_tokenizer.losses import objective
from stage1_tokenizer.run_config import TokenizerRun
from stage1_tokenizer.tokenizer import load_tokenizer
from stage1_tokenizer.train import train
from tests.support.launch import ROOT
from tests.support.narrow import present
from tests.support.tiny import QUANTISERS, logged, tokenizer_run


def test_a_run_writes_what_the_design_says(drawings: Path) -> None:
    run, held_out = train(tokenizer_run(drawings, evaluate_every=48))
    files = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    assert {"config.yaml", "model.safetensors", "ema.safetensors", "metrics.jsonl"} <= files
    assert {"samples/000000048.png", "samples/reconstructions.png"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    losses = [line["l2"] for line in lines if "l2" in line]
    assert losses[-1] < losses[0]
    assert ["usage" in line for line in lines if "l2" in line] == [False] * 2 + [True] * 5  # codes from image 32 on
    assert held_out.quality().psnr > 5
    assert next(line["codes_replaced"] for line in lines if "codes_replaced" in line) == 64
    load_tokenizer(run.path)


class Killed(Exception):
    """Stands for a kill between two steps."""


PATCHGAN = {"kind": "patchgan", "width": 8, "layers": 2}
STYLEGAN = {"kind": "stylegan", "width": 8}


@pytest.mark.parametrize(
    ("changes", "quantiser", "discriminator"),
    [
        ({"precision": "fp32"}, "vector", None),
        *[({"precision": "bf16"}, kind, None) for kind in QUANTISERS],
        ({"precision": "bf16"}, "vector", STYLEGAN),
        ({"precision": "fp32", "batch_size": 4, "accumulation": 2}, "vector", PATCHGAN),
    ],
    ids=str,
)
def test_k_kill_resume_k_equals_2k_bit_for_bit(
    drawings: Path,
    own_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    quantiser: str,
    discriminator: dict[str, Any] | None,
) -> None:
    config = tokenizer_run(drawings, quantiser, save_every=32, **changes)
    if discriminator:
        # It begins to learn before the checkpoint that the run goes on from; its weight rises on both sides of it.
        adversarial = {"discriminator": discriminator, "start": 0.25, "warm_up": 0.25, "ramp": 0.4, "lecam": 0.1}
        loss = objective.LossConfig.model_validate({"adversarial": adversarial})
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
    assert present(run.newest()).name == "000000000064"
    resumed, _ = train(config)

    one, other = RunDirectory(own_directory / "straight"), resumed
    for ours, theirs in zip(one.load(present(one.newest())), other.load(present(other.newest())), strict=True):
        assert_equal(ours, theirs)
    assert logged(other.path) == logged(one.path)


def assert_equal(one: object, other: object) -> None:
    """The same tensors, numbers and containers, bit for bit."""
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert isinstance(other, dict)
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert isinstance(other, list | tuple)
        assert len(one) == len(other)
        for ours, theirs in zip(one, other, strict=True):
            assert_equal(ours, theirs)
    else:
        assert one == other


@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_accumulation_takes_the_same_images_into_one_step(drawings: Path, quantiser: str) -> None:
    run, held_out = train(tokenizer_run(drawings, quantiser, images=64, batch_size=4, accumulation=2))
    assert present(run.newest()).name == "000000000064"
    assert held_out.quality().psnr > 5


def test_a_finished_run_is_left_as_it_is(drawings: Path) -> None:
    config = tokenizer_run(drawings, images=48)
    run, held_out = train(config)
    first = held_out.quality()
    before = (run.path / "ema.safetensors").read_bytes()
    _, held_out = train(config)
    assert (run.path / "ema.safetensors").read_bytes() == before
    assert held_out.quality() == first


def test_an_image_size_the_patch_does_not_divide_is_refused_before_training(drawings: Path) -> None:
    config = tokenizer_run(drawings)
    data = config.data.model_copy(update={"image_size": 36})
    with pytest.raises(UserError, match=r"36 x 36 pixels.*patch is 8"):
        train(config.model_copy(update={"data": data}))


def spoil_steps(monkeypatch: pytest.MonkeyPatch, spoilt: set[int]) -> None:
    """Make the reconstruction loss of these steps (counted from 0) not a number."""
    steps, loss = itertools.count(), objective.reconstruction_loss

    def sometimes_nan(x_hat: torch.Tensor, x: torch.Tensor, config: Any) -> torch.Tensor:
        return loss(x_hat, x, config) * (float("nan") if next(steps) in spoilt else 1)

    monkeypatch.setattr(objective, "reconstruction_loss", sometimes_nan)


def test_a_step_that_is_not_finite_leaves_nothing_behind_and_is_counted(
    drawings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tokenizer_run(drawings, images=80, save_every=8)
    states = {}
    save = RunDirectory.save

    def keep(self: RunDirectory, images: int, *parts: dict[str, Any]) -> None:
        save(self, images, *parts)
        states[images] = self.load(present(self.newest()))

    spoil_steps(monkeypatch, {6, 7})
    monkeypatch.setattr(RunDirectory, "save", keep)
    run, _ = train(config)
    for good, bad in ((48, 56), (48, 64)):  # before, and after one and both of the skipped steps
        assert_equal(states[good].model, states[bad].model)
        assert_equal(states[good].ema, states[bad].ema)
        assert_equal(states[good].training["optimizer"]["state"], states[bad].training["optimizer"]["state"])
    assert any(not torch.equal(states[72].model[name], states[64].model[name]) for name in states[64].model)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [(line["images"], line["bad_steps"]) for line in lines if "bad_steps" in line] == [(64, 2.0)]
    assert "gradient_norm" not in next(line for line in lines if line["images"] == 64 and "lr" in line)


def test_many_bad_steps_in_a_row_stop_the_run_and_say_what_to_look_at(
    drawings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_steps(monkeypatch, {1, 4, 5, 6})
    said = (
        r"3 steps in a row \(training\.max_bad_steps\).*up to image 56\. "
        r"Not finite in the last: loss\..*The last checkpoint is of 32 images\..*training\.learning_rate"
    )
    with pytest.raises(UserError, match=said):
        train(tokenizer_run(drawings, max_bad_steps=3, save_every=32))


def test_a_run_too_short_to_initialise_its_codebook_is_refused(drawings: Path) -> None:
    said = r"training\.images=16 is too short.* after 32 images \(warm_up 8 x 64 codes / 16 tokens an image\)"
    with pytest.raises(UserError, match=said):
        train(tokenizer_run(drawings, images=16))


def test_a_run_shortened_before_it_has_a_codebook_is_refused(drawings: Path) -> None:
    train(tokenizer_run(drawings), ended=lambda images: images >= 16)
    with pytest.raises(UserError, match=r"training\.images=24 is too short: the codebook is initialised after 32"):
        train(tokenizer_run(drawings, images=24))
    assert train(tokenizer_run(drawings, images=64))[0].newest() is not None


def test_a_run_that_began_with_a_codebook_resumes_however_short_it_is(drawings: Path) -> None:
    before, _ = train(tokenizer_run(drawings))
    short = tokenizer_run(drawings, images=24).model_copy(update={"name": "short", "init": str(before.path)})
    train(short, ended=lambda images: images >= 8)
    newest = train(short)[0].newest()
    assert newest is not None
    assert int(newest.name) == 24


def test_an_absurd_batch_is_one_message_before_anything_is_written(drawings: Path) -> None:
    with pytest.raises(UserError, match=r"does not fit.*batch_size=500000000 training\.accumulation=2"):
        train(tokenizer_run(drawings, images=10**12, batch_size=10**9))
    assert not Path("runs").exists()


def test_weights_missing_after_a_kill_are_published_again(drawings: Path) -> None:
    config = tokenizer_run(drawings)
    run, _ = train(config)
    for name in ("ema.safetensors", "model.safetensors"):
        (run.path / name).unlink()
    (run.path / "model.safetensors").write_bytes(b"of an older state")
    train(config)
    for name in ("ema.safetensors", "model.safetensors"):
        assert (run.path / name).read_bytes() == (present(run.newest()) / name).read_bytes()


def test_a_second_process_on_one_run_is_refused(drawings: Path) -> None:
    run, _ = train(tokenizer_run(drawings))
    script = (
        "from pathlib import Path; from shared.config import Config\n"
        "from shared.runs.run_directory import RunDirectory\n"
        f"RunDirectory(Path({str(run.path.resolve())!r})).begin(Config(), set())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    refused = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert "another process is training" in refused.stderr


def test_a_folder_whose_pictures_changed_is_noticed(drawings: Path) -> None:
    config = tokenizer_run(drawings, images=40)
    picture = next((drawings / "faces").iterdir())
    content = picture.read_bytes()
    run, _ = train(config)
    picture.write_bytes(content + b"more")
    with pytest.raises(UserError, match=r"not those it was begun on.*put them back.*remove runs/tokenizer/tiny/images"):
        train(config)
    picture.rename(picture.with_name("z.png"))
    with pytest.raises(UserError, match="not those it was begun on"):
        train(config)
    picture.write_bytes(content)
    (picture.parent / "z.png").unlink()
    train(config)  # put back, though younger
    shutil.copy(picture, picture.with_name("z.png"))
    (run.path / "images.json").unlink()
    train(config)  # the way out that the message names


@pytest.fixture
def train_and_signal(drawings: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Train as a command does that gets signals in the step after `at` images; returns its exit status."""
    before = {number: signal.getsignal(number) for number in signals.STOP}
    end_step = training.Trainee.end_step

    def run(at: int, *numbers: int) -> int:
        def end_step_signalled(self: training.Trainee) -> float:
            if self.images == at:
                for number in numbers:
                    os.kill(os.getpid(), number)
            return end_step(self)

        def command() -> None:
            train(tokenizer_run(drawings))

        monkeypatch.setattr(training.Trainee, "end_step", end_step_signalled)
        with pytest.raises(SystemExit) as ended:
            run_command(command)
        monkeypatch.setattr(training.Trainee, "end_step", end_step)
        signals._asked, signals._stepping = None, False  # as in the next process
        assert isinstance(ended.value.code, int)
        return ended.value.code

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_saves_after_the_step_and_the_same_command_goes_on(
    drawings: Path, own_directory: Path, train_and_signal: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    straight, _ = train(tokenizer_run(drawings))
    shutil.move(straight.path, own_directory / "straight")
    run = RunDirectory(Path("runs/tokenizer/tiny"))
    for at, number in ((24, signal.SIGTERM), (40, signal.SIGUSR1), (64, signal.SIGINT)):
        assert train_and_signal(at, number) == 75
        said = capfd.readouterr().err
        assert f"{number.name}: stopping after this step" in said
        assert f"stopped after {at + 8} images, saved in {run.path}" in said
        assert run.newest() == run.state_after(at + 8)
    resumed, _ = train(tokenizer_run(drawings))
    one = RunDirectory(own_directory / "straight")
    assert_equal(one.load(present(one.newest())), resumed.load(present(resumed.newest())))
    assert logged(resumed.path) == logged(one.path)


def test_a_second_interrupt_stops_at_once(
    train_and_signal: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert train_and_signal(24, signal.SIGINT, signal.SIGINT) == 130
    assert "stopped by SIGINT" in capfd.readouterr().err
    assert RunDirectory(Path("runs/tokenizer/tiny")).newest() is None


@pytest.mark.parametrize("discriminator", [None, PATCHGAN], ids=["plain", "patchgan"])
def test_a_lengthened_run_that_is_stopped_and_resumed_is_the_same(
    drawings: Path, monkeypatch: pytest.MonkeyPatch, discriminator: dict[str, Any] | None
) -> None:
    """And what has come in over the run stays: the discriminator counts in full from the first step on."""

    def config(images: int) -> TokenizerRun:
        run = tokenizer_run(drawings, "gumbel" if discriminator is None else "vector", images=images, save_every=32)
        if discriminator is None:
            return run
        adversarial = {"discriminator": discriminator, "start": 0.25, "warm_up": 0.25, "ramp": 0.4}
        return run.model_copy(update={"loss": objective.LossConfig.model_validate({"adversarial": adversarial})})

    run, _ = train(config(64))
    shutil.copytree(run.path, "begun")
    straight, _ = train(config(320))
    expected, lines = straight.load(present(straight.newest())), logged(run.path)
    shutil.rmtree(run.path)
    Path("begun").rename(run.path)
    with monkeypatch.context() as patch:
        steps, end_step = iter(range(11)), training.Trainee.end_step

        def end_step_or_die(self: training.Trainee) -> float:
            if next(steps, None) is None:
                raise Killed
            return end_step(self)

        patch.setattr(training.Trainee, "end_step", end_step_or_die)
        with pytest.raises(Killed):
            train(config(320))
    resumed, _ = train(config(320))
    assert_equal(tuple(resumed.load(present(resumed.newest()))), tuple(expected))
    assert logged(run.path) == lines
    if discriminator:
        assert all("adversarial" in line for line in lines if line["images"] > 64 and "lr" in line)


def test_a_tokenizer_of_no_use_is_an_error(drawings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, held_out = train(tokenizer_run(drawings))
    held_out.newest = None
    quality = ReconstructionQuality(psnr=5.0, l2=float("nan"), usage=0.1, perplexity=2.0, images=2)
    monkeypatch.setattr(training, "reconstruction_quality", lambda *_: quality)
    with pytest.raises(UserError, match=r"squared error of held-out images is nan after 96 images.*learning_rate"):
        held_out.quality()
