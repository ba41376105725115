"""Shared models: saved, described, loaded again from a folder or (a stand-in for) the hub."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError

from shared.errors import UserError
from shared.runs import hub
from shared.runs.fingerprint import fingerprint
from shared.runs.hub import local_run, prior_directory
from shared.runs.token_cache import read_info
from shipped import BUNDLED
from stage1_tokenizer.cache import cache_tokens
from stage1_tokenizer.tokenizer import Tokenizer, load_tokenizer, matching_tokenizer
from stage1_tokenizer.train import train as train_tokenizer
from stage2_prior.prior import Prior, load_prior
from stage2_prior.train import train as train_prior
from tests.support.tiny import prior_run, tokenizer_run


@pytest.fixture
def runs(drawings: Path) -> tuple[Path, Path]:
    """A tokenizer and a prior."""
    tokenizer, _ = train_tokenizer(tokenizer_run(drawings, images=40))
    cache_tokens(tokenizer.path)
    prior, _ = train_prior(prior_run(images=16))
    return tokenizer.path, prior.path


def test_a_saved_model_is_the_run_without_its_training(runs: tuple[Path, Path], tmp_path: Path) -> None:
    tokenizer, (prior, _) = load_tokenizer(runs[0]), load_prior(runs[1])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    prior.save_pretrained(tmp_path / "prior")
    images_BCHW = torch.rand(2, 3, 32, 32) * 2 - 1
    again = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    assert torch.equal(again.tokenize(images_BCHW), tokenizer.tokenize(images_BCHW))
    tokens_BL = tokenizer.tokenize(images_BCHW).flatten(1)
    assert torch.equal(Prior.from_pretrained(tmp_path / "prior").loss(tokens_BL), prior.loss(tokens_BL))
    assert not (tmp_path / "prior" / "state").exists()


def test_a_shared_prior_brings_its_tokenizer(runs: tuple[Path, Path], tmp_path: Path) -> None:
    load_prior(runs[1])[0].save_pretrained(tmp_path / "shared")
    (tmp_path / "shared").rename(tmp_path / "elsewhere")
    shutil.rmtree("runs")
    prior, info = load_prior(tmp_path / "elsewhere")
    assert fingerprint(matching_tokenizer(info, tmp_path / "elsewhere")) == info.fingerprint
    prior.save_pretrained(tmp_path / "again")
    names = sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.*"))
    assert names == sorted(path.relative_to(tmp_path / "elsewhere") for path in (tmp_path / "elsewhere").rglob("*.*"))


def test_half_precision_halves_both_and_they_still_match(runs: tuple[Path, Path], tmp_path: Path) -> None:
    before, info = load_prior(runs[1])
    images_BCHW = torch.rand(2, 3, 32, 32) * 2 - 1
    expected = load_tokenizer(runs[0])(images_BCHW).images_BCHW
    tokens_BL = torch.randint(64, (2, 16))
    loss = before.loss(tokens_BL)
    before.half().save_pretrained(tmp_path)
    after, info = load_prior(tmp_path)
    assert next(after.parameters()).dtype == torch.float32
    torch.testing.assert_close(after.loss(tokens_BL), loss, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(matching_tokenizer(info, tmp_path)(images_BCHW).images_BCHW, expected, atol=0.2, rtol=0)
    for original, shared in ((runs[1], tmp_path), (runs[0], tmp_path / "tokenizer")):
        weights = "ema.safetensors"
        assert (shared / weights).stat().st_size < 0.7 * (original / weights).stat().st_size


def test_a_prior_whose_tokenizer_is_gone_is_not_shared(runs: tuple[Path, Path], tmp_path: Path) -> None:
    prior, _ = load_prior(runs[1])
    shutil.rmtree(runs[0])
    with pytest.raises(UserError, match="is shared with its tokenizer"):
        prior.save_pretrained(tmp_path / "shared")


def test_the_prior_trained_last_comes_before_the_one_that_is_shipped(runs: tuple[Path, Path]) -> None:
    assert prior_directory(None) == runs[1]
    assert prior_directory(runs[1]) == runs[1]
    shutil.rmtree("runs")
    assert prior_directory(None) == BUNDLED


def test_a_run_can_be_loaded_as_it_is(runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr("huggingface_hub.hub_mixin.logger.warning", warnings.append)
    tokens_BHW = torch.randint(64, (1, 4, 4))
    expected = load_tokenizer(runs[0]).detokenize(tokens_BHW)
    assert torch.equal(Tokenizer.from_pretrained(str(runs[0])).detokenize(tokens_BHW), expected)
    assert warnings == []


def test_the_card_says_what_it_is_and_begins_with_yaml(runs: tuple[Path, Path], tmp_path: Path) -> None:
    load_prior(runs[1])[0].save_pretrained(tmp_path / "prior")
    card = (tmp_path / "prior" / "README.md").read_text()
    head, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(head)["library_name"] == "tessera"
    assert 'Prior.from_pretrained("' in body
    assert "12 pictures" in body or "drawings" in body


def test_both_cards_say_what_and_whose_the_images_are(runs: tuple[Path, Path], drawings: Path, tmp_path: Path) -> None:
    source = read_info(runs[1]).source
    assert source.endswith("image files")
    load_tokenizer(runs[0]).save_pretrained(tmp_path / "tokenizer")
    load_prior(runs[1])[0].save_pretrained(tmp_path / "prior")
    for stage in ("tokenizer", "prior"):
        assert source in (tmp_path / stage / "README.md").read_text()
    (runs[0] / "images.json").unlink()  # as in runs of before, which know no more than their configuration
    load_tokenizer(runs[0]).save_pretrained(tmp_path / "old")
    assert f"{drawings}" in (tmp_path / "old" / "README.md").read_text()


def test_pushing_uploads_the_saved_folder(runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    gone: dict[str, object] = {}
    uploaded: dict[str, set[str]] = {}

    class Repository:
        repo_id = "me/mine"

    def upload(self: HfApi, *, folder_path: Path, repo_id: str, **options: object) -> str:
        uploaded[repo_id] = {path.name for path in Path(folder_path).iterdir()}
        gone[repo_id] = options["delete_patterns"]
        return "there"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, **options: Repository())
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert load_tokenizer(runs[0]).push_to_hub("me/mine") == "there"
    assert {"README.md", "config.yaml", "ema.safetensors"} <= uploaded["me/mine"]
    assert gone["me/mine"] == ["early.safetensors", "drawing.json"]  # of a prior that was there before


def test_a_name_on_the_hub_is_downloaded(runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def download(name: str, **options: object) -> str:
        asked[name] = options
        return str(runs[0])

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert local_run("me/mine", revision="v1") == runs[0]
    assert asked["me/mine"]["revision"] == "v1"
    assert "training.pt" not in str(asked["me/mine"]["allow_patterns"])


def test_what_comes_with_tessera_is_found_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_tokenizer(local_run("shipped/avatars/tokenizer")).config.quantiser.codes == 4096
    (tmp_path / "shipped" / "avatars").mkdir(parents=True)
    assert local_run("shipped/avatars") == Path("shipped/avatars")  # a folder that is here comes first


def test_what_is_nowhere_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, **options: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=r"me/mine: .*no network"):
        local_run("me/mine")
    with pytest.raises(UserError, match="runs/prior/absent: there is no such run directory"):
        local_run("runs/prior/absent")


def test_a_model_without_a_run_is_not_shared(runs: tuple[Path, Path], tmp_path: Path) -> None:
    tokenizer = Tokenizer(load_tokenizer(runs[0]).config)
    with pytest.raises(UserError, match="loaded from a run"):
        tokenizer.save_pretrained(tmp_path / "shared")
