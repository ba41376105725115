"""Maximal-update parametrisation: the coordinate check, the exponents, the standard one at the base width, resuming."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from x_transformers.attend import Attend

from shared.config import parse_config
from shared.errors import UserError
from shared.layers import mup
from shared.layers.mup import MupConfig
from shared.layers.swiglu import SwiGLU
from shared.runs.run_directory import RunDirectory
from shared.training.config import TrainingConfig
from shared.training.devices.accelerator import make_accelerator
from shared.training.optimisation.optimizer import make_optimizer
from shared.training.optimisation.schedule import learning_rate
from shared.training.trainee import Trainee
from stage1_tokenizer.backbones.sequence import AttentionConfig, MambaConfig, transformer
from stage1_tokenizer.tokenizer import Tokenizer, TokenizerConfig
from stage2_prior.config import GptConfig
from stage2_prior.config import MambaConfig as MambaPrior
from stage2_prior.network.attention import Attention
from stage2_prior.prior import Prior
from tests.support.tiny import prior_config

BASE, WIDEST, STEPS, RATE = 64, 512, 4, 3e-3
CODES, GRID = 64, (4, 4)
Optimizer = Literal["adamw", "muon"]
SMALL_PRIOR = {"depth": 2, "width": BASE, "heads": 4, "headdim": 16, "d_state": 16, "pattern": "ma", "head_rank": 16}
SMALL_BACKBONE = {"depth": 2, "smoothing": False, "width": BASE, "patch": 8, "positions": 4}
PRIORS: dict[str, dict[str, Any]] = {
    "gpt": {"kind": "gpt", "head": "full"},
    "gpt, wider heads": {"kind": "gpt", "head": "tied", "mup_base_heads": 4},
    "mamba": {"kind": "mamba", "head": "full"},
    "hybrid": {"kind": "hybrid", "head": "codes"},
}
BACKBONES: dict[str, dict[str, Any]] = {
    "attention tokenizer": {"kind": "attention", "heads": 4, "unpatchify": "conv"},
    "mamba tokenizer": {"kind": "mamba", "headdim": 16, "d_state": 16},
}
MODELS = PRIORS | BACKBONES
WIDTHS = (128, 256, WIDEST)  # compared with the base's
STAYS, GROWS = 1.6, 2.0  # times the base's at most, and at least


class Sizes(NamedTuple):
    """Root mean squares of what each module gives: before training, and of its change in training."""

    first: dict[str, float]
    change: dict[str, float]


def prior_of(width: int, base: int | None, options: dict[str, Any]) -> Prior:
    """A small prior; its heads are as wide at every width, unless their number at the base is given."""
    heads = options.get("mup_base_heads") or width // 16
    values = {**SMALL_PRIOR, **options, "width": width, "heads": heads, "mup_base_width": base}
    if base is None:
        values.pop("mup_base_heads", None)
    torch.manual_seed(0)
    vectors_KD = F.normalize(torch.randn(CODES, 8), dim=-1)
    return Prior(prior_config(**values), CODES, GRID, 0, vectors_KD)


def tokenizer_of(width: int, base: int | None, options: dict[str, Any]) -> Tokenizer:
    backbone = {**SMALL_BACKBONE, **options, "width": width, "mup_base_width": base}
    if "heads" in options:
        backbone["heads"] = width // 16
    torch.manual_seed(0)
    return Tokenizer(TokenizerConfig.model_validate({"backbone": backbone, "quantiser": {"kind": "fsq"}}))


def prior_loss(prior: nn.Module) -> Tensor:
    tokens_BL = torch.randint(CODES, (4, 16), generator=torch.Generator().manual_seed(1))
    assert isinstance(prior, Prior)
    logits_BLK = prior(prior.inputs(tokens_BL))
    return F.cross_entropy(logits_BLK.flatten(0, 1), tokens_BL.flatten())


def tokenizer_loss(tokenizer: nn.Module) -> Tensor:
    x_BCHW = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    return F.mse_loss(tokenizer(x_BCHW).images_BCHW, x_BCHW)


def sizes(
    model: nn.Module, loss_of: Callable[[nn.Module], Tensor], rate: float = RATE, optimizer_name: Optimizer = "adamw"
) -> Sizes:
    """Train for a few steps, and compare what each module gives before and after."""
    seen: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, Attention):
            _record_scores(seen, f"{name}.scores", module)
        if not isinstance(module, nn.ModuleList) and not name.startswith("quantiser"):
            module.register_forward_hook(_recorder(seen, name or "whole"))
    optimizer = make_optimizer(model, TrainingConfig(images=1, optimizer=optimizer_name))
    loss_of(model)
    first = dict(seen)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_of(model).backward()
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        optimizer.step()
    loss_of(model)
    return Sizes(
        {name: _rms(x) for name, x in first.items()}, {name: _rms(x - first[name]) for name, x in seen.items()}
    )


def _recorder(seen: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def record(module: nn.Module, _: Any, output: Any) -> None:
        values = output[0] if isinstance(output, tuple) else output
        if isinstance(values, Tensor):
            seen[name] = values.detach().float().clone()

    return record


def _record_scores(seen: dict[str, Tensor], name: str, attention: Attention) -> None:
    attend = attention._attend

    def recording(q_BHLE: Tensor, k_BHLE: Tensor, v_BHLE: Tensor) -> Tensor:
        seen[name] = (q_BHLE @ k_BHLE.mT).detach() * q_BHLE.shape[-1] ** -0.5
        return attend(q_BHLE, k_BHLE, v_BHLE)

    attention._attend = recording  # type: ignore[method-assign]


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def build(name: str, width: int, base: int | None) -> nn.Module:
    """A model of that name and width; `base` is muP's base width, None in the standard parametrisation."""
    return (tokenizer_of if name in BACKBONES else prior_of)(width, base, MODELS[name])


