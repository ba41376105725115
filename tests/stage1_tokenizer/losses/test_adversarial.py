"""The adversarial loss: formulas, schedule, LeCam, and who learns from whom."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.config import parse_config
from shared.errors import UserError
from stage1_tokenizer.losses.adversarial import (
    LARGEST_WEIGHT,
    AdversarialConfig,
    Critic,
    GanLoss,
    LeCam,
    adaptive_weight,
    counting_factor,
    discriminator_loss,
    generator_loss,
    learning_factor,
    linearised,
    matching_loss,
    translate,
)
from stage1_tokenizer.losses.discriminators import PatchganConfig
from stage1_tokenizer.losses.objective import LossConfig, check_losses
from tests.support.narrow import part, present

SMALL = PatchganConfig(width=8, layers=1)


# --- Formulas


def test_hinge_is_the_formula() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert discriminator_loss(real, fake, "hinge").item() == pytest.approx(((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3) / 2)
    assert generator_loss(fake, "hinge").item() == pytest.approx((3 + 0 - 1) / 3)


def test_non_saturating_is_cross_entropy() -> None:
    real, fake = 3 * torch.randn(2, 1, 4, 4), 3 * torch.randn(2, 1, 4, 4)
    right, wrong = torch.ones_like(real), torch.zeros_like(real)
    cross_entropy = F.binary_cross_entropy_with_logits
    expected = (cross_entropy(real, right) + cross_entropy(fake, wrong)) / 2
    torch.testing.assert_close(discriminator_loss(real, fake, "non_saturating"), expected)
    torch.testing.assert_close(generator_loss(fake, "non_saturating"), cross_entropy(fake, right))


@pytest.mark.parametrize(("loss", "ignorance"), [("hinge", 1.0), ("non_saturating", math.log(2))])
def test_a_discriminator_that_knows_nothing_has_the_stated_loss(loss: GanLoss, ignorance: float) -> None:
    logits = torch.zeros(4, dtype=torch.bfloat16)
    value = discriminator_loss(logits, logits, loss)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(ignorance, rel=1e-6)


# --- Schedule


def test_the_schedule_rises_from_its_moments_in_images() -> None:
    config = AdversarialConfig(start=0.2, warm_up=0.1, ramp=0.4)
    learning = [learning_factor(images / 1000, config) for images in (0, 199, 200, 250, 300, 1000)]
    counting = [counting_factor(images / 1000, config) for images in (0, 300, 400, 500, 700, 1000)]
    assert learning == pytest.approx([0, 0, 0, 0.5, 1, 1])
    assert counting == pytest.approx([0, 0, 0.25, 0.5, 1, 1])


def test_without_warm_up_and_ramp_the_schedule_is_a_step() -> None:
    config = AdversarialConfig(start=0.5, warm_up=0, ramp=0)
    for factor in (learning_factor, counting_factor):
        assert [factor(images / 100, config) for images in (0, 49, 50, 99)] == [0, 0, 1, 1]
    assert counting_factor(0, AdversarialConfig(start=0, warm_up=0, ramp=0)) == 1


def test_configurations_are_checked() -> None:
    assert LossConfig().adversarial is None
    assert parse_config(LossConfig, {"adversarial": {}}, "test.yaml").adversarial == AdversarialConfig()
    with pytest.raises(UserError, match=r"start \+ warm_up \+ ramp = 1\.1 is beyond the end"):
        parse_config(LossConfig, {"adversarial": {"start": 0.9}}, "test.yaml")
    with pytest.raises(UserError, match="did you mean 'patchgan'"):
        parse_config(LossConfig, {"adversarial": {"discriminator": {"kind": "patch_gan"}}}, "test.yaml")
    with pytest.raises(UserError, match="batch"):
        parse_config(LossConfig, {"adversarial": {"discriminator": {"kind": "patchgan", "norm": "batch"}}}, "test.yaml")


# --- LeCam


def test_lecam_is_the_formula_and_its_means_are_saved() -> None:
    lecam = LeCam()
    batches = [(torch.randn(4) + 1, torch.randn(4) - 1) for _ in range(5)]
    for count, (real, fake) in enumerate(batches, start=1):
        penalty = lecam(real, fake)
        real_mean = sum(r.mean().item() for r, _ in batches[:count]) / count
        fake_mean = sum(f.mean().item() for _, f in batches[:count]) / count
        expected = [max(r - fake_mean, 0) ** 2 + max(real_mean - f, 0) ** 2 for r, f in zip(real, fake, strict=True)]
        assert penalty.item() == pytest.approx(float(sum(expected)) / 4, rel=1e-5)
    other = LeCam()
    other.load_state_dict(lecam.state_dict())
    assert torch.equal(other(*batches[0]), lecam(*batches[0]))


def test_lecams_means_become_exponential() -> None:
    lecam = LeCam()
    lecam.updates.fill_(5000)
    lecam(torch.full((2,), 10.0), torch.full((2,), -10.0))
    assert lecam.real_mean.item() == pytest.approx(0.01)
    assert lecam.fake_mean.item() == pytest.approx(-0.01)


def test_lecams_means_pass_no_gradient() -> None:
    lecam = LeCam()
    real, fake = torch.randn(4, requires_grad=True), torch.randn(4, requires_grad=True)
    lecam(real, fake).backward()
    expected = 2 * F.relu(real.detach() - lecam.fake_mean) / 4
    torch.testing.assert_close(real.grad, expected)


# --- Adaptive weight


def decode(decoder: nn.Sequential, z: Tensor, x: Tensor, critic: nn.Module) -> tuple[Tensor, Tensor]:
    x_hat = decoder(z)
    return F.mse_loss(x_hat, x), -critic(x_hat).mean()


def test_the_adaptive_weight_is_the_ratio_of_whole_gradients() -> None:
    decoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6))
    critic, z, x = nn.Linear(6, 1), torch.randn(5, 4), torch.randn(5, 6)
    last = part(decoder, "2", nn.Linear)
    norms = []
    for which in (0, 1):
        decoder.zero_grad()
        decode(decoder, z, x, critic)[which].backward()
        norms.append(present(last.weight.grad).norm().item())
    decoder.zero_grad(set_to_none=True)
    critic.zero_grad(set_to_none=True)
    losses = decode(decoder, z, x, critic)
    weight = adaptive_weight(*losses, last.weight)
    assert weight.item() == pytest.approx(norms[0] / (norms[1] + 1e-4), rel=1e-5)
    assert not weight.requires_grad
    assert all(parameter.grad is None for parameter in (*decoder.parameters(), *critic.parameters()))
    (losses[0] + weight * losses[1]).backward()  # the graph is still there


@pytest.mark.parametrize(
    ("reconstruction", "adversarial", "expected"),
    [
        (float("nan"), 1.0, 0.0),
        (1.0, float("nan"), 0.0),
        (float("inf"), 1.0, 0.0),
        (float("inf"), float("inf"), 0.0),
        (1.0, float("inf"), 0.0),
        (1e9, 0.0, LARGEST_WEIGHT),
    ],
)
def test_the_adaptive_weight_is_always_finite(reconstruction: float, adversarial: float, expected: float) -> None:
    weight = torch.ones(3, requires_grad=True)
    value = adaptive_weight(reconstruction * weight.sum(), adversarial * weight.sum(), weight)
    assert value.item() == expected


def test_a_linearised_loss_has_value_and_gradient_of_the_loss() -> None:
    z, matrix = torch.randn(5, 4, requires_grad=True), torch.randn(4, 6)
    x_hat = z @ matrix
    loss = x_hat.sin().square().mean()
    line = linearised(loss, x_hat)
    torch.testing.assert_close(line, loss)
    torch.testing.assert_close(*(torch.autograd.grad(one, z, retain_graph=True)[0] for one in (line, loss)))


def test_a_linearised_loss_asks_the_judge_no_more() -> None:
    asked: list[Tensor] = []
    x_hat = torch.randn(5, 4, requires_grad=True) * 1.0
    judged = x_hat.exp()
    judged.register_hook(asked.append)
    line = linearised(judged.sum(), x_hat)
    for _ in range(3):
        torch.autograd.grad(line, x_hat, retain_graph=True)
    assert len(asked) == 1


# --- Who learns from whom


@pytest.mark.parametrize("norm", ["spectral", "group"])
def test_the_discriminator_does_not_teach_the_tokenizer_while_it_learns(norm: str) -> None:
    critic = Critic(AdversarialConfig(discriminator=PatchganConfig(width=8, layers=1, norm=norm)), (16, 16))
    x, x_hat = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16, requires_grad=True)
    critic(x, x_hat).loss.backward()
    assert x_hat.grad is None
    assert all(present(parameter.grad).abs().sum() > 0 for parameter in critic.parameters() if parameter.ndim > 1)


def test_misleading_leaves_the_discriminator_as_it_is() -> None:
    critic = Critic(AdversarialConfig(discriminator=SMALL, matching=1.0), (16, 16))
    before = {name: tensor.clone() for name, tensor in critic.state_dict().items()}
    assert any(name.endswith(".u") for name in before)
    x, x_hat = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16, requires_grad=True)
    for loss in critic.mislead(x_hat, x).values():
        x_hat.grad = None
        loss.backward(retain_graph=True)
        assert present(x_hat.grad).abs().sum() > 0
    assert all(parameter.grad is None and parameter.requires_grad for parameter in critic.parameters())
    assert critic.discriminator.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in critic.state_dict().items())
    critic(x_hat, x_hat)
    assert not all(torch.equal(tensor, before[name]) for name, tensor in critic.state_dict().items())


def test_images_without_an_original_are_judged_but_matched_with_none() -> None:
    torch.manual_seed(0)
    critic = Critic(AdversarialConfig(discriminator=SMALL, matching=1.0), (16, 16))
    x, x_hat, others = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16), torch.rand(3, 3, 16, 16)
    both, alone = critic.mislead(torch.cat((x_hat, others)), x), critic.mislead(x_hat, x)
    torch.testing.assert_close(both["matching"], alone["matching"])
    of_others = critic.mislead(others, others)["adversarial"]
    torch.testing.assert_close(both["adversarial"], (2 * alone["adversarial"] + 3 * of_others) / 5)


def test_matching_is_the_mean_difference_of_each_layer_and_nothing_between_equal_images() -> None:
    real, fake = (
        [torch.zeros(2, 3, 4, 4), torch.ones(2, 5, 2, 2)],
        [torch.full((2, 3, 4, 4), -2.0), torch.zeros(2, 5, 2, 2)],
    )
    assert matching_loss(real, fake).item() == pytest.approx((2 + 1) / 2)
    critic = Critic(AdversarialConfig(discriminator=SMALL, matching=1.0), (16, 16))
    x = torch.rand(2, 3, 16, 16)
    assert critic.mislead(x, x)["matching"] == 0
    assert "matching" not in Critic(AdversarialConfig(discriminator=SMALL), (16, 16)).mislead(x, x)


def test_each_image_moves_with_its_reconstruction_anywhere_and_is_mirrored_at_the_border() -> None:
    torch.manual_seed(0)
    x = torch.arange(2.0 * 3 * 5 * 7).view(2, 3, 5, 7)
    mirrored = np.pad(x.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    places = [(top, left) for top in range(5) for left in range(5)]

    def place_of(image_CHW: Tensor, number: int) -> tuple[int, int]:
        windows = (mirrored[number, :, top : top + 5, left : left + 7] for top, left in places)
        [place] = [place for place, window in zip(places, windows, strict=True) if np.array_equal(window, image_CHW)]
        return place

    seen = set()
    for _ in range(300):
        first, second = translate(x, torch.cat([-x, x[:1]]), 2)
        assert torch.equal(first, -second[:2])
        seen.add((place_of(first[0], 0), place_of(first[1], 1)))
        place_of(second[2], 0)  # which has no original
    assert {place for place, _ in seen} == {place for _, place in seen} == set(places)
    assert any(one != other for one, other in seen)
    assert translate(x, -x, 0)[0] is x


def test_a_moved_image_is_matched_with_itself_moved_as_far() -> None:
    critic = Critic(AdversarialConfig(discriminator=SMALL, matching=1.0, translation=3), (16, 16))
    x = torch.rand(2, 3, 16, 16)
    assert all(critic.mislead(x, x)["matching"] == 0 for _ in range(5))
    assert len({round(critic.mislead(x, x)["adversarial"].item(), 6) for _ in range(20)}) > 1


def test_images_cannot_be_moved_by_more_than_they_hold() -> None:
    config = LossConfig(adversarial=AdversarialConfig(discriminator=SMALL, translation=16))
    check_losses(config, (17, 20))
    with pytest.raises(UserError, match="translation=16 is as far as images of 16 x 20 pixels reach: lower it to 15"):
        check_losses(config, (16, 20))


def test_lecam_enters_the_discriminators_loss_with_its_weight() -> None:
    x, x_hat = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    verdict = Critic(AdversarialConfig(discriminator=SMALL, lecam=0.5), (16, 16))(x, x_hat)
    assert verdict.terms["lecam"] > 0
    torch.testing.assert_close(verdict.loss, verdict.terms["discriminator"] + 0.5 * verdict.terms["lecam"])
    assert "lecam" not in Critic(AdversarialConfig(discriminator=SMALL, lecam=0), (16, 16))(x, x_hat).terms
