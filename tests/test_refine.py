"""refine.py on tiny runs: the decoder alone changes, the prior draws with it, and what was made before stays right."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator

import judge
import refine
import sample
from shared.config import parse_config
from shared.errors import UserError
from shared.runs.run_directory import RunDirectory, read_yaml
from shared.runs.token_cache import read_info
from shared.runs.weights import read_weights
from stage1_tokenizer import train as stage1
from stage1_tokenizer.cache import cache_tokens
from stage1_tokenizer.run_config import TokenizerRun
from stage1_tokenizer.tokenizer import matching_tokenizer
from stage2_prior import train as stage2
from stage2_prior.prior import load_prior
from stage2_prior.tokens import draw_with, open_tokens_of
from tests.support.tiny import prior_run, tokenizer_run
from tests.support.trained import train_both

RUN, BEFORE, AFTER = Path("runs/prior/tiny"), Path("runs/tokenizer/tiny"), Path("runs/tokenizer/tiny-refined")
SHORT = [
    "training.images=64", "training.batch_size=8", "training.warm_up=8", "training.log_every=16", "draws.drawings=12",
    "draws.replaced=0.3",
    "loss.adversarial.discriminator.width=8", "loss.adversarial.warm_up=0", "loss.adversarial.ramp=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny tokenizer and prior of two classes."""
    return train_both(tmp_path_factory.mktemp("trained"))


@pytest.fixture(autouse=True)
def runs(trained: Path, own_directory: Path) -> None:
    """Each test has the runs to itself."""
    shutil.copytree(trained / "runs", own_directory / "runs")


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["refine.py", "--use", *SHORT, *arguments])
    refine.main()


