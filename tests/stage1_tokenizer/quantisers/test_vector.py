"""The vector quantiser: formulae, exactness, and a codebook that stays alive."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from shared.errors import UserError
from stage1_tokenizer.quantisers.quantiser import usage
from stage1_tokenizer.quantisers.vector import VectorConfig, VectorQuantiser, codebook_loss


def ready(**options: Any) -> VectorQuantiser:
    return VectorQuantiser(VectorConfig(codes=64, dim=8, warm_up=0, **options))


def test_the_two_weights_of_the_loss_move_what_they_say() -> None:
    z, q = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    codebook_loss(z, q, commitment_weight=3.0, codebook_weight=0.5).backward()
    difference = (z - q).detach()
    torch.testing.assert_close(z.grad, 3.0 * 2 * difference / difference.numel())
    torch.testing.assert_close(q.grad, 0.5 * -2 * difference / difference.numel())


def test_gradients_of_the_whole_quantiser_equal_the_formula() -> None:
    quantiser = ready(commitment_weight=1.0, codebook_weight=0.25)
    z_BHWD = torch.randn(2, 3, 4, 8, requires_grad=True)
    target = torch.randn(2, 3, 4, 8)
    result = quantiser(z_BHWD)
    ((result.z_BHWD * target).sum() + result.loss).backward()
    # By hand, in float64.
    z = z_BHWD.detach().double().requires_grad_()
    codebook = quantiser.codebook.detach().double().requires_grad_()
    unit, codes = F.normalize(z, dim=-1), F.normalize(codebook, dim=-1)
    q = codes[(unit @ codes.T).argmax(-1)]
    loss = (unit - q.detach()).square().mean() + 0.25 * (q - unit.detach()).square().mean()
    ((unit * target).sum() + loss).backward()
    torch.testing.assert_close(z_BHWD.grad.double(), z.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(quantiser.codebook.grad.double(), codebook.grad, rtol=1e-4, atol=1e-7)


def test_output_tokens_and_lookup_agree() -> None:
    quantiser = ready().eval()
    result = quantiser(torch.randn(2, 5, 3, 8))
    assert result.tokens_BHW.shape == (2, 5, 3)
    assert torch.equal(result.z_BHWD, quantiser.lookup(result.tokens_BHW))
    torch.testing.assert_close(result.z_BHWD.norm(dim=-1), torch.ones(2, 5, 3))


def test_autocast_changes_nothing() -> None:
    quantiser, z_BHWD = ready().eval(), torch.randn(2, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        cast = quantiser(z_BHWD)
    assert torch.equal(cast.tokens_BHW, quantiser(z_BHWD).tokens_BHW)
    assert cast.loss.dtype == torch.float32


def steps(quantiser: VectorQuantiser, count: int, vectors: torch.Tensor) -> int:
    """Train on random samples of `vectors`, maintaining the codebook; returns how many codes were replaced."""
    optimizer = torch.optim.AdamW([quantiser.codebook], lr=1e-3)
    replaced = 0
    for _ in range(count):
        z_BHWD = vectors[torch.randint(len(vectors), (256,))].view(4, 8, 8, -1)
        result = quantiser(z_BHWD.requires_grad_())
        (result.loss + 0 * result.z_BHWD.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        replaced += quantiser.maintain(optimizer)
    return replaced


def test_codes_start_as_encoder_outputs_after_the_warm_up() -> None:
    quantiser = VectorQuantiser(VectorConfig(codes=64, dim=8, warm_up=4))
    vectors = F.normalize(torch.randn(5000, 8), dim=1)
    assert quantiser(vectors[:64].view(1, 8, 8, 8)).tokens_BHW is None
    steps(quantiser, 1, vectors)
    assert quantiser.initialised
    distance_KN = torch.cdist(quantiser.codebook.detach(), vectors)
    assert distance_KN.amin(1).max() < 1e-3
    assert quantiser(vectors[:64].view(1, 8, 8, 8)).tokens_BHW is not None


@pytest.mark.parametrize("codebook", ["gradient", "ema"])
def test_a_collapsed_codebook_is_back_above_90_percent_within_200_steps(codebook: str) -> None:
    vectors = F.normalize(torch.randn(5000, 8), dim=1)
    without, revived = ready(revival_window=0, codebook=codebook), ready(revival_window=16, codebook=codebook)
    collapsed_KD = F.normalize(vectors[0] + 0.01 * torch.randn(64, 8), dim=1)
    for quantiser in (without, revived):
        quantiser.codebook.data.copy_(collapsed_KD)
        if quantiser.moving_sums is not None:
            quantiser.moving_sums.sums_KD.copy_(collapsed_KD)
    assert steps(without, 200, vectors) == 0
    assert steps(revived, 200, vectors) > 0

    def in_use(quantiser: VectorQuantiser) -> float:
        return usage(torch.bincount(quantiser.tokenize(vectors[None, None]).flatten(), minlength=64)).item()

    assert in_use(without) < 0.7
    assert in_use(revived) > 0.9


def test_revival_clears_the_momentum_and_enters_the_average() -> None:
    quantiser = ready(revival_window=2)
    optimizer = torch.optim.AdamW([quantiser.codebook], lr=1e-3)
    average = quantiser.codebook.detach().clone()
    vectors = F.normalize(torch.ones(64, 8) + 0.1 * torch.randn(64, 8), dim=1)
    quantiser(vectors.view(1, 8, 8, 8)).loss.backward()
    optimizer.step()
    optimizer.state[quantiser.codebook]["exp_avg"].fill_(1.0)
    before = quantiser.codebook.detach().clone()
    assert quantiser.maintain(optimizer, average) > 0
    changed_K = (quantiser.codebook != before).any(1)
    assert torch.all(optimizer.state[quantiser.codebook]["exp_avg"][changed_K] == 0)
    assert torch.all(optimizer.state[quantiser.codebook]["exp_avg"][~changed_K] == 1)
    assert torch.equal(average[changed_K], quantiser.codebook[changed_K])


@pytest.mark.parametrize("codebook", ["gradient", "ema"])
def test_the_state_dict_holds_everything_a_resume_needs(codebook: str) -> None:
    vectors = F.normalize(torch.randn(5000, 8), dim=1)
    one = VectorQuantiser(VectorConfig(codes=64, dim=8, warm_up=4, codebook=codebook))
    steps(one, 5, vectors)
    two = VectorQuantiser(one.config)
    two.load_state_dict(one.state_dict())
    for quantiser in (one, two):
        torch.manual_seed(1)
        steps(quantiser, 5, vectors)
    assert torch.equal(one.codebook, two.codebook)
    assert torch.equal(one.window_counts(), two.window_counts())


def test_the_rotation_turns_the_gradient_of_the_reconstruction_only() -> None:
    straight, rotated = ready(), ready(gradient="rotation")
    rotated.load_state_dict(straight.state_dict())
    z_BHWD, weight = torch.randn(2, 4, 4, 8), torch.randn(2, 4, 4, 8)
    gradients = []
    for quantiser in (straight, rotated):
        leaf = z_BHWD.clone().requires_grad_()
        result = quantiser(leaf)
        assert torch.equal(result.z_BHWD.detach(), quantiser.lookup(result.tokens_BHW).detach())
        gradients.append(torch.autograd.grad((result.z_BHWD * weight).sum(), leaf, retain_graph=True)[0])
        gradients.append(torch.autograd.grad(result.loss, leaf)[0])
    assert not torch.allclose(gradients[0], gradients[2], rtol=0.1)
    assert torch.equal(gradients[1], gradients[3])


def test_the_entropy_regulariser_enters_the_loss_with_its_weight() -> None:
    without, quantiser = ready(), ready(entropy_weight=0.5, entropy_temperature=0.1)
    quantiser.load_state_dict(without.state_dict())
    z_BHWD = torch.randn(2, 4, 4, 8)
    p_NK = (F.normalize(z_BHWD, dim=-1).view(-1, 8) @ quantiser.codes_KD.T / 0.1).softmax(1)
    entropy = torch.special.entr(p_NK).sum(1).mean() - torch.special.entr(p_NK.mean(0)).sum()
    torch.testing.assert_close(quantiser(z_BHWD).loss, without(z_BHWD).loss + 0.5 * entropy)


def test_a_moving_codebook_is_no_weight_to_train_and_costs_no_codebook_loss() -> None:
    quantiser = ready(codebook="ema", commitment_weight=1.0, codebook_weight=7.0)
    assert not quantiser.codebook.requires_grad
    z_BHWD = F.normalize(torch.randn(2, 4, 4, 8), dim=-1)
    result = quantiser(z_BHWD)
    torch.testing.assert_close(result.loss, (z_BHWD - result.z_BHWD).square().mean())


def test_the_usage_window_slides_without_revival_too() -> None:
    quantiser = ready(revival_window=0)
    optimizer = torch.optim.SGD([quantiser.codebook], lr=0.0)
    for code in (3, 5):
        for _ in range(16):  # of 64 vectors each: a whole window of 16 x 64
            quantiser(quantiser.codebook[code].detach().expand(1, 8, 8, 8))
            assert quantiser.maintain(optimizer) == 0
    assert quantiser.window_counts().nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("warm_up", [0, 4])
def test_vectors_that_are_not_finite_are_an_error_that_names_the_step(warm_up: int, value: float) -> None:
    quantiser = VectorQuantiser(VectorConfig(codes=64, dim=8, warm_up=warm_up))
    z_BHWD = torch.randn(1, 4, 4, 8)
    quantiser(z_BHWD)
    quantiser.check_finite(images=96)
    z_BHWD[0, 1, 2, 3] = value
    quantiser(z_BHWD)
    with pytest.raises(UserError, match="not finite in the step after 96 images"):
        quantiser.check_finite(images=96)
    with pytest.raises(UserError, match="not finite, so it has no tokens"):
        quantiser.eval()(z_BHWD)
    with pytest.raises(UserError, match="not finite, so it has no tokens"):
        quantiser.tokenize(z_BHWD)
