"""Which file holds the weights, what kind of file it is by its content, and the tensors in it by name."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load, load_file
from torch import Tensor

from shared.errors import UserError

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")  # what a folder's weights may be called, best first
VQ_MODEL = "VQModel"  # of the folders of a diffusers pipeline, the one to take
# Parts of names that only say how a model was wrapped while it was trained or pickled.
WRAPPERS = re.compile(
    r"(?:^|(?<=\.))"
    r"(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_modules|_parameters|_buffers)\."
)
# What is downloaded by mistake, by how it begins.
MISTAKES = (
    (rb"version https://git-lfs", "a Git LFS pointer and not the file itself: fetch that with `git lfs pull`"),
    (rb"\s*(?:<!DOCTYPE|<html|<\?xml)", "a web page and not a checkpoint: the download did not work, look at the page"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!", "a compressed archive: unpack it first"),
    (rb".{257}ustar", "a tar archive (of torch before 0.1.10, if it is a checkpoint): unpack it first"),
    (rb"\x89HDF", "an HDF5 file of Keras: only weights of PyTorch can be taken over"),
    (rb"GGUF", "a GGUF file of a language model"),
    (rb"\s*[{\[]", "a JSON file and not weights"),
)


def find_weights(path: Path) -> Path:
    """`path`, or the one file of weights in the folder `path`. UserError where there is none, or several."""
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder")
    if path.is_file():
        return path
    if (path / "model_index.json").is_file():
        configs = [file for file in path.glob("*/config.json") if read_config(file).get("_class_name") == VQ_MODEL]
        if not configs:
            raise UserError(f"{path} is a pipeline of diffusers without a {VQ_MODEL} in it")
        path = configs[0].parent
    for suffix in SUFFIXES:
        found = sorted(path.glob(f"*{suffix}"))
        # diffusers keeps variants beside the file itself: diffusion_pytorch_model.fp16.safetensors
        plain = [file for file in found if "." not in file.name.removesuffix(suffix)] or found
        if len(plain) > 1:
            raise UserError(f"{path} holds several files of weights: give one ({', '.join(f.name for f in plain)})")
        if plain:
            return plain[0]
    raise UserError(f"{path} holds no weights (a file that ends in {', '.join(SUFFIXES)}): give the file itself")


def read_config(path: Path) -> dict[str, Any]:
    """The configuration that diffusers keeps beside weights; empty where there is none. UserError if it is damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} is not JSON that can be read ({error}): fetch it again, or remove it") from None
    return values if isinstance(values, dict) and "_class_name" in values else {}


def is_safetensors(path: Path) -> bool:
    """Whether the file is that and not a pickle; UserError where it is plainly neither."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise UserError(f"{path} is empty: the download did not work, fetch it again")
    for start, what in MISTAKES:
        if re.match(start, head, re.DOTALL):
            raise UserError(f"{path} is {what}")
    return head[8:9] == b"{"  # 8 bytes say how long the header is, and that is JSON


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors by name; the library takes no path that is not UTF-8."""
    is_utf8 = os.fsencode(path).decode(errors="ignore") == str(path)
    return load_file(path) if is_utf8 else load(path.read_bytes())


def flatten(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of dictionaries in dictionaries, each under its path without wrappers: `state_dict.encoder...`."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    rest: list[tuple[str, Any]] = [("", values)]
    while rest:
        path, value = rest.pop()
        if isinstance(value, Tensor):
            found[WRAPPERS.sub("", path)] = value
        elif isinstance(value, Mapping) and id(value) not in seen:
            seen.add(id(value))
            inner = [(f"{path}.{name}" if path else name, part) for name, part in value.items() if type(name) is str]
            rest += reversed(inner)
    return found