def test_the_prior_draws_with_a_new_decoder_of_the_same_tokens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = open_tokens_of(RUN, read_info(RUN))
    command(monkeypatch)
    assert f"{RUN} now draws with it, and as before with --tokenizer {BEFORE}" in capsys.readouterr().out
    before, after = (read_weights(run / "ema.safetensors") for run in (BEFORE, AFTER))
    changed = {name.split(".")[0] for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed == {"decoder", "from_codes"}
    prior, info = load_prior(RUN)
    refined = matching_tokenizer(info, RUN)
    assert refined.run == AFTER
    # What knew the tokens before still does: the cache, the training of the prior, its report.
    assert open_tokens_of(RUN, info).path == tokens.path
    assert cache_tokens(BEFORE) == tokens.path
    stage2.train(prior_run(images=80))
    assert read_info(RUN).tokenizer == str(AFTER)
    assert judge.write_page(RUN, "last", Accelerator()).exists()
    # Both decoders draw, as they are asked for.
    for arguments, run in (([], AFTER), (["--tokenizer", str(BEFORE)], BEFORE)):
        monkeypatch.setattr(sys, "argv", ["sample.py", "--num", "2", "--out", run.name, *arguments])
        sample.main()
    assert Path("tiny/grid.png").read_bytes() != Path("tiny-refined/grid.png").read_bytes()
    prior.save_pretrained("shared")
    shared_info = read_info(Path("shared"))
    shared = matching_tokenizer(shared_info, Path("shared"))
    assert torch.equal(shared.decoder.last_layer.weight, refined.decoder.last_layer.weight)
    assert (Path("shared") / "tokenizer" / "uses.safetensors").exists()


def test_it_learns_from_the_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    ask = refine.OwnTokens.__call__

    def spy(own: refine.OwnTokens, tokens_Bhw: torch.Tensor, labels_B: torch.Tensor | None = None) -> torch.Tensor:
        found = ask(own, tokens_Bhw, labels_B)
        assert labels_B is not None
        assert len(labels_B) == len(tokens_Bhw)
        seen.append((len(tokens_Bhw), len(found)))
        return found

    monkeypatch.setattr(refine.OwnTokens, "__call__", spy)
    command(monkeypatch, "draws.share=0.5", "draws.replaced=0")
    assert seen == [(8, 12)] * 8
    weights = [read_weights(AFTER / "ema.safetensors")["from_codes.weight"]]
    # The same random numbers choose others of them, and so nothing but the drawings can make the decoder another.
    monkeypatch.setattr(refine, "drawn_tokens", lambda *_: torch.zeros(12, 4, 4, dtype=torch.int64))
    command(monkeypatch, "draws.share=0.5", "draws.replaced=0", "name=blank")
    weights.append(read_weights(Path("runs/tokenizer/blank/ema.safetensors"))["from_codes.weight"])
    assert not torch.equal(*weights)


def test_a_discriminator_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    adversarial = {"discriminator": {"kind": "patchgan", "width": 16, "layers": 1}, "matching": 0.5, "start": 0.2}
    judged = read_yaml(BEFORE / "config.yaml") | {
        "name": "judged",
        "init": str(BEFORE),
        "loss": {"adversarial": adversarial},
    }
    judged["training"] |= {"decoder_only": True, "images": 48}
    stage1.train(parse_config(TokenizerRun, judged, "judged"))
    saved = RunDirectory(Path("runs/tokenizer/judged")).load_newest()
    assert saved
    older = read_yaml(Path("runs/tokenizer/judged/config.yaml"))
    del older["loss"]["adversarial"]["repetition"]  # as a run that was trained before there was one
    older["loss"]["causal"] = {"weight": 0.5}  # as one whose tokens were shaped
    Path("runs/tokenizer/judged/config.yaml").write_text(yaml.safe_dump(older))
    draw_with(RUN, read_info(RUN), Path("runs/tokenizer/judged"))
    capsys.readouterr()
    monkeypatch.setattr(refine, "train", partial(refine.train, ended=lambda images: True))
    monkeypatch.setattr(sys, "argv", ["refine.py", "--prior", str(RUN), "draws.drawings=12", "training.images=64"])
    refine.main()
    assert "its discriminator goes on learning" in capsys.readouterr().out
    loss = read_yaml(Path("runs/tokenizer/tiny-refined/config.yaml"))["loss"]
    assert loss["causal"] is None
    config = loss["adversarial"]
    kept = (config["discriminator"]["width"], config["matching"], config["repetition"], config["start"])
    assert kept == (16, 0.5, 0.0, 0.0)
    taken = RunDirectory(Path("runs/tokenizer/tiny-refined")).load_newest()
    assert taken
    critics = (state.training["parts"]["adversary"]["critic"] for _, state in (saved, taken))
    torch.testing.assert_close(*critics, rtol=0, atol=0)


def test_the_same_command_does_not_train_again_and_a_longer_one_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch)
    first = read_weights(AFTER / "ema.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(refine, "drawn_tokens", lambda *_: pytest.fail("it drew, though all was trained"))
        command(patch, "--prior", str(RUN.resolve()))
    again = read_weights(AFTER / "ema.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not Path("runs/tokenizer/tiny-refined-refined").exists()
    command(monkeypatch, "training.images=128")
    assert RunDirectory(AFTER).newest() is not None
    longer = read_weights(AFTER / "ema.safetensors")
    assert not torch.equal(first["from_codes.weight"], longer["from_codes.weight"])


def test_it_resumes_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, "name=straight")
    train = refine.train
    monkeypatch.setattr(refine, "train", partial(train, ended=lambda images: images >= 24))
    command(monkeypatch, "name=stopped", "--prior", str(RUN))
    monkeypatch.setattr(refine, "train", train)
    command(monkeypatch, "name=stopped")
    straight, stopped = (RunDirectory(Path("runs/tokenizer") / name) for name in ("straight", "stopped"))
    states = [run.load(run.states()[0]) for run in (straight, stopped)]
    torch.testing.assert_close(*(state._asdict() for state in states), rtol=0, atol=0)


def test_another_prior_of_the_same_name_is_not_what_a_run_resumes_with(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch)
    stage2.train(prior_run(images=80))
    with pytest.raises(UserError, match=r"draws\.fingerprint"):
        command(monkeypatch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("draws=null", "draws"),
        ("draws={prior: x, replaced: 0, share: 0}", "leave nothing to learn of the prior"),
        ("training.decoder_only=false", r"draws needs training\.decoder_only"),
        ("training.token_noise=0.1", "draws replaces tokens itself"),
        ("loss.adversarial=null", r"draws\.share needs loss\.adversarial"),
        ("data.image_size=64", r"become 8 x 8 tokens, and the prior draws 4 x 4"),
        ("data.labels=none", "has other classes than the prior was trained on"),
    ],
)
def test_what_it_cannot_use_is_said_and_harms_nothing(
    change: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = (RUN / "tokens.json").read_text()
    options = [] if change.startswith(("draws", "loss")) else SHORT
    monkeypatch.setattr(sys, "argv", ["refine.py", *options, change])
    with pytest.raises(UserError, match=message):
        refine.main()
    assert not AFTER.exists()
    assert (RUN / "tokens.json").read_text() == kept


def test_another_tokenizer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = tokenizer_run(Path(read_info(RUN).data.sources[0]), seed=7).model_copy(update={"name": "other"})
    run, _ = stage1.train(other)
    info = json.loads((RUN / "tokens.json").read_text()) | {"tokenizer": str(run.path)}
    (RUN / "tokens.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"was trained on tokens of a tokenizer with fingerprint"):
        command(monkeypatch)
    with pytest.raises(UserError, match="prior's run directory"):
        command(monkeypatch, "--prior", str(BEFORE))
    assert not AFTER.exists()


def test_stage_one_alone_does_not_train_on_draws() -> None:
    config = refine.refined_run(RUN, {"prior": str(RUN)}, BEFORE, refine.DEFAULT_CONFIG, SHORT)
    with pytest.raises(UserError, match=r"draws: it is `.*refine.*` that trains a decoder on a prior's tokens"):
        stage1.train(config)


def test_a_shared_prior_keeps_its_own_tokenizer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load_prior(RUN)[0].save_pretrained("shared")
    info = json.loads(Path("shared/tokens.json").read_text()) | {"tokenizing": None}  # as shared by an older version
    Path("shared/tokens.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="--use: shared is a shared prior"):
        command(monkeypatch, "--prior", "shared")
    monkeypatch.setattr(sys, "argv", ["refine.py", *SHORT, "--prior", "shared"])
    refine.main()
    assert "sample.py --prior shared --tokenizer runs/tokenizer/shared-refined` with" in capsys.readouterr().out
    assert json.loads(Path("shared/tokens.json").read_text()) == info
    options = ["--prior", "shared", "--tokenizer", "runs/tokenizer/shared-refined", "--num", "1"]
    monkeypatch.setattr(sys, "argv", ["sample.py", *options])
    sample.main()
    assert Path("shared/samples/grid.png").exists()
