"""Published VQGANs of four families: whose one is, its weights under our names, and their configuration."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stage1_tokenizer.backbones.resnet import ACTIVATIONS

# Our name for each part of a name of theirs, in this order. Levels of taming's and MaskGIT's decoder are counted from
# the finest.
NAMES = (
    (r"\.(?:down|up|conv_blocks|down_blocks|up_blocks)\.(\d+)\.", r".levels.\1."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.mid\.block_1\.", ".middle.0."),
    (r"\.mid\.attn_1\.", ".middle.1."),
    (r"\.mid\.block_2\.", ".middle.2."),
    (r"\.mid\.(\d+)\.", r".middle.\1."),
    (r"\.(?:block|res|resnets)\.(\d+)\.", r".blocks.\1."),
    (r"\.(?:attn|attentions)\.(\d+)\.", r".attentions.\1."),
    (r"\.(?:downsample|upsample)\.", ".resample."),
    (r"\.(?:downsamplers|upsamplers)\.0\.", ".resample."),
    (r"\.upsample_conv\.", ".resample.conv."),
    (r"\.(?:norm_out|conv_norm_out)\.", ".norm."),
    (r"\.group_norm\.", ".norm."),
    (r"\.(?:nin_shortcut|conv_shortcut)\.", ".shortcut."),
    (r"\.(?:proj_out|to_out\.0|proj_attn)\.", ".out_proj."),
    (r"\.(?:to_q|query)\.", ".q."),
    (r"\.(?:to_k|key)\.", ".k."),
    (r"\.(?:to_v|value)\.", ".v."),
    (r"^quant_conv\.", "to_codes."),
    (r"^post_quant_conv\.", "from_codes."),
    (r"^quantize\.embedding\.weight$", "quantiser.codebook"),
)
AMUSED = (8192, 64)  # codes and their dimensions: the one VQModel without attention whose pipeline has pixels in 0..1
TYPES = {"DownEncoderBlock2D", "AttnDownEncoderBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D"}


class Family(NamedTuple):
    """Those who wrote it, and what no weight tells: whether codes are compared on the unit sphere."""

    name: str
    unit: bool = False


TAMING = Family("taming-transformers")
LLAMAGEN = Family("LlamaGen", unit=True)
DIFFUSERS = Family("diffusers")
MASKGIT = Family("MaskGIT (1d-tokenizer)")


def family_of(tensors: Mapping[str, Tensor]) -> Family:
    """Who wrote it, by how parts are named."""
    if any(".conv_blocks." in name for name in tensors):
        return LLAMAGEN
    if any(".down_blocks." in name for name in tensors):
        return DIFFUSERS
    is_maskgit = any(name.startswith("encoder.mid.0.") for name in tensors) and "quant_conv.weight" not in tensors
    return MASKGIT if is_maskgit else TAMING


def translate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under our names and in our shapes."""
    ours: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for theirs, replacement in NAMES:
            name = re.sub(theirs, replacement, name)
        is_linear = name.startswith(("to_codes.", "from_codes.")) or re.search(r"\.(?:q|k|v|out_proj)\.", name)
        ours[name] = tensor.float().flatten(1) if is_linear and tensor.ndim == 4 else tensor.float()
    if any(name.startswith("decoder.up.") for name in tensors):
        ours = {coarsest_first(name, count_of(ours, "decoder.levels")): tensor for name, tensor in ours.items()}
    for name in [name for name in ours if ".q." in name]:
        parts = [ours.pop(name.replace(".q.", f".{part}.")) for part in "qkv"]
        ours[name.replace(".q.", ".qkv_proj.")] = torch.cat(parts)
    if family_of(tensors) is MASKGIT:  # its encoder's output is compared with the codes as it is
        dim = ours["quantiser.codebook"].shape[1]
        for linear in ("to_codes", "from_codes"):
            ours |= {f"{linear}.weight": torch.eye(dim), f"{linear}.bias": torch.zeros(dim)}
    return ours