def growth(
    name: str, width: int, base: int | None, rate: float = RATE, optimizer: Optimizer = "adamw"
) -> dict[str, float]:
    """How many times as large each module's first values (`init`) and their changes are as at the base width."""
    loss_of = tokenizer_loss if name in BACKBONES else prior_loss
    models = build(name, BASE, None), build(name, width, base)
    narrow, wide = (sizes(model, loss_of, rate, optimizer) for model in models)
    of_first = {f"{name}, init": wide.first[name] / narrow.first[name] for name in narrow.first}
    return of_first | {name: wide.change[name] / narrow.change[name] for name in narrow.change}


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [*((name, "adamw") for name in MODELS), *((name, "muon") for name in ("gpt", "mamba", "hybrid"))],
)
def test_coordinates_change_as_much_at_every_width_under_mup_only(name: str, optimizer: Optimizer) -> None:
    for width in WIDTHS:
        grown = growth(name, width, BASE, optimizer=optimizer)
        assert {key: value for key, value in grown.items() if value > STAYS} == {}
        changes = {key: value for key, value in grown.items() if not key.endswith("init")}
        assert {key: value for key, value in changes.items() if value < 0.4} == {}
    assert max(growth(name, WIDEST, None, optimizer=optimizer).values()) > GROWS


def _undo_learning_rates(layer: mup.LAYERS, *_: Any) -> None:
    del layer.weight._lr_scale  # type: ignore[attr-defined]  # set by `mup._widen`


def _undo_constant_start(layer: mup.LAYERS, growth: float, as_at_base: bool, _: bool) -> None:
    if as_at_base:
        layer.weight.mul_(growth**0.5)


def _undo_ends(layer: mup.LAYERS, growth: float, _: bool, ends_width: bool) -> None:
    if ends_width:
        layer.weight.mul_(growth**0.5)


