"""What is decayed, and how much; what Muon is for."""

import re
from typing import Any

import pytest
from torch import nn

from shared.layers.mamba2 import Mamba2
from shared.training.config import TrainingConfig
from shared.training.optimisation.optimizer import make_optimizer
from stage1_tokenizer.quantisers.vector import VectorConfig, VectorQuantiser
from stage1_tokenizer.tokenizer import Tokenizer, TokenizerConfig
from stage2_prior.prior import Prior
from tests.support.tiny import prior_run


def test_weight_decay_spares_norms_biases_codes_and_mamba_dynamics() -> None:
    model = nn.ModuleDict({"mamba": Mamba2(32, headdim=16), "quantiser": VectorQuantiser(VectorConfig(codes=8, dim=4))})
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, others = make_optimizer(model, TrainingConfig(images=1)).param_groups
    assert {names[id(p)] for p in decayed["params"]} == {
        "mamba.in_proj.weight", "mamba.conv1d.weight", "mamba.out_proj.weight"
    }  # fmt: skip
    assert {names[id(p)] for p in others["params"]} == {
        "mamba.conv1d.bias", "mamba.dt_bias", "mamba.A_log", "mamba.D", "mamba.norm.weight", "quantiser.codebook"
    }  # fmt: skip
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)


def muons(model: nn.Module) -> set[str]:
    """The names of what Muon trains of a model."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = make_optimizer(model, TrainingConfig(images=1, optimizer="muon")).param_groups
    assert sum(len(group["params"]) for group in groups) == len(names)
    return {names[id(p)] for group in groups if group["muon"] for p in group["params"]}


BACKBONES: dict[str, dict[str, Any]] = {
    "conv": {"widths": [16, 32], "depths": [1, 1], "heads": 2},
    "attention": {"depth": 1, "width": 64, "heads": 2, "unpatchify": "conv"},
    **{kind: {"depth": 2, "width": 64, "headdim": 16, "d_state": 16} for kind in ("mamba", "bimamba", "mambavision")},
    "resnet": {"channels": 32},
}
# Linear layers that Muon is not for: what reads or gives pixels and codes, what changes the size, the heads.
OTHERS = r"stem_projection|projection|to_codes|from_codes|head\.\d|upsample\.projection"


@pytest.mark.parametrize("kind", BACKBONES)
def test_muon_is_for_the_linear_layers_of_a_tokenizer_but_a_few(kind: str) -> None:
    config = TokenizerConfig.model_validate(
        {"backbone": {"kind": kind, **BACKBONES[kind]}, "quantiser": {"kind": "fsq"}}
    )
    tokenizer = Tokenizer(config)
    linear = {f"{name}.weight" for name, layer in tokenizer.named_modules() if isinstance(layer, nn.Linear)}
    others = {name for name in linear if re.search(rf"(^|\.)({OTHERS})\.weight$", name)}
    assert muons(tokenizer) == linear - others
    assert len(linear - others) >= 4


def test_muon_is_for_the_mixers_and_mlps_of_a_prior() -> None:
    prior = Prior(prior_run("hybrid", head="full").model, codes=8, grid=(2, 2), classes=3)
    mixers = {f"blocks.{n}.mixer.{name}_proj.weight" for n, name in ((0, "in"), (0, "out"), (1, "qkv"), (1, "out"))}
    assert muons(prior) == mixers | {f"blocks.1.mlp.{name}_proj.weight" for name in ("in", "out")}
