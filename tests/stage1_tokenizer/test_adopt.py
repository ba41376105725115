"""Published VQGANs, taken over: against diffusers' model of the same architecture, with the same weights."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import shared.data.vision  # noqa: F401  (makes torchvision importable, which diffusers imports)
from shared.errors import UserError
from stage1_tokenizer.adopt import adopt, read_checkpoint
from stage1_tokenizer.tokenizer import load_tokenizer

CODES, DIM, WIDTH = 50, 6, 12


def diffusers_model() -> Any:  # its parts have no types that mypy knows
    """Two levels of 32 and 64 channels, attention at the second only, as taming builds it."""
    vq_model = pytest.importorskip("diffusers").VQModel
    torch.manual_seed(0)
    model = vq_model(
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(32, 64), layers_per_block=2, latent_channels=WIDTH, num_vq_embeddings=CODES,
        vq_embed_dim=DIM, norm_num_groups=32,
    ).eval()  # fmt: skip
    for parameter in model.parameters():  # every weight must matter, so none may be 0 or 1
        parameter.data = torch.randn_like(parameter) * 0.15
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
