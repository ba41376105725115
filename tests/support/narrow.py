"""What a test knows and a type does not: that a value is there, and of which kind a part of a model is."""

from typing import TypeVar

from torch import nn

T = TypeVar("T")
Module = TypeVar("Module", bound=nn.Module)


def present(value: T | None) -> T:
    """The value, which must not be None: a gradient after `backward`, the newest state of a run that was saved."""
    assert value is not None
    return value


def part(module: nn.Module, path: str, kind: type[Module]) -> Module:
    """The module at a dotted path, which must be of that kind."""
    found = module.get_submodule(path)
    assert isinstance(found, kind)
    return found