@pytest.mark.parametrize(
    ("name", "undo", "optimizer"),
    [
        *((name, _undo_learning_rates, "adamw") for name in MODELS),
        ("gpt", _undo_learning_rates, "muon"),
        ("gpt", _undo_constant_start, "adamw"),
        ("hybrid", _undo_ends, "adamw"),
        ("attention tokenizer", _undo_ends, "adamw"),
    ],
)
def test_the_coordinate_check_sees_each_exponent(
    name: str, undo: Callable[..., None], optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    widen = mup._widen

    @torch.no_grad()
    def widen_without(*given: Any) -> None:
        widen(*given)
        undo(*given)

    monkeypatch.setattr(mup, "_widen", widen_without)
    assert max(growth(name, WIDEST, BASE, optimizer=optimizer).values()) > GROWS


def test_the_coordinate_check_sees_the_factor_of_tied_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mup.MupConfig, "growth", 1.0)
    assert growth("gpt, wider heads", WIDEST, BASE)["whole"] > GROWS


def test_scores_of_wider_heads_grow_without_their_factor_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def largest() -> float:
        grown = growth("gpt, wider heads", WIDEST, BASE, rate=0.01)
        return max(value for key, value in grown.items() if key.endswith("scores"))

    assert largest() < 1
    monkeypatch.setattr(mup.MupConfig, "score_factor", 1.0)
    assert largest() > 1.6


def weights_after_training(name: str, base: int | None) -> dict[str, Tensor]:
    model = build(name, BASE, base)
    sizes(model, tokenizer_loss if name in BACKBONES else prior_loss)
    return model.state_dict()


@pytest.mark.parametrize("name", MODELS)
def test_at_the_base_width_it_is_the_standard_parametrisation_bit_for_bit(name: str) -> None:
    mine, standard = (weights_after_training(name, base) for base in (BASE, None))
    assert all(torch.equal(mine[key], standard[key]) for key in standard)


