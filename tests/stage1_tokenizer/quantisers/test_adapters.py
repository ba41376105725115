"""Adapters against vector-quantize-pytorch called directly: the same tokens, codes, losses and gradients."""

import copy
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import vector_quantize_pytorch as library
from torch import Tensor, nn

from shared.config import parse_config
from shared.errors import UserError
from stage1_tokenizer.comparing.config import load_comparison
from stage1_tokenizer.judging.description import description_of
from stage1_tokenizer.quantisers.quantiser import Quantiser
from stage1_tokenizer.quantisers.residual import ResidualConfig, ResidualQuantiser
from stage1_tokenizer.tokenizer import Tokenizer, TokenizerConfig, build_quantiser
from tests.support.launch import ROOT
from tests.support.narrow import present
from tests.support.tiny import tokenizer_run

KINDS: dict[str, dict[str, Any]] = {
    "fsq": {"kind": "fsq", "levels": [5, 4, 3]},
    "lfq": {"kind": "lfq", "codes": 64},
    "simvq": {"kind": "simvq", "codes": 60, "dim": 8},
    "residual": {"kind": "residual", "codes": 20, "quantisers": 3, "dim": 8},
    "fsq groups": {"kind": "fsq", "levels": [5, 4, 3], "groups": 2},
    "lfq groups": {"kind": "lfq", "codes": 64, "groups": 2},
}
DIM = {"fsq": 3, "lfq": 6, "simvq": 8, "residual": 8, "fsq groups": 6, "lfq groups": 12}
CODES = {"fsq": 60, "lfq": 64, "simvq": 60, "residual": 20, "fsq groups": 60, "lfq groups": 64}
PER_PLACE = {"fsq": 1, "lfq": 1, "simvq": 1, "residual": 3, "fsq groups": 2, "lfq groups": 2}
each_kind = pytest.mark.parametrize("kind", KINDS)


def config_of(quantiser: dict[str, Any]) -> TokenizerConfig:
    backbone = {"kind": "conv", "stem": 4, "widths": [16, 32], "depths": [1, 1], "heads": 2}
    return parse_config(TokenizerConfig, {"backbone": backbone, "quantiser": quantiser}, where="test")


def quantiser_of(kind: str, **options: Any) -> Quantiser:
    return build_quantiser(config_of({**KINDS[kind], **options}).quantiser)


def vectors(kind: str, *shape: int) -> Tensor:
    return 2 * torch.randn(*shape, DIM[kind])


# The package's modules, with the arguments that its own pages would have one write.
DIRECT: dict[str, Callable[[], nn.Module]] = {
    "fsq": lambda: library.FSQ([5, 4, 3]),
    "lfq": lambda: library.LFQ(codebook_size=64, entropy_loss_weight=0.1, commitment_loss_weight=0.25),
    "simvq": lambda: library.SimVQ(8, 60),
    "residual": lambda: library.ResidualVQ(
        dim=8, num_quantizers=3, codebook_size=20, threshold_ema_dead_code=0.1 * MEAN_USE
    ),
    "fsq groups": lambda: library.FSQ([5, 4, 3], num_codebooks=2),
    "lfq groups": lambda: library.LFQ(
        codebook_size=64, num_codebooks=2, entropy_loss_weight=0.1, commitment_loss_weight=0.25
    ),
}
MEAN_USE = 40 / 20  # 2 x 4 x 5 vectors a step, 20 codes
INNER = {"fsq": "fsq", "lfq": "lfq", "simvq": "simvq", "residual": "rvq", "fsq groups": "fsq", "lfq groups": "lfq"}


def step(call: Callable[[Tensor], tuple], z_BHWD: Tensor, target_BHWD: Tensor) -> list[Tensor]:
    """Outputs of a training step, and the gradient that reaches the vectors."""
    torch.manual_seed(0)
    z_BHWD = z_BHWD.clone().requires_grad_()
    q, tokens, *losses = call(z_BHWD)
    loss = sum((loss.sum() for loss in losses), torch.zeros(()))
    ((q.view_as(target_BHWD) * target_BHWD).sum() + loss).backward()
    return [q.flatten(), tokens.flatten().long(), loss, z_BHWD.grad]


