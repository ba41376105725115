"""The discriminator in training: its steps, its place in a run, and that turning it off changes nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import Node

from shared.config import parse_config
from shared.errors import UserError
from shared.runs.weights import read_weights
from stage1_tokenizer.backbones.conv import ConvConfig, ConvDecoder
from stage1_tokenizer.backbones.sequence import AttentionConfig, SequenceDecoder
from stage1_tokenizer.losses.adversarial import adaptive_weight
from stage1_tokenizer.losses.discriminators import Judgement
from stage1_tokenizer.losses.repetition import repeated
from stage1_tokenizer.run_config import TokenizerRun
from stage1_tokenizer.tokenizer import load_tokenizer
from stage1_tokenizer.train import train
from tests.stage1_tokenizer.losses.alone import ALWAYS, PATCH, adversary, gradients
from tests.support.launch import launch
from tests.support.narrow import present
from tests.support.tiny import tokenizer_run

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def with_adversary(run: TokenizerRun, **adversarial: Any) -> TokenizerRun:
    return parse_config(TokenizerRun, {**run.model_dump(), "loss": {"adversarial": adversarial}}, "tiny")


# --- One step


def test_accumulated_batches_give_the_gradient_of_one_large_batch() -> None:
    x, x_hat = torch.rand(2, 8, 3, 16, 16, device=DEVICE).unbind()
    whole, halves = adversary(ALWAYS), adversary(ALWAYS, accumulation=2)
    for one, parts in ((whole, 1), (halves, 2)):
        one.begin_step()
        for real, fake in zip(x.chunk(parts), x_hat.chunk(parts), strict=True):
            one.learn(real, fake)
    for expected, gradient in zip(gradients(whole.critic), gradients(halves.critic), strict=True):
        torch.testing.assert_close(gradient, expected)
    halves.end_step()
    assert all(parameter.grad is None for parameter in halves.critic.parameters())


def test_each_side_learns_only_from_its_own_loss() -> None:
    one = adversary(ALWAYS)
    decoder, z, x = one.trainee.model, torch.randn(4, 4, device=DEVICE), torch.rand(4, 3, 16, 16, device=DEVICE)
    one.begin_step()
    x_hat = decoder(z)
    loss, _ = one.mislead(x_hat, x, (x_hat - x).square().mean())
    assert isinstance(loss, Tensor)
    one.trainee.backward(loss)
    assert all(parameter.grad is None for parameter in one.critic.parameters())
    taught = gradients(decoder)
    assert all(gradient.abs().sum() > 0 for gradient in taught)
    one.learn(x, x_hat)
    assert all(parameter.grad is not None for parameter in one.critic.parameters())
    assert all(torch.equal(gradient, before) for gradient, before in zip(gradients(decoder), taught, strict=True))


@pytest.mark.parametrize("adaptive", [False, True])
def test_both_weights_are_ramped_and_applied(adaptive: bool) -> None:
    given = {"adversarial": 0.8, "matching": 0.5}
    moments = {"start": 0.1, "warm_up": 0.1, "ramp": 0.4}
    one = adversary({**moments, "weight": 0.8, "matching": 0.5, "adaptive": adaptive})
    one.trainee.images = 300
    one.begin_step()
    x, x_hat = torch.rand(4, 3, 16, 16, device=DEVICE), one.trainee.model(torch.randn(4, 4, device=DEVICE))
    reconstruction = x_hat.square().mean()
    loss, terms = one.mislead(x_hat, x, reconstruction)
    expected = torch.zeros((), device=DEVICE)
    for name, term in one.critic.mislead(x_hat, x).items():
        ratio = adaptive_weight(reconstruction, term, one.last_layer.weight).item() if adaptive else 1
        assert terms[f"{name}_weight"].item() == pytest.approx(given[name] * 0.25 * ratio, rel=1e-4)
        expected = expected + given[name] * 0.25 * ratio * term
    assert len(terms) == 2 * len(given)
    assert isinstance(loss, Tensor)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
    weights = list(one.trainee.model.parameters())
    taught, wanted = (torch.autograd.grad(one_loss, weights, retain_graph=True) for one_loss in (loss, expected))
    torch.testing.assert_close(taught, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("adaptive", [False, True])
def test_what_repeats_is_left_to_the_pixels_and_counts_more(adaptive: bool) -> None:
    given = {"adversarial": 0.8, "matching": 0.5}
    one = adversary({**ALWAYS, "repetition": 4.0, "weight": 0.8, "matching": 0.5, "adaptive": adaptive})
    one.begin_step()
    x = torch.rand(2, 3, 16, 16, device=DEVICE)
    x_hat = one.trainee.model(torch.randn(3, 4, device=DEVICE))  # one without an original
    loss, terms = one.mislead(x_hat, x, x_hat.square().mean())
    assert isinstance(loss, Tensor)
    [gradient] = torch.autograd.grad(loss, x_hat, retain_graph=True)
    expected = torch.zeros_like(x_hat)
    reconstruction = x_hat.square().mean()
    for name, judged in one.critic.mislead(x_hat, x).items():
        [of_it] = torch.autograd.grad(judged, x_hat, retain_graph=True)
        masked = of_it - repeated(of_it, PATCH)
        ratio = adaptive_weight(reconstruction, (x_hat * masked).sum(), one.last_layer.weight) if adaptive else 1.0
        expected += given[name] * ratio * masked
    error = repeated(x_hat[:2] - x, PATCH).square().mean()
    expected += torch.autograd.grad(4.0 * error, x_hat)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(terms["repetition"], error)


def test_nothing_is_computed_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    one = adversary({"start": 0.5, "warm_up": 0.25, "ramp": 0.1})
    judged: list[int] = []
    judge = one.critic.discriminator.judge

    def judge_and_note(x_BCHW: Tensor) -> Judgement:
        judged.append(one.trainee.images)
        return judge(x_BCHW)

    monkeypatch.setattr(one.critic.discriminator, "judge", judge_and_note)
    x = torch.rand(2, 3, 16, 16, device=DEVICE)
    for images in (0, 499, 600, 800):
        one.trainee.images = images
        one.begin_step()
        x_hat = one.trainee.model(torch.randn(2, 4, device=DEVICE))
        loss, terms = one.mislead(x_hat, x, x_hat.square().mean())
        assert bool(terms) == (images == 800) == isinstance(loss, Tensor)
        assert bool(one.learn(x, x_hat)) == (images >= 600)
        one.end_step()
    assert judged == [600, 600, 800, 800, 800]


def test_the_learning_rate_warms_up_and_then_follows_the_tokenizers() -> None:
    one = adversary({"start": 0.1, "warm_up": 0.2, "learning_rate": 1e-3}, learning_rate=0.5, final_learning_rate=0.0)
    rates = {}
    for images in (100, 200, 300, 1000):
        one.trainee.images = images
        one.begin_step()
        one.trainee.begin_step()
        decay = one.trainee.optimizer.param_groups[0]["lr"] / 0.5
        rates[images] = (one.optimizer.param_groups[0]["lr"], decay)
    for images, warmth in ((100, 0), (200, 0.5), (300, 1), (1000, 1)):
        rate, decay = rates[images]
        assert rate == pytest.approx(1e-3 * warmth * decay)
    assert rates[300][0] > 0.5e-3
    assert rates[1000][0] == pytest.approx(0, abs=1e-9)


def test_a_discriminators_gradient_that_is_not_finite_stops_the_run() -> None:
    one = adversary(ALWAYS)
    one.begin_step()
    one.learn(torch.full((2, 3, 16, 16), float("nan"), device=DEVICE), torch.zeros(2, 3, 16, 16, device=DEVICE))
    with pytest.raises(UserError, match=r"gradient is nan after 0 images: lower loss\.adversarial\.learning_rate"):
        one.end_step()


@pytest.mark.parametrize("smoothing", [True, False])
def test_the_decoders_name_the_layer_that_makes_pixels(smoothing: bool) -> None:
    attention = AttentionConfig(width=16, depth=1, heads=2, positions=2, smoothing=smoothing)
    for decoder, width in (
        (ConvDecoder(ConvConfig(widths=(8, 16), depths=(1, 1))), 16),
        (SequenceDecoder(attention), 16),
    ):
        with torch.no_grad():
            decoder.last_layer.weight.zero_()
            pixels = decoder(torch.randn(1, 2, 2, width))
        bias = present(decoder.last_layer.bias).detach()
        assert torch.isin(pixels, bias).all()


def test_a_compiled_tokenizers_last_layer_stays_out_of_its_graph() -> None:
    """A compiled graph may refuse to be differentiated twice, and would be whole where the last layer was asked for."""
    z, weights = torch.randn(4, 4, device=DEVICE), []
    for backend in (None, "aot_eager"):
        one = adversary(ALWAYS)
        decoder = one.trainee.model
        if backend:
            decoder.compile(backend=backend)
        one.begin_step()
        x_hat = one.trainee.wrapped(z)
        loss, terms = one.mislead(x_hat, torch.zeros_like(x_hat), x_hat.square().mean())
        assert isinstance(loss, Tensor)
        first, last = (decoder.get_parameter(f"{layer}.weight") for layer in ("first", "last_layer"))
        assert ("CompiledFunctionBackward" in users(first, x_hat)) == (backend is not None)
        assert "CompiledFunctionBackward" not in users(last, x_hat)
        one.trainee.backward(loss)
        weights.append(terms["adversarial_weight"])
    torch.testing.assert_close(*weights)


def users(leaf: Tensor, result: Tensor) -> set[str]:
    """Names of the last two operations on each way back from `result` to `leaf`."""
    found: set[str] = set()
    seen: set[Node] = set()
    places: list[tuple[Node | None, tuple[str, ...]]] = [(result.grad_fn, ())]
    while places:
        node, above = places.pop()
        if getattr(node, "variable", None) is leaf:
            found |= set(above[-2:])
        elif node is not None and node not in seen:
            seen.add(node)
            places += [(next_node, (*above, node.name())) for next_node, _ in node.next_functions]
    return found


# --- In a run


def after(images: int) -> Callable[[int], bool]:
    """To stop a training once it has seen that many."""
    return lambda seen: seen >= images


def test_a_discriminator_that_is_not_there_or_another_is_refused(drawings: Path) -> None:
    run = tokenizer_run(drawings, images=64)
    train(run, Path("plain"))
    train(with_adversary(run, discriminator={"kind": "patchgan", "width": 16, "layers": 1}), Path("wide"))
    one = adversary(ALWAYS)
    with pytest.raises(UserError, match=r"init=plain: there is no checkpoint of a training with loss\.adversarial"):
        one.begin_with("plain")
    with pytest.raises(UserError, match=r"init=wide: its discriminator is another network: give this run"):
        one.begin_with("wide")


def test_a_run_that_cannot_begin_with_a_discriminator_writes_nothing(drawings: Path) -> None:
    train(tokenizer_run(drawings, images=64), Path("plain"))
    with pytest.raises(UserError, match=r"init=plain: there is no checkpoint"):
        train(with_adversary(tokenizer_run(drawings, images=64), init="plain"), Path("begun"))
    assert not Path("begun").exists()


def test_a_run_is_the_same_up_to_where_the_adversary_counts(drawings: Path) -> None:
    """And what it leaves for inference has the same names."""
    plain = tokenizer_run(drawings, precision="fp32")
    config = with_adversary(plain, start=0.25, warm_up=0.25, ramp=0.1)
    runs = {}
    for name, each in (("off", plain), ("on", config)):
        for images in (56, 64):
            train(each, Path(name), ended=after(images))
            runs[name, images] = read_weights(Path(name, "model.safetensors"))
    assert runs["off", 56].keys() == runs["on", 56].keys()
    assert all(torch.equal(tensor, runs["on", 56][name]) for name, tensor in runs["off", 56].items())
    assert not torch.equal(runs["off", 64]["to_codes.weight"], runs["on", 64]["to_codes.weight"])
    load_tokenizer(Path("on"))
    lines = [json.loads(line) for line in Path("on/metrics.jsonl").read_text().splitlines()]
    logged = {line["images"]: line.keys() for line in lines if "loss" in line}
    judging = {"discriminator", "logits_real", "logits_fake", "lecam"}
    counting = {"adversarial", "adversarial_weight"}
    assert not (judging | counting) & logged[16]
    assert judging <= logged[48]
    assert not counting & logged[48]
    assert judging | counting <= logged[64]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"perceptual": {"kind": "stlpips", "net": "vgg"}}, "16 x 16 are too small for the perceptual loss"),
        ({"adversarial": {}}, "16 x 16 are too small for the discriminator patchgan, which needs 24 x 24"),
    ],
)
def test_images_too_small_for_a_loss_are_refused_before_anything_is_written(
    drawings: Path, loss: dict[str, Any], message: str
) -> None:
    values = tokenizer_run(drawings, images=1000).model_dump()
    values["data"]["image_size"] = 16
    with pytest.raises(UserError, match=message):
        train(parse_config(TokenizerRun, {**values, "loss": loss}, "tiny"))
    assert not Path("runs").exists()


def test_a_checkpoint_brings_back_everything(drawings: Path) -> None:
    config = with_adversary(tokenizer_run(drawings, images=64), start=0.0, warm_up=0.25, lecam=0.1)
    run, _ = train(config)
    _, _, training = run.load(present(run.newest()))
    saved = training["parts"]["adversary"]
    assert {"lecam.real_mean", "lecam.fake_mean", "lecam.updates"} <= saved["critic"].keys()
    assert any(name.endswith("parametrizations.weight.0.u") for name in saved["critic"])
    weights = [name for name in saved["critic"] if name.endswith(("original", "bias"))]
    assert len(saved["optimizer"]["state"]) == len(weights)


# --- Several processes


def test_processes_share_gradients_means_and_weights(tmp_path: Path) -> None:
    x, x_hat = torch.rand(2, 8, 3, 16, 16, device=DEVICE).unbind()
    torch.save((x.cpu(), x_hat.cpu()), tmp_path / "batch.pt")
    launch(Path(__file__).with_name("alone.py"), tmp_path / "batch.pt", tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["lecam"] == second["lecam"]
    assert first["lecam"]["updates"] == 2
    assert first["terms"]["adversarial"] != second["terms"]["adversarial"]
    assert first["terms"]["adversarial_weight"] == second["terms"]["adversarial_weight"]
    assert all(torch.equal(one, other) for one, other in zip(first["decoder"], second["decoder"], strict=True))
    alone = adversary({**ALWAYS, "lecam": 0.1}, accumulation=2)
    alone.begin_step()
    # Each of its two batches is what both processes see in theirs, one after the other.
    order = torch.tensor([0, 1, 4, 5, 2, 3, 6, 7])
    for real, fake in zip(x[order].chunk(2), x_hat[order].chunk(2), strict=True):
        alone.learn(real, fake)
    assert first["lecam"]["real_mean"].item() == pytest.approx(alone.critic.lecam.real_mean.item(), rel=1e-4)
    for expected, *shared in zip(gradients(alone.critic), first["critic"], second["critic"], strict=True):
        assert torch.equal(*shared)
        torch.testing.assert_close(shared[0], expected.cpu(), rtol=1e-4, atol=1e-6)
