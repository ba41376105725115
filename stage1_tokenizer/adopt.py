"""Take over a published VQGAN as a tokenizer: python -m stage1_tokenizer.adopt CHECKPOINT --name NAME [key=value ...]

Reads checkpoints of taming-transformers, LlamaGen, diffusers' VQModel (the folder, or its file of weights) and
MaskGIT's VQGAN of 1d-tokenizer: safetensors, or what torch.save wrote, of which nothing is run. Writes
runs/tokenizer/NAME/, which caches, detokenizes and primes a prior like a run trained here. Keys are those of a
tokenizer's configuration; say at least which images to cache: data.source=~/pictures data.image_size=256
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from shared.config import parse_config
from shared.disk.outputs import check_writable
from shared.errors import UserError, run_command
from shared.runs.run_directory import RUNS, RunDirectory
from shared.runs.weights import load_strictly
from shared.training.devices.accelerator import make_accelerator
from shared.training.trainee import Trainee
from stage1_tokenizer.adopting.families import Family, family_of, model_of, translate
from stage1_tokenizer.adopting.files import find_weights, flatten, is_safetensors, read_config, read_safetensors
from stage1_tokenizer.adopting.pickles import RunsCode, read_pickle
from stage1_tokenizer.adopting.strangers import ADOPTABLE, CODEBOOK, stranger
from stage1_tokenizer.backbones.maskgit import MaskGITConfig
from stage1_tokenizer.backbones.resnet import ResNetConfig
from stage1_tokenizer.run_config import TokenizerRun
from stage1_tokenizer.tokenizer import Tokenizer, TokenizerConfig

DEFAULT_IMAGES = 100_000  # where it is trained on and nothing else is said
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", CODEBOOK)  # all else trains only
AVERAGED = re.compile(r"(?:^|[._])ema(?:[._]|$)")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's tokenizer by name; of averaged weights where it has both.

    Raises UserError where there are none, and where they are of something else.
    """
    try:
        tensors = flatten(read_safetensors(path) if is_safetensors(path) else read_pickle(path))
    except RunsCode as error:
        raise UserError(
            f"{path} runs code when it is read ({error}), which a checkpoint has no use for. Nothing of it was run and "
            "nothing is taken: have whoever you trust with it write safetensors"
        ) from None
    except (SafetensorError, ValueError) as error:
        raise UserError(
            f"{path} is not a checkpoint that can be read: {error}. Was the download cut short? What can be read is "
            "safetensors, and what torch.save wrote"
        ) from None
    prefix = prefix_of(list(tensors), path)
    tensors = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if what := stranger(tensors):
        raise UserError(f"{path} is {what}. {ADOPTABLE}")
    if CODEBOOK not in tensors:
        raise UserError(f"{path} is not a VQGAN that is known here: no {CODEBOOK} in it. {ADOPTABLE}")
    return {name: value for name, value in tensors.items() if name.startswith(PARTS)}


def prefix_of(names: Sequence[str], path: Path) -> str:
    """What the names of the tokenizer's weights begin with; UserError where several tokenizers are in the file."""
    prefixes = {name.removesuffix(CODEBOOK) for name in names if re.search(rf"(?:^|\.){re.escape(CODEBOOK)}$", name)}
    chosen = sorted(prefix for prefix in prefixes if AVERAGED.search(prefix)) or sorted(prefixes)
    if len(chosen) > 1:
        raise UserError(f"{path} holds several tokenizers ({', '.join(chosen)}): save the weights of the one you mean")
    if others := sorted(prefixes - set(chosen)):
        print(f"{path}: the averaged weights ({chosen[0]}) are taken, and not the others ({', '.join(others)})")
    return chosen[0] if chosen else ""


def adopt(checkpoint: Path, name: str, overrides: Sequence[str] = ()) -> RunDirectory:
    """Write the run of a published checkpoint, a file or a folder, and print what it was understood to be.

    The run stands at 0 images of its training: it can be used as it is, or trained on. Raises UserError where it is no
    tokenizer that can be taken over, or `name` is taken.
    """
    run = RunDirectory(RUNS / "tokenizer" / name)
    if run.path.exists():
        raise UserError(f"{run.path} is there already: choose another --name, or remove it")
    path = find_weights(checkpoint)
    tensors = read_checkpoint(path)
    family = family_of(tensors)
    try:
        weights = translate(tensors)
        model = model_of(weights, family, read_config(path.with_name("config.json")))
    except KeyError as error:
        raise UserError(f"{path} is not a VQGAN that is known here: no {error} in it. {ADOPTABLE}") from None
    except ValueError as error:
        raise UserError(f"{path} cannot be taken over: {error}") from None
    values = {"name": name, "model": model, "training": {"images": DEFAULT_IMAGES}}
    config = parse_config(TokenizerRun, values, where=f"the tokenizer of {path}", overrides=overrides)
    tokenizer = Tokenizer(config.model)
    tokenizer.quantiser.initialised = True
    check_whole(tokenizer, weights, path)
    load_strictly(tokenizer, tokenizer.state_dict() | weights, path)
    run.begin(config, may_change=set())
    Trainee(tokenizer, config.training, make_accelerator()).save(run)
    print(f"{path}: {description(config.model, family)}")
    return run


def check_whole(tokenizer: Tokenizer, weights: Mapping[str, Tensor], path: Path) -> None:
    """UserError where a weight of the network is missing, or one is there that it has no place for."""
    needed = {name for name, _ in tokenizer.named_parameters()}
    for problem, names in (("no", needed - set(weights)), ("no place for", set(weights) - needed)):
        if names:
            some = ", ".join(sorted(names)[:3])
            raise UserError(
                f"{path} is not a VQGAN that is known here: {problem} {some} (as named here) in it. {ADOPTABLE}"
            )


def description(model: TokenizerConfig, family: Family) -> str:
    """What was understood, with what no weight tells."""
    backbone, codes = model.backbone, model.quantiser
    unit_pixels = isinstance(backbone, MaskGITConfig) or (isinstance(backbone, ResNetConfig) and backbone.unit_pixels)
    pixels = "0..1" if unit_pixels else "-1..1"
    hint = " (model.backbone.unit_pixels says otherwise)" if isinstance(backbone, ResNetConfig) else ""
    return (
        f"a VQGAN of {family.name}, {codes.codes:,} codes of {codes.dim} numbers, {backbone.patch} x {backbone.patch} "
        f"pixels a token; the nearest code is {'on the unit sphere' if family.unit else 'by Euclidean distance'}, and "
        f"pixels are {pixels}{hint}"
    )


def main() -> None:
    """Read the command line, take over, say what was written."""
    parser = argparse.ArgumentParser(prog="python -m stage1_tokenizer.adopt", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="a file of weights under any name, or a folder of diffusers")
    parser.add_argument("--name", required=True, help="name of the run to write, runs/tokenizer/NAME")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.source=~/pictures")
    args = parser.parse_intermixed_args()
    check_writable(RUNS / "tokenizer" / args.name)
    run = adopt(args.checkpoint, args.name, args.overrides)
    print(
        f"wrote {run.path}\n"
        f"next: python -m stage1_tokenizer.evaluate --tokenizer {run.path}    (how well it does on your images)\n"
        f"      python -m stage1_tokenizer.cache --tokenizer {run.path}       (then a prior on its tokens)"
    )


if __name__ == "__main__":
    run_command(main)
