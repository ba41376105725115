"""What is decayed, and how much."""

from torch import nn

from shared.layers.mamba2 import Mamba2
from shared.training.config import TrainingConfig
from shared.training.optimizer import make_optimizer
from stage1_tokenizer.quantisers.vector import VectorConfig, VectorQuantiser


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
