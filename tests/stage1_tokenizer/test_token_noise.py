"""Noise in tokens: as much as is asked for, of the nearest codes by brute force, for the decoder in training alone."""

import copy
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from shared.config import parse_config
from stage1_tokenizer.quantisers.quantiser import Quantiser
from stage1_tokenizer.quantisers.vector import VectorConfig, VectorQuantiser
from stage1_tokenizer.token_noise import TILE, TokenNoise, nearest_others, own_noise, replaced
from stage1_tokenizer.tokenizer import Tokenizer, TokenizerConfig, build_quantiser
from stage1_tokenizer.train import train
from tests.support.narrow import present
from tests.support.tiny import QUANTISERS, logged, tokenizer_run

each_quantiser = pytest.mark.parametrize("kind", QUANTISERS)


def quantiser_of(kind: str) -> Quantiser:
    quantiser = build_quantiser(parse_config(TokenizerConfig, {"quantiser": QUANTISERS[kind]}, where="test").quantiser)
    if kind == "residual":  # its codes are all alike until it was trained
        quantiser(torch.randn(4, 8, 8, 8))
    return quantiser


def tokenizer_of(drawings: Path, kind: str = "vector", **options: Any) -> Tokenizer:
    values = tokenizer_run(drawings, kind).model.model_dump()
    values["quantiser"] |= options | ({"warm_up": 0} if kind == "vector" else {})
    return Tokenizer(parse_config(TokenizerConfig, values, where="test"))


def levels_of(quantiser: Quantiser) -> list[Tensor]:
    """The codebook (K, D) of each token of a place, float64."""
    parts = quantiser.codes_KD.detach().double().chunk(quantiser.tokens_per_place, dim=1)
    return list(parts)


@pytest.mark.parametrize(("codes", "count"), [(30, 5), (30, 99), (3000, 100)])
def test_the_nearest_others_are_those_of_brute_force(codes: int, count: int) -> None:
    codes_KD, tokens = torch.randn(codes, 4), torch.randint(codes, (1500,))
    assert (1500 * codes > TILE) == (codes == 3000)  # the last are of more than one tile
    found = nearest_others(tokens, codes_KD, count)
    distances = torch.cdist(codes_KD[tokens].double(), codes_KD.double())
    distances[torch.arange(1500), tokens] = torch.inf
    expected = distances.argsort(1)[:, : min(count, codes - 1)]
    assert (found == expected).double().mean() > 0.999  # float32 may change the order of two that are as near
    torch.testing.assert_close(distances.gather(1, found), distances.gather(1, expected), rtol=1e-4, atol=1e-4)


