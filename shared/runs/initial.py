"""Weights that a training begins with, of a model that was trained before."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.runs.run_directory import WEIGHTS
from shared.runs.weights import read_weights
from shared.text import shown

NAMED = 4  # weights that a message names


def start_from(
    model: nn.Module,
    run: Path,
    without: Sequence[str] = (),
    whole: Sequence[str] = (),
    needed: Sequence[str] = (),
    rows: Mapping[str, int] = MappingProxyType({}),
) -> str:
    """Give `model` the averaged weights of a run that fit it by name and shape; says which did not, in a line.

    without: weights, or parts of the model, that begin at random all the same. whole: parts of which all weights are
    taken, or none. needed: parts of which all weights must be taken. rows: of these weights, only so many rows are.
    Raises UserError where the run has no weights, or none of them fits, or one that is needed does not, or there is
    nothing that `without` names.
    """
    before, after = read_weights(_weights_of(run)), model.state_dict()
    for part in without:
        if not any(_is_in(name, part) for name in after):
            raise UserError(f"init_without={part}: the model has no such part; it has {', '.join(_parts(after))}")
    taken = {name: weight for name, weight in before.items() if name in after and not _in_any(name, without)}
    fitting = {name: _fitted(weight, after[name], rows.get(name, 0)) for name, weight in taken.items()}
    found = {name: weight for name, weight in fitting.items() if weight is not None}
    missing = [name for name in after if name not in found]
    if wanting := [name for name in missing if _in_any(name, needed)]:
        raise UserError(
            f"init={run}: {', '.join(needed)} must stay as in there, and {', '.join(wanting[:NAMED])} are not there or "
            "have another shape: give this model the `model` of that run, and no init_without"
        )
    for part in whole:
        if any(_is_in(name, part) for name in missing):
            found = {name: weight for name, weight in found.items() if not _is_in(name, part)}
    if not found:
        raise UserError(f"init={run}: none of its weights fits this model: give a run whose `model` is like this one's")
    model.load_state_dict(found, strict=False)
    return _said(run, len(found), [name for name in after if name not in found])


def _weights_of(run: Path) -> Path:
    file = run / WEIGHTS[1]
    if not file.exists():
        raise UserError(f"init={run}: it holds no {WEIGHTS[1]}, which a run has from its first checkpoint on")
    return file


def _fitted(weight: Tensor, wanted: Tensor, rows: int) -> Tensor | None:
    """A weight as the model has it, or the first rows of it in place of the model's; None where it does not fit."""
    if weight.shape == wanted.shape and not rows:
        return weight.to(wanted.dtype)
    if not rows or weight.shape[1:] != wanted.shape[1:] or min(len(weight), len(wanted)) < rows:
        return None
    return torch.cat([weight[:rows].to(wanted), wanted[rows:]])


def _is_in(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _in_any(name: str, parts: Sequence[str]) -> bool:
    return any(_is_in(name, part) for part in parts)


def _parts(names: Iterable[str]) -> list[str]:
    return sorted({name.split(".")[0] for name in names})


def _said(run: Path, taken: int, others: Sequence[str]) -> str:
    line = f"weights: {taken} begin as in {shown(str(run))}"
    if not others:
        return line
    more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
    return f"{line}; {len(others)} begin at random: {', '.join(others[:NAMED])}{more}"
