"""Discriminators: what each one sees, and the smallest image it can judge."""

import pytest
import torch
from torch import Tensor, nn

from shared.errors import UserError
from stage1_tokenizer.losses.discriminators import (
    DiscriminatorConfig,
    FeaturesConfig,
    PatchDiscriminator,
    PatchganConfig,
    SpectralNorm,
    StyleganConfig,
    add_deviation,
    build_discriminator,
    check_discriminator_size,
    halve,
    minimum_size,
    spectral,
)
from tests.support.narrow import part, present

CONFIGS: list[DiscriminatorConfig] = [
    PatchganConfig(width=8, layers=2),
    PatchganConfig(width=8, layers=2, norm="group"),
    StyleganConfig(width=4, largest_width=8),
    FeaturesConfig(net="alex", width=8),
]
ORIGINAL = "parametrizations.weight.original"  # of a layer under spectral norm


def images(batch: int = 3, height: int = 24, width: int = 32) -> Tensor:
    return torch.rand(batch, 3, height, width) * 2 - 1


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_each_kind_judges_each_image_and_tells_it_what_to_change(config: DiscriminatorConfig) -> None:
    x = images().requires_grad_()
    discriminator = build_discriminator(config, (24, 32))
    logits = discriminator(x)
    assert len(logits) == 3
    logits.sum().backward()
    assert torch.isfinite(present(x.grad)).all()
    assert (present(x.grad).abs().sum((1, 2, 3)) > 0).all()
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


@pytest.mark.parametrize(("config", "layers"), list(zip(CONFIGS, (3, 3, 3, 5), strict=True)), ids=str)
def test_each_kind_gives_the_features_it_judges_by_the_finest_first(config: DiscriminatorConfig, layers: int) -> None:
    x, discriminator = images(), build_discriminator(config, (24, 32)).eval()
    logits, features = discriminator.judge(x)
    assert torch.equal(logits, discriminator(x))
    sizes = [f.shape[2] * f.shape[3] for f in features]
    assert len(sizes) == layers
    assert sizes == sorted(sizes, reverse=True)
    one_else = torch.cat([images(1), x[1:]])
    for f, other in zip(features, discriminator.judge(one_else).features, strict=True):
        assert not torch.equal(f[0], other[0])


@pytest.mark.parametrize("config", [*CONFIGS, PatchganConfig(), FeaturesConfig(net="vgg")], ids=str)
def test_the_smallest_image_is_judged_and_a_smaller_one_refused(config: DiscriminatorConfig) -> None:
    smallest = minimum_size(config)
    logits = build_discriminator(config, (smallest, smallest + 1)).eval()(images(1, smallest, smallest + 1))
    assert logits.numel() > 0
    with pytest.raises(UserError, match=rf"{smallest - 1} x 64 are too small .* needs {smallest} x {smallest}: raise"):
        check_discriminator_size(config, (smallest - 1, 64))


def test_patchgan_would_fail_below_its_smallest_image() -> None:
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        PatchDiscriminator(PatchganConfig(width=8))(images(1, 23, 23))


@pytest.mark.parametrize(("layers", "side"), [(1, 16), (2, 34), (3, 70)])
def test_a_patchgan_logit_sees_a_patch_of_the_published_size(layers: int, side: int) -> None:
    x = images(1, 128, 128).requires_grad_()
    logits = PatchDiscriminator(PatchganConfig(width=8, layers=layers))(x)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    seen = present(x.grad)[0].abs().sum(0) > 0
    assert seen.any(0).sum() == seen.any(1).sum() == side


def test_spectral_norm_divides_by_the_largest_singular_value() -> None:
    conv = spectral(nn.Conv2d(3, 8, 4))
    for _ in range(100):
        normalised = conv.weight
    assert isinstance(normalised, Tensor)
    original = conv.get_parameter(ORIGINAL)
    exact = original.detach().clone().requires_grad_()
    expected = exact / torch.linalg.svdvals(exact.flatten(1))[0]
    torch.testing.assert_close(normalised, expected)
    direction = torch.randn_like(expected)
    (expected * direction).sum().backward()
    (normalised * direction).sum().backward()
    torch.testing.assert_close(original.grad, exact.grad, rtol=1e-3, atol=1e-5)


