"""The moving-average codebook against the papers' formula, written out, and against vector-quantize-pytorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stage1_tokenizer.quantisers.codebook.moving_sums import MovingMeans
from stage1_tokenizer.quantisers.vector import VectorConfig, VectorQuantiser
from tests.support.narrow import part, present

DECAY = 0.9


def moving(codes: int = 6, unit: bool = True) -> VectorQuantiser:
    config = VectorConfig(codes=codes, dim=4, unit=unit, warm_up=0, revival_window=0, codebook="ema", ema_decay=DECAY)
    return VectorQuantiser(config)


def train_step(quantiser: VectorQuantiser, *batches: Tensor) -> Tensor:
    """One step of several forward passes; returns all their tokens (N,)."""
    tokens = [quantiser(z_ND.view(1, 1, -1, 4)).tokens_BHW.flatten() for z_ND in batches]
    quantiser.maintain(torch.optim.SGD([torch.zeros(1)]))
    return torch.cat(tokens)


@pytest.mark.parametrize("unit", [True, False])
def test_codes_follow_the_formula_with_smoothed_counts(unit: bool) -> None:
    quantiser = moving(unit=unit)
    sums_KD, counts_K = quantiser.codebook.double().clone(), torch.ones(6).double()
    for _ in range(20):
        z_ND = F.normalize(torch.randn(12, 4), dim=1) if unit else 3 * torch.randn(12, 4)
        before_KD = quantiser.codebook.double().clone()
        tokens_N = train_step(quantiser, z_ND[:5], z_ND[5:])
        # van den Oord et al. 2017, eq. 6 to 8, and the Laplace smoothing of sonnet's VectorQuantizerEMA.
        one_hot_NK = F.one_hot(tokens_N, 6).double()
        counts_K = DECAY * counts_K + (1 - DECAY) * one_hot_NK.sum(0)
        sums_KD = DECAY * sums_KD + (1 - DECAY) * one_hot_NK.T @ z_ND.double()
        smoothed_K = (counts_K + 1e-5) / (counts_K.sum() + 6e-5) * counts_K.sum()
        expected_KD = sums_KD / smoothed_K[:, None]
        if unit:
            expected_KD = F.normalize(expected_KD, dim=1)
        else:  # the papers' would go on shrinking by what the smoothing adds to its count
            expected_KD = torch.where((one_hot_NK.sum(0) > 0)[:, None], expected_KD, before_KD)
        torch.testing.assert_close(quantiser.codebook.double(), expected_KD, rtol=1e-5, atol=1e-6)


def test_codes_equal_vector_quantize_pytorch_s() -> None:
    peer_module = pytest.importorskip("vector_quantize_pytorch")
    quantiser = moving()
    peer = peer_module.VectorQuantize(
        dim=4, codebook_size=6, decay=DECAY, use_cosine_sim=True, threshold_ema_dead_code=0, kmeans_init=False
    )
    codebook = peer._codebook
    for buffer in (codebook.embed, codebook.embed_avg):
        buffer.data.copy_(quantiser.codebook[None])
    for _ in range(10):
        z_ND = torch.randn(30, 4)
        tokens_N = train_step(quantiser, z_ND)
        _, theirs_1N, _ = peer.train()(z_ND[None])
        assert torch.equal(tokens_N, theirs_1N[0])
        torch.testing.assert_close(quantiser.codebook, codebook.embed[0], rtol=1e-4, atol=1e-5)


def test_codes_off_the_sphere_equal_vector_quantize_pytorch_s() -> None:
    peer_module = pytest.importorskip("vector_quantize_pytorch")
    quantiser = moving(unit=False)
    peer = peer_module.VectorQuantize(
        dim=4, codebook_size=6, decay=DECAY, threshold_ema_dead_code=0, kmeans_init=False, eps=1e-5
    )
    codebook = peer._codebook
    for buffer in (codebook.embed, codebook.embed_avg):
        buffer.data.copy_(quantiser.codebook[None])
    codebook.cluster_size.fill_(1)
    for _ in range(10):
        z_ND = 3 * torch.randn(60, 4)  # so many that every code wins some, or the peer's would move by the smoothing
        tokens_N = train_step(quantiser, z_ND)
        _, theirs_1N, _ = peer.train()(z_ND[None])
        assert torch.equal(tokens_N, theirs_1N[0])
        torch.testing.assert_close(quantiser.codebook, codebook.embed[0], rtol=1e-4, atol=1e-4)


def test_codes_off_the_sphere_come_to_the_means_of_their_clusters() -> None:
    quantiser = moving(codes=2, unit=False)
    means_KD = torch.tensor([[5.0, 0, 0, 0], [0.0, 0.5, 0, 0]])
    quantiser.codebook.data.copy_(means_KD * 0.8)
    present(quantiser.moving_sums).sums_KD.copy_(quantiser.codebook)
    for _ in range(200):
        train_step(quantiser, means_KD.repeat_interleave(50, 0) + 0.05 * torch.randn(100, 4))
    torch.testing.assert_close(quantiser.codebook.data, means_KD, rtol=0, atol=0.01)


@pytest.mark.parametrize("unit", [True, False])
def test_a_code_without_wins_stays_exactly_where_it_is(unit: bool) -> None:
    quantiser = moving(codes=2, unit=unit)
    quantiser.codebook.data.copy_(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]))
    for _ in range(2000):  # 0.9 ** 2000 is no float32
        train_step(quantiser, torch.tensor([[1.0, 0.1, 0, 0]]))
    assert quantiser.codebook[1].tolist() == [-1, 0, 0, 0]
    if unit:
        return
    train_step(quantiser, torch.tensor([[-1.0, 0.5, 0, 0]]))  # and comes back to what it wins, though its sum was 0
    torch.testing.assert_close(quantiser.codebook[1].data, torch.tensor([-1.0, 0.5, 0, 0]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("unit", [True, False])
def test_revival_resets_the_sums(unit: bool) -> None:
    config = VectorConfig(codes=8, dim=4, unit=unit, warm_up=0, codebook="ema", revival_window=2, revival_steps=0)
    quantiser = VectorQuantiser(config)
    present(quantiser.moving_sums).sums_KD.mul_(1000)
    before_KD = quantiser.codebook.clone()
    tokens_N = train_step(quantiser, F.normalize(torch.ones(8, 4) + 0.1 * torch.randn(8, 4), dim=1))
    revived_K = (quantiser.codebook != before_KD).any(1).scatter(0, tokens_N, False)
    assert revived_K.any()
    assert torch.equal(present(quantiser.moving_sums).sums_KD[revived_K], quantiser.codebook[revived_K])
    if not unit:
        counts_K = part(quantiser, "moving_sums", MovingMeans).decayed_counts_K
        assert counts_K[revived_K].unique().tolist() == [1]