@each_kind
def test_training_is_the_packages(kind: str) -> None:
    ours, theirs = quantiser_of(kind), DIRECT[kind]()
    inner = getattr(ours, INNER[kind])
    theirs.load_state_dict(inner.state_dict())
    for level in getattr(theirs, "layers", []):
        level._codebook.reset_cluster_size = MEAN_USE
    for _ in range(3):
        z_BHWD, target_BHWD = vectors(kind, 2, 4, 5), vectors(kind, 2, 4, 5)
        expected = step(lambda z_BHWD: theirs(z_BHWD.flatten(0, 2)[None]), z_BHWD, target_BHWD)
        for one, other in zip(step(ours, z_BHWD, target_BHWD), expected, strict=True):
            assert torch.equal(one, other)
    for name, value in theirs.state_dict().items():
        assert torch.equal(inner.state_dict()[name], value)


@each_kind
def test_tokens_and_codes_are_the_packages(kind: str) -> None:
    ours = quantiser_of(kind)
    for _ in range(3):
        ours(vectors(kind, 4, 8, 8))
    ours.eval()
    theirs = copy.deepcopy(getattr(ours, INNER[kind])).eval()
    z_BHWD = vectors(kind, 2, 70, 71)  # more than one tile
    quantised, tokens, *_ = theirs(z_BHWD.flatten(0, 2)[None])
    assert torch.equal(ours.tokenize(z_BHWD).flatten(), tokens.flatten().long())
    torch.testing.assert_close(ours(z_BHWD).z_BHWD.flatten(0, 2), quantised[0], rtol=0, atol=1e-6)


@each_kind
def test_the_two_directions_agree(kind: str) -> None:
    quantiser = quantiser_of(kind)
    for _ in range(3):
        quantiser(vectors(kind, 4, 8, 8))
    quantiser.eval()
    z_BHWD = vectors(kind, 2, 4, 5).requires_grad_()
    result = quantiser(z_BHWD)
    tokens_BHW = quantiser.tokenize(z_BHWD)
    assert tokens_BHW.dtype == torch.int64
    assert tokens_BHW.shape == (2, 4, 5 * PER_PLACE[kind])
    assert 0 <= tokens_BHW.min() <= tokens_BHW.max() < CODES[kind]
    assert torch.equal(result.tokens_BHW, tokens_BHW)
    assert torch.equal(result.z_BHWD, quantiser.lookup(tokens_BHW))
    result.z_BHWD.sum().backward()
    assert torch.equal(present(z_BHWD.grad), torch.ones_like(z_BHWD))
    # Every code is its own nearest.
    if PER_PLACE[kind] == 1:
        codes_KD = quantiser.codes_KD.detach()
        codes = torch.arange(len(codes_KD))
        assert torch.equal(quantiser.lookup(codes[None, None])[0, 0], codes_KD)
        # FSQ's rounding happens after tanh, so a level's own value need not be rounded to it.
        if kind != "fsq":
            assert torch.equal(quantiser.tokenize(codes_KD[None, None]).flatten(), codes)


def test_fsq_rounds_each_dimension_to_its_levels() -> None:
    quantiser = quantiser_of("fsq", levels=[5, 4, 3])
    assert quantiser.codes_KD.shape == (60, 3)
    for dimension, levels in enumerate([[-1, -0.5, 0, 0.5, 1], [-1, -0.5, 0, 0.5], [-1, 0, 1]]):
        assert quantiser.codes_KD[:, dimension].unique().tolist() == levels
    # Far out each vector has the outermost levels; near zero those nearest to it.
    assert quantiser.lookup(quantiser.tokenize(torch.full((1, 1, 1, 3), 9.0))).flatten().tolist() == [1, 0.5, 1]
    assert quantiser.lookup(quantiser.tokenize(torch.full((1, 1, 1, 3), -9.0))).flatten().tolist() == [-1, -1, -1]


