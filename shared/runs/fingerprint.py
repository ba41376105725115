"""A hash of a model's weights, by which tokens and their tokenizer are matched."""

import hashlib

import torch
from torch import Tensor, nn

TOKENIZING = ("encoder", "to_codes", "quantiser")  # the parts of a tokenizer that its tokens depend on


def fingerprint(model: nn.Module) -> str:
    """A hash of every weight's name, type, shape and bytes: equal for equal weights, whatever file they came from."""
    return fingerprint_of(model.state_dict())


def tokenizing_fingerprint(tensors: dict[str, Tensor]) -> str:
    """The hash of those weights of a tokenizer that its tokens depend on: equal tokens, whatever then decodes them."""
    return fingerprint_of({name: tensor for name, tensor in tensors.items() if name.split(".")[0] in TOKENIZING})


def fingerprint_of(tensors: dict[str, Tensor]) -> str:
    """The same of tensors by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
