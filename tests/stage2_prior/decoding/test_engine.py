"""The decoding engine against the plain step loop, its memory between calls, and the path that CUDA graphs take."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stage2_prior.decoding import engine
from stage2_prior.decoding.choosing.draw import draw, strides, uniforms
from stage2_prior.decoding.choosing.filters import SamplingConfig, filter_logits
from stage2_prior.decoding.choosing.guidance import guide
from stage2_prior.decoding.cpu import step as cpu
from stage2_prior.decoding.decoder import Decoder
from stage2_prior.decoding.engine import Engine, lay_out
from stage2_prior.decoding.plain import PlainWeights
from stage2_prior.prior import Prior
from tests.stage2_prior.decoding.cpu.test_product import packed_dtypes
from tests.support.tiny import generate, prior_config

SMALL: dict[str, Any] = {
    "depth": 2,
    "width": 32,
    "heads": 2,
    "d_state": 16,
    "headdim": 16,
    "pattern": "ma",
    "head_rank": 12,
}
KINDS: list[dict[str, Any]] = [
    {"kind": "mamba"},
    {"kind": "mamba", "mlp_ratio": 2.0, "conditioning": "norm"},
    {"kind": "gpt", "head": "tied"},
    {"kind": "gpt", "positions": "rotary", "qk_norm": False},
    {"kind": "hybrid", "head": "codes", "conditioning": "norm", "positions": "rotary"},
]
SAMPLING = SamplingConfig(temperature=0.9, top_k=30, top_p=0.95, min_p=0.01)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def random_prior(codes: int = 40, grid: tuple[int, int] = (4, 5), **options: Any) -> Prior:
    """Random weights, with distributions neither flat nor certain."""
    torch.manual_seed(0)
    prior = Prior(prior_config(**(SMALL | options)), codes, grid, 3, torch.randn(codes, 8)).eval()
    with torch.no_grad():
        for name, parameter in prior.named_parameters():
            if parameter.ndim > 1 and "conv1d" not in name:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return prior


@torch.no_grad()
def plain_loop(prior: Prior, labels_B: Tensor | None, cfg_scale: float, prefix_BK: Tensor, seed: int = 0) -> Tensor:
    """The same tokens by the model's own steps: two states, no buffers, no prefill."""
    count, known = prefix_BK.shape
    branches = [(labels_B, prior.init_state(count)), (None, prior.init_state(count))]
    inputs = [prior.start_tokens(labels, count) for labels, _ in branches]
    tokens_BL = F.pad(prefix_BK, (0, prior.length - known))
    streams = torch.stack([torch.from_numpy(uniforms(seed, k, prior.length, prior.codes)) for k in range(count)])
    for position in range(prior.length):
        logits = [prior.step(ids_B, state) for ids_B, (_, state) in zip(inputs, branches, strict=True)]
        if position >= known:
            logits_BV = guide(torch.cat(logits), cfg_scale)
            tokens_BL[:, position] = draw(filter_logits(logits_BV, SAMPLING), streams[:, position])
        inputs = [tokens_BL[:, position]] * 2
    return tokens_BL.unflatten(1, prior.grid)


