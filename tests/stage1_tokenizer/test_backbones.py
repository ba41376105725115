"""Every backbone: shapes, sizes, gradients, directions, and that it can learn pictures by heart."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shared.config import load_config
from shared.data.pixels import to_float
from shared.data.sources.drawings import openmoji
from shared.errors import UserError
from stage1_tokenizer.backbones.sequence import (
    BimambaBlock,
    BimambaConfig,
    GridPositions,
    MambaVisionConfig,
    MambaVisionMixer,
    PatchConfig,
    patch_kernel,
)
from stage1_tokenizer.judging.similarity import psnr_of
from stage1_tokenizer.run_config import TokenizerRun
from stage1_tokenizer.tokenizer import Tokenizer, TokenizerConfig
from tests.support.launch import ROOT
from tests.support.narrow import part

KINDS = ["conv", "resnet", "maskgit", "attention", "mamba", "bimamba", "mambavision"]
SEQUENCES = ["attention", "mamba", "bimamba", "mambavision"]


def small(kind: str, **options: Any) -> dict[str, Any]:
    """A backbone of a few thousand weights with patch 4."""
    if kind == "conv":
        return {"kind": "conv", "stem": 2, "widths": (16, 32), "depths": (1, 1), "heads": 2, **options}
    if kind == "resnet":
        return {"kind": "resnet", "channels": 32, "multipliers": (1, 1, 2), "blocks": 1, "attention": (2,), **options}
    if kind == "maskgit":
        return {"kind": "maskgit", "channels": 32, "multipliers": (1, 1, 2), "blocks": 1, "width": 32, **options}
    extra = {} if kind == "attention" else {"d_state": 8, "headdim": 16}
    heads = {"heads": 2} if kind in ("attention", "mambavision") else {}
    return {"kind": kind, "patch": 4, "width": 32, "depth": 2, "positions": 4, **extra, **heads, **options}


def tokenizer(kind: str, warm_up: int = 0, **options: Any) -> Tokenizer:
    quantiser = {"codes": 128, "dim": 8, "warm_up": warm_up}
    return Tokenizer(TokenizerConfig(backbone=small(kind, **options), quantiser=quantiser))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(16, 16), (12, 28)])
def test_images_to_tokens_and_back_at_any_size_the_patch_divides(kind: str, size: tuple[int, int]) -> None:
    model = tokenizer(kind).eval()
    images = torch.rand(2, 3, *size) * 2 - 1
    tokens = model.tokenize(images)
    assert tokens.shape == (2, size[0] // 4, size[1] // 4)
    assert model.detokenize(tokens).shape == images.shape


@pytest.mark.parametrize("kind", KINDS)
def test_other_sizes_are_refused_by_name(kind: str) -> None:
    with pytest.raises(UserError, match=r"18 x 16 pixels.*patch is 4"):
        tokenizer(kind).tokenize(torch.zeros(1, 3, 18, 16))


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_reaches_every_weight(kind: str) -> None:
    model = tokenizer(kind)
    result = model(torch.rand(2, 3, 16, 16) * 2 - 1)
    (result.images_BCHW.square().mean() + result.codebook_loss).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("kind", ["conv", *SEQUENCES])
def test_products_have_inner_axes_that_tensor_cores_take(kind: str) -> None:
    heads = {"headdim": 20} if kind == "mambavision" else {}
    encoder = tokenizer(kind, **({"widths": (64, 128)} if kind == "conv" else {"width": 80, **heads})).encoder
    products = [m for m in encoder.modules() if isinstance(m, nn.Linear) and m.in_features != 3 * 2**2]  # pixels
    assert len(products) > 3
    assert [product for product in products if product.in_features % 8] == []


@pytest.mark.parametrize(("kernel_size", "touched"), [(1, 1), (3, 25)])
def test_the_encoder_kernel_says_how_many_tokens_a_pixel_reaches(kernel_size: int, touched: int) -> None:
    model = tokenizer("conv", kernel_size=3, encoder_kernel_size=kernel_size, transformer_layers=0).eval()
    images = torch.rand(1, 3, 28, 28) * 2 - 1
    changed = images.clone()
    changed[:, :, 12:16, 12:16] *= -1  # the whole of the fourth patch of the fourth row
    with torch.no_grad():
        different_hw = (model.encoder(images) != model.encoder(changed)).any(-1)[0]
    # Two convolutions of 3 x 3, at 2 pixels and at 4, reach 4 + 2 pixels beyond a patch of 4: two tokens each way.
    assert different_hw[3, 3]
    assert int(different_hw.sum()) == touched
    assert model.sees_neighbours == (touched > 1)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_unpatchify_by_convolutions_sees_its_neighbours(kind: str) -> None:
    model = tokenizer(kind, unpatchify="conv", layer_scale=0.1, smoothing=False).eval()
    z_BDhw = torch.randn(1, 32, 5, 5)
    changed = z_BDhw.clone()
    changed[:, :, 2, 2] += 1
    near = part(model, "decoder.unpatchify", nn.Module)
    with torch.no_grad():
        difference = (near(z_BDhw) - near(changed)).abs().sum(1)[0]
    touched = difference > 1e-6
    assert touched.shape == (20, 20)
    assert touched[8:12, 8:12].all()
    # Two 7 x 7 kernels at twice the grid, whose places are 2 pixels wide here: 6 of them on each side.
    assert touched.any(0).nonzero().flatten().tolist() == list(range(20))
    far = part(tokenizer(kind, unpatchify="linear", overlap=False, smoothing=False), "decoder.unpatchify", nn.Module)
    with torch.no_grad():
        assert (far(z_BDhw) != far(changed)).any(1)[0].any(0).nonzero().flatten().tolist() == [8, 9, 10, 11]


@pytest.mark.parametrize("kind", ["conv", *SEQUENCES])
def test_layer_scale_is_learned(kind: str) -> None:
    model = tokenizer(kind, layer_scale=0.1)
    result = model(torch.rand(2, 3, 16, 16) * 2 - 1)
    (result.images_BCHW.square().mean() + result.codebook_loss).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("kind", SEQUENCES)
def test_blocks_are_the_identity_where_every_branch_is_scaled_to_nothing(kind: str) -> None:
    x_BLD = torch.randn(2, 16, 32)
    blocks, scaled = (
        part(model, "encoder.blocks", nn.Module) for model in (tokenizer(kind), tokenizer(kind, layer_scale=1e-12))
    )
    assert not torch.allclose(blocks(x_BLD), x_BLD, atol=0.1)
    torch.testing.assert_close(scaled(x_BLD), x_BLD)


@pytest.mark.parametrize("kind", ["conv", *SEQUENCES])
def test_the_reference_configs_have_as_many_weights_as_they_say(kind: str) -> None:
    path = ROOT / f"configs/tokenizer/{kind}.yaml"
    with torch.device("meta"):
        model = Tokenizer(load_config(TokenizerRun, path).model)
    _, first, *_ = path.read_text().splitlines()  # behind the one that names a schema
    assert first.endswith(f" {sum(parameter.numel() for parameter in model.parameters()) / 1e6:.0f}M weights.")


@pytest.mark.parametrize(("kind", "millions"), [("conv", 16), ("attention", 36), ("mamba", 33), ("bimamba", 33)])
def test_the_reference_configs_have_the_recipes_sizes_within_5_percent(kind: str, millions: float) -> None:
    config = load_config(TokenizerRun, ROOT / f"configs/tokenizer/{kind}.yaml")
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in Tokenizer(config.model).parameters())
    assert abs(count / (millions * 1e6) - 1) < 0.05
    assert config.model.backbone.patch == 8


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("smoothing", [False, True])
@pytest.mark.parametrize("kind", ["attention", "mamba"])
def test_overlap_and_smoothing_keep_the_grid_and_change_what_they_say(
    kind: str, overlap: bool, smoothing: bool
) -> None:
    model = tokenizer(kind, overlap=overlap, smoothing=smoothing)
    assert model.tokenize(torch.zeros(1, 3, 16, 24)).shape == (1, 4, 6)
    backbone = model.config.backbone
    assert isinstance(backbone, PatchConfig)
    assert patch_kernel(backbone) == ((8, 2) if overlap else (4, 0))
    assert any(name.startswith("decoder.smoothing") for name in model.state_dict()) == smoothing


def test_bimamba_with_equal_directions_is_flip_equivariant() -> None:
    block = BimambaBlock(BimambaConfig(width=32, d_state=8, headdim=16))
    x_BLD = torch.randn(2, 11, 32)
    assert not torch.allclose(block(x_BLD.flip(1)), block(x_BLD).flip(1), atol=1e-3)
    block.back.load_state_dict(block.ahead.state_dict())
    torch.testing.assert_close(block(x_BLD.flip(1)), block(x_BLD).flip(1), atol=1e-5, rtol=1e-5)


def test_bimambas_second_direction_sees_what_comes_after_and_the_first_what_came_before() -> None:
    block = BimambaBlock(BimambaConfig(width=32, d_state=8, headdim=16))
    x_BLD = torch.randn(1, 9, 32)
    changed = x_BLD.clone()
    changed[:, 4] += 1
    moved = lambda change: (change(changed) - change(x_BLD)).abs().amax((0, 2)) > 1e-6  # noqa: E731
    assert moved(block.ahead.change).tolist() == [False] * 4 + [True] * 5
    back = moved(lambda x: block.back.change(x.flip(1)).flip(1))
    assert back.tolist() == [True] * 5 + [False] * 4


def test_mambavisions_plain_half_never_enters_the_scan() -> None:
    mixer = MambaVisionMixer(MambaVisionConfig(width=32, d_state=8, headdim=16, heads=2))
    with torch.no_grad():
        mixer.out_proj.weight.copy_(torch.eye(32))
    x_BLD = torch.randn(1, 9, 32)
    changed = x_BLD.clone()
    changed[:, 4] += 1
    moved_LD = (mixer(changed) - mixer(x_BLD)).abs()[0] > 1e-6
    assert moved_LD[:, :16].any(1).tolist() == [False] * 3 + [True] * 6  # from the convolution's reach on, to the end
    assert moved_LD[:, 16:].any(1).tolist() == [False] * 3 + [True] * 3 + [False] * 3


def test_mambavision_has_attention_in_its_last_half() -> None:
    blocks = list(part(tokenizer("mambavision", depth=4), "encoder.blocks", nn.Sequential))
    assert [type(block).__name__ for block in blocks] == ["MambaBlock", "MambaBlock", "Encoder"]
    assert all(isinstance(block.mixer, MambaVisionMixer) for block in blocks[:2])
    assert len(part(blocks[-1], "layers", nn.ModuleList)) == 2 * 2  # attention and MLP, twice


def test_positions_are_interpolated_for_other_grids() -> None:
    positions = GridPositions(4, 3)
    with torch.no_grad():
        positions.weight_1Dss.copy_(torch.arange(4.0).view(1, 1, 1, 4).expand(1, 3, 4, 4))
    got = positions(torch.zeros(1, 2, 8, 3))
    expected = F.interpolate(torch.arange(4.0).view(1, 1, 4), 8, mode="linear")[0, 0]
    torch.testing.assert_close(got[0, 0, :, 0], expected)
    torch.testing.assert_close(positions(torch.zeros(1, 4, 4, 3))[0, 0, :, 1], torch.arange(4.0))


@pytest.mark.parametrize("options", [{"heads": 3}, {"width": 0}])
def test_inconsistent_sizes_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"multiple of heads|greater than 0"):
        TokenizerConfig(backbone=small("attention", **options))


@pytest.mark.parametrize(
    ("kind", "steps"), [("conv", 240), ("mamba", 240), ("bimamba", 240), ("attention", 320), ("mambavision", 320)]
)
def test_every_backbone_overfits_four_drawings_to_30_db(kind: str, steps: int) -> None:
    codes = ["1F600", "1F436", "1F34E", "1F1EB-1F1F7"]
    pixels_BHWC = np.stack([openmoji.draw(codes, 32, number).pixels_HWC for number in range(len(codes))])
    x_BCHW = to_float(torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2))
    options = {"stem": 4, "widths": (64,), "depths": (1,)} if kind == "conv" else {"width": 64, "positions": 8}
    quantiser = {"codes": 512, "dim": 16, "warm_up": len(codes)}
    model = Tokenizer(TokenizerConfig(backbone=small(kind, **options), quantiser=quantiser))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 20, 3 * (1 - step / steps))
        result = model(x_BCHW)
        (F.mse_loss(result.images_BCHW, x_BCHW) + result.codebook_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        model.quantiser.maintain(optimizer)
    decoded = model.eval().detokenize(model.tokenize(x_BCHW))
    assert psnr_of(decoded, x_BCHW).mean() > 30
