"""Loading weights: strictly, and without running anything that is in a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from shared.config import C
from shared.errors import UserError
from shared.runs.run_directory import WEIGHTS, RunDirectory, read_yaml


def load_for_inference(
    run: Path, key: str, parse: Callable[[Any, str], C], build: Callable[[C], nn.Module], weights: str = WEIGHTS[1]
) -> Any:
    """The model of a run with its averaged weights, in eval mode: `build(config)` of the part `key` of its config.yaml.

    parse: makes the configuration of its plain values and their origin, and raises UserError where it cannot.
    Raises UserError where the run or a part of it is missing or does not fit.
    """
    if not run.is_dir():
        there = ", ".join(sorted(other.parent.name for other in run.parent.glob("*/config.yaml")))
        raise UserError(f"there is no run {run}{f': {run.parent} holds {there}' if there else ''}")
    if not (run / "config.yaml").is_file() or not (run / weights).exists():
        raise UserError(f"{run} holds no finished checkpoint (config.yaml and {weights} are needed)")
    saved = read_yaml(run / "config.yaml")
    model = build(parse(saved.get(key), f"{run / 'config.yaml'}, {key}"))
    if weights in WEIGHTS:
        RunDirectory(run).check_published(weights)
    load_strictly(model, read_weights(run / weights), run / weights)
    return model.eval()


def load_strictly(model: nn.Module, weights: dict[str, Tensor], where: Path) -> None:
    """Load every weight or raise UserError naming `where` and what does not fit."""
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UserError(f"the weights in {where} do not fit their configuration: {error}") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; UserError where it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the weights {path} cannot be read: {error}") from None
