"""A run directory: what training leaves on disk, saved so that a kill at any instant harms nothing.

    config.yaml  images.json  metrics.jsonl  {model,ema,best,early}.safetensors  samples/*.png
    state/<images seen>/  model.safetensors  ema.safetensors  training.pt  manifest.json

Each `state/<images seen>/` is whole: it is written under another name and appears by rename. The newest two are kept,
so that one that was damaged on the disk (its manifest tells) leaves one to go back to. `model.safetensors` and
`ema.safetensors` are links to the newest state's, for those who want weights only. `best.safetensors` are averaged
weights of the moment that did best on held-out data. Of stage two, `early-SHARE.safetensors` are those of moments early
in the training, and `early.safetensors` is the one of them that autoguidance draws against.
"""

import json
import logging
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.config import Config, completed, parse_yaml, save_config
from shared.disk.atomic import flush, write_atomically, write_text
from shared.disk.lock import hold
from shared.disk.manifest import Damaged, check_manifest, read_manifest, sha256, write_manifest
from shared.errors import UserError
from shared.options.commands import command_of

log = logging.getLogger(__name__)

RUNS = Path("runs")
TRAINERS = {"tokenizer": "stage1_tokenizer", "prior": "stage2_prior"}
IMAGES = "images.json"  # what a tokenizer was trained on
DRAWING = "drawing.json"  # how a prior is best drawn from, where its training or a search left it
WEIGHTS = ("model.safetensors", "ema.safetensors")
BEST = "best.safetensors"
EARLY = "early.safetensors"
KEPT = 2  # states