@pytest.mark.parametrize("known", [0, 9])
@pytest.mark.parametrize("cfg_scale", [1.0, 2.5])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_engine_draws_what_the_plain_loop_draws(kind: dict[str, Any], cfg_scale: float, known: int) -> None:
    prior, labels_B = random_prior(**kind), torch.tensor([2, 0, 1])
    prefix_BK = torch.randint(40, (3, known))
    tokens_BHW = generate(prior, range(3), 0, SAMPLING, labels_B=labels_B, cfg_scale=cfg_scale,
                          prefix_tokens_BK=prefix_BK, exact=True)  # fmt: skip
    assert torch.equal(tokens_BHW, plain_loop(prior, labels_B, cfg_scale, prefix_BK))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_device_without_kernels_draws_what_a_cpu_draws(kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    prior, labels_B = random_prior(**kind), torch.tensor([2, 0, 1])
    calls: list[dict[str, Any]] = [
        {"labels_B": labels_B, "cfg_scale": 2.5},
        {"prefix_tokens_BK": torch.randint(40, (3, 9))},
        {"config": SAMPLING, "seed": 1},
    ]
    expected = [generate(prior, range(3), **call, exact=True) for call in calls]
    monkeypatch.setattr(engine, "backend_of", lambda device: "plain")
    decoder = Decoder(prior, rows=2)
    assert isinstance(decoder.weights, PlainWeights)
    for call, expected_BHW in zip(calls, expected, strict=True):
        assert torch.equal(decoder.generate(range(3), **call), expected_BHW)


def decoder_logits(prior: Prior, tokens_BL: Tensor, known: int, exact: bool) -> Tensor:
    """(B, L - known, V) logits that the engine computes on the way through the given tokens."""
    seen: list[Tensor] = []

    def choose(logits_BV: Tensor, uniforms_BU: Tensor, scale_1: Tensor | None) -> Tensor:
        seen.append(logits_BV.clone())
        return tokens_BL[:, known + len(seen) - 1]

    with torch.inference_mode():
        start_B = prior.start_tokens(None, len(tokens_BL))
        uniforms_BLU = torch.zeros(len(tokens_BL), prior.length, len(strides(prior.codes)))
        Engine(lay_out(prior, exact), len(tokens_BL)).decode(start_B, tokens_BL[:, :known], uniforms_BLU, choose)
    return torch.stack(seen, 1)


@pytest.mark.parametrize("known", [0, 7])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_cached_logits_are_the_uncached_ones(kind: dict[str, Any], known: int, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = random_prior(**kind, codes=200)
    tokens_BL = torch.randint(200, (3, prior.length))
    with torch.no_grad():
        expected_BLV = prior(prior.inputs(tokens_BL))[:, known:]
    exact_BLV = decoder_logits(prior, tokens_BL, known, exact=True)
    torch.testing.assert_close(exact_BLV, expected_BLV, atol=1e-4, rtol=0)
    for matrices in packed_dtypes():
        monkeypatch.setattr(cpu, "narrowest", lambda found=matrices: found)
        rounded_BLV = decoder_logits(prior, tokens_BL, known, exact=False)
        error = (rounded_BLV - expected_BLV).square().mean().sqrt() / expected_BLV.std()
        assert error < (0.02 if matrices == torch.bfloat16 else 0.005)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_nothing_leaks_from_one_call_into_the_next(kind: dict[str, Any], exact: bool) -> None:
    labels_B = torch.tensor([2, 0, 1, 1, 0])
    calls: list[dict[str, Any]] = [
        {"images": range(5), "labels_B": labels_B, "cfg_scale": 3.0},
        {"images": range(2)},
        {"images": range(3), "labels_B": labels_B[:3], "prefix_tokens_BK": torch.randint(40, (3, 7))},
        {"images": range(5), "labels_B": labels_B, "cfg_scale": 1.5},
    ]
    alone = [Decoder(random_prior(**kind), 5, exact).generate(**call) for call in calls]
    decoder = Decoder(random_prior(**kind), rows=4, exact=exact)
    for order in ((0, 1, 2, 3), (3, 2, 0, 1)):
        for i in order:
            assert torch.equal(decoder.generate(**calls[i]), alone[i])


def test_memory_is_allocated_once_and_kept_for_smaller_batches() -> None:
    decoder = Decoder(random_prior(kind="hybrid"), rows=6)
    assert decoder.engine is None, "nothing is allocated before it is known how much"
    decoder.generate(range(6))
    first = decoder.engine
    decoder.generate(range(4))
    decoder.generate(range(13))
    decoder.generate(range(3), labels_B=torch.tensor([2, 0, 1]), cfg_scale=2.0)
    assert decoder.engine is first
    decoder.generate(range(4), labels_B=torch.tensor([2, 0, 1, 0]), cfg_scale=2.0)
    assert decoder.engine is not first, "guidance takes two rows an image"
    assert decoder.engine.rows == 8


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_decoder_keeps_the_weights_that_it_was_made_with(kind: dict[str, Any], exact: bool) -> None:
    prior, labels_B = random_prior(**kind), torch.tensor([2, 0])
    decoder = Decoder(prior, exact=exact)
    before = decoder.generate(range(2), labels_B=labels_B)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.data.mul_(-1)
    assert torch.equal(decoder.generate(range(2), labels_B=labels_B), before)
    after = generate(prior, range(2), labels_B=labels_B, exact=exact)
    assert not torch.equal(after, before)
    assert torch.equal(after, generate(random_prior_like(prior), range(2), labels_B=labels_B, exact=exact))


def random_prior_like(prior: Prior) -> Prior:
    other = Prior(prior.config, prior.codes, prior.grid, prior.classes, torch.zeros(prior.codes, 8)).eval()
    other.load_state_dict(prior.state_dict())
    return other


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the next test captures it")
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_path_that_is_captured_on_a_gpu(kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU: weights at fixed addresses, steps made once, warm-up included; a replay is the step itself, whose
    kernels Triton interprets.
    """

    def capture(step: Callable[[], None], reset: Callable[[], None]) -> Callable[[], None]:
        captured.append(step)
        reset()
        step()
        return step

    pytest.importorskip("triton", reason="Triton is not installed, so the path on a GPU cannot be tested")
    captured: list[Callable[[], None]] = []
    monkeypatch.setattr(engine, "capture", capture)
    monkeypatch.setattr(engine, "backend_of", lambda device: "triton")
    prior, labels_B, prefix_BK = random_prior(**kind, grid=(2, 2)), torch.tensor([2, 0]), torch.randint(40, (2, 2))
    decoder = Decoder(prior, rows=2, exact=True)
    tokens_BHW = decoder.generate(range(2), 0, SAMPLING, labels_B=labels_B, cfg_scale=2.5)
    assert torch.equal(tokens_BHW, plain_loop(prior, labels_B, 2.5, prefix_BK[:, :0]))
    once = len(captured)
    tokens_BHW = decoder.generate(range(2), 0, SAMPLING, labels_B=labels_B, cfg_scale=2.5, prefix_tokens_BK=prefix_BK)
    assert torch.equal(tokens_BHW, plain_loop(prior, labels_B, 2.5, prefix_BK))
    assert len(captured) == once
    tokens_BHW = decoder.generate(range(1), 0, SAMPLING, labels_B=labels_B[:1])
    assert torch.equal(tokens_BHW, plain_loop(prior, labels_B[:1], 1.0, prefix_BK[:1, :0]))
    gc.disable()  # its memory goes as soon as the last name for it does
    memory = weakref.ref(decoder.engine)
    captured.clear()
    del decoder
    assert memory() is None
    gc.enable()


@needs_cuda
@pytest.mark.parametrize(("rows", "exact"), [(3, True), (70, True), (1, False), (70, False)])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_logits_on_a_gpu_are_those_of_the_whole_sequence(kind: dict[str, Any], rows: int, exact: bool) -> None:
    prior = random_prior(**kind, codes=200).cuda()
    tokens_BL = torch.randint(200, (rows, prior.length), device="cuda")
    with torch.no_grad():
        expected_BLV = prior(prior.inputs(tokens_BL))
    with torch.inference_mode():
        weights = lay_out(prior, exact)
        state = prior.init_state(rows, dtype=weights.dtype)
        step = weights.step(state)
        weights.model.condition(prior.start_tokens(None, rows), state)
        for position, ids_B in enumerate(prior.inputs(tokens_BL).T):
            state.cursor.index_1.fill_(position)
            error_BV = step(ids_B).float() - expected_BLV[:, position]
            if exact:
                assert error_BV.abs().max() < 1e-4
            else:
                assert error_BV.square().mean().sqrt() < 0.03 * expected_BLV.std()


@needs_cuda
@pytest.mark.parametrize("cfg_scale", [1.0, 2.5])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_graphs_draw_what_the_plain_loop_draws(kind: dict[str, Any], cfg_scale: float) -> None:
    prior, labels_B = random_prior(**kind), torch.tensor([2, 0, 1])
    prefix_BK = torch.randint(40, (3, 6))
    expected = plain_loop(prior, labels_B, cfg_scale, prefix_BK)
    for _ in range(2):
        tokens_BHW = generate(prior.cuda(), range(3), 0, SAMPLING, labels_B=labels_B, cfg_scale=cfg_scale,
                              prefix_tokens_BK=prefix_BK, batch_size=2, exact=True)  # fmt: skip
        assert torch.equal(tokens_BHW, expected)
