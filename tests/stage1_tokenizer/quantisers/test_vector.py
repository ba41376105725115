"""The vector quantiser: formulae, exactness, and a codebook that stays alive."""

import pytest
import torch
import torch.nn.functional as F

from stage1_tokenizer.quantisers.gradients import straight_through
from stage1_tokenizer.quantisers.quantiser import perplexity, usage
from stage1_tokenizer.quantisers.vector import VectorConfig, VectorQuantiser, codebook_loss


def ready(**options: float) -> VectorQuantiser:
    return VectorQuantiser(VectorConfig(codes=64, dim=8, warm_up=0, **options))


def test_straight_through_is_exactly_the_code_and_passes_the_gradient() -> None:
    z, q = torch.randn(1000, requires_grad=True), torch.randn(1000) * 1e4
    out = straight_through(z, q)
    assert torch.equal(out, q)
    weight = torch.randn(1000)
    (out * weight).sum().backward()
    assert torch.equal(z.grad, weight)


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
        quantiser(z_BHWD).loss.backward()
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


def test_a_collapsed_codebook_is_back_above_90_percent_within_200_steps() -> None:
    vectors = F.normalize(torch.randn(5000, 8), dim=1)
    without, revived = ready(revival_window=0), ready(revival_window=16)
    for quantiser in (without, revived):
        with torch.no_grad():
            quantiser.codebook.copy_(F.normalize(vectors[0] + 0.01 * torch.randn(64, 8), dim=1))
    assert steps(without, 200, vectors) == 0
    assert steps(revived, 200, vectors) > 0

    def in_use(quantiser: VectorQuantiser) -> float:
        return usage(torch.bincount(quantiser.tokenize(vectors[None, None]).flatten(), minlength=64)).item()

    assert in_use(without) < 0.5
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


def test_the_state_dict_holds_everything_a_resume_needs() -> None:
    vectors = F.normalize(torch.randn(5000, 8), dim=1)
    one = VectorQuantiser(VectorConfig(codes=64, dim=8, warm_up=4))
    steps(one, 3, vectors)
    two = VectorQuantiser(one.config)
    two.load_state_dict(one.state_dict())
    for quantiser in (one, two):
        torch.manual_seed(1)
        steps(quantiser, 5, vectors)
    assert torch.equal(one.codebook, two.codebook)
    assert torch.equal(one.window_counts(), two.window_counts())


@pytest.mark.parametrize(("counts", "expected"), [([1, 1, 1, 1], 4.0), ([9, 0, 0, 0], 1.0), ([1, 1, 0, 0], 2.0)])
def test_perplexity_counts_equally_used_codes(counts: list[int], expected: float) -> None:
    assert perplexity(torch.tensor(counts)).item() == pytest.approx(expected)


def test_usage_is_out_of_all_codes() -> None:
    assert usage(torch.tensor([3, 0, 1, 0])).item() == 0.5
