"""A run directory: what training leaves on disk, saved so that a kill at any instant harms nothing.

    config.yaml  metrics.jsonl  {model,ema,best}.safetensors  samples/*.png  state/<images seen>/

Each `state/<images seen>/` is whole: it is written under another name and appears by rename, and the one before is
removed only afterwards. `model.safetensors` and `ema.safetensors` are links to the newest state's, for those who want
weights only. `best.safetensors` are averaged weights of the moment that did best on held-out data (stage two only).
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared.config import C, Config, parse_config, save_config
from shared.errors import UserError

RUNS = Path("runs")
_LOCKS: dict[Path, TextIO] = {}  # held until the process ends
WEIGHTS = ("model.safetensors", "ema.safetensors")
BEST = "best.safetensors"


class RunDirectory:
    """The directory of one training run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = path / "state"
        self.samples = path / "samples"
        self.metrics = path / "metrics.jsonl"

    def begin(self, config: Config, may_change: set[str]) -> None:
        """Create the directory, or check that a run begun earlier had the same configuration.

        Keys in `may_change` (dotted) do not alter the run so far and may differ; UserError names each other that does.
        """
        try:
            self.samples.mkdir(parents=True, exist_ok=True)
            self.state.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write a run to {self.path}: {error}; choose another name=...") from None
        self._lock()
        saved = self.path / "config.yaml"
        if saved.exists():
            before, now = flat(read_yaml(saved)), flat(config.model_dump(mode="json"))
            keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
            changed = [f"  {key}: {before.get(key)!r} -> {now.get(key)!r}" for key in keys if key not in may_change]
            if changed and self.newest() is not None:
                raise UserError(
                    f"{self.path} holds a run with another configuration:\n" + "\n".join(changed) + "\n"
                    "give this one a name of its own (name=...), or remove that directory"
                )
        write_atomically(saved, lambda temporary: save_config(config, temporary))

    def _lock(self) -> None:
        """Keep other processes of this machine from training the same run; the lock ends with the process."""
        if self.path.resolve() in _LOCKS:
            return
        lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process is training {self.path}: wait for it, or give a name=...") from None
        _LOCKS[self.path.resolve()] = lock

    def newest(self) -> Path | None:
        """The newest whole state, or None."""
        if not self.state.is_dir():
            return None
        states = [path for path in self.state.iterdir() if path.name.isdecimal()]
        return max(states, key=lambda path: int(path.name), default=None)

    def state_after(self, images: int) -> Path:
        """Where the state after `images` images is, or will be."""
        return self.state / f"{images:012d}"

    def save(self, images: int, model: dict[str, Tensor], ema: dict[str, Tensor], training: dict[str, Any]) -> None:
        """Publish a checkpoint taken after `images` images; the earlier ones are removed once it is whole."""
        temporary = self.state / f"unfinished-{os.getpid()}"
        place = self.state_after(images)
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in model.items()}, temporary / WEIGHTS[0])
            save_file({name: tensor.contiguous() for name, tensor in ema.items()}, temporary / WEIGHTS[1])
            torch.save(training, temporary / "training.pt")
            for file in temporary.iterdir():
                _flush(file)
            temporary.rename(place)
            self.publish(place)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch.save's own writer raises RuntimeError
            shutil.rmtree(temporary, ignore_errors=True)
            raise UserError(
                f"the checkpoint after {images} images could not be written to {self.state}: {error}. The one before "
                "is whole: make room and start the same command again"
            ) from None
        for old in self.state.iterdir():
            if old != place:
                shutil.rmtree(old, ignore_errors=True)

    def publish(self, state: Path) -> None:
        """Point the run's weights at a state's: also after a kill between the state's renaming and this."""
        for name in WEIGHTS:
            write_atomically(self.path / name, partial(_link, state / name))

    def save_best(self, ema: dict[str, Tensor]) -> None:
        """Keep weights for inference beside the checkpoints; a resume does not need them."""
        weights = {name: tensor.contiguous() for name, tensor in ema.items()}
        try:
            write_atomically(self.path / BEST, partial(save_file, weights))
        except (OSError, SafetensorError) as error:
            raise UserError(f"the best weights could not be written to {self.path}: {error}. Make room") from None

    def load(self, state: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """(model, ema, training) of a state; nothing in it can execute code."""
        try:
            training = torch.load(state / "training.pt", map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"{state / 'training.pt'} cannot be read: {error}. Remove {state} to go back") from None
        return read_weights(state / WEIGHTS[0]), read_weights(state / WEIGHTS[1]), training


def load_for_inference(
    run: Path, key: str, config: type[C], build: Callable[[C], nn.Module], weights: str = WEIGHTS[1]
) -> Any:
    """The model of a run with its averaged weights, in eval mode: `build(config)` of the part `key` of its config.yaml.

    Raises UserError where the run or a part of it is missing or does not fit.
    """
    if not (run / "config.yaml").is_file() or not (run / weights).exists():
        raise UserError(f"{run} holds no finished checkpoint (config.yaml and {weights} are needed)")
    saved = read_yaml(run / "config.yaml")
    model = build(parse_config(config, saved.get(key), where=f"{run / 'config.yaml'}, {key}"))
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


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping written by `save_config`; UserError where it is none."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold a configuration")
    return values


def fingerprint(model: nn.Module) -> str:
    """A hash of every weight's name, type, shape and bytes: equal for equal weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def newest_run(stage: str, file: str) -> Path:
    """The run of `stage` ("tokenizer" or "prior") under `runs/` that was trained last and holds `file`."""
    found = [config.parent for config in (RUNS / stage).glob("*/config.yaml") if (config.parent / file).exists()]
    if not found:
        raise UserError(f"no run under {RUNS / stage} holds {file}: run `make {stage}` first")
    return max(found, key=lambda run: (run / "config.yaml").stat().st_mtime)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """`write(temporary)` makes the file under another name; it then takes `path`'s place in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        write(temporary)
        _flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
