"""share.py on tiny runs: what it writes, what it refuses."""

import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi

import share
from shared.errors import UserError
from shared.runs.run_directory import BEST, RunDirectory
from shared.runs.weights import read_weights
from stage1_tokenizer.cache import cache_tokens
from stage1_tokenizer.train import train as train_tokenizer
from stage2_prior.decoding.settings import SURE, read_settings, write_settings
from stage2_prior.prior import Prior, load_prior
from stage2_prior.train import train as train_prior
from tests.support.tiny import prior_run, tokenizer_run


@pytest.fixture
def runs(drawings: Path) -> tuple[Path, Path]:
    """A tokenizer and a prior."""
    tokenizer, _ = train_tokenizer(tokenizer_run(drawings, images=40))
    cache_tokens(tokenizer.path)
    return tokenizer.path, train_prior(prior_run(images=16))[0].path


def run_share(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["share.py", *map(str, arguments)])
    share.main()


def test_a_folder_holds_what_loading_needs_and_a_card(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_share(monkeypatch, runs[1], "--half", "--out", tmp_path / "shared")
    names = {str(path.relative_to(tmp_path / "shared")) for path in (tmp_path / "shared").rglob("*.*")}
    inside = {f"tokenizer/{name}" for name in ("config.yaml", "ema.safetensors", "uses.safetensors")}
    of_the_hub = {"README.md", "config.json"}  # the second is how the hub counts downloads
    assert names == of_the_hub | {"config.yaml", "ema.safetensors", "early.safetensors", "tokens.json"} | inside
    early = read_weights(tmp_path / "shared/early.safetensors")
    assert {tensor.dtype for tensor in early.values()} == {torch.float16}
    kept = read_weights(runs[1] / "early.safetensors")
    assert all(torch.equal(early[name], tensor.half()) for name, tensor in kept.items())


def test_how_a_prior_is_drawn_is_shared_and_what_was_shared_before_is_not_left(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    write_settings(runs[1], SURE, "search", {})
    run_share(monkeypatch, runs[1], "--out", shared)
    assert read_settings(shared) == SURE
    (runs[1] / "drawing.json").unlink()
    (runs[1] / "early.safetensors").unlink()
    run_share(monkeypatch, runs[1], "--out", shared)
    assert str(read_settings(shared)) == "temperature 1.0"
    assert not (shared / "early.safetensors").exists()


def test_the_best_weights_are_shared_where_asked_for(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = {name: torch.zeros_like(tensor) for name, tensor in load_prior(runs[1])[0].state_dict().items()}
    RunDirectory(runs[1]).keep(best, BEST)
    run_share(monkeypatch, runs[1], "--weights", "best", "--out", tmp_path / "best")
    assert not any(parameter.any() for parameter in Prior.from_pretrained(tmp_path / "best").parameters())


def test_a_tokenizer_has_no_best_weights(runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="is not a prior's run"):
        run_share(monkeypatch, runs[0], "--weights", "best", "--out", "shared")


@pytest.mark.parametrize("where", [[], ["me/mine", "--out", "shared"]])
def test_it_goes_to_one_place(runs: tuple[Path, Path], where: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="either the name on the hub"):
        run_share(monkeypatch, runs[0], *where)


def test_what_the_network_says_is_one_message(runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: HfApi, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(UserError, match=r"could not be uploaded as me/mine: no route to host"):
        run_share(monkeypatch, runs[0], "me/mine")


def test_what_is_in_the_way_is_refused_and_left_as_it_was(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    monkeypatch.setattr(share, "load_prior", None)
    for place, said in (("file", "is a file"), ("other", "give an empty folder"), (runs[1], "give an empty folder")):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(UserError, match=said):
            run_share(monkeypatch, runs[1], "--out", tmp_path / place)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_model_of_the_same_kind_gives_way(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_share(monkeypatch, runs[1], "--out", tmp_path / "shared")
    run_share(monkeypatch, runs[1], "--half", "--out", tmp_path / "shared")
    with pytest.raises(UserError, match="give an empty folder"):  # a tokenizer among a prior's files is taken for one
        run_share(monkeypatch, runs[0], "--out", tmp_path / "shared")
