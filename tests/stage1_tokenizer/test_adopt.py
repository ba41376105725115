"""Published VQGANs, taken over: against diffusers, and MaskGIT as its description has it, with the same weights."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import shared.data.vision  # noqa: F401  (makes torchvision importable, which diffusers imports)
from shared.errors import UserError
from stage1_tokenizer.adopt import adopt, read_checkpoint
from stage1_tokenizer.backbones.maskgit import MaskGITConfig
from stage1_tokenizer.quantisers.vector import VectorConfig
from stage1_tokenizer.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer

CODES, DIM, WIDTH = 50, 6, 12
PLAIN, ATTENDING = ("DownEncoderBlock2D", "UpDecoderBlock2D"), ("AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D")


def images(height: int = 16, width: int = 24) -> Tensor:
    """Four images of coloured squares and noise: of noise alone, attention makes all places nearly the same."""
    squares_BCHW = F.interpolate(torch.rand(4, 3, height // 4, width // 4), scale_factor=4)
    return squares_BCHW + torch.rand(4, 3, height, width) - 1


def diffusers_model(**options: Any) -> Any:  # its parts have no types that mypy knows
    """Two levels of 32 and 64 channels, attention at the second only, as taming builds it, unless `options` differ."""
    vq_model = pytest.importorskip("diffusers").VQModel
    torch.manual_seed(0)
    usual = {
        "down_block_types": (PLAIN[0], ATTENDING[0]), "up_block_types": (ATTENDING[1], PLAIN[1]),
        "block_out_channels": (32, 64), "layers_per_block": 2, "latent_channels": WIDTH, "num_vq_embeddings": CODES,
        "vq_embed_dim": DIM, "norm_num_groups": 32,
    }  # fmt: skip
    model = vq_model(**usual | options).eval()
    for parameter in model.parameters():  # every weight must matter, so none may be 0 or 1
        parameter.data = torch.randn_like(parameter) * 0.15
    with torch.no_grad():  # codes are where vectors are, so that many of them are used
        z_ND = model.encode(images()).latents.movedim(1, -1).flatten(0, -2)
    model.quantize.embedding.weight.data[:CODES] = z_ND[torch.randperm(len(z_ND))[:CODES]]
    return model


ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def published(model: Any, style: str) -> dict[str, Tensor]:
    """The weights of diffusers' model under the names that taming-transformers or LlamaGen gives them."""
    names = {
        "taming": ("down.{}.block.{}", "down.{}.attn.{}", "down.{}.downsample.conv", ("block_1", "attn_1", "block_2")),
        "llamagen": ("conv_blocks.{}.res.{}", "conv_blocks.{}.attn.{}", "conv_blocks.{}.downsample.conv", "012"),
    }
    block, attention, downsample, middle = names[style]
    up = (lambda text: text.replace("down.", "up.", 1)) if style == "taming" else (lambda text: text)
    tensors = {}

    def put(theirs: torch.nn.Module, name: str) -> None:
        for key, value in theirs.state_dict().items():
            for ours, published_name in ATTENTION.items():
                key = key.replace(ours, published_name)
            key = key.replace("conv_shortcut", "nin_shortcut")
            one_by_one = value.ndim == 2 and any(f"{part}.weight" in key for part in ("q", "k", "v", "proj_out"))
            tensors[f"{name}.{key}" if name else key] = value[:, :, None, None] if one_by_one else value

    for side, part in (("encoder", model.encoder), ("decoder", model.decoder)):
        put(part.conv_in, f"{side}.conv_in")
        put(part.conv_norm_out, f"{side}.norm_out")
        put(part.conv_out, f"{side}.conv_out")
        put(part.mid_block.resnets[0], f"{side}.mid.{middle[0]}")
        put(part.mid_block.attentions[0], f"{side}.mid.{middle[1]}")
        put(part.mid_block.resnets[1], f"{side}.mid.{middle[2]}")
    for level, down in enumerate(model.encoder.down_blocks):
        for number, resnet in enumerate(down.resnets):
            put(resnet, "encoder." + block.format(level, number))
        for number, module in enumerate(getattr(down, "attentions", [])):
            put(module, "encoder." + attention.format(level, number))
        if down.downsamplers and level == 0:
            put(down.downsamplers[0].conv, "encoder." + downsample.format(level))
    for order, blocks in enumerate(model.decoder.up_blocks):  # coarsest first
        level = 1 - order if style == "taming" else order
        for number, resnet in enumerate(blocks.resnets):
            put(resnet, "decoder." + up(block).format(level, number))
        for number, module in enumerate(getattr(blocks, "attentions", [])):
            put(module, "decoder." + up(attention).format(level, number))
        if blocks.upsamplers and order == 0:
            put(blocks.upsamplers[0].conv, "decoder." + up(downsample).replace("downsample", "upsample").format(level))
    put(model.quant_conv, "quant_conv")
    put(model.post_quant_conv, "post_quant_conv")
    tensors["quantize.embedding.weight"] = model.quantize.embedding.weight.data
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