@pytest.mark.parametrize("kind", ["fsq", "lfq"])
def test_groups_are_quantisers_of_their_own_dimensions_side_by_side(kind: str) -> None:
    whole, part = quantiser_of(kind, groups=3).eval(), quantiser_of(kind).eval()
    z_BHWD = 2 * torch.randn(2, 4, 5, 3 * DIM[kind])
    tokens_BHW = whole.tokenize(z_BHWD)
    assert tokens_BHW.shape == (2, 4, 15)
    for group, own_BHWd in enumerate(z_BHWD.chunk(3, dim=-1)):
        assert torch.equal(tokens_BHW[:, :, group::3], part.tokenize(own_BHWd))
    parts = [part(own_BHWd).z_BHWD for own_BHWd in z_BHWD.chunk(3, dim=-1)]
    assert torch.equal(whole.lookup(tokens_BHW), torch.cat(parts, dim=-1))
    assert torch.equal(whole.codes_KD, part.codes_KD.repeat(1, 3))


def test_lfq_takes_the_signs_as_bits() -> None:
    quantiser = quantiser_of("lfq", codes=8)
    z_BHWD = torch.tensor([[0.1, -3.0, 2.0], [-1.0, -1.0, 0.5], [4.0, 4.0, 4.0]]).view(1, 1, 3, 3)
    assert quantiser.tokenize(z_BHWD).flatten().tolist() == [0b101, 0b001, 0b111]


def test_residual_tokens_are_nearest_codes_of_what_is_left_side_by_side() -> None:
    quantiser = quantiser_of("residual")
    for _ in range(3):
        quantiser(vectors("residual", 4, 8, 8))
    z_BHWD = vectors("residual", 2, 3, 4)
    left_ND, levels = z_BHWD.flatten(0, 2).double(), []
    codes_KQD = quantiser.codes_KD.unflatten(1, (3, 8)).double()
    for level in range(3):
        tokens_N = torch.cdist(left_ND, codes_KQD[:, level]).argmin(1)
        left_ND = left_ND - codes_KQD[tokens_N, level]
        levels.append(tokens_N.view(2, 3, 4))
    tokens_BHW = quantiser.tokenize(z_BHWD)
    for level in range(3):
        assert torch.equal(tokens_BHW[:, :, level::3], levels[level])
    torch.testing.assert_close(quantiser.lookup(tokens_BHW).flatten(0, 2).double(), z_BHWD.flatten(0, 2) - left_ND)


@each_kind
def test_tokenizing_changes_nothing_and_is_the_same_in_training_mode(kind: str) -> None:
    quantiser, z_BHWD = quantiser_of(kind), vectors(kind, 2, 4, 5)
    quantiser(vectors(kind, 4, 8, 8))
    before, numbers = copy.deepcopy(quantiser.state_dict()), torch.get_rng_state()
    in_training = quantiser.tokenize(z_BHWD)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(value, before[name]) for name, value in quantiser.state_dict().items())
    quantiser.eval()
    assert torch.equal(quantiser(z_BHWD).tokens_BHW, in_training)
    assert all(torch.equal(value, before[name]) for name, value in quantiser.state_dict().items())