class State(NamedTuple):
    """A checkpoint: weights, averaged weights, and what else training resumes from."""

    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    training: dict[str, Any]


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
            before, now = flat(completed(read_yaml(saved), type(config))), flat(config.model_dump(mode="json"))
            keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
            changed = [f"  {key}: {before.get(key)!r} -> {now.get(key)!r}" for key in keys if key not in may_change]
            if changed and self.newest() is not None:
                raise UserError(
                    f"{self.path} holds a run with another configuration:\n" + "\n".join(changed) + "\n"
                    "give this one a name of its own (name=...), or remove that directory"
                )
        write_atomically(saved, lambda temporary: save_config(config, temporary))

    def check_images(self, count: int, contents: str, description: str) -> None:
        """Remember what images this run is trained on, or check that they are those it was begun on.

        contents: their hash (`ImageSource.contents`). description: what and whose they are, for a card. Raises
        UserError where they changed since the last checkpoint.
        """
        file, now = self.path / IMAGES, {"images": count, "contents": contents}
        before = _read_json(file)
        known = before and {key: before.get(key) for key in now}
        if known is not None and known != now and self.states():
            raise UserError(
                f"the images of {self.path} are not those it was begun on: it had {known.get('images')}, now it has "
                f"{count}, or some have other names, classes or sizes. Resumed, it would not be the same run: put "
                f"them back, or start another run (name=...). To resume with them all the same, remove {file}"
            )
        write_text(json.dumps(now | {"source": description}) + "\n", file)

    def _lock(self) -> None:
        hold(self.path / ".lock", f"another process is training {self.path}: wait for it, or give a name=...")

    def states(self) -> list[Path]:
        """The states in the directory, newest first."""
        found = self.state.iterdir() if self.state.is_dir() else ()
        numbered = [path for path in found if path.name.isdecimal()]
        return sorted(numbered, key=lambda path: int(path.name), reverse=True)

    def newest(self) -> Path | None:
        """The newest state, or None."""
        return next(iter(self.states()), None)

    def state_after(self, images: int) -> Path:
        """Where the state after `images` images is, or will be."""
        return self.state / f"{images:012d}"

    def save(self, images: int, model: dict[str, Tensor], ema: dict[str, Tensor], training: dict[str, Any]) -> None:
        """Publish a checkpoint taken after `images` images; older ones than the one before go once it is whole."""
        temporary = self.state / f"unfinished-{os.getpid()}"
        state = self.state_after(images)
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in model.items()}, temporary / WEIGHTS[0])
            save_file({name: tensor.contiguous() for name, tensor in ema.items()}, temporary / WEIGHTS[1])
            torch.save(training, temporary / "training.pt")
            write_manifest(temporary)
            shutil.rmtree(state, ignore_errors=True)  # there only if it was found damaged
            temporary.rename(state)
            flush(self.state)
            self.publish(state)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch.save's own writer raises RuntimeError
            shutil.rmtree(temporary, ignore_errors=True)
            raise UserError(
                f"the checkpoint after {images} images could not be written to {self.state}: {error}. The one before "
                "is whole: make room and start the same command again"
            ) from None
        self._remove_others(state)

    def _remove_others(self, state: Path) -> None:
        """Keep `state` and the states right before it; one after it was damaged, and left behind."""
        kept = [other for other in self.states() if other.name <= state.name][:KEPT]
        for old in list(self.state.iterdir()):
            if old in kept:
                continue
            if old.name.isdecimal():  # a kill halfway through must leave nothing that looks like a state
                old = old.rename(old.with_name(f"removed-{old.name}"))
            shutil.rmtree(old, ignore_errors=True)

    def publish(self, state: Path) -> None:
        """Point the run's weights at a state's: also after a kill between the state's renaming and this."""
        for name in WEIGHTS:
            write_atomically(self.path / name, partial(_link, state / name))

    def keep(self, ema: dict[str, Tensor], name: str) -> None:
        """Keep weights for inference beside the checkpoints, as `BEST` or `EARLY`; a resume does not need them."""
        weights = {name: tensor.contiguous() for name, tensor in ema.items()}
        try:
            write_atomically(self.path / name, partial(save_file, weights))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.path / name} could not be written: {error}. Make room") from None

    def load(self, state: Path) -> State:
        """Read a state; nothing in it can execute code. Raises Damaged where it is not what was saved."""
        check_manifest(state)
        try:
            training = torch.load(state / "training.pt", map_location="cpu", weights_only=True)
            return State(load_file(state / WEIGHTS[0]), load_file(state / WEIGHTS[1]), training)
        except Exception as error:  # unpickling what is no checkpoint raises nearly anything
            raise Damaged(f"it cannot be read ({type(error).__name__}: {error})") from None

    def load_newest(self) -> tuple[Path, State] | None:
        """The newest whole state, saying so where a newer one is damaged; None before the first.

        Raises UserError where there are states, and none is whole.
        """
        damaged = []
        for directory in self.states():
            try:
                state = self.load(directory)
            except Damaged as damage:
                damaged.append(f"{directory} is damaged: {damage}")
                continue
            if damaged:
                log.warning("%s. Going on from %s instead", "; ".join(damaged), directory)
            return directory, state
        if damaged:
            raise UserError(
                f"no checkpoint of {self.path} is whole: {'; '.join(damaged)}. Bring them back from a copy, or remove "
                f"{self.state} to begin this run again"
            )
        return None

    def check_published(self, name: str) -> None:
        """UserError where the weights `name` are not those of a state beside them: a disk or a copy altered them.

        Weights that were copied without the states cannot be checked.
        """
        if not self.states():
            return
        digest = sha256(self.path / name)
        if not any(_digest_in(state, name) == digest for state in self.states()):
            raise UserError(
                f"{self.path / name} is not what training wrote (its SHA-256 is in no manifest.json under "
                f"{self.state}): start the training again, which goes back to the newest whole checkpoint"
            )


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping written by `save_config`; UserError where it is none."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold a configuration")
    return values


def runs_holding(stage: str, file: str) -> list[Path]:
    """The runs of `stage` ("tokenizer" or "prior") under `runs/` that hold `file`, in the order in which they were
    started or resumed.
    """
    found = [config for config in (RUNS / stage).glob("*/config.yaml") if (config.parent / file).exists()]
    return [config.parent for config in sorted(found, key=lambda config: config.stat().st_mtime)]


def newest_run(stage: str, file: str, otherwise: Path | None = None) -> Path:
    """The last of `runs_holding`. Where there is none, `otherwise`; UserError where that is None."""
    found = runs_holding(stage, file)
    if not found and otherwise:
        return otherwise
    if not found:
        raise UserError(
            f"no run under {RUNS / stage} holds {file}: train one first, with {command_of(f'train-{stage}')} "
            f"(in a clone: make {stage})"
        )
    return found[-1]


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _digest_in(state: Path, name: str) -> str | None:
    try:
        return read_manifest(state).get(name, {}).get("sha256")
    except Damaged:
        return None
