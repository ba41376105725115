"""Decoding against uncached forwards, and what a call may ask for."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.errors import UserError
from stage2_prior.decoding.choosing.filters import SamplingConfig
from stage2_prior.decoding.choosing.guidance import GuidanceConfig
from stage2_prior.decoding.cpu.step import CpuStep
from stage2_prior.prior import Prior
from tests.support.tiny import generate, prior_config

SMALL: dict[str, Any] = {
    "depth": 2,
    "width": 32,
    "heads": 2,
    "d_state": 16,
    "headdim": 16,
    "pattern": "ma",
    "chunk_size": 4,
}
GREEDY = SamplingConfig(temperature=0)


def confident_prior(kind: str = "hybrid", codes: int = 40, classes: int = 3, **options: Any) -> Prior:
    """A random prior with distributions neither flat nor certain."""
    torch.manual_seed(0)
    prior = Prior(prior_config(**(SMALL | {"kind": kind} | options)), codes, (4, 5), classes).eval()
    with torch.no_grad():
        for name, parameter in prior.named_parameters():
            if parameter.ndim > 1 and "conv1d" not in name:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return prior


def rollout(prior: Prior, labels_B: Tensor | None, prefix_BK: Tensor, cfg_scale: float | list[float]) -> Tensor:
    """Greedy decoding by whole uncached forwards."""
    tokens_BK = prefix_BK
    scales = cfg_scale if isinstance(cfg_scale, list) else [cfg_scale] * prior.length
    while tokens_BK.shape[1] < prior.length:
        padded_BL = F.pad(tokens_BK, (0, 1))
        cond, uncond = (prior(prior.inputs(padded_BL, labels))[:, -1] for labels in (labels_B, None))
        logits_BV = uncond + scales[tokens_BK.shape[1]] * (cond - uncond)
        tokens_BK = torch.cat((tokens_BK, logits_BV.argmax(-1, keepdim=True)), dim=1)
    return tokens_BK.unflatten(1, prior.grid)


@pytest.mark.parametrize("known", [0, 1, 7, 20])
@pytest.mark.parametrize("cfg_scale", [1.0, 2.5])
@pytest.mark.parametrize("kind", ["mamba", "gpt", "hybrid"])
def test_greedy_is_the_argmax_of_uncached_forwards(kind: str, cfg_scale: float, known: int) -> None:
    prior = confident_prior(kind)
    labels_B, prefix_BK = torch.tensor([2, 0, 1]), torch.randint(40, (3, known))
    with torch.no_grad():
        expected = rollout(prior, labels_B, prefix_BK, cfg_scale)
    tokens_BHW = generate(prior, range(3), config=GREEDY, labels_B=labels_B, cfg_scale=cfg_scale,
                          prefix_tokens_BK=prefix_BK, batch_size=2, exact=True)  # fmt: skip
    assert torch.equal(tokens_BHW, expected)


def rows_of_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each step from now on takes in."""
    rows: list[int] = []
    step = CpuStep.__call__

    def note_rows(self: CpuStep, ids_R: Tensor) -> Tensor:
        rows.append(len(ids_R))
        return step(self, ids_R)

    monkeypatch.setattr(CpuStep, "__call__", note_rows)
    return rows


def test_guidance_of_scale_one_is_no_guidance_and_not_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = confident_prior()
    rows = rows_of_steps(monkeypatch)
    labels_B = torch.tensor([2, 0])
    plain = generate(prior, range(2), labels_B=labels_B)
    assert torch.equal(generate(prior, range(2), labels_B=labels_B, cfg_scale=1.0), plain)
    assert set(rows) == {2}
    guided = generate(prior, range(2), labels_B=labels_B, cfg_scale=4.0)
    assert not torch.equal(guided, plain)
    assert rows[-1] == 4


def test_guidance_may_differ_at_each_position() -> None:
    prior = confident_prior()
    labels_B = torch.tensor([2, 0])
    scale_L = torch.tensor([1.0] * 7 + [5.0] * 13)
    scheduled = generate(prior, range(2), labels_B=labels_B, cfg_scale=scale_L).flatten(1)
    plain = generate(prior, range(2), labels_B=labels_B).flatten(1)
    assert torch.equal(scheduled[:, :7], plain[:, :7])
    guided = generate(
        prior, range(2), labels_B=labels_B, cfg_scale=5.0, prefix_tokens_BK=plain[:, :7], batch_size=1
    ).flatten(1)
    assert torch.equal(scheduled, guided)
    assert not torch.equal(scheduled, plain)


def test_guidance_of_kept_tokens_only_is_no_guidance_and_not_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = confident_prior()
    rows = rows_of_steps(monkeypatch)
    asked: dict[str, Any] = {"labels_B": torch.tensor([2, 0]), "prefix_tokens_BK": torch.randint(40, (2, 6))}
    plain = generate(prior, range(2), **asked)
    scale_L = torch.tensor([4.0] * 6 + [1.0] * 14)
    assert torch.equal(generate(prior, range(2), cfg_scale=scale_L, **asked), plain)
    assert set(rows) == {2}