@each_kind
@pytest.mark.parametrize("training", [True, False])
def test_autocast_changes_nothing(kind: str, training: bool) -> None:
    quantiser, z_BHWD = quantiser_of(kind).train(training), vectors(kind, 2, 8, 8)
    twin = copy.deepcopy(quantiser)
    torch.manual_seed(0)
    plain = quantiser(z_BHWD)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        cast = twin(z_BHWD)
        assert torch.equal(twin.tokenize(z_BHWD), quantiser.tokenize(z_BHWD))
        assert torch.equal(twin.lookup(cast.tokens_BHW), quantiser.lookup(cast.tokens_BHW))
    for one, other in zip(cast, plain, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@each_kind
def test_saved_state_is_finite_and_makes_the_same_quantiser(kind: str) -> None:
    quantiser, other = quantiser_of(kind), quantiser_of(kind)
    for value in quantiser.state_dict().values():
        assert torch.isfinite(value.float()).all()
    quantiser(vectors(kind, 4, 8, 8))
    other.load_state_dict(quantiser.state_dict())
    z_BHWD = vectors(kind, 2, 4, 5)
    results = []
    for each in (quantiser, other):
        torch.manual_seed(1)
        results.append(each(z_BHWD))
    for one, same in zip(*results, strict=True):
        assert torch.equal(one, same)
    assert torch.equal(quantiser.window_counts(), other.window_counts())
    assert torch.equal(quantiser.codes_KD, other.codes_KD)


@each_kind
def test_training_counts_every_token(kind: str) -> None:
    quantiser = quantiser_of(kind)
    tokens_BHW = quantiser(vectors(kind, 4, 8, 8)).tokens_BHW
    assert quantiser.maintain(torch.optim.AdamW([nn.Parameter(torch.zeros(1))])) == 0
    counts = quantiser.window_counts()
    assert counts.sum() == tokens_BHW.numel()
    levels = PER_PLACE[kind]
    assert len(counts) == CODES[kind] * levels
    for level in range(levels):
        own = counts.view(levels, -1)[level]
        assert torch.equal(own, torch.bincount(tokens_BHW[:, :, level::levels].flatten(), minlength=CODES[kind]))


@each_kind
def test_vectors_that_are_not_finite_have_no_tokens(kind: str) -> None:
    quantiser, z_BHWD = quantiser_of(kind), vectors(kind, 2, 4, 5)
    z_BHWD[1, 2, 3, 0] = float("nan")
    quantised = quantiser(z_BHWD)
    assert not (quantised.z_BHWD.sum() + quantised.loss).isfinite()  # by which the training loop skips the step
    with pytest.raises(UserError, match="not finite"):
        quantiser.eval()(z_BHWD)


@pytest.mark.parametrize("codes", [16, 512])
def test_residual_codes_stay_in_use_with_more_codes_than_vectors_and_fewer(codes: int) -> None:
    """Vectors about 16 centres that move away: every centre keeps codes, and codes are not replaced without end."""
    quantiser = ResidualQuantiser(ResidualConfig(codes=codes, quantisers=1, dim=8))
    centres = torch.randn(16, 8)

    def batch() -> Tensor:
        return (centres[torch.arange(128) % 16] + 0.05 * torch.randn(128, 8)).view(2, 8, 8, 8)

    for _ in range(30):
        quantiser(batch())
    before = quantiser.codes_KD
    centres += 5
    for _ in range(60):
        quantiser(batch())
    z_BHWD = batch()
    error = (quantiser.eval()(z_BHWD).z_BHWD - z_BHWD).square().mean()
    assert error < 0.2
    assert not torch.equal(before, quantiser.codes_KD)
    settled = quantiser.codes_KD.clone()
    quantiser.train()(batch())
    moved = (quantiser.codes_KD - settled).square().sum(1) > 1
    assert moved.float().mean() < 0.2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "fsq", "levels": []}, "levels"),
        ({"kind": "fsq", "levels": [8, 2]}, "levels.1.*greater than or equal to 3"),
        ({"kind": "fsq", "levels": [64, 64, 64, 65]}, "make 17039360 codes"),
        ({"kind": "fsq", "codes": 64}, "quantiser.codes: kind fsq does not read it"),
        ({"kind": "lfq", "codes": 1000}, "power of two, for example 512 or 1024"),
        ({"kind": "simvq", "codebook_weight": 0}, "greater than 0"),
        ({"kind": "residual", "quantisers": 0}, "quantisers"),
        ({"kind": "resdual"}, "did you mean 'residual'"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        config_of(options)


def test_a_quantiser_of_no_kind_is_the_vector_quantiser() -> None:
    assert config_of({"codes": 64}).quantiser == config_of({"kind": "vector", "codes": 64}).quantiser


@each_kind
def test_without_the_package_its_kinds_say_how_to_get_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(UserError, match=r"pip install 'vector-quantize-pytorch"):
        quantiser_of(kind)
    build_quantiser(config_of({"kind": "vector", "codes": 64}).quantiser)


@each_kind
def test_a_description_counts_all_tokens_of_a_place(kind: str) -> None:
    tokens_per_place = PER_PLACE[kind]
    config = config_of(KINDS[kind])
    description = description_of(config, (32, 48))
    assert description.grid == (4, 6 * tokens_per_place)
    assert description.codes == CODES[kind]
    tokenizer = Tokenizer(config).eval()
    tokens_Bhw = tokenizer.tokenize(torch.rand(2, 3, 32, 48) * 2 - 1)
    assert tokens_Bhw.shape[1:] == description.grid
    assert tokenizer.detokenize(tokens_Bhw).shape == (2, 3, 32, 48)


def test_the_demo_compares_quantisers_with_about_as_many_bits_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, runs = load_comparison("configs/compare/quantisers-demo.yaml", [])
    _, backbones = load_comparison("configs/compare/backbones-demo.yaml", [])
    assert {"vector", "fsq", "lfq", "simvq", "residual"} <= set(runs)
    conv = backbones["conv"]
    for run in runs.values():
        assert (run.data, run.loss, run.training) == (conv.data, conv.loss, conv.training)
        assert run.model.backbone == conv.model.backbone
        quantiser = run.model.quantiser
        assert quantiser.tokens_per_place * math.log2(quantiser.codes) == pytest.approx(12, abs=0.1)


TWO_PROCESSES = """
import json, sys
import torch
from shared.config import parse_config
from stage1_tokenizer import train as stage1
from stage1_tokenizer.quantisers.lfq import LFQConfig, LookupFreeQuantiser
from stage1_tokenizer.run_config import TokenizerRun

def save(trainee, run):
    rank = trainee.accelerator.process_index
    torch.save(trainee.model.state_dict(), f"{run.path.name}-{rank}.pt")

stage1.Trainee.save = save
for values in json.loads(sys.argv[1]):
    stage1.train(parse_config(TokenizerRun, values, where="test"))
z_BHWD = torch.load("vectors.pt").requires_grad_()
LookupFreeQuantiser(LFQConfig(codes=64))(z_BHWD).loss.backward()
torch.save(z_BHWD.grad, "gradient.pt")
"""


def test_two_processes_stay_the_same_and_each_has_its_own_entropy(drawings: Path, tmp_path: Path) -> None:
    kinds = ("lfq", "residual")
    runs = [{**tokenizer_run(drawings, images=64).model_dump(mode="json"), "name": kind} for kind in kinds]
    for run, kind in zip(runs, kinds, strict=True):
        run["model"]["quantiser"] = KINDS[kind]
    z_BHWD = 0.002 * vectors("lfq", 2, 4, 4)
    torch.save(z_BHWD, tmp_path / "vectors.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    common |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", TWO_PROCESSES, json.dumps(runs)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, error = process.communicate()
        assert process.returncode == 0, error
    for kind in kinds:
        one, other = (torch.load(f"{kind}-{rank}.pt") for rank in range(2))
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
        if kind == "lfq":  # half its window, 16 x 64 / 2 vectors, is the second half of the run
            counted = one["quantiser.counts_K"].sum() + one["quantiser.previous_counts_K"].sum()
            assert counted == 32 * 16  # the tokens of both processes
    quantiser_of("lfq")(z_BHWD.requires_grad_()).loss.backward()
    torch.testing.assert_close(torch.load("gradient.pt"), z_BHWD.grad)
