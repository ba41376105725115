"""Training a decoder alone: images keep their tokens, and what tokenizes stays bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from shared.config import parse_config
from shared.errors import UserError
from shared.runs.run_directory import RunDirectory
from shared.runs.weights import read_weights
from stage1_tokenizer.run_config import TokenizerRun
from stage1_tokenizer.tokenizer import load_tokenizer
from stage1_tokenizer.train import train
from tests.support.tiny import QUANTISERS, logged, tokenizer_run

ADVERSARY = {
    "discriminator": {"kind": "patchgan", "width": 8, "layers": 2}, "start": 0, "warm_up": 0, "ramp": 0, "matching": 1,
}  # fmt: skip


def decoder_run(drawings: Path, init: Path | None, quantiser: str = "vector", **changes: Any) -> TokenizerRun:
    """A run that trains the decoder of another, against a discriminator."""
    run = tokenizer_run(drawings, quantiser).model_dump()
    run["training"]["decoder_only"] = True
    others = {"name": "decoder", "init": init and str(init), "loss": {"adversarial": ADVERSARY}}
    return parse_config(TokenizerRun, {**run, **others, **changes}, "tiny")


@pytest.mark.parametrize("kind", QUANTISERS)
def test_the_decoder_changes_and_no_token_does(drawings: Path, kind: str) -> None:
    before, _ = train(tokenizer_run(drawings, kind))
    after, _ = train(decoder_run(drawings, before.path, kind))
    weights, trained = (read_weights(run.path / "ema.safetensors") for run in (before, after))
    assert weights.keys() == trained.keys()
    changed = {name for name, weight in weights.items() if not torch.equal(weight, trained[name])}
    assert {name.split(".")[0] for name in changed} == {"decoder", "from_codes"}
    x_BCHW = torch.rand(4, 3, 32, 32) * 2 - 1
    old, new = load_tokenizer(before.path), load_tokenizer(after.path)
    assert torch.equal(old.tokenize(x_BCHW), new.tokenize(x_BCHW))
    assert not any("usage" in line or "codes_replaced" in line for line in logged(after.path))


def test_it_resumes_bit_for_bit(drawings: Path) -> None:
    before, _ = train(tokenizer_run(drawings))
    config = decoder_run(drawings, before.path)
    train(config, Path("straight"))
    train(config, Path("stopped"), ended=lambda images: images >= 40)
    train(config, Path("stopped"))
    straight, stopped = (RunDirectory(Path(name)) for name in ("straight", "stopped"))
    states = [run.load(run.states()[0]) for run in (straight, stopped)]
    torch.testing.assert_close(*(state._asdict() for state in states), rtol=0, atol=0)


def test_it_is_refused_without_the_tokens_of_another(drawings: Path) -> None:
    with pytest.raises(UserError, match=r"training\.decoder_only needs init, the tokenizer whose decoder"):
        decoder_run(drawings, None)
    before, _ = train(tokenizer_run(drawings))
    with pytest.raises(UserError, match=r"must stay as in there, and quantiser"):
        train(decoder_run(drawings, before.path, init_without=["quantiser"]))
    wider = {"backbone": {"kind": "conv", "stem": 4, "widths": [16, 48], "depths": [1, 1], "heads": 2}}
    model = {**wider, "quantiser": QUANTISERS["vector"]}
    with pytest.raises(UserError, match=r"must stay as in there, and .*encoder\.layers"):
        train(decoder_run(drawings, before.path, model=model))
    assert not Path("runs/tokenizer/decoder/config.yaml").exists()


def test_other_images_and_classes_than_those_of_its_tokenizer_are_told(
    drawings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, _ = train(tokenizer_run(drawings))
    same = decoder_run(drawings, before.path)
    train(same)
    assert "images: not those of init" not in capsys.readouterr().out
    unlabelled = same.data.model_copy(update={"labels": "none", "image_size": 48})
    other = same.model_copy(update={"name": "other", "data": unlabelled})
    train(other)
    line = f"images: not those of init={before.path}: data.labels=none (there null). A token cache"
    assert capsys.readouterr().out.count(line) == 1
    train(other)  # once it has begun, it is too late
    assert line not in capsys.readouterr().out
