"""Take over a published VQGAN as a tokenizer: python -m stage1_tokenizer.adopt CHECKPOINT --name NAME [key=value ...]

Reads checkpoints of taming-transformers and LlamaGen (safetensors, or a pickle of which only the tensors are read), and
writes runs/tokenizer/NAME/, which caches, detokenizes and primes a prior like a run trained here. Keys are those of a
tokenizer's configuration; say at least which images to cache: data.source=~/pictures data.image_size=256
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from shared.config import parse_config
from shared.errors import UserError, run_command
from shared.runs.run_directory import RUNS, RunDirectory
from shared.runs.weights import load_strictly
from shared.training.devices.accelerator import make_accelerator
from shared.training.trainee import Trainee
from stage1_tokenizer.run_config import TokenizerRun
from stage1_tokenizer.tokenizer import Tokenizer

# Our name for each part of a name of theirs, in this order. Levels of taming's decoder are counted from the finest.
NAMES = (
    (r"\.(?:down|up|conv_blocks)\.(\d+)\.", r".levels.\1."),
    (r"\.(?:block|res)\.(\d+)\.", r".blocks.\1."),
    (r"\.attn\.(\d+)\.", r".attentions.\1."),
    (r"\.(?:downsample|upsample)\.", ".resample."),
    (r"\.mid\.(?:block_1|0)\.", ".middle.0."),
    (r"\.mid\.(?:attn_1|1)\.", ".middle.1."),
    (r"\.mid\.(?:block_2|2)\.", ".middle.2."),
    (r"\.norm_out\.", ".norm."),
    (r"\.nin_shortcut\.", ".shortcut."),
    (r"\.proj_out\.", ".out_proj."),
    (r"^quant_conv\.", "to_codes."),
    (r"^post_quant_conv\.", "from_codes."),
    (r"^quantize\.embedding\.weight$", "quantiser.codebook"),
)
DEFAULT_IMAGES = 100_000  # where it is trained on and nothing else is said
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.embedding.")  # all else trains only


class Nothing:
    """Stands for every class that a pickle names: the tensors can be read, and no code of the pickle's runs."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Take anything."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name; of averaged weights where it has both. UserError where there are none."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        values: dict[str, Any] = dict(load_file(path)) if path.suffix == ".safetensors" else read_pickle(path)
    except UnpicklingError:
        raise UserError(f"{path} runs code when it is read: have whoever you trust with it write safetensors") from None
    except (SafetensorError, RuntimeError, ValueError, EOFError, TypeError) as error:
        raise UserError(f"{path} is not a checkpoint that can be read: {error}") from None
    for key in ("ema", "model", "state_dict"):
        values = values[key] if isinstance(values.get(key), Mapping) else values
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor) and name.startswith(PARTS)}
    if "quantize.embedding.weight" not in tensors:
        raise UserError(f"{path} is not a VQGAN of taming-transformers or LlamaGen: no quantize.embedding.weight in it")
    return tensors


def read_pickle(path: Path) -> dict[str, Any]:
    """What `torch.load` reads with `weights_only`, everything but tensors and plain values replaced by `Nothing`."""
    foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    with torch.serialization.safe_globals([(type(name, (Nothing,), {}), name) for name in foreign]):
        values = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(values, dict):
        raise ValueError(f"it holds a {type(values).__name__} instead of named tensors")
    return values


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
    return ours


def coarsest_first(name: str, levels: int) -> str:
    """The name with the decoder's level counted from the other end."""
    return re.sub(r"^decoder\.levels\.(\d+)", lambda match: f"decoder.levels.{levels - 1 - int(match[1])}", name)


def count_of(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many modules are numbered under `prefix`."""
    numbers = [re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in tensors]
    return 1 + max((int(match[1]) for match in numbers if match), default=-1)


def model_of(ours: Mapping[str, Tensor], unit: bool) -> dict[str, Any]:
    """The configuration whose tokenizer has these weights, read off their shapes."""
    levels = count_of(ours, "encoder.levels")
    widths = [ours[f"encoder.levels.{level}.blocks.0.conv2.bias"].numel() for level in range(levels)]
    channels = ours["encoder.conv_in.bias"].numel()
    codes, dim = ours["quantiser.codebook"].shape
    backbone = {
        "kind": "resnet",
        "channels": channels,
        "multipliers": [width // channels for width in widths],
        "blocks": count_of(ours, "encoder.levels.0.blocks"),
        "attention": [level for level in range(levels) if count_of(ours, f"encoder.levels.{level}.attentions")],
        "width": ours["to_codes.weight"].shape[1],
    }
    return {"backbone": backbone, "quantiser": {"kind": "vector", "codes": codes, "dim": dim, "unit": unit}}


def adopt(checkpoint: Path, name: str, overrides: Sequence[str] = ()) -> RunDirectory:
    """Write the run of a published checkpoint. Raises UserError where it is none, or `name` is taken.

    The run stands at 0 images of its training: it can be used as it is, or trained on.
    """
    run = RunDirectory(RUNS / "tokenizer" / name)
    if run.path.exists():
        raise UserError(f"{run.path} is there already: choose another --name, or remove it")
    tensors = read_checkpoint(checkpoint)
    weights = translate(tensors)
    # LlamaGen compares codes on the unit sphere, taming as they are; no weight tells.
    unit = any(".conv_blocks." in part for part in tensors)
    try:
        values = {"name": name, "model": model_of(weights, unit), "training": {"images": DEFAULT_IMAGES}}
    except KeyError as error:
        raise UserError(f"{checkpoint} is not a VQGAN of taming-transformers or LlamaGen: no {error} in it") from None
    config = parse_config(TokenizerRun, values, where=f"the tokenizer of {checkpoint}", overrides=overrides)
    tokenizer = Tokenizer(config.model)
    tokenizer.quantiser.initialised = True
    load_strictly(tokenizer, tokenizer.state_dict() | weights, checkpoint)
    run.begin(config, may_change=set())
    Trainee(tokenizer, config.training, make_accelerator()).save(run)
    return run


def main() -> None:
    """Read the command line, take over, say what was written."""
    parser = argparse.ArgumentParser(prog="python -m stage1_tokenizer.adopt", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="a .safetensors, .ckpt or .pt file")
    parser.add_argument("--name", required=True, help="of the run that is written, runs/tokenizer/NAME")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.source=~/pictures")
    args = parser.parse_intermixed_args()
    run = adopt(args.checkpoint, args.name, args.overrides)
    print(
        f"wrote {run.path}\n"
        f"next: python -m stage1_tokenizer.evaluate --tokenizer {run.path}    (how well it does on your images)\n"
        f"      python -m stage1_tokenizer.cache --tokenizer {run.path}       (then make prior)"
    )


if __name__ == "__main__":
    run_command(main)