def groups_of(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter."""
    optimizer = make_optimizer(model, TrainingConfig(images=1, learning_rate=1.0, weight_decay=0.5))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def hidden_scale(width: int) -> float:
    """That of the learning rate behind an MLP's hidden layer, which is rounded to a multiple of 32."""
    return SwiGLU(BASE).out_proj.in_features / SwiGLU(width).out_proj.in_features


def test_what_has_a_fan_in_of_the_width_learns_slower_and_forgets_at_one_pace() -> None:
    groups = groups_of(build("hybrid", 4 * BASE, BASE))
    slow = {name for name, (scale, _) in groups.items() if scale != 1}
    assert {name.replace("blocks.", "") for name in slow} == {
        "0.mixer.in_proj.weight", "0.mixer.out_proj.weight",
        "1.mixer.qkv_proj.weight", "1.mixer.out_proj.weight", "1.mlp.in_proj.weight", "1.mlp.out_proj.weight",
        "vocabulary.down.weight",
    }  # fmt: skip
    for name in slow:
        scale, decay = groups[name]
        assert scale == (hidden_scale(4 * BASE) if name.endswith("mlp.out_proj.weight") else 1 / 4)
        assert scale * decay == pytest.approx(0.5)
    assert groups["vocabulary.up.weight"] == (1.0, 0.5)
    assert groups["positions.weight"] == (1.0, 0.5)


def test_epsilon_shrinks_as_gradients_do() -> None:
    for width, epsilon in ((BASE, 1e-8), (4 * BASE, 1e-8 / 4)):
        optimizer = make_optimizer(build("mamba", width, BASE), TrainingConfig(images=1))
        assert {group["eps"] for group in optimizer.param_groups} == {epsilon}


def test_initial_weights_are_those_of_the_base_width_shrunk() -> None:
    for name, layer, exponent in (
        ("gpt", "blocks.0.mixer.qkv_proj", -0.5),
        ("gpt", "blocks.1.mlp.out_proj", -0.5),
        ("gpt", "vocabulary.output", -1),
        ("gpt", "vocabulary.embedding", 0),
        ("mamba", "blocks.0.mixer.in_proj", -0.5),
        ("hybrid", "vocabulary.down", -1),
        ("attention tokenizer", "to_codes", -1),
        ("attention tokenizer", "encoder.patchify", 0),
        ("mamba tokenizer", "decoder.unpatchify", -1),
        ("mamba tokenizer", "encoder.head.1", -0.5),
    ):
        narrow, wide = (build(name, width, BASE).get_parameter(f"{layer}.weight") for width in (BASE, WIDEST))
        expected = narrow.std() * (WIDEST / BASE) ** exponent
        torch.testing.assert_close(wide.std(), expected, rtol=0.1, atol=0)


def test_initial_biases_are_those_of_the_base_width() -> None:
    narrow, wide = (
        build("mamba tokenizer", width, BASE).get_parameter("encoder.head.1.bias") for width in (BASE, WIDEST)
    )
    torch.testing.assert_close(wide.std(), narrow.std(), rtol=0.15, atol=0)


def test_attention_of_wider_heads_divides_by_their_width() -> None:
    config = prior_config(kind="gpt", width=64, heads=2, mup_base_width=16, mup_base_heads=2)
    q, k = torch.randn(2, 32)
    assert (q @ k) * 32**-0.5 * config.score_factor == pytest.approx(float(q @ k) / 32 * 8**0.5)
    blocks = transformer(AttentionConfig(width=64, heads=2, mup_base_width=16, mup_base_heads=2), depth=1)
    scales = [module.scale for module in blocks.modules() if isinstance(module, Attend)]
    assert scales == [pytest.approx(8**0.5 / 32)]


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    config = TrainingConfig(images=64, batch_size=4, warm_up=16, precision="fp32")

    def begin() -> Trainee:
        return Trainee(build("hybrid", 2 * BASE, BASE), config, make_accelerator())

    def train(trainee: Trainee, steps: int) -> Trainee:
        for _ in range(steps):
            trainee.begin_step()
            trainee.backward(prior_loss(trainee.model))
            trainee.end_step()
        return trainee

    straight, run = train(begin(), 6), RunDirectory(tmp_path)
    train(begin(), 3).save(run)
    resumed = begin()
    resumed.resume(run)
    train(resumed, 3)
    ours, theirs = straight.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    rate = learning_rate(20, config)  # of the sixth step
    assert {group["lr"] / rate for group in resumed.optimizer.param_groups} == {1, 1 / 2, hidden_scale(2 * BASE)}


def test_a_checkpoint_from_before_learning_rates_had_scales_goes_on() -> None:
    config = TrainingConfig(images=64, warm_up=16)
    trainee = Trainee(build("mamba", BASE, None), config, make_accelerator())
    state = trainee.optimizer.state_dict()
    for group in state["param_groups"]:
        del group["lr_scale"]
    trainee.optimizer.load_state_dict(state)
    trainee.begin_step()
    assert {group["lr"] for group in trainee.optimizer.param_groups} == {learning_rate(0, config)}


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (MambaPrior, {"mup_base_width": 0}, "mup_base_width: Input should be greater than 0"),
        (MambaPrior, {"mup_base_width": 30}, "at mup_base_width 30: expand . width = 60 must be a multiple"),
        (MambaPrior, {"mup_base_heads": 2}, "mup_base_heads 2 needs mup_base_width"),
        (GptConfig, {"kind": "gpt", "mup_base_width": 64, "mup_base_heads": 3}, "at mup_base_width 64: .* heads 3"),
        (MambaPrior, {"mup_base_width": 64, "mup_base_heads": 2}, "this model has no attention heads"),
        (MambaConfig, {"mup_base_width": 64, "mup_base_heads": 2}, "this model has no attention heads"),
        (AttentionConfig, {"unpatchify": "conv", "mup_base_width": 33}, "at mup_base_width 33: unpatchify: conv"),
    ],
)
def test_a_base_that_cannot_be_is_one_message(config: type[MupConfig], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config(config, options, where="here")


def test_heads_stay_as_wide_at_another_width() -> None:
    config = prior_config(kind="gpt", width=96, heads=4, mup_base_width=48)
    wider = config.at_width(192)
    assert isinstance(wider, GptConfig)
    assert wider.heads == 8
    assert config.at_base() == prior_config(kind="gpt", width=48, heads=2)
    assert config.at_width(96) == prior_config(kind="gpt", width=96, heads=4)