@pytest.mark.parametrize("style", ["taming", "llamagen"])
def test_encoder_decoder_and_codes_are_diffusers(style: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = diffusers_model()
    if style == "llamagen":  # its codes are compared on the unit sphere, which diffusers cannot: give it unit vectors
        model.quantize.embedding.weight.data = torch.nn.functional.normalize(model.quantize.embedding.weight.data)
    save_file(published(model, style), tmp_path / "vqgan.safetensors")
    tokenizer = load_tokenizer(adopt(tmp_path / "vqgan.safetensors", "theirs").path)
    x_BCHW = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        z_BDHW = model.encode(x_BCHW).latents
        if style == "llamagen":
            z_BDHW = torch.nn.functional.normalize(z_BDHW, dim=1)
        q_BDHW, _, (_, _, tokens_N) = model.quantize(z_BDHW)
        images_BCHW = model.decode(q_BDHW, force_not_quantize=True).sample
    tokens_BHW = tokenizer.tokenize(x_BCHW)
    assert torch.equal(tokens_BHW.flatten(), tokens_N.flatten())
    assert tokens_BHW.unique().numel() > 5
    torch.testing.assert_close(tokenizer(x_BCHW).images_BCHW, images_BCHW, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def agree(tokenizer: Tokenizer, model: Any, x_BCHW: Tensor, unit_pixels: bool = False) -> None:
    """Assert that tokens are diffusers' and reconstructions too, of images in -1..1, which `model` has in 0..1."""
    z_BDHW = model.encode((x_BCHW + 1) / 2 if unit_pixels else x_BCHW).latents
    _, _, (_, _, tokens_N) = model.quantize(z_BDHW)
    images_BCHW = model.decode(z_BDHW).sample
    tokens_BHW = tokenizer.tokenize(x_BCHW)
    assert torch.equal(tokens_BHW.flatten(), tokens_N.flatten())
    assert tokens_BHW.unique().numel() > 15
    expected = images_BCHW * 2 - 1 if unit_pixels else images_BCHW
    torch.testing.assert_close(tokenizer(x_BCHW).images_BCHW, expected, rtol=1e-4, atol=1e-4)


THREE = {"block_out_channels": (32, 64, 32), "layers_per_block": 1}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "as taming": {},
    "attention nowhere": {"down_block_types": (PLAIN[0],) * 2, "up_block_types": (PLAIN[1],) * 2,
                          "mid_block_add_attention": False},
    "attention everywhere": {"down_block_types": (ATTENDING[0],) * 2, "up_block_types": (ATTENDING[1],) * 2},
    "another decoder": {"down_block_types": (PLAIN[0], ATTENDING[0]), "up_block_types": (PLAIN[1], ATTENDING[1])},
    "the encoder's attention alone": {"up_block_types": (PLAIN[1],) * 2},
    "three levels": {**THREE, "down_block_types": (PLAIN[0],) * 3, "up_block_types": (PLAIN[1],) * 3},
    "widths that are no multiples": {"block_out_channels": (48, 80), "norm_num_groups": 16},
    "one level": {"block_out_channels": (64,), "down_block_types": (PLAIN[0],), "up_block_types": (PLAIN[1],)},
    "groups": {"norm_num_groups": 8},
    "relu": {"act_fn": "relu"},
    "gelu": {"act_fn": "gelu"},
    "mish": {"act_fn": "mish", "layers_per_block": 3},
    "swish": {"act_fn": "swish"},
    "looked up": {"lookup_from_codebook": True, "force_upcast": True, "vq_embed_dim": None, "scaling_factor": 3.0},
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_folder_of_diffusers_is_diffusers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = diffusers_model(**CONFIGURATIONS[name])
    model.save_pretrained("vqvae", safe_serialization=len(name) % 2 == 0)  # else a pickle, .bin
    agree(load_tokenizer(adopt(Path("vqvae"), "theirs").path), model, images())


@pytest.mark.parametrize("name", ["as taming", "attention nowhere", "another decoder", "three levels", "one level"])
def test_the_weights_alone_are_enough_where_they_tell_everything(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = diffusers_model(**CONFIGURATIONS[name])
    model.save_pretrained("vqvae")
    Path("vqvae/diffusion_pytorch_model.safetensors").rename("vq.bin")
    agree(load_tokenizer(adopt(Path("vq.bin"), "theirs").path), model, images())


def test_what_the_weights_do_not_tell_can_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = diffusers_model(act_fn="relu", norm_num_groups=16, block_out_channels=(48, 80))
    save_file(model.state_dict(), "vq.safetensors")
    with pytest.raises(UserError, match=r"multiples of groups \(32\)"):
        adopt(Path("vq.safetensors"), "theirs")
    said = ["model.backbone.groups=16", "model.backbone.activation=relu"]
    agree(load_tokenizer(adopt(Path("vq.safetensors"), "theirs", said).path), model, images())


def test_names_of_attention_before_diffusers_0_15_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = diffusers_model()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = model.state_dict()
    for new_name, old_name in old.items():
        tensors = {name.replace(f".{new_name}.", f".{old_name}."): value for name, value in tensors.items()}
    save_file(tensors, "vq.safetensors")
    agree(load_tokenizer(adopt(Path("vq.safetensors"), "theirs").path), model, images())


def test_a_vq_model_inside_another_checkpoint_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = diffusers_model()
    torch.save({"model": {f"module.vae.{name}": value.half() for name, value in model.state_dict().items()}}, "it.pth")
    agree(load_tokenizer(adopt(Path("it.pth"), "theirs").path), model.half().float(), images())


@pytest.mark.parametrize("said", [None, False])
def test_pixels_of_amused_are_in_0_1_unless_said(
    said: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = diffusers_model(
        **CONFIGURATIONS["attention nowhere"], num_vq_embeddings=8192, latent_channels=64, vq_embed_dim=None
    )
    save_file(model.state_dict(), "vq.safetensors")
    overrides = [] if said is None else [f"model.backbone.unit_pixels={said}".lower()]
    tokenizer = load_tokenizer(adopt(Path("vq.safetensors"), "theirs", overrides).path)
    agree(tokenizer, model, images(), unit_pixels=said is None)
    assert f"pixels are {'0..1' if said is None else '-1..1'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "AutoencoderKL"}, "config.json is of AutoencoderKL"),
        ({"norm_type": "spatial"}, "norm_type is 'spatial' .MOVQ"),
        ({"act_fn": "tanh"}, "act_fn 'tanh'"),
        ({"block_out_channels": [32, 128]}, r"another model: block_out_channels \[32, 128\], the weights \[32, 64\]"),
        ({"num_vq_embeddings": 51}, "another model: num_vq_embeddings 51, the weights 50"),
        ({"down_block_types": ["DownBlock2D", "DownEncoderBlock2D"]}, "blocks DownBlock2D"),
    ],
)
def test_a_configuration_that_cannot_be_had_is_refused_by_name(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    diffusers_model().save_pretrained("vqvae")
    config = Path("vqvae/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(UserError, match=message):
        adopt(Path("vqvae"), "theirs")
    assert not Path("runs").exists()


def test_another_programs_config_beside_the_weights_means_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = diffusers_model()
    model.save_pretrained("vqvae")
    Path("vqvae/config.json").write_text('{"model_type": "llama"}')
    agree(load_tokenizer(adopt(Path("vqvae"), "theirs").path), model, images())


def test_a_weight_that_is_missing_or_too_many_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    diffusers_model().save_pretrained("vqvae")
    path = Path("vqvae/diffusion_pytorch_model.safetensors")
    whole = load_file(path)
    for absent in ("decoder.conv_norm_out.bias", "encoder.mid_block.attentions.0.to_k.weight", "encoder.conv_in.bias"):
        save_file({name: value for name, value in whole.items() if name != absent}, path)
        with pytest.raises(UserError, match="not a VQGAN that is known here: no "):
            adopt(Path("vqvae"), "theirs")
    save_file(whole | {"encoder.skip.weight": torch.ones(1)}, path)
    with pytest.raises(UserError, match=r"no place for encoder\.skip\.weight"):
        adopt(Path("vqvae"), "theirs")
    assert not Path("runs").exists()


LEVELS, CHANNELS = (1, 2, 2), 32  # of MaskGIT's; the published one has (1, 1, 2, 2, 4) of 128


def maskgit_weights() -> dict[str, Tensor]:
    """Random weights by the names and in the shapes of 1d-tokenizer: two blocks a level, 1,024 codes."""
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}

    def conv(name: str, dim: int, out_dim: int, size: int = 3, bias: bool = False) -> None:
        tensors[f"{name}.weight"] = torch.randn(out_dim, dim, size, size) / (dim * size**2) ** 0.5
        if bias:
            tensors[f"{name}.bias"] = torch.randn(out_dim) * 0.2

    def norm(name: str, dim: int) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = 1 + 0.2 * torch.randn(dim), 0.2 * torch.randn(dim)

    def blocks(name: str, dim: int, out_dim: int) -> None:
        for number in range(2):
            block = f"{name}.{number}"
            norm(f"{block}.norm1", dim)
            conv(f"{block}.conv1", dim, out_dim)
            norm(f"{block}.norm2", out_dim)
            conv(f"{block}.conv2", out_dim, out_dim)
            if dim != out_dim:
                conv(f"{block}.nin_shortcut", out_dim, out_dim, size=1)
            dim = out_dim

    widths = [CHANNELS * multiplier for multiplier in LEVELS]
    conv("encoder.conv_in", 3, CHANNELS)
    for level, width in enumerate(widths):
        blocks(f"encoder.down.{level}.block", widths[max(level - 1, 0)], width)
        blocks(f"decoder.up.{level}.block", widths[min(level + 1, len(widths) - 1)], width)
        if level:
            conv(f"decoder.up.{level}.upsample_conv", width, width, bias=True)
    for side, end in (("encoder", widths[-1]), ("decoder", widths[0])):
        blocks(f"{side}.mid", widths[-1], widths[-1])
        norm(f"{side}.norm_out", end)
    conv("encoder.conv_out", widths[-1], DIM, size=1, bias=True)
    conv("decoder.conv_in", DIM, widths[-1], bias=True)
    conv("decoder.conv_out", widths[0], 3, bias=True)
    return tensors | {"quantize.embedding.weight": torch.randn(1024, DIM)}


class MaskGIT:
    """MaskGIT's VQGAN as its description has it, a function of weights: images in 0..1 to tokens and back."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.w = tensors

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.w[f"{name}.weight"]
        return F.conv2d(x, weight, self.w.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def norm(self, name: str, x: Tensor) -> Tensor:
        x = F.group_norm(x, 32, self.w[f"{name}.weight"], self.w[f"{name}.bias"], eps=1e-6)
        return x * x.sigmoid()

    def blocks(self, name: str, x: Tensor) -> Tensor:
        for block in (f"{name}.0", f"{name}.1"):
            change = self.conv(f"{block}.conv1", self.norm(f"{block}.norm1", x))
            change = self.conv(f"{block}.conv2", self.norm(f"{block}.norm2", change))
            is_wider = f"{block}.nin_shortcut.weight" in self.w
            x = change + (self.conv(f"{block}.nin_shortcut", change) if is_wider else x)
        return x

    def encode(self, x: Tensor) -> Tensor:
        x = self.conv("encoder.conv_in", x)
        for level in range(len(LEVELS)):
            x = self.blocks(f"encoder.down.{level}.block", x)
            if level < len(LEVELS) - 1:
                x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        z = self.conv("encoder.conv_out", self.norm("encoder.norm_out", self.blocks("encoder.mid", x)))
        return torch.cdist(z.flatten(2).mT, self.w["quantize.embedding.weight"]).argmin(-1).unflatten(1, z.shape[2:])

    def decode(self, tokens: Tensor) -> Tensor:
        x = self.w["quantize.embedding.weight"][tokens].permute(0, 3, 1, 2)
        x = self.blocks("decoder.mid", self.conv("decoder.conv_in", x))
        for level in reversed(range(len(LEVELS))):
            x = self.blocks(f"decoder.up.{level}.block", x)
            if level:
                x = self.conv(f"decoder.up.{level}.upsample_conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        return self.conv("decoder.conv_out", self.norm("decoder.norm_out", x))


def test_maskgits_vqgan_is_what_its_description_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tensors = maskgit_weights()
    torch.save(tensors, "maskgit-vqgan-imagenet-f16-256.bin")
    tokenizer = load_tokenizer(adopt(Path("maskgit-vqgan-imagenet-f16-256.bin"), "theirs").path)
    printed = capsys.readouterr().out
    assert "MaskGIT" in printed
    assert "1,024 codes" in printed
    assert "pixels are 0..1" in printed
    x_BCHW, theirs = images(24, 32), MaskGIT(tensors)
    tokens_BHW = tokenizer.tokenize(x_BCHW)
    assert torch.equal(tokens_BHW, theirs.encode((x_BCHW + 1) / 2))
    assert tokens_BHW.unique().numel() > 20
    expected = (theirs.decode(tokens_BHW) * 2 - 1).clamp(-1, 1)
    assert expected.std() > 0.3
    torch.testing.assert_close(tokenizer.detokenize(tokens_BHW), expected, rtol=1e-4, atol=1e-4)


def test_the_published_maskgit_has_the_defaults_of_its_kind() -> None:
    with torch.device("meta"):
        model = Tokenizer(TokenizerConfig(backbone=MaskGITConfig(), quantiser=VectorConfig(codes=1024, dim=256)))
    assert model.config.backbone.patch == 16
    identities = 2 * (256 * 256 + 256)  # which only ours has, between backbone and codes
    counted = sum(parameter.numel() for parameter in model.parameters()) - identities
    assert counted == counted_by_hand((1, 1, 2, 2, 4), 128, codes=1024, dim=256)


def counted_by_hand(multipliers: tuple[int, ...], channels: int, codes: int, dim: int) -> int:
    """Weights of MaskGIT's VQGAN of two blocks a level."""
    widths = [channels * multiplier for multiplier in multipliers]

    def blocks(width: int, out_width: int) -> int:
        shortcut = out_width**2 if width != out_width else 0
        return 2 * width + 9 * width * out_width + 3 * (2 * out_width + 9 * out_width**2) + shortcut

    down = sum(blocks(*pair) for pair in zip([channels, *widths], widths, strict=False))
    up = sum(blocks(*pair) for pair in zip([*widths[1:], widths[-1]], widths, strict=True))
    doubling = sum(9 * width**2 + width for width in widths[1:])
    middle = 2 * blocks(widths[-1], widths[-1])
    ends = 27 * channels + 2 * widths[-1] + widths[-1] * dim + dim + 9 * dim * widths[-1] + widths[-1]
    return codes * dim + down + up + doubling + middle + ends + 2 * widths[0] + 27 * widths[0] + 3


class Callback:
    """Stands for a class of the library that wrote a checkpoint, which is not installed where it is read."""


def test_a_pickle_needs_none_of_the_classes_it_names(tmp_path: Path) -> None:
    weights = {"quantize.embedding.weight": torch.ones(3, 2), "loss.discriminator.weight": torch.ones(1)}
    torch.save({"state_dict": weights, "callbacks": {Callback: Callback()}}, tmp_path / "vqgan.ckpt")
    assert list(read_checkpoint(tmp_path / "vqgan.ckpt")) == ["quantize.embedding.weight"]


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {mark}",)

    torch.save({"state_dict": {"quantize.embedding.weight": torch.ones(3, 2)}, "x": Attack()}, tmp_path / "vqgan.ckpt")
    with pytest.raises(UserError, match=r"vqgan\.ckpt runs code"):
        read_checkpoint(tmp_path / "vqgan.ckpt")
    assert not mark.exists()
    torch.load(tmp_path / "vqgan.ckpt", weights_only=False)
    assert mark.exists()  # so it would have run


def test_averaged_weights_are_preferred(tmp_path: Path) -> None:
    name = "quantize.embedding.weight"
    torch.save({"model": {name: torch.zeros(3, 2)}, "ema": {name: torch.ones(3, 2)}}, tmp_path / "vqgan.pt")
    assert read_checkpoint(tmp_path / "vqgan.pt")[name].sum() == 6


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("absent.pt", None),
        ("text.pt", b"this is not a checkpoint"),
        ("cut.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{"),
        ("list.pt", pickle.dumps([1, 2])),
    ],
)
def test_what_is_no_checkpoint_is_refused_by_name(name: str, content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        adopt(tmp_path / name, "theirs")


def test_another_models_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"quantize.embedding.weight": torch.ones(3, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"not a VQGAN.*encoder\.conv_in"):
        adopt(tmp_path / "other.safetensors", "theirs")
    assert not (tmp_path / "runs").exists()


def test_a_name_that_is_taken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/tokenizer/mine").mkdir(parents=True)
    with pytest.raises(UserError, match="there already"):
        adopt(tmp_path / "any.safetensors", "mine")
