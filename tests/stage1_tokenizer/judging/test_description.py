"""Descriptions against counts by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.config import parse_config
from shared.errors import UserError
from stage1_tokenizer import train as stage1
from stage1_tokenizer.judging.description import bytes_kept, description_of
from stage1_tokenizer.tokenizer import Tokenizer, TokenizerConfig

SEQUENCE = {"patch": 8, "positions": 4, "width": 32, "depth": 2}
BACKBONES: dict[str, dict[str, Any]] = {
    "conv": {"kind": "conv", "stem": 4, "widths": [16, 32], "depths": [1, 1], "heads": 2},
    "attention": {"kind": "attention", "heads": 2, **SEQUENCE},
    "mamba": {"kind": "mamba", "d_state": 16, "headdim": 16, **SEQUENCE},
    "bimamba": {"kind": "bimamba", "d_state": 16, "headdim": 16, **SEQUENCE},
    "mambavision": {"kind": "mambavision", "d_state": 16, "headdim": 16, "heads": 2, **SEQUENCE},
}


def config_of(kind: str) -> TokenizerConfig:
    values = {"backbone": BACKBONES[kind], "quantiser": {"codes": 64, "dim": 8}}
    return parse_config(TokenizerConfig, values, where="test")


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_description_of_each_backbone(kind: str) -> None:
    config = config_of(kind)
    description = description_of(config, (32, 48))
    assert description.grid == (4, 6)
    assert sum(description.weights.values()) == sum(p.numel() for p in Tokenizer(config).parameters())
    assert description.weights["quantiser"] == 64 * 8
    assert description.activation_bytes > 4 * 3 * 32 * 48
    assert min(description.flops.values()) > 0
    assert json.loads(json.dumps(description.as_dict())) == description.as_dict()
    assert "4 x 6 out of 64: 144 bits" in str(description)


def test_flops_grow_with_the_image_and_attention_faster() -> None:
    mamba = [description_of(config_of("mamba"), (side, side)).as_dict()["total_flops"] for side in (64, 128)]
    attention = [description_of(config_of("attention"), (side, side)).as_dict()["total_flops"] for side in (64, 128)]
    pairs, heads_width = [64**2, 256**2], 32
    assert attention[1] - 4 * attention[0] == 4 * (2 * 2) * (pairs[1] - 4 * pairs[0]) * heads_width
    assert mamba[1] / mamba[0] < attention[1] / attention[0]


def test_bytes_kept_grow_with_the_batch_by_the_same_amount_for_each_image() -> None:
    tokenizer = Tokenizer(config_of("conv"))
    kept = [bytes_kept(tokenizer, torch.zeros(count, 3, 32, 32), "fp32") for count in (1, 2, 4)]
    assert kept[1] - kept[0] == pytest.approx((kept[2] - kept[1]) / 2, rel=0.05)


def test_bfloat16_keeps_less() -> None:
    config = config_of("attention")
    narrow, wide = description_of(config, (32, 32), "bf16"), description_of(config, (32, 32), "fp32")
    assert narrow.activation_bytes < wide.activation_bytes


def test_describing_takes_no_random_numbers() -> None:
    before = torch.get_rng_state()
    description_of(config_of("conv"), (32, 32))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_image_that_the_patch_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="patch is 8"):
        description_of(config_of("conv"), (32, 36))


def test_the_command_describes_and_does_not_train(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(json.dumps({"name": "tiny", "model": {"backbone": BACKBONES["conv"]}, "training": {"images": 8}}))
    monkeypatch.setattr("sys.argv", ["train", str(config), "--describe", "data.image_size=64", "--json"])
    stage1.main()
    described = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert described["name"] == "tiny"
    assert described["grid"] == [8, 8]
    assert not (tmp_path / "runs").exists()
