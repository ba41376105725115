"""What training a prior takes: against real tensors, and against the peak of a real training."""

from functools import partial
from typing import Any

import pytest
import torch

from shared.config import load_config
from shared.runs.token_cache import TokenInfo
from shared.training.config import TrainingConfig
from shared.training.devices.accelerator import make_accelerator
from shared.training.devices.memory import TRAINING_BYTES, kept_for_backward
from shared.training.devices.precision import Precision, usable
from shared.training.trainee import Trainee
from stage2_prior.memory import training_memory
from stage2_prior.prior import build_prior
from stage2_prior.run_config import PriorRun
from tests.benchmarks.timing import peak_mb
from tests.support.launch import ROOT
from tests.support.tiny import prior_config

SMALL: dict[str, Any] = {
    "depth": 3,
    "width": 64,
    "heads": 2,
    "headdim": 16,
    "d_state": 16,
    "head_rank": 16,
    "dropout": 0.1,
}


def info_of(codes: int, side: int, class_names: list[str] | None = None) -> TokenInfo:
    return TokenInfo(
        grid=(side, side), codes=codes, code_dim=8, tokenizer="", fingerprint="", source="", preprocessing={}, views=1,
        class_names=class_names,
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(
    "options",
    [{"kind": "gpt", "positions": "rotary"}, {"kind": "mamba", "mlp_ratio": 2.0}, {"kind": "hybrid", "head": "codes"},
     {"kind": "gpt", "head": "tied", "conditioning": "norm"}],
    ids=str,
)  # fmt: skip
def test_shapes_without_contents_keep_what_real_tensors_do(options: dict, precision: Precision) -> None:
    config, info = prior_config(**SMALL, **options), info_of(300, 8, ["a", "b"])
    memory = training_memory(config, info, precision)
    prior = build_prior(config, info, torch.randn(300, 8))
    assert memory.weights == TRAINING_BYTES * sum(parameter.numel() for parameter in prior.parameters())
    for grids in (1, 2, 5):
        tokens_BL = torch.zeros(grids, 64, dtype=torch.int64)
        kept = kept_for_backward(prior, partial(prior.loss, tokens_BL), precision)
        assert kept == memory.once + grids * memory.grid


def test_looking_at_a_prior_takes_nothing_from_the_runs_random_numbers() -> None:
    before = torch.get_rng_state()
    training_memory(prior_config(kind="hybrid", **SMALL), info_of(300, 8), "bf16")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("name", "weights"), [("gpt-1b", 1.0e9), ("mamba-1b", 1.0e9)])
def test_the_largest_presets_are_looked_at_without_their_memory(name: str, weights: float) -> None:
    run = load_config(PriorRun, ROOT / f"configs/prior/{name}.yaml")
    memory = training_memory(run.model, info_of(16_384, 32), run.training.precision)
    assert memory.weights == pytest.approx(TRAINING_BYTES * weights, rel=0.05)
    assert 1e9 < memory.grid < 1e10


LARGER = {"depth": 8, "width": 128, "heads": 4, "d_state": 32, "headdim": 32}


@pytest.mark.parametrize(("kind", "precision"), [("gpt", "bf16"), ("mamba", "bf16"), ("hybrid", "fp32")])
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's kernels keep other things than a CPU's")
def test_training_holds_what_was_foreseen_at_its_peak(kind: str, precision: Precision) -> None:
    config, info, batch_size = prior_config(kind=kind, **LARGER), info_of(256, 8), 32
    training = TrainingConfig(images=1000, batch_size=batch_size, precision=precision, compile=False)

    def train() -> None:
        prior = build_prior(config, info, torch.empty(0))
        trainee = Trainee(prior, training, make_accelerator())
        for _ in range(2):
            tokens_BL = torch.randint(info.codes, (batch_size, prior.length), device=trainee.accelerator.device)
            trainee.begin_step()
            with trainee.autocast():
                loss = trainee.wrapped(prior.inputs(tokens_BL), targets_BL=tokens_BL)
            trainee.backward(loss)
            trainee.end_step()

    memory = training_memory(config, info, usable(precision, torch.device("cpu")))
    foreseen = memory.weights + memory.once + batch_size * memory.grid
    assert foreseen == pytest.approx(1e6 * peak_mb(train), rel=0.15)
