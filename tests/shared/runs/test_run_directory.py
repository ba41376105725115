"""Run directories: whole or not there, never harmed."""

import os
from pathlib import Path

import pytest
import torch

from shared.config import Config
from shared.disk.atomic import write_atomically
from shared.disk.manifest import Damaged, write_manifest
from shared.errors import UserError
from shared.runs.fingerprint import fingerprint
from shared.runs.run_directory import RunDirectory, newest_run, runs_holding
from shared.runs.weights import load_strictly
from tests.support.full_disk import largest_file
from tests.support.narrow import present


class Toy(Config):
    size: int = 1
    note: str = ""


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((3,), value)}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.begin(Toy(), set())
    run.save(64, weights(1), weights(2), {"images": 64, "optimizer": {"state": {0: torch.ones(2)}}})
    model, ema, training = run.load(present(run.newest()))
    assert torch.equal(model["weight"], weights(1)["weight"])
    assert torch.equal(ema["weight"], weights(2)["weight"])
    assert training["images"] == 64
    assert torch.equal(training["optimizer"]["state"][0], torch.ones(2))


def test_two_states_are_kept_and_the_weights_follow_the_newest(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    for images in (8, 16, 24):
        run.save(images, weights(images), weights(images), {"images": images})
    assert [path.name for path in run.states()] == ["000000000024", "000000000016"]
    assert len(list(run.state.iterdir())) == 2
    assert (run.path / "ema.safetensors").read_bytes() == (present(run.newest()) / "ema.safetensors").read_bytes()


def test_an_unfinished_state_is_not_resumed_from(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.save(8, weights(1), weights(1), {"images": 8})
    (run.state / "unfinished-1").mkdir()
    assert present(run.newest()).name == "000000000008"


def test_a_failed_write_leaves_the_state_before_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path / "run")
    run.save(8, weights(1), weights(1), {"images": 8})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"after 16 images could not be written.*No space left"):
        run.save(16, weights(2), weights(2), {"images": 16})
    assert [path.name for path in run.state.iterdir()] == ["000000000008"]
    assert torch.equal(run.load(present(run.newest()))[0]["weight"], weights(1)["weight"])


@pytest.mark.parametrize("limit", [0, 50, 1_000, 20_000, 41_000, 50_000])
def test_a_full_disk_leaves_the_state_before_whole(tmp_path: Path, limit: int) -> None:
    run = RunDirectory(tmp_path / "run")
    tensors = {"weight": torch.arange(10_000.0)}
    run.save(8, tensors, tensors, {"images": 8})
    with largest_file(limit), pytest.raises(UserError, match=r"after 16 images could not be written.*make room"):
        run.save(16, tensors, tensors, {"images": 16, "optimizer": torch.zeros(20_000)})
    assert present(run.load_newest())[0] == run.state_after(8)
    assert [path.name for path in run.state.iterdir()] == ["000000000008"]
    run.check_published("ema.safetensors")


def test_a_run_goes_on_only_with_the_configuration_it_began_with(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.begin(Toy(size=1), set())
    run.save(8, weights(1), weights(1), {"images": 8})
    with pytest.raises(UserError, match=r"size: 1 -> 2"):
        run.begin(Toy(size=2), {"note"})
    run.begin(Toy(size=1, note="other"), {"note"})


def test_a_run_goes_on_where_its_configuration_has_more_keys_than_when_it_began(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.begin(Toy(size=2), set())
    (run.path / "config.yaml").write_text("size: 2\n")  # as before there was a note
    run.save(8, weights(1), weights(1), {"images": 8})
    with pytest.raises(UserError, match=r"note: '' -> 'other'"):
        run.begin(Toy(size=2, note="other"), set())
    run.begin(Toy(size=2), set())


def test_a_run_of_keys_that_are_gone_names_them(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.begin(Toy(), set())
    run.save(8, weights(1), weights(1), {"images": 8})
    (run.path / "config.yaml").write_text("size: 1\nnote: ''\ncolour: red\n")
    with pytest.raises(UserError, match=r"colour: 'red' -> None"):
        run.begin(Toy(), set())


def test_a_checkpoint_never_executes_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "sprung",)

    run = RunDirectory(tmp_path / "run")
    run.save(8, weights(1), weights(1), {"images": 8})
    torch.save({"images": Trap()}, present(run.newest()) / "training.pt")
    write_manifest(present(run.newest()))  # a stranger's checkpoint is whole by its own manifest
    with pytest.raises(Damaged, match="cannot be read"):
        run.load(present(run.newest()))
    with pytest.raises(UserError, match="no checkpoint of .* is whole"):
        run.load_newest()
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "ema.safetensors", "training.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "cut short", "one bit"])
def test_a_damaged_state_is_passed_over_for_the_one_before_saying_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, damage: str
) -> None:
    run = RunDirectory(tmp_path / "run")
    for images in (8, 16):
        run.save(images, weights(images), weights(images), {"images": images})
    spoil(present(run.newest()) / file, damage)
    directory, state = present(run.load_newest())
    assert (directory, state.training["images"]) == (run.state_after(8), 8)
    assert f"000000000016 is damaged: {file}" in caplog.text
    assert "Going on from" in caplog.text
    # Trained on from there, the run comes by the damaged state's place again.
    run.save(12, weights(12), weights(12), {"images": 12})
    assert run.states() == [run.state_after(12), run.state_after(8)]
    run.save(16, weights(16), weights(16), {"images": 16})
    assert present(run.load_newest())[0] == run.state_after(16)


def test_a_damaged_state_is_replaced_when_training_comes_to_its_place_again(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    for images in (8, 16):
        run.save(images, weights(images), weights(images), {"images": images})
    spoil(present(run.newest()) / "training.pt", "one bit")
    run.save(16, weights(17), weights(17), {"images": 16})
    directory, state = present(run.load_newest())
    assert directory == run.state_after(16)
    assert torch.equal(state.model["weight"], weights(17)["weight"])


def spoil(path: Path, damage: str) -> None:
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut short":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = content.rindex(b'"') if path.suffix == ".json" else len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def test_published_weights_that_were_altered_are_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.save(8, weights(1), weights(1), {"images": 8})
    run.check_published("ema.safetensors")
    spoil(run.path / "ema.safetensors", "one bit")
    with pytest.raises(UserError, match=r"ema\.safetensors is not what training wrote.*start the training again"):
        run.check_published("ema.safetensors")


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


def test_runs_are_listed_with_the_last_trained_last(tmp_path: Path) -> None:
    for number, (name, file) in enumerate((("a", "ema.safetensors"), ("b", "other"), ("c", "ema.safetensors"))):
        run = tmp_path / "runs" / "prior" / name
        run.mkdir(parents=True)
        (run / file).touch()
        (run / "config.yaml").touch()
        os.utime(run / "config.yaml", (1000 + number,) * 2)
    found = runs_holding("prior", "ema.safetensors")
    assert found == [Path("runs/prior/a"), Path("runs/prior/c")]
    assert newest_run("prior", "ema.safetensors") == found[-1]


def test_without_a_run_the_command_to_type_is_named() -> None:
    with pytest.raises(UserError, match="make prior"):
        newest_run("prior", "ema.safetensors")
