"""Autoguidance against the plain steps of two priors, its early weights, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.errors import UserError
from stage2_prior.decoding import decoder as decoders
from stage2_prior.decoding import engine
from stage2_prior.decoding.choosing.draw import draw, uniforms
from stage2_prior.decoding.choosing.filters import SamplingConfig, filter_logits
from stage2_prior.decoding.choosing.guidance import autoguidance_scales
from stage2_prior.decoding.decoder import Decoder
from stage2_prior.prior import Prior, load_early
from tests.stage2_prior.decoding.test_engine import KINDS, SAMPLING, random_prior

LABELS_B = torch.tensor([2, 0, 1])


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> Callable[[Prior], Prior]:
    """Makes another prior of the same kind, which decoders then find as that of the run."""

    def make(prior: Prior) -> Prior:
        other = Prior(prior.config, prior.codes, prior.grid, prior.classes, torch.zeros(prior.codes, 8)).eval()
        with torch.no_grad():
            for mine, its in zip(other.parameters(), prior.parameters(), strict=True):
                mine.copy_(its * 0.7)
        monkeypatch.setattr(decoders, "load_early", lambda run, name: other)
        return other

    return make


@torch.no_grad()
def plain_loop(prior: Prior, other: Prior, labels_B: Tensor, scale: float, prefix_BK: Tensor) -> Tensor:
    """The same tokens by the steps of both: early + scale (prior - early) of the codes that the filters leave."""
    count, known = prefix_BK.shape
    both = [(model, model.init_state(count)) for model in (prior, other)]
    ids_B, tokens_BL = prior.start_tokens(labels_B, count), F.pad(prefix_BK, (0, prior.length - known))
    scale_L = autoguidance_scales(scale, prior.length)
    streams = torch.stack([torch.from_numpy(uniforms(0, k, prior.length, prior.codes)) for k in range(count)])
    for position in range(prior.length):
        own_BV, early_BV = (model.step(ids_B, state) for model, state in both)
        if position >= known:
            kept_BV = filter_logits(own_BV, SAMPLING)
            guided_BV = early_BV + scale_L[position] * (kept_BV - early_BV)
            guided_BV[kept_BV.isinf()] = -torch.inf
            tokens_BL[:, position] = draw(guided_BV, streams[:, position])
        ids_B = tokens_BL[:, position]
    return tokens_BL.unflatten(1, prior.grid)


@pytest.mark.parametrize("known", [0, 9])
@pytest.mark.parametrize("backend", ["numba", "plain"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_it_draws_what_the_steps_of_both_priors_say(
    kind: dict[str, Any], backend: str, known: int, early: Callable[[Prior], Prior], monkeypatch: pytest.MonkeyPatch
) -> None:
    prior, prefix_BK = random_prior(**kind), torch.randint(40, (3, known))
    other = early(prior)
    monkeypatch.setattr(engine, "backend_of", lambda device: backend)
    decoder = Decoder(prior, rows=2, exact=True)
    asked: dict[str, Any] = {"labels_B": LABELS_B, "prefix_tokens_BK": prefix_BK}
    plain_BHW = decoder.generate(range(3), 0, SAMPLING, **asked)
    guided_BHW = decoder.generate(range(3), 0, SAMPLING, autoguidance=2.5, **asked)
    assert torch.equal(guided_BHW, plain_loop(prior, other, LABELS_B, 2.5, prefix_BK))
    assert not torch.equal(guided_BHW, plain_BHW)
    assert torch.equal(decoder.generate(range(3), 0, SAMPLING, **asked), plain_BHW)  # and nothing is left of it


def test_the_path_that_is_captured_on_a_gpu(early: Callable[[Prior], Prior], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed, so the path on a GPU cannot be tested")

    def capture(step: Callable[[], None], reset: Callable[[], None]) -> Callable[[], None]:
        reset()
        step()
        return step

    monkeypatch.setattr(engine, "capture", capture)
    monkeypatch.setattr(engine, "backend_of", lambda device: "triton")
    prior = random_prior(**KINDS[3], grid=(2, 2))
    other = early(prior)
    tokens_BHW = Decoder(prior, exact=True).generate(range(3), 0, SAMPLING, labels_B=LABELS_B, autoguidance=2.5)
    assert torch.equal(tokens_BHW, plain_loop(prior, other, LABELS_B, 2.5, torch.empty(3, 0, dtype=torch.long)))


def test_codes_that_the_filters_leave_out_are_never_drawn(early: Callable[[Prior], Prior]) -> None:
    prior = random_prior(kind="gpt")
    early(prior)
    greedy = SamplingConfig(top_k=1)
    tokens_BHW = Decoder(prior, exact=True).generate(range(3), config=greedy, autoguidance=50.0)
    assert torch.equal(tokens_BHW, Decoder(prior, exact=True).generate(range(3), config=greedy))


def test_a_scale_of_one_is_none_and_reads_no_early_weights() -> None:
    prior = random_prior(kind="gpt")
    plain_BHW = Decoder(prior).generate(range(2))
    assert torch.equal(Decoder(prior).generate(range(2), autoguidance=1.0), plain_BHW)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"autoguidance": 0.5}, r"autoguidance is 0.5: it must be from 1 \(none\) to 1000"),
        (
            {"autoguidance": 2.0, "labels_B": LABELS_B, "cfg_scale": 2.0},
            "autoguidance of 2 and guidance .* to 1",
        ),
        ({"autoguidance": 2.0}, "needs what this prior was early in its training, and there is no early.safetensors"),
    ],
)
def test_what_cannot_be_done_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Decoder(random_prior(kind="gpt")).generate(range(3), **options)


def test_a_run_without_early_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} was early"):
        load_early(tmp_path)
