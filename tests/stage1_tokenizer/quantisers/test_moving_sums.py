"""The moving-average codebook against the papers' formula, written out, and against vector-quantize-pytorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stage1_tokenizer.quantisers.vector import VectorConfig, VectorQuantiser
from tests.narrow import present

DECAY = 0.9


def moving(codes: int = 6) -> VectorQuantiser:
    config = VectorConfig(codes=codes, dim=4, warm_up=0, revival_window=0, codebook="ema", ema_decay=DECAY)
    return VectorQuantiser(config)


def train_step(quantiser: VectorQuantiser, *batches: Tensor) -> Tensor:
    """One step of several forward passes; returns all their tokens (N,)."""
    tokens = [quantiser(z_ND.view(1, 1, -1, 4)).tokens_BHW.flatten() for z_ND in batches]
    quantiser.maintain(torch.optim.SGD([torch.zeros(1)]))
    return torch.cat(tokens)


def test_codes_follow_the_formula_with_smoothed_counts() -> None:
    quantiser = moving()
    sums_KD, counts_K = quantiser.codebook.double().clone(), torch.ones(6).double()
    for _ in range(20):
        z_ND = F.normalize(torch.randn(12, 4), dim=1)
        tokens_N = train_step(quantiser, z_ND[:5], z_ND[5:])
        # van den Oord et al. 2017, eq. 6 to 8, and the Laplace smoothing of sonnet's VectorQuantizerEMA.
        one_hot_NK = F.one_hot(tokens_N, 6).double()
        counts_K = DECAY * counts_K + (1 - DECAY) * one_hot_NK.sum(0)
        sums_KD = DECAY * sums_KD + (1 - DECAY) * one_hot_NK.T @ z_ND.double()
        smoothed_K = (counts_K + 1e-5) / (counts_K.sum() + 6e-5) * counts_K.sum()
        expected_KD = F.normalize(sums_KD / smoothed_K[:, None], dim=1)
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


def test_a_code_without_wins_stays_exactly_where_it_is() -> None:
    quantiser = moving(codes=2)
    quantiser.codebook.data.copy_(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]))
    for _ in range(2000):  # 0.9 ** 2000 is no float32
        train_step(quantiser, torch.tensor([[1.0, 0.1, 0, 0]]))
    assert quantiser.codebook[1].tolist() == [-1, 0, 0, 0]


def test_revival_resets_the_sums() -> None:
    config = VectorConfig(codes=8, dim=4, warm_up=0, codebook="ema", revival_window=2, revival_steps=0)
    quantiser = VectorQuantiser(config)
    present(quantiser.moving_sums).sums_KD.mul_(1000)
    before_KD = quantiser.codebook.clone()
    tokens_N = train_step(quantiser, F.normalize(torch.ones(8, 4) + 0.1 * torch.randn(8, 4), dim=1))
    revived_K = (quantiser.codebook != before_KD).any(1).scatter(0, tokens_N, False)
    assert revived_K.any()
    assert torch.equal(present(quantiser.moving_sums).sums_KD[revived_K], quantiser.codebook[revived_K])