def test_spectral_norm_iterates_in_training_only_and_in_float32_under_autocast() -> None:
    weight = torch.randn(8, 3, 4, 4)
    norm = SpectralNorm(weight, first_iterations=1)
    start = norm.u.clone()
    norm.eval()(weight)
    assert torch.equal(norm.u, start)
    norm.train()(weight)
    in_float32 = norm.u.clone()
    assert not torch.equal(in_float32, start)
    norm.u.copy_(start)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(weight).dtype == torch.float32
    assert torch.equal(norm.u, in_float32)


def test_a_later_iteration_does_not_change_an_earlier_gradient() -> None:
    conv = spectral(nn.Conv2d(3, 8, 4))
    x = images(1)
    alone = torch.autograd.grad(conv.eval()(x).square().sum(), conv.get_parameter(ORIGINAL))[0]
    loss = conv(x).square().sum()
    conv.train()(x)
    later = torch.autograd.grad(loss, conv.get_parameter(ORIGINAL))[0]
    assert torch.equal(alone, later)


def test_halving_keeps_what_is_flat_and_drops_what_would_alias() -> None:
    flat = torch.full((1, 2, 8, 8), 0.7)
    torch.testing.assert_close(halve(flat)[..., 1:-1, 1:-1], flat[..., :2, :2])
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 1, 8, 8)
    torch.testing.assert_close(halve(stripes)[..., 1:-1, 1:-1], torch.zeros(1, 1, 2, 2))


def test_deviation_is_within_groups_that_divide_the_batch() -> None:
    x = torch.randn(6, 2, 3, 3)
    expected = [x[group].std(dim=0, correction=0).mean().item() for group in (slice(0, 3), slice(3, 6))]
    added = add_deviation(x)
    torch.testing.assert_close(added[:, :2], x)
    assert added[:, 2, 1, 1].tolist() == pytest.approx([expected[0]] * 3 + [expected[1]] * 3, rel=1e-3)
    alike = x[:1].expand(4, 2, 3, 3).clone().requires_grad_()
    add_deviation(alike)[:, 2].sum().backward()
    assert torch.isfinite(present(alike.grad)).all()


def test_stylegan_sees_a_batch_of_equal_images_and_patchgan_does_not() -> None:
    varied = images(4, 32, 32)
    equal = varied[:1].expand(4, 3, 32, 32)
    style = build_discriminator(CONFIGS[2], (32, 32))
    patch = build_discriminator(CONFIGS[0], (32, 32)).eval()
    assert not torch.allclose(style(varied)[0], style(equal)[0], atol=1e-6)
    torch.testing.assert_close(patch(varied)[0], patch(equal)[0])


def test_features_train_and_save_their_heads_only() -> None:
    discriminator = build_discriminator(CONFIGS[3], (24, 32))
    assert all(name.startswith("heads.") for name in discriminator.state_dict())
    assert {id(parameter) for parameter in discriminator.parameters()} == {
        id(parameter) for head in part(discriminator, "heads", nn.ModuleList) for parameter in head.parameters()
    }


class MeanSquare(nn.Module):
    """A head that answers with the mean square of each position's features."""

    def forward(self, f_BCHW: Tensor) -> Tensor:
        return f_BCHW.square().mean(1, keepdim=True)


def test_each_scale_of_features_counts_alike() -> None:
    discriminator = build_discriminator(CONFIGS[3], (48, 64))
    discriminator.heads = nn.ModuleList(MeanSquare() for _ in part(discriminator, "heads", nn.ModuleList))
    logits = discriminator(images(2, 48, 64))
    assert logits.shape[:2] == (2, 5)
    torch.testing.assert_close(logits, torch.ones_like(logits), rtol=0, atol=1e-3)