@each_quantiser
def test_the_chosen_tokens_and_no_others_become_near_codes(kind: str) -> None:
    quantiser = quantiser_of(kind)
    per_place = quantiser.tokens_per_place
    tokens = torch.randint(quantiser.codes, (3, 4, 5 * per_place))
    places = torch.randperm(tokens.numel())[: tokens.numel() // 2]
    noised = replaced(tokens, places, torch.rand(len(places)), quantiser, 6).flatten()
    chosen = torch.zeros(tokens.numel(), dtype=torch.bool)
    chosen[places] = True
    assert torch.equal(noised != tokens.flatten(), chosen)
    for place in places.tolist():
        codes_KD = levels_of(quantiser)[place % per_place]
        distances = (codes_KD - codes_KD[tokens.flatten()[place]]).norm(dim=1)
        sixth = distances.sort().values[6]  # the first is the code's own
        assert distances[noised[place]] <= sixth + 1e-5


def test_each_of_the_nearest_is_taken_as_often() -> None:
    quantiser = quantiser_of("vector")
    tokens = torch.full((1, 100, 100), 7)
    noised = replaced(tokens, torch.arange(10_000), torch.rand(10_000), quantiser, 5)
    near, counts = noised.unique(return_counts=True)
    assert set(near.tolist()) == set(nearest_others(torch.tensor([7]), quantiser.codes_KD, 5)[0].tolist())
    assert ((counts / 10_000 - 0.2).abs() < 0.02).all()


@pytest.mark.parametrize(("progress", "changed"), [(0.0, 300), (0.5, 150), (0.999, 0), (1.0, 0)])
def test_the_share_falls_to_none(progress: float, changed: int) -> None:
    noise, tokens = TokenNoise(0.3, 10), torch.randint(64, (10, 10, 10))
    noise.begin_step(progress)
    assert int((noise(tokens, quantiser_of("vector")) != tokens).sum()) == changed


def test_16384_codes_take_little_memory() -> None:
    quantiser, tokens = VectorQuantiser(VectorConfig(warm_up=0)), torch.randint(16_384, (16, 16, 16))
    noise = TokenNoise(0.2, 100)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        noise(tokens, quantiser)
    changes = [event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert TILE * 4 <= max(accumulate(changes)) < 64 * 2**20


@each_quantiser
def test_the_decoder_alone_meets_noise_and_in_training_alone(drawings: Path, kind: str) -> None:
    plain = tokenizer_of(drawings, kind)
    noisy = copy.deepcopy(plain)
    noisy.token_noise = TokenNoise(0.5, 4)
    x_BCHW, decoded = torch.rand(4, 3, 32, 32) * 2 - 1, []
    for tokenizer in (plain, noisy):
        tokenizer.from_codes.register_forward_pre_hook(lambda _, inputs: decoded.append(inputs[0].detach()))
    results = []
    for tokenizer in (plain, noisy):
        torch.manual_seed(0)
        results.append(tokenizer(x_BCHW))
    assert torch.equal(present(results[0].tokens_Bhw), present(results[1].tokens_Bhw))
    assert torch.equal(results[0].codebook_loss, results[1].codebook_loss)
    for name, value in plain.quantiser.state_dict().items():
        assert torch.equal(value, noisy.quantiser.state_dict()[name]), name
    assert torch.equal(plain.quantiser.step_counts_K, noisy.quantiser.step_counts_K)
    wrong_Bhw = (decoded[0] != decoded[1]).any(-1)
    places = wrong_Bhw.double().mean().item()
    assert places == 0.5 if plain.tokens_per_place == 1 else 0.5 < places < 1
    assert not torch.equal(results[0].images_BCHW, results[1].images_BCHW)
    assert torch.equal(plain.eval()(x_BCHW).images_BCHW, noisy.eval()(x_BCHW).images_BCHW)


def test_a_moving_codebook_does_not_see_the_noise(drawings: Path) -> None:
    plain = tokenizer_of(drawings, codebook="ema")
    noisy = copy.deepcopy(plain)
    noisy.token_noise = TokenNoise(0.9, 4)
    x_BCHW = torch.rand(4, 3, 32, 32) * 2 - 1
    for tokenizer in (plain, noisy):
        tokenizer(x_BCHW)
        tokenizer.quantiser.maintain(torch.optim.AdamW(tokenizer.parameters()))
    assert not torch.equal(plain.quantiser.codes_KD, tokenizer_of(drawings, codebook="ema").quantiser.codes_KD)
    assert torch.equal(plain.quantiser.codes_KD, noisy.quantiser.codes_KD)


def test_the_gradient_passes_a_wrong_code_as_if_it_were_the_right_one(drawings: Path) -> None:
    tokenizer = tokenizer_of(drawings, "fsq")
    tokenizer.token_noise = TokenNoise(0.5, 4)
    quantised = tokenizer.quantiser(torch.zeros(2, 4, 4, 3))
    z_BhwD = torch.randn(2, 4, 4, 3, requires_grad=True)
    weight = torch.randn(2, 4, 4, 3)
    (tokenizer._noised(quantised._replace(z_BHWD=z_BhwD)) * weight).sum().backward()
    assert torch.equal(present(z_BhwD.grad), weight)


@each_quantiser
def test_a_grids_own_noise_does_not_depend_on_the_grids_beside_it(kind: str) -> None:
    quantiser = quantiser_of(kind)
    tokens = torch.randint(quantiser.codes, (6, 4, 5 * quantiser.tokens_per_place))
    before = torch.get_rng_state()
    together = own_noise(tokens, quantiser, 0.25, 10)
    alone = [own_noise(one[None], quantiser, 0.25, 10) for one in tokens.flip(0)]
    assert torch.equal(together, torch.cat(alone).flip(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert (together != tokens).flatten(1).sum(1).tolist() == [5 * quantiser.tokens_per_place] * 6
    assert (own_noise(tokens, quantiser, 0.01, 10) != tokens).flatten(1).sum(1).tolist() == [1] * 6


def test_without_a_share_nothing_is_replaced(drawings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stage1_tokenizer.token_noise.replaced", None)
    train(tokenizer_run(drawings, images=48))


def test_training_meets_less_and_less_noise_and_resumes_bit_for_bit(
    drawings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    call = TokenNoise.__call__

    def look(self: TokenNoise, tokens: Tensor, quantiser: Quantiser) -> Tensor:
        noised = call(self, tokens, quantiser)
        shares.append((noised != tokens).double().mean().item())
        return noised

    monkeypatch.setattr(TokenNoise, "__call__", look)
    config = tokenizer_run(drawings, images=96, token_noise=0.5, noise_neighbours=8)
    straight, _ = train(config, Path("straight"))
    assert shares == pytest.approx([0.5 * (1 - images / 96) for images in range(32, 96, 8)], abs=1 / 128)
    train(config, ended=lambda images: images >= 56)
    resumed, _ = train(config)
    ours, theirs = (run.load(present(run.newest())) for run in (straight, resumed))
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert logged(straight.path) == logged(resumed.path)
    plain, _ = train(tokenizer_run(drawings, images=96), Path("plain"))
    assert logged(straight.path) != logged(plain.path)
