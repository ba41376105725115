"""The configurations of a plan's stages: valid ones, and the commented files that are trained from."""

from collections.abc import Sequence
from typing import Any

import yaml

from planning.choice.setting import Setting, nested, reasons
from planning.choice.stage import Stage, run_name
from shared.config import C, Config, parse_config
from shared.data.config import DataConfig
from stage1_tokenizer.run_config import TokenizerRun
from stage2_prior.run_config import PriorRun

EVALUATIONS, SAVES, LINES = 4, 20, 100  # of a training
WARM_UP = 1 / 8  # of a training, at most
# Keys of a tokenizer that are not for its decoder's training, with those below them.
FIRST_ONLY = ("init", "init_without", "loss.causal")


class _Data(Config):
    """The part of a tokenizer's configuration that can be read before anything else is chosen."""

    data: DataConfig


def data_config(source: str, changes: Sequence[str]) -> DataConfig:
    """How a source is read, with those of some changes that are about it. Raises UserError."""
    about_data = [change for change in changes if change.startswith("data.")]
    return parse_config(_Data, {"data": {"source": source}}, "the command line", about_data).data


def tokenizer_run(settings: Sequence[Setting], name: str, images: int, changes: Sequence[str] = ()) -> TokenizerRun:
    """Stage one of a plan, `images` long. Raises UserError where the settings cannot be used."""
    return _run(TokenizerRun, settings, run_name("tokenizer", name), images, of_stage("tokenizer", changes))[0]


def decoder_run(settings: Sequence[Setting], name: str, images: int, changes: Sequence[str] = ()) -> TokenizerRun:
    """The training of the decoder alone, `images` long. Raises UserError where the settings cannot be used."""
    return _run(TokenizerRun, settings, run_name("decoder", name), images, of_stage("decoder", changes))[0]


def prior_run(settings: Sequence[Setting], name: str, images: int, changes: Sequence[str] = ()) -> PriorRun:
    """Stage two of a plan, `images` token grids long. Raises UserError where the settings cannot be used."""
    return _run(PriorRun, settings, run_name("prior", name), images, of_stage("prior", changes))[0]


def of_stage(stage: Stage, changes: Sequence[str]) -> list[str]:
    """Those of some `key=value` that are for a stage, as its own configuration calls them.

    Those of the tokenizer are for its decoder too, which may then have its own.
    """
    own = [change.removeprefix(f"{stage}.") for change in changes if change.startswith(f"{stage}.")]
    if stage == "prior":
        return own
    others = [change for change in changes if not change.startswith(("prior.", "decoder."))]
    if stage == "tokenizer":
        return others
    return [*(change for change in others if not _first_only(change.partition("=")[0])), *own]


def _first_only(key: str) -> bool:
    return any(key == first or key.startswith(f"{first}.") for first in FIRST_ONLY)


def as_file(stage: Stage, settings: Sequence[Setting], name: str, images: int, changes: Sequence[str]) -> str:
    """A configuration as a YAML file that says why in its first lines, to be edited by hand. Raises UserError."""
    model = PriorRun if stage == "prior" else TokenizerRun
    _, values = _run(model, settings, run_name(stage, name), images, of_stage(stage, changes))
    comments = "".join(f"# {line}\n" for line in reasons(settings))
    return comments + yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)


def _shorten_warm_ups(values: dict[str, Any], run: Config, images: int) -> None:
    """Let what comes before a training proper take an eighth of it at most, in place. run: with the user's changes."""
    most = max(1, int(WARM_UP * images))
    training = values["training"]
    training["warm_up"] = min(training["warm_up"], most)
    if isinstance(run, TokenizerRun):
        (height, width), patch = run.data.height_width, run.model.backbone.patch
        vectors = most * (height // patch) * (width // patch)
        quantiser = values["model"]["quantiser"]
        quantiser["warm_up"] = min(quantiser["warm_up"], max(1, vectors // run.model.quantiser.codes))


def length_settings(images: int) -> list[Setting]:
    """How long a training is, and how often it logs, evaluates and saves."""
    return [
        Setting("training.images", images),
        Setting("training.log_every", max(1, images // LINES)),
        Setting("training.evaluate_every", max(1, images // EVALUATIONS)),
        Setting("training.save_every", max(1, images // SAVES)),
    ]


def _run(
    model: type[C], settings: Sequence[Setting], name: str, images: int, changes: Sequence[str]
) -> tuple[C, dict[str, Any]]:
    """A valid configuration, and the values that it was read from."""
    values = nested([Setting("name", name), *settings, *length_settings(images)])
    _shorten_warm_ups(values, parse_config(model, values, f"the plan {name}", changes), images)
    return parse_config(model, values, f"the plan {name}", changes), values
