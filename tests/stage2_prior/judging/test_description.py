"""Descriptions of priors against counts by hand and against real priors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shared.errors import UserError
from shared.runs.token_cache import TokenInfo, write_cache
from stage2_prior import train as stage2
from stage2_prior.config import HybridConfig
from stage2_prior.judging.description import ASSUMED, description_of
from stage2_prior.memory import training_memory
from stage2_prior.prior import Prior, build_prior
from tests.support.launch import ROOT
from tests.support.tiny import prior_config

CODES, CODE_DIM, LENGTH, WIDTH, DEPTH = 48, 8, 24, 32, 3
INFO = TokenInfo(
    grid=(4, 6), codes=CODES, code_dim=CODE_DIM, tokenizer="", fingerprint="", source="none",
    preprocessing={"image_size": [32, 48], "augment": None}, views=2, class_names=["a", "b"],
)  # fmt: skip
SMALL: dict[str, Any] = {"depth": DEPTH, "width": WIDTH, "heads": 2, "headdim": 16, "d_state": 16, "head_rank": 16}
KINDS: list[dict[str, Any]] = [
    {"kind": "gpt", "positions": "rotary"},
    {"kind": "mamba", "head": "codes"},
    {"kind": "hybrid", "head": "tied", "conditioning": "norm", "pattern": "ma", "mlp_ratio": 2.0},
]


def real_prior(options: dict[str, Any]) -> Prior:
    return build_prior(prior_config(**SMALL, **options), INFO, torch.randn(CODES, CODE_DIM)).eval()


@pytest.mark.parametrize("options", KINDS, ids=lambda options: options["kind"])
def test_weights_and_memory_of_each_kind(options: dict[str, Any]) -> None:
    config = prior_config(**SMALL, **options)
    description = description_of(config, INFO, "fp32")
    assert sum(description.weights.values()) == sum(weight.numel() for weight in real_prior(options).parameters())
    assert {"vocabulary", "blocks", "norm"} <= description.weights.keys()
    assert 0 not in description.weights.values()
    memory = training_memory(config, INFO, "fp32")
    assert (description.activation_bytes, description.weight_bytes) == (memory.grid, memory.weights + memory.once)
    assert json.loads(json.dumps(description.as_dict())) == description.as_dict()
    assert f"4 x 6 out of 48: {LENGTH * 5.585:.0f} bits an image" in str(description)


def test_flops_of_attention_are_those_of_the_formula() -> None:
    description = description_of(prior_config(**SMALL, kind="gpt"), INFO)
    modules = [module for block in real_prior({"kind": "gpt"}).blocks for module in block.modules()]
    products = 2 * LENGTH * sum(module.weight.numel() for module in modules if isinstance(module, torch.nn.Linear))
    attention = DEPTH * 2 * 2 * LENGTH**2 * WIDTH  # queries by keys, and weights by values
    assert description.flops == {"blocks": products + attention, "head": 2 * LENGTH * WIDTH * CODES}
    assert description.table_flops == 0


def test_flops_of_a_table_of_codes_are_counted_once_a_batch() -> None:
    description = description_of(prior_config(**SMALL, kind="mamba", head="codes"), INFO)
    rank = SMALL["head_rank"]
    assert description.table_flops == 2 * CODES * (CODE_DIM * 4 * rank + 4 * rank * rank)
    assert description.flops["head"] == 2 * LENGTH * (WIDTH * rank + rank * CODES)
    assert "a batch for the table of codes" in str(description)


@pytest.mark.parametrize("options", KINDS[1:], ids=lambda options: options["kind"])
def test_flops_are_those_that_torch_counts_of_a_real_forward_pass(options: dict[str, Any]) -> None:
    prior, description = real_prior(options), description_of(prior_config(**SMALL, **options), INFO)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        prior(prior.inputs(torch.randint(CODES, (5, LENGTH))))
    config = prior.config
    layers = sum(config.is_attention(layer) for layer in range(DEPTH)) if isinstance(config, HybridConfig) else 0
    attention = layers * 4 * LENGTH**2 * WIDTH  # a CPU's is not counted by torch
    expected = 5 * (sum(description.flops.values()) - attention) + description.table_flops
    assert counter.get_total_flops() == expected


@pytest.mark.parametrize("kind", ["gpt", "mamba"])
def test_drawing_takes_about_as_many_flops_and_a_training_step_three_times(kind: str) -> None:
    options = {"kind": kind, "width": 128, "headdim": 32}
    prior = build_prior(prior_config(**SMALL | options), INFO, torch.empty(0)).eval()
    forward = sum(description_of(prior.config, INFO).flops.values())
    tokens_1L = torch.zeros(1, LENGTH, dtype=torch.int64)
    with torch.no_grad(), FlopCounterMode(display=False) as drawing:
        state = prior.init_state(1)
        for token_1 in prior.inputs(tokens_1L).unbind(1):
            prior.step(token_1, state)
    assert drawing.get_total_flops() == pytest.approx(forward, rel=0.1)
    with FlopCounterMode(display=False) as training:
        prior.loss(tokens_1L).backward()
    assert training.get_total_flops() == pytest.approx(3 * forward, rel=0.1)


def test_the_largest_preset_is_described_without_its_memory(capsys: pytest.CaptureFixture[str]) -> None:
    described = run_command_on(ROOT / "configs/prior/gpt-1b.yaml", capsys)
    assert described["total_weights"] == pytest.approx(1.0e9, rel=0.05)


def test_the_command_describes_and_does_not_train(own_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = own_directory / "tiny.yaml"
    config.write_text(json.dumps({"name": "tiny", "model": {"depth": 2, "width": 64}, "training": {"images": 8}}))
    described = run_command_on(config, capsys)
    assert (described["name"], described["grid"], described["tokens"]) == ("tiny", list(ASSUMED.grid), None)
    rows = [(torch.randint(CODES, (20, 4, 6)), torch.zeros(20, dtype=torch.int64))]
    write_cache(Path("tokens"), INFO, torch.randn(CODES, CODE_DIM), {"train": rows, "validation": rows})
    described = run_command_on(config, capsys, "tokens=tokens")
    assert described["grid"] == [4, 6]
    assert described["amount"]["images"] == 10  # in two views
    assert described["amount"]["per_code"] == 10 * LENGTH / CODES
    Path("runs/tokenizer/last").mkdir(parents=True)
    Path("runs/tokenizer/last/config.yaml").write_text("")
    Path("tokens").rename("runs/tokenizer/last/tokens")
    found = run_command_on(config, capsys)
    assert (found["grid"], found["tokens"]) == ([4, 6], "runs/tokenizer/last/tokens")
    assert not Path("runs/prior").exists()
    with pytest.raises(UserError, match="nowhere is no token cache"):
        run_command_on(config, capsys, "tokens=nowhere")


def run_command_on(config: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> dict[str, Any]:
    """What the command prints of a configuration as JSON."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("sys.argv", ["train", str(config), "--describe", "--json", *overrides])
        stage2.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])
