"""The vector quantiser: formulae, exactness, and a codebook that stays alive."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from shared.code_counts import usage
from shared.config import parse_config
from shared.errors import UserError
from stage1_tokenizer.quantisers import vector
from stage1_tokenizer.quantisers.vector import VectorConfig, VectorQuantiser, codebook_loss
from tests.support.narrow import present


def ready(**options: Any) -> VectorQuantiser:
    return VectorQuantiser(VectorConfig(**{"codes": 64, "dim": 8, "warm_up": 0, "revival_steps": 0} | options))


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
    torch.testing.assert_close(present(z_BHWD.grad).double(), z.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(present(quantiser.codebook.grad).double(), codebook.grad, rtol=1e-4, atol=1e-7)


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


@pytest.mark.parametrize(("window", "least_steps"), [(2, 0), (2, 7), (16, 7), (2, 1000)])
def test_replaced_are_the_codes_without_a_win_over_the_window(
    window: int, least_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector, "ENOUGH", 2500)
    quantiser = ready(revival_window=window, revival_steps=least_steps)
    quantiser.recent_RD.copy_(F.normalize(torch.randn(256, 8), dim=1))
    quantiser.written.fill_(256)
    optimizer = torch.optim.SGD([quantiser.codebook], lr=0.0)
    replaced: list[int] = []
    monkeypatch.setattr(quantiser, "_replace", lambda replaced_M, *_: replaced.extend(replaced_M.tolist()))
    before: list[int] = []  # tokens of the half of the window that is over, and of the other
    since: list[int] = []
    replacements = 0
    for rows in torch.randint(1, 9, (400,)).tolist():
        replaced.clear()
        tokens = quantiser(torch.randn(1, rows, 16, 8) + torch.tensor([2.0] * 4 + [0.0] * 4)).tokens_BHW.flatten()
        quantiser.maintain(optimizer)
        since += tokens.tolist()
        if len(since) >= max(window * 64, min(least_steps * len(tokens), 2500)) // 2:
            assert replaced == [code for code in range(64) if code not in before + since]
            before, since = since, []
            replacements += len(replaced)
        else:
            assert not replaced
    assert replacements > 0


def test_a_window_as_long_as_that_of_16384_codes_is_not_lengthened(monkeypatch: pytest.MonkeyPatch) -> None:
    assert VectorConfig().revival_window * VectorConfig().codes == vector.ENOUGH
    vectors = F.normalize(torch.randn(5000, 8) + 2 * torch.eye(8)[0], dim=1)

    def trained(least_steps: int) -> tuple[int, torch.Tensor]:
        torch.manual_seed(1)
        quantiser = ready(revival_window=16, revival_steps=least_steps)
        return steps(quantiser, 50, vectors), quantiser.codebook.detach()

    replaced, codebook_KD = trained(least_steps=0)
    assert replaced > 0
    assert not torch.equal(trained(least_steps=32)[1], codebook_KD)
    monkeypatch.setattr(vector, "ENOUGH", 16 * 64)
    assert torch.equal(trained(least_steps=32)[1], codebook_KD)


@pytest.mark.parametrize(("least_steps", "least", "most"), [(0, 500, 4096), (32, 0, 30)])
def test_a_small_codebook_is_not_judged_by_a_few_pictures(least_steps: int, least: int, most: int) -> None:
    """A step has eight pictures of one code each: over the four steps of 16 x 64 vectors, half the codes win none."""
    quantiser = ready(revival_steps=least_steps)
    optimizer = torch.optim.SGD([quantiser.codebook], lr=0.0)
    pictures_KD = quantiser.codes_KD.detach().clone()
    replaced = 0
    for _ in range(64):
        chosen_8 = torch.randperm(64)[:8]
        quantiser(pictures_KD[chosen_8].repeat_interleave(32, 0).view(1, 16, 16, 8))
        replaced += quantiser.maintain(optimizer)
    assert least <= replaced <= most


def test_a_step_that_was_undone_ends_no_window() -> None:
    quantiser = ready(revival_window=2, revival_steps=4)
    optimizer = torch.optim.SGD([quantiser.codebook], lr=0.0)
    z_BHWD = torch.randn(1, 8, 8, 8)
    quantiser(z_BHWD)
    quantiser.maintain(optimizer)
    buffers = [buffer.clone() for buffer in quantiser.buffers()]
    quantiser(z_BHWD)
    torch._foreach_copy_(list(quantiser.buffers()), buffers)  # as the training loop does
    assert quantiser.maintain(optimizer) == 0
    assert int(quantiser.seen) == 64


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("codebook", ["gradient", "ema"])
def test_the_state_dict_holds_everything_a_resume_needs(codebook: str, unit: bool) -> None:
    vectors = F.normalize(torch.randn(5000, 8), dim=1)
    one = VectorQuantiser(VectorConfig(codes=64, dim=8, warm_up=4, codebook=codebook, unit=unit))
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


def test_with_diveq_the_reconstruction_alone_trains_the_codes_that_won_in_training_only() -> None:
    straight, quantiser = ready(), ready(gradient="diveq", commitment_weight=0, codebook_weight=0)
    quantiser.load_state_dict(straight.state_dict())
    z_BHWD, weight = torch.randn(2, 4, 4, 8), torch.randn(2, 4, 4, 8)
    result = quantiser(z_BHWD)
    ((result.z_BHWD * weight).sum() + result.loss).backward()
    won_K = torch.bincount(result.tokens_BHW.flatten(), minlength=64) > 0
    assert torch.equal(present(quantiser.codebook.grad).norm(dim=1) > 0, won_K)
    assert torch.equal(result.tokens_BHW, straight(z_BHWD).tokens_BHW)
    unit_BHWD, codes_BHWD = F.normalize(z_BHWD, dim=-1), quantiser.lookup(result.tokens_BHW)
    torch.testing.assert_close((result.z_BHWD - unit_BHWD).norm(dim=-1), (codes_BHWD - unit_BHWD).norm(dim=-1))
    assert not torch.equal(result.z_BHWD, codes_BHWD)
    assert torch.equal(quantiser.eval()(z_BHWD).z_BHWD, codes_BHWD)


def test_diveq_is_refused_where_no_gradient_reaches_the_codes() -> None:
    with pytest.raises(UserError, match="diveq trains the codes"):
        parse_config(VectorConfig, {"gradient": "diveq", "codebook": "ema"}, where="test")


def test_the_entropy_regulariser_enters_the_loss_with_its_weight() -> None:
    without, quantiser = ready(), ready(entropy_weight=0.5, entropy_temperature=0.1)
    quantiser.load_state_dict(without.state_dict())
    z_BHWD = torch.randn(2, 4, 4, 8)
    p_NK = (F.normalize(z_BHWD, dim=-1).view(-1, 8) @ quantiser.codes_KD.T / 0.1).softmax(1)
    entropy = torch.special.entr(p_NK).sum(1).mean() - torch.special.entr(p_NK.mean(0)).sum()
    torch.testing.assert_close(quantiser(z_BHWD).loss, without(z_BHWD).loss + 0.5 * entropy)


def test_off_the_sphere_the_entropy_is_of_distances() -> None:
    without, quantiser = ready(unit=False), ready(unit=False, entropy_weight=0.5, entropy_temperature=2.0)
    quantiser.load_state_dict(without.state_dict())
    z_BHWD = 3 * torch.randn(2, 4, 4, 8)
    p_NK = (torch.cdist(z_BHWD.view(-1, 8), quantiser.codes_KD).square() / -4).softmax(1)
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
def test_vectors_that_are_not_finite_have_no_tokens(warm_up: int, value: float) -> None:
    quantiser = VectorQuantiser(VectorConfig(codes=64, dim=8, warm_up=warm_up))
    z_BHWD = torch.randn(1, 4, 4, 8)
    assert quantiser(z_BHWD).z_BHWD.isfinite().all()
    z_BHWD[0, 1, 2, 3] = value
    assert not quantiser(z_BHWD).z_BHWD.isfinite().all()  # by which the training loop skips the step
    with pytest.raises(UserError, match="not finite, so it has no tokens"):
        quantiser.eval()(z_BHWD)
    with pytest.raises(UserError, match="not finite, so it has no tokens"):
        quantiser.tokenize(z_BHWD)


def test_off_the_sphere_the_nearest_code_is_that_of_the_smallest_distance() -> None:
    quantiser = VectorQuantiser(VectorConfig(codes=50, dim=6, warm_up=0, unit=False)).eval()
    quantiser.codebook.data = torch.randn(50, 6) * torch.rand(50, 1) * 3
    z_BHWD = 2 * torch.randn(2, 7, 5, 6)
    tokens_BHW = quantiser.tokenize(z_BHWD)
    assert torch.equal(tokens_BHW.flatten(), torch.cdist(z_BHWD.flatten(0, 2), quantiser.codebook).argmin(1))
    assert torch.equal(quantiser(z_BHWD).z_BHWD, quantiser.codebook[tokens_BHW])
