"""The Gumbel-softmax quantiser against torch's own gumbel_softmax on the whole matrix."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.code_counts import usage
from shared.errors import UserError
from stage1_tokenizer.quantisers import gumbel
from stage1_tokenizer.quantisers.gumbel import GumbelConfig, GumbelQuantiser


def quantiser(**options: float) -> GumbelQuantiser:
    return GumbelQuantiser(GumbelConfig(codes=40, dim=8, **options))


def gradients(model: GumbelQuantiser, loss: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, (z, model.to_logits.weight, model.to_logits.bias, model.codebook))


def test_sample_loss_and_gradients_equal_torch_s() -> None:
    model, z_BHWD = quantiser(temperature=0.7, kl_weight=0.1), torch.randn(2, 3, 4, 8, requires_grad=True)
    target = torch.randn(2, 3, 4, 8)
    torch.manual_seed(1)
    result = model(z_BHWD)
    ours = gradients(model, (result.z_BHWD * target).sum() + result.loss, z_BHWD)
    torch.manual_seed(1)
    logits = model.to_logits(z_BHWD).view(24, 40)
    one_hot = F.gumbel_softmax(logits, tau=0.7, hard=True)
    uniform = torch.full((24, 40), -math.log(40))
    divergence = F.kl_div(uniform, logits.log_softmax(1), reduction="batchmean", log_target=True)
    expected = (one_hot @ model.codebook).view(2, 3, 4, 8)
    theirs = gradients(model, (expected * target).sum() + 0.1 * divergence, z_BHWD)
    assert torch.equal(result.tokens_BHW.flatten(), one_hot.argmax(1))
    assert torch.equal(result.z_BHWD, model.lookup(result.tokens_BHW))
    torch.testing.assert_close(result.loss, 0.1 * divergence)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_tiles_sample_again_what_they_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile's forward pass is run again for the gradient, and must find the same noise."""
    monkeypatch.setattr(gumbel, "TILE", 7 * 40)
    model, z_BHWD = quantiser(), torch.randn(2, 3, 4, 8, requires_grad=True)
    result = model(z_BHWD)
    (codebook_gradient,) = torch.autograd.grad(result.z_BHWD.sum(), model.codebook)
    wins_K = torch.bincount(result.tokens_BHW.flatten(), minlength=40)
    assert torch.equal(codebook_gradient, wins_K[:, None].expand(40, 8).float())


def test_samples_follow_the_softmax() -> None:
    model = quantiser()
    logits_K = model.to_logits(torch.ones(8))
    tokens = model(torch.ones(1, 100, 200, 8)).tokens_BHW
    share_K = torch.bincount(tokens.flatten(), minlength=40) / 20_000
    torch.testing.assert_close(share_K, logits_K.softmax(0), rtol=0, atol=0.01)


def test_inference_takes_the_likeliest_code() -> None:
    model, z_BHWD = quantiser().eval(), torch.randn(2, 3, 4, 8)
    likeliest = model.to_logits(z_BHWD).argmax(-1)
    result = model(z_BHWD)
    assert torch.equal(model.tokenize(z_BHWD), likeliest)
    assert torch.equal(result.tokens_BHW, likeliest)
    assert torch.equal(result.z_BHWD, model.codebook[likeliest])


@pytest.mark.parametrize(("progress", "expected"), [(0, 2.0), (0.25, 1.0), (0.5, 0.5), (1, 0.5)])
def test_the_temperature_is_a_function_of_progress(progress: float, expected: float) -> None:
    model = quantiser(temperature=2.0, final_temperature=0.5, annealing=0.5)
    for before in (0.9, progress):
        model.begin_step(before)
    assert model.temperature.item() == pytest.approx(expected)


def test_training_learns_a_code_for_each_of_eight_inputs() -> None:
    model, inputs = quantiser(), 2 * torch.eye(8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for step in range(300):
        model.begin_step(step / 300)
        batch = inputs.repeat(8, 1).view(1, 8, 8, 8)
        result = model(batch)
        ((result.z_BHWD - batch).square().mean() + result.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.maintain(optimizer)
    assert usage(model.window_counts()).item() > 0
    assert (model.eval()(inputs[None, None]).z_BHWD - inputs).square().mean() < 0.02


def test_vectors_that_are_not_finite_are_an_error() -> None:
    model, z_BHWD = quantiser(), torch.randn(1, 2, 2, 8)
    z_BHWD[0, 0, 1, 5] = float("nan")
    assert not model(z_BHWD).loss.isfinite()  # by which the training loop skips the step
    with pytest.raises(UserError, match="no tokens"):
        model.tokenize(z_BHWD)
