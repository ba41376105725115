"""Run directories: whole or not there, never harmed."""

from pathlib import Path

import pytest
import torch

from shared.checkpoint import RunDirectory, fingerprint, load_strictly, newest_run, write_atomically
from shared.config import Config
from shared.errors import UserError


class Toy(Config):
    size: int = 1
    note: str = ""


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((3,), value)}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.begin(Toy(), set())
    run.save(64, weights(1), weights(2), {"images": 64, "optimizer": {"state": {0: torch.ones(2)}}})
    model, ema, training = run.load(run.newest())
    assert torch.equal(model["weight"], weights(1)["weight"])
    assert torch.equal(ema["weight"], weights(2)["weight"])
    assert training["images"] == 64
    assert torch.equal(training["optimizer"]["state"][0], torch.ones(2))


def test_only_the_newest_state_is_kept_and_the_weights_follow_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    for images in (8, 16):
        run.save(images, weights(images), weights(images), {"images": images})
    assert [path.name for path in run.state.iterdir()] == ["000000000016"]
    assert (run.path / "ema.safetensors").read_bytes() == (run.newest() / "ema.safetensors").read_bytes()


def test_an_unfinished_state_is_not_resumed_from(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.save(8, weights(1), weights(1), {"images": 8})
    (run.state / "unfinished-1").mkdir()
    assert run.newest().name == "000000000008"


def test_a_failed_write_leaves_the_state_before_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path / "run")
    run.save(8, weights(1), weights(1), {"images": 8})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"after 16 images could not be written.*No space left"):
        run.save(16, weights(2), weights(2), {"images": 16})
    assert [path.name for path in run.state.iterdir()] == ["000000000008"]
    assert torch.equal(run.load(run.newest())[0]["weight"], weights(1)["weight"])


def test_a_run_goes_on_only_with_the_configuration_it_began_with(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.begin(Toy(size=1), set())
    run.save(8, weights(1), weights(1), {"images": 8})
    with pytest.raises(UserError, match=r"size: 1 -> 2"):
        run.begin(Toy(size=2), {"note"})
    run.begin(Toy(size=1, note="other"), {"note"})


def test_a_checkpoint_never_executes_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "sprung",)

    run = RunDirectory(tmp_path / "run")
    run.save(8, weights(1), weights(1), {"images": 8})
    torch.save({"images": Trap()}, run.newest() / "training.pt")
    with pytest.raises(UserError, match="training.pt cannot be read"):
        run.load(run.newest())
    assert not (tmp_path / "sprung").exists()


def test_weights_load_strictly(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not fit"):
        load_strictly(torch.nn.Linear(2, 2), weights(1), tmp_path)


def test_fingerprints_tell_weights_apart() -> None:
    one, same, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    same.load_state_dict(one.state_dict())
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


def test_a_failed_atomic_write_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def half(temporary: Path) -> None:
        temporary.write_text("hal")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_atomically(path, half)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_without_a_run_the_command_to_type_is_named() -> None:
    with pytest.raises(UserError, match="make prior"):
        newest_run("prior", "ema.safetensors")
