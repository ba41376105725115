"""What cannot be taken over is said to be what it is, and what can be is said too."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import shared.data.vision  # noqa: F401  (makes torchvision importable, which diffusers imports)
from shared.errors import UserError
from stage1_tokenizer.adopt import adopt


def vqgan(**changes: tuple[int, ...]) -> dict[str, Tensor]:
    """The ends of a VQGAN, each of the given shape; underscores of a keyword stand for dots where they are double."""
    shapes: dict[str, tuple[int, ...]] = {
        "encoder__conv_in__weight": (32, 3, 3, 3),
        "encoder__conv_out__weight": (8, 32, 3, 3),
        "decoder__conv_in__weight": (32, 8, 3, 3),
        "decoder__conv_out__weight": (3, 32, 3, 3),
        "quant_conv__weight": (8, 8, 1, 1),
        "post_quant_conv__weight": (8, 8, 1, 1),
        "quantize__embedding__weight": (16, 8),
    }
    return {name.replace("__", "."): torch.ones(shape) for name, shape in (shapes | changes).items() if shape}


STRANGERS: dict[str, tuple[dict[str, Tensor], str]] = {
    "VAR": (vqgan(quant_conv__weight=(8, 8, 3, 3), post_quant_conv__weight=(8, 8, 3, 3)), "VAR's multi-scale"),
    "VAR's residuals": (vqgan(quantize__quant_resi__qresi_ls__0__weight=(8, 8, 3, 3)), "VAR's multi-scale"),
    "KL": (
        vqgan(quantize__embedding__weight=(), quant_conv__weight=(16, 16, 1, 1),
              encoder__conv_out__weight=(16, 32, 3, 3)),
        "KL autoencoder",
    ),
    "KL without quant_conv": (
        vqgan(quantize__embedding__weight=(), quant_conv__weight=(), post_quant_conv__weight=(),
              encoder__conv_out__weight=(16, 32, 3, 3)),
        "KL autoencoder",
    ),
    "TiTok": (vqgan(latent_tokens=(32, 64)), "TiTok"),
    "Gumbel": (
        vqgan(quantize__embedding__weight=(), quantize__embed__weight=(16, 8), quantize__proj__weight=(16, 8, 1, 1)),
        "Gumbel",
    ),
    "Open-MAGVIT2": (vqgan(quantize__embedding__weight=(), quantize__mask=(8,)), "lookup-free"),
    "SimVQ": (vqgan(quantize__embedding_proj__weight=(8, 8)), "SimVQ"),
    "RQ-VAE": (vqgan(quantize__embedding__weight=(), quantizer__codebooks__0__weight=(16, 8)), "residual"),
    "MOVQ": (vqgan(decoder__up__0__block__0__norm1__conv_y__weight=(8, 8, 1, 1)), "MOVQ"),
    "MOVQ of diffusers": (vqgan(decoder__conv_norm_out__norm_layer__weight=(8,)), "MOVQ"),
    "videos": (vqgan(encoder__conv_in__weight=(32, 3, 3, 3, 3)), "videos"),
    "CVQ-VAE": (vqgan(quantize__embed_prob=(16,)), r"more than a codebook \(quantize.embed_prob\)"),
    "dVAE": ({"encoder.blocks.group_1.block_1.res_path.conv_1.w": torch.ones(1)}, "DALL-E"),
    "ViT-VQGAN": ({"pre_quant.weight": torch.ones(8, 8), "quantizer.embedding.weight": torch.ones(16, 8)}, "ViT-VQGAN"),
    "classifier": ({"fc.weight": torch.ones(8, 8)}, "not a VQGAN that is known here: no quantize.embedding.weight"),
}  # fmt: skip


@pytest.mark.parametrize("inside", [False, True], ids=["plain", "state_dict"])
@pytest.mark.parametrize("name", STRANGERS)
def test_it_is_named_and_nothing_is_written(
    name: str, inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tensors, message = STRANGERS[name]
    torch.save({"state_dict": tensors, "step": 1} if inside else tensors, "it.pt")
    with pytest.raises(UserError, match=rf"it\.pt is .*{message}.*What can be taken over: .*LlamaGen"):
        adopt(Path("it.pt"), "theirs")
    assert not Path("runs").exists()


def test_the_kl_autoencoder_of_diffusers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("diffusers").AutoencoderKL(norm_num_groups=8, block_out_channels=(8,)).save_pretrained("kl")
    with pytest.raises(UserError, match="KL autoencoder"):
        adopt(Path("kl"), "theirs")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder__conv_in__weight": (32, 4, 3, 3)}, "takes 4 channels"),
        ({"decoder__conv_out__weight": (1, 32, 3, 3)}, "gives 1 channels"),
    ],
)
def test_images_of_other_channels_are_refused(
    changes: dict[str, tuple[int, ...]], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(vqgan(**changes), "it.safetensors")
    with pytest.raises(UserError, match=re.escape(message)):
        adopt(Path("it.safetensors"), "theirs")