@pytest.mark.parametrize("options", [{"schedule": "linear"}, {"schedule": "power-cosine", "power": 1.5}, {}])
@pytest.mark.parametrize("interval", [None, (3, 11)])
def test_each_position_is_guided_by_its_own_scale(options: dict[str, Any], interval: tuple[int, int] | None) -> None:
    prior = confident_prior()
    labels_B, nothing_BK = torch.tensor([2, 0, 1]), torch.zeros(3, 0, dtype=torch.long)
    guidance = GuidanceConfig(scale=6, interval=interval, **options)
    scale_L = guidance.scales(prior.length)
    with torch.no_grad():
        expected = rollout(prior, labels_B, nothing_BK, scale_L.tolist())
        constant = rollout(prior, labels_B, nothing_BK, 6.0)
    tokens_BHW = generate(prior, range(3), config=GREEDY, labels_B=labels_B, cfg_scale=scale_L, exact=True)
    assert torch.equal(tokens_BHW, expected)
    assert torch.equal(expected, constant) == (not options and interval is None)


def test_guidance_of_scale_zero_is_the_unconditional_model() -> None:
    prior = confident_prior()
    guided = generate(prior, range(4), labels_B=torch.tensor([0, 1, 2, 0]), cfg_scale=0.0)
    assert torch.equal(guided, generate(prior, range(4)))


@pytest.mark.parametrize("kind", ["mamba", "gpt", "hybrid"])
def test_images_do_not_depend_on_the_batch_they_are_drawn_in(kind: str) -> None:
    prior = confident_prior(kind, codes=2048, width=128)
    together = generate(prior, range(12), seed=5, batch_size=12)
    assert torch.equal(generate(prior, range(12), seed=5, batch_size=1), together)
    assert torch.equal(generate(prior, range(12), seed=5, batch_size=5), together)
    assert torch.equal(generate(prior, [7, 2], seed=5), together[[7, 2]])
    assert not torch.equal(generate(prior, range(12), seed=6), together)
    assert len(together.flatten(1).unique(dim=0)) == 12


def test_tokens_are_int64_in_range_and_progress_counts_them() -> None:
    prior = confident_prior()
    drawn: list[int] = []
    tokens_BHW = generate(prior, range(5), prefix_tokens_BK=torch.zeros(5, 3, dtype=torch.long), batch_size=2,
                          progress=drawn.append)  # fmt: skip
    assert tokens_BHW.shape == (5, 4, 5)
    assert tokens_BHW.dtype == torch.int64
    assert 0 <= tokens_BHW.min() <= tokens_BHW.max() < prior.codes
    assert sum(drawn) == 5 * 17


def test_rows_are_shown_as_they_are_drawn() -> None:
    prior = confident_prior()
    shown: list[Tensor] = []
    prefix_BK = torch.randint(40, (3, 7))
    tokens_BHW = generate(prior, range(3), prefix_tokens_BK=prefix_BK, batch_size=2,
                          on_row=lambda rows_BrW: shown.append(rows_BrW.clone()))  # fmt: skip
    expected = [tokens_BHW[batch, :rows] for batch in (slice(0, 2), slice(2, 3)) for rows in (2, 3, 4)]
    assert len(shown) == len(expected)
    assert all(torch.equal(rows, truth) for rows, truth in zip(shown, expected, strict=True))


def test_completion_keeps_the_prefix_and_its_image_stream() -> None:
    prior = confident_prior()
    whole = generate(prior, range(3), seed=1)
    completed = generate(prior, range(3), seed=1, prefix_tokens_BK=whole.flatten(1)[:, :10])
    assert torch.equal(completed, whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": []}, "0 images"),
        ({"batch_size": 0}, "rows must be 1 or more"),
        ({"seed": -1}, "seed is -1"),
        ({"cfg_scale": 2.0}, "needs a class label"),
        ({"labels_B": torch.tensor([0])}, "1 class labels were given for 2 images"),
        ({"labels_B": torch.tensor([0, 3])}, "class label 3 is unknown: this prior's labels are 0 to 2"),
        ({"prefix_tokens_BK": torch.zeros(2, 21, dtype=torch.long)}, "more than an image's 20"),
        ({"prefix_tokens_BK": torch.full((2, 1), 40)}, "outside this prior's codes 0 to 39"),
        ({"prefix_tokens_BK": torch.zeros(1, 1, dtype=torch.long)}, "1 prefixes were given for 2 images"),
    ],
)
def test_requests_that_cannot_be_met_are_one_message(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(confident_prior(), **({"images": [0, 1]} | options))


def test_a_label_for_a_prior_without_classes_is_a_user_error() -> None:
    with pytest.raises(UserError, match="trained without classes"):
        generate(confident_prior(classes=0), [0], labels_B=torch.tensor([0]))
