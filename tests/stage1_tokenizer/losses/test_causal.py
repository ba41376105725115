"""The causal regulariser: what it predicts from what, whom its error moves, and its place in a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.config import parse_config
from shared.errors import UserError
from shared.runs.run_directory import RunDirectory
from shared.runs.weights import read_weights
from stage1_tokenizer.losses import causal as causal_module
from stage1_tokenizer.losses.causal import CausalConfig, CausalModel
from stage1_tokenizer.losses.causal_training import scaled_back
from stage1_tokenizer.run_config import TokenizerRun
from stage1_tokenizer.tokenizer import Tokenizer
from stage1_tokenizer.train import train
from tests.stage1_tokenizer.losses.causal_alone import ALWAYS, DIM, GRID, causal_training, gradients, teach
from tests.support.launch import launch
from tests.support.narrow import present
from tests.support.tiny import QUANTISERS, logged, tokenizer_run

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def model(**options: Any) -> CausalModel:
    torch.manual_seed(0)
    return CausalModel(CausalConfig(**{**ALWAYS, **options}), GRID, DIM)


def codes(batch: int = 3) -> Tensor:
    return torch.randn(batch, *GRID, DIM, generator=torch.Generator().manual_seed(1))


def with_causal(run: TokenizerRun, **causal: Any) -> TokenizerRun:
    return parse_config(TokenizerRun, {**run.model_dump(), "loss": {"causal": causal}}, "tiny")


# --- The model


@pytest.mark.parametrize("place", range(6))
def test_a_code_is_expected_from_those_before_it_alone(place: int) -> None:
    one, z_BLD = model(), F.normalize(codes().flatten(1, 2), dim=-1)
    other_BLD = z_BLD.clone()
    other_BLD[:, place] *= -1
    before, after = one.expect(z_BLD), one.expect(other_BLD)
    assert torch.equal(before[:, : place + 1], after[:, : place + 1])
    assert place == 5 or not torch.allclose(before[:, place + 1 :], after[:, place + 1 :])


def test_long_grids_are_predicted_as_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    short, z_BLD = model(), F.normalize(codes().flatten(1, 2), dim=-1)
    monkeypatch.setattr(causal_module, "LONG", 1)
    long = model()
    long.load_state_dict(short.state_dict())
    torch.testing.assert_close(long.expect(z_BLD), short.expect(z_BLD))


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_the_error_is_the_squared_distance_of_directions(scale: float) -> None:
    one, z_BhwD = model(), scale * codes()
    total = 0.0
    for image in z_BhwD:
        directions_LD = torch.stack([code / code.norm() for code in image.view(-1, DIM)])
        expected_LD = one.expect(directions_LD[None])[0]
        total += sum(float((a - b).dot(a - b)) for a, b in zip(expected_LD, directions_LD, strict=True))
    assert one(z_BhwD).item() == pytest.approx(total / (3 * 6), rel=1e-5)


def test_what_cannot_be_predicted_has_an_error_of_one() -> None:
    one = model()
    for parameter in one.project_out.parameters():
        torch.nn.init.zeros_(parameter)
    assert one(codes()).item() == pytest.approx(1)


def test_a_code_of_no_direction_has_a_small_gradient() -> None:
    """As the middle levels of fsq have together."""
    z_BhwD = codes()
    z_BhwD[0, 0, 1] = 0
    [gradient] = torch.autograd.grad(model()(z_BhwD.requires_grad_()), z_BhwD)
    assert gradient[0, 0, 1].any()
    assert gradient.abs().max() < 10


def test_the_error_moves_what_it_is_to_move() -> None:
    """The last code is no context of any other."""
    found = {}
    for gradient in ("both", "context", "targets"):
        z_BhwD = codes().requires_grad_()
        [found[gradient]] = torch.autograd.grad(model(gradient=gradient)(z_BhwD), z_BhwD)
    torch.testing.assert_close(found["both"], found["context"] + found["targets"])
    assert not found["context"][:, -1, -1].any()
    assert found["context"][:, 0, 0].any()
    unit = F.normalize(codes(), dim=-1).requires_grad_()
    expected_BLD = model().expect(unit.flatten(1, 2)).detach()
    [by_hand] = torch.autograd.grad(
        (expected_BLD.view_as(unit) - F.normalize(unit, dim=-1)).square().sum() / (3 * 6), unit
    )
    [of_targets] = torch.autograd.grad(model(gradient="targets")(unit), unit)
    torch.testing.assert_close(of_targets, by_hand)


# --- Its training


def test_codes_move_by_the_weight_and_the_model_by_the_whole_error() -> None:
    """The weight rises from `start` over `ramp`."""
    whole = causal_training({"weight": 1.0})
    whole.begin_step()
    teach(whole, codes().to(DEVICE))
    rising = causal_training({"weight": 0.8, "start": 0.2, "ramp": 0.4})
    for images, weight in ((0, 0.0), (200, 0.0), (300, 0.2), (900, 0.8)):
        rising.trainee.images = images
        rising.begin_step()
        rising.trainee.optimizer.zero_grad()
        rising.optimizer.zero_grad()
        teach(rising, codes().to(DEVICE))
        assert rising.weight == pytest.approx(weight)
        of_both = gradients(rising), gradients(whole)
        torch.testing.assert_close(*(found["model"] for found in of_both))
        torch.testing.assert_close(of_both[0]["encoder"], [weight * gradient for gradient in of_both[1]["encoder"]])


def test_scaling_back_changes_no_bit_going_forward() -> None:
    z = torch.randn(100) * 1e3
    assert torch.equal(scaled_back(z, 0.3), z)


def test_accumulated_batches_give_the_gradient_of_one_large_batch() -> None:
    x, both = codes(4).to(DEVICE), []
    for parts in (1, 2):
        one = causal_training({}, accumulation=parts)
        one.begin_step()
        for part in x.chunk(parts):
            teach(one, part)
        both.append(gradients(one))
    torch.testing.assert_close(*both)


def test_the_learning_rate_follows_the_tokenizers() -> None:
    one = causal_training({"learning_rate": 1e-3}, learning_rate=0.5, warm_up=100, final_learning_rate=0.0)
    for images in (0, 50, 500, 1000):
        one.trainee.images = images
        one.begin_step()
        one.trainee.begin_step()
        rates = [optimizer.param_groups[0]["lr"] for optimizer in (one.optimizer, one.trainee.optimizer)]
        assert rates[0] == pytest.approx(rates[1] / 0.5 * 1e-3)


def test_a_skipped_step_is_skipped_here_too() -> None:
    one = causal_training({})
    before = [parameter.clone() for parameter in one.model.parameters()]
    for bad, same in ((1, True), (0, False)):
        one.begin_step()
        teach(one, codes().to(DEVICE))
        one.trainee.bad_in_a_row = bad
        one.end_step()
        after = list(one.model.parameters())
        assert all(map(torch.equal, before, after)) == same
        assert all(parameter.grad is None for parameter in after)


def test_a_gradient_that_is_not_finite_stops_the_run() -> None:
    one = causal_training({})
    one.begin_step()
    teach(one, torch.full((2, *GRID, DIM), float("nan"), device=DEVICE))
    with pytest.raises(UserError, match=r"causal model's gradient is nan after 0 images: lower loss\.causal\.learning"):
        one.end_step()


def test_processes_learn_together_what_one_learns(tmp_path: Path) -> None:
    x = codes(8)
    torch.save(x, tmp_path / "batch.pt")
    launch(Path(__file__).with_name("causal_alone.py"), tmp_path / "batch.pt", tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    alone = causal_training({"weight": 0.5})
    alone.begin_step()
    teach(alone, x.to(DEVICE))
    torch.testing.assert_close(first, {name: [g.cpu() for g in found] for name, found in gradients(alone).items()})


# --- In a run


@pytest.mark.parametrize("kind", QUANTISERS)
def test_the_error_reaches_the_encoder_through_every_quantiser(drawings: Path, kind: str) -> None:
    config = tokenizer_run(drawings, kind)
    tokenizer = Tokenizer(config.model)
    tokenizer.begin_step(0.0)
    places = 4, 4
    causal = CausalModel(CausalConfig(), places, config.model.quantiser.dim)
    causal(tokenizer(torch.rand(2, 3, 32, 32) * 2 - 1).codes_BhwD).backward()
    assert present(tokenizer.to_codes.weight.grad).any()
    assert all(parameter.grad is None for parameter in tokenizer.decoder.parameters())


def test_tokens_become_easier_to_predict(drawings: Path) -> None:
    """Than beside the same model that only watches; what a run leaves for inference has the same names."""
    run = tokenizer_run(drawings, images=192, precision="fp32")
    errors, weights = {}, {}
    for name, causal in (("watches", {"weight": 1e-9}), ("shapes", {"weight": 1.0, "start": 0.0, "ramp": 0.0})):
        trained, _ = train(with_causal(run, **causal, width=16), Path(name))
        errors[name] = [line["causal"] for line in logged(trained.path) if "causal" in line][-1]
        weights[name] = read_weights(Path(name, "model.safetensors"))
    assert errors["shapes"] < 0.9 * errors["watches"]
    assert weights["shapes"].keys() == Tokenizer(run.model).state_dict().keys()


def after(images: int) -> Callable[[int], bool]:
    """To stop a training once it has seen that many."""
    return lambda seen: seen >= images


def test_a_run_is_the_same_up_to_where_the_error_counts(drawings: Path) -> None:
    run, weights = tokenizer_run(drawings, precision="fp32"), {}
    for name, each in (("off", run), ("on", with_causal(run, weight=0.5, start=0.5, ramp=0.1))):
        for images in (48, 64):
            train(each, Path(name), ended=after(images))
            weights[name, images] = read_weights(Path(name, "model.safetensors"))["to_codes.weight"]
    assert torch.equal(weights["off", 48], weights["on", 48])
    assert not torch.equal(weights["off", 64], weights["on", 64])


def test_it_resumes_bit_for_bit(drawings: Path) -> None:
    config = with_causal(tokenizer_run(drawings), weight=0.5, start=0.1)
    train(config, Path("straight"))
    train(config, Path("stopped"), ended=after(40))
    train(config, Path("stopped"))
    straight, stopped = (RunDirectory(Path(name)) for name in ("straight", "stopped"))
    states = [run.load(run.states()[0]) for run in (straight, stopped)]
    torch.testing.assert_close(*(state._asdict() for state in states), rtol=0, atol=0)
    assert logged(straight.path) == logged(stopped.path)


@pytest.mark.parametrize(
    ("causal", "message"),
    [
        ({"width": 10, "heads": 4}, "width 10 must be a multiple of heads = 4"),
        ({"start": 0.8, "ramp": 0.3}, r"start \+ ramp = 1\.1 is beyond the end of the run"),
    ],
)
def test_options_that_do_not_fit_are_refused(drawings: Path, causal: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_causal(tokenizer_run(drawings), **causal)


def test_frozen_tokens_are_not_shaped(drawings: Path) -> None:
    values = with_causal(tokenizer_run(drawings)).model_dump()
    values["training"]["decoder_only"] = True
    with pytest.raises(UserError, match=r"loss\.causal shapes tokens, and training\.decoder_only keeps them"):
        parse_config(TokenizerRun, {**values, "init": "first"}, "tiny")