def coarsest_first(name: str, levels: int) -> str:
    """The name with the decoder's level counted from the other end."""
    return re.sub(r"^decoder\.levels\.(\d+)", lambda match: f"decoder.levels.{levels - 1 - int(match[1])}", name)


def count_of(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many modules are numbered under `prefix`."""
    numbers = [re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in tensors]
    return 1 + max((int(match[1]) for match in numbers if match), default=-1)


def model_of(ours: Mapping[str, Tensor], family: Family, library: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration whose tokenizer has these weights, read off their shapes.

    library: diffusers' configuration where there is one, for what no shape tells. Raises KeyError naming a weight that
    is missing, and ValueError where the configuration is of another model, or of one that cannot be had.
    """
    codes, dim = ours["quantiser.codebook"].shape
    channels, inputs = ours["encoder.conv_in.weight"].shape[:2]
    if inputs != 3 or (outputs := len(ours["decoder.conv_out.weight"])) != 3:
        raise ValueError(f"it takes {inputs} channels in: only RGB, 3 in and out, can be taken over" if inputs != 3 else
                         f"it gives {outputs} channels: only RGB, 3 in and out, can be taken over")  # fmt: skip
    levels = count_of(ours, "encoder.levels")
    widths = [len(ours[f"encoder.levels.{level}.blocks.0.conv2.weight"]) for level in range(levels)]
    backbone: dict[str, Any] = {
        "kind": "maskgit" if family is MASKGIT else "resnet",
        "channels": channels,
        "multipliers": [width / channels if width % channels else width // channels for width in widths],
        "blocks": count_of(ours, "encoder.levels.0.blocks"),
        "width": ours["decoder.conv_in.weight"].shape[1],
    }
    if family is not MASKGIT:
        backbone |= attention_of(ours, levels)
    if family is DIFFUSERS:
        backbone["unit_pixels"] = (codes, dim) == AMUSED and not backbone["middle_attention"]
        backbone |= untold(library, widths, codes)
    return {"backbone": backbone, "quantiser": {"kind": "vector", "codes": codes, "dim": dim, "unit": family.unit}}


def attention_of(ours: Mapping[str, Tensor], levels: int) -> dict[str, Any]:
    """Where there is attention: options of the ResNet backbone."""
    encoder = [level for level in range(levels) if count_of(ours, f"encoder.levels.{level}.attentions")]
    decoder = [level for level in range(levels) if count_of(ours, f"decoder.levels.{levels - 1 - level}.attentions")]
    return {
        "attention": encoder,
        "decoder_attention": None if decoder == encoder else decoder,
        "middle_attention": any(name.startswith("encoder.middle.1.") for name in ours),
    }


def untold(library: Mapping[str, Any], widths: list[int], codes: int) -> dict[str, Any]:
    """Options of the ResNet backbone that no shape tells, of diffusers' configuration; ValueError where it misfits."""
    if not library:
        return {}
    if (name := library["_class_name"]) != "VQModel":
        raise ValueError(f"its config.json is of {name}: of diffusers, only VQModel can be taken over")
    if library.get("norm_type", "group") != "group":
        raise ValueError(f"its norm_type is {library['norm_type']!r} (MOVQ): only 'group' can be taken over")
    strange = {*library.get("down_block_types", ()), *library.get("up_block_types", ())} - TYPES
    if strange:
        raise ValueError(
            f"its blocks {', '.join(sorted(strange))} cannot be taken over: only {', '.join(sorted(TYPES))}"
        )
    found = {"block_out_channels": widths, "num_vq_embeddings": codes}
    for key, value in found.items():
        if key in library and library[key] != value:
            raise ValueError(
                f"the config.json beside it is of another model: {key} {library[key]}, the weights {value}"
            )
    activation = {"swish": "silu"}.get(name := str(library.get("act_fn", "silu")).lower(), name)
    if activation not in ACTIVATIONS:
        raise ValueError(f"its act_fn {name!r} cannot be taken over: only {', '.join(ACTIVATIONS)}")
    return {"activation": activation, "groups": library.get("norm_num_groups", 32)}
