"""Models in a folder or on the Hugging Face hub: what inference needs of a run, and a card that says what it is.

A shared model is a run directory without what only training needs. So whatever takes a run takes a downloaded model
too, and a run can be loaded as it is.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any, Self

import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor

from shared.errors import UserError
from shared.runs.fingerprint import fingerprint_of, tokenizing_fingerprint
from shared.runs.run_directory import DRAWING, EARLY, IMAGES, WEIGHTS, newest_run, read_yaml
from shared.runs.token_cache import read_info
from shared.runs.uses import USES, save_uses
from shared.runs.weights import read_weights
from shared.text import shown
from shipped import BUNDLED

CONFIG, TOKENS = "config.yaml", "tokens.json"  # what the weights are weights of; tokens.json: of a prior only
TOKENIZER = "tokenizer"  # where a shared prior holds its tokenizer
BUNDLED_TOKENIZER = f"shipped/{BUNDLED.name}/{TOKENIZER}"  # as `init` takes it
WHICH_PRIOR = (
    "a run directory, or a name on the Hugging Face Hub (default: the last one trained or, if there is none, the "
    "bundled model)"
)
CARD = """\
# {name}

A {stage} made with Tessera. Load it with

    {stage_class}.from_pretrained("{name}")

or give this name wherever a command takes a run. It was trained on: {source}
{figures}
```yaml
{config}```
"""


def local_run(name: str | Path, **options: Any) -> Path:
    """The directory `name`, here or among what comes with Tessera, or a download of the hub's repository of that name.

    options: of `huggingface_hub.snapshot_download`, as revision or token. Raises UserError where there is neither.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    shipped = BUNDLED.parent
    if path.parts[:1] == (shipped.name,) and (shipped.parent / path).is_dir():  # from any working directory
        return shipped.parent / path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        raise UserError(f"{name}: there is no such run directory, and it is no name on the hub either (user/model)")
    try:
        files = [CONFIG, TOKENS, WEIGHTS[1], USES]
        patterns = [*files, EARLY, DRAWING, *(f"{TOKENIZER}/{file}" for file in files)]
        return Path(snapshot_download(str(name), allow_patterns=patterns, **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{name}: there is no such directory, and the hub gives no such model: {reason}") from None


def prior_directory(name: Path | None) -> Path:
    """Where the prior `name` is (`local_run`); None: the one trained last, or else the one that comes with Tessera."""
    if name is not None:
        return local_run(name)
    return newest_run("prior", WEIGHTS[1], otherwise=BUNDLED)


def tokenizer_directory(prior: Path, trained_at: str) -> Path:
    """Where the tokenizer of a prior's run is: inside of it, where it was shared, or else where it was trained."""
    inside = prior / TOKENIZER
    return inside if inside.is_dir() else Path(trained_at)


class Shareable(ModelHubMixin):
    """Adds `from_pretrained(folder or hub name)`, `save_pretrained(folder)` and `push_to_hub(name)` to a model.

    A prior is shared with its tokenizer, in the precision that its own weights have: `prior.half()` before makes both
    half as large. A subclass says how to load a run (`load`) and sets `run`, the directory it was loaded from.
    """

    run: Path | None = None

    @classmethod
    def load(cls, run: Path) -> Self:
        """The model of a run directory. Raises UserError where it cannot be had."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Self:  # type: ignore[override]
        """The model of a folder, or of the hub's repository of that name (user/model).

        options: of `huggingface_hub.snapshot_download`, as revision or token. Raises UserError where it cannot be had.
        """
        if Path(name).expanduser().is_dir():  # the mixin would miss a config.json, which a run need not have
            return cls.load(local_run(name))
        return super().from_pretrained(name, **options)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Self:  # type: ignore[override]
        downloads = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        return cls.load(local_run(model_id, **{key: options[key] for key in downloads if key in options}))

    def _save_pretrained(self, save_directory: Path) -> None:
        run = self._loaded_from()
        weights: dict[str, Tensor] = self.state_dict()  # type: ignore[attr-defined]
        _save(run, weights, save_directory)
        if (run / TOKENS).exists():
            dtype = next(self.parameters()).dtype  # type: ignore[attr-defined]
            _save_tokenizer(run, save_directory, dtype)
            for name in (EARLY, DRAWING):
                (save_directory / name).unlink(missing_ok=True)  # of what was shared there before
            if (run / EARLY).exists():
                save_file(_rounded(read_weights(run / EARLY), dtype), save_directory / EARLY)
            if (run / DRAWING).exists():
                shutil.copyfile(run / DRAWING, save_directory / DRAWING)
        else:
            save_uses(run, fingerprint_of(_as_loaded(read_weights(run / WEIGHTS[1]))), save_directory)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # type: ignore[override]
        """Share it as the hub's repository of that name; returns the commit's address.

        options: of `ModelHubMixin.push_to_hub`, as private or branch. Early weights and drawing settings of a prior
        that was shared there before do not stay.
        """
        options.setdefault("delete_patterns", [EARLY, DRAWING])
        return str(super().push_to_hub(repo_id, **options))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """A card with the run's name, images, configuration and last evaluation."""
        run = self._loaded_from()
        config = read_yaml(run / CONFIG)
        stage = "prior" if (run / TOKENS).exists() else "tokenizer"
        data = ModelCardData(library_name="tessera", tags=["image-generation", stage])
        text = CARD.format(
            name=run.name,
            stage=stage,
            stage_class=type(self).__name__,
            source=_images(run, config),
            figures=_figures(run),
            config=yaml.safe_dump(config.get("model", {}), sort_keys=False, allow_unicode=True),
        )
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{shown(text)}")

    def _loaded_from(self) -> Path:
        if self.run is None:
            raise UserError("only a model that was loaded from a run can be shared: its run says what it is")
        return self.run


def _save(run: Path, weights: dict[str, Tensor], folder: Path) -> None:
    shutil.copyfile(run / CONFIG, folder / CONFIG)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS[1])


def _save_tokenizer(prior: Path, folder: Path, dtype: torch.dtype) -> None:
    """Put a prior's tokenizer into `folder`, and beside it what the prior's tokens are: of the tokenizer as rounded."""
    info = read_info(prior)
    tokenizer = tokenizer_directory(prior, info.tokenizer)
    if not (tokenizer / WEIGHTS[1]).exists():
        raise UserError(f"{prior} is shared with its tokenizer, and {tokenizer} does not hold it: bring it back there")
    weights = read_weights(tokenizer / WEIGHTS[1])
    rounded = _rounded(weights, dtype)
    (folder / TOKENIZER).mkdir(exist_ok=True)
    _save(tokenizer, rounded, folder / TOKENIZER)
    save_uses(tokenizer, info.fingerprint, folder / TOKENIZER)
    loaded = _as_loaded(rounded)
    hashes = {"fingerprint": fingerprint_of(loaded), "tokenizing": tokenizing_fingerprint(loaded)}
    info = info.model_copy(update={"tokenizer": TOKENIZER, **hashes})
    (folder / TOKENS).write_text(info.as_json())


def _rounded(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


def _as_loaded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in the precision that a loaded model has them in, of which fingerprints are taken."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


def _images(run: Path, config: dict[str, Any]) -> str:
    if (run / TOKENS).exists():
        return json.loads((run / TOKENS).read_text())["source"]
    named = str(config.get("data", {}).get("source", "unknown"))
    file = run / IMAGES
    return json.loads(file.read_text()).get("source", named) if file.exists() else named


def _figures(run: Path) -> str:
    """A line for each figure of the last evaluation on held-out images, where there was one."""
    file = run / "evaluation" / "validation.json"
    if not file.exists():
        return ""
    measures = json.loads(file.read_text())["measures"]
    return "\nOn held-out images:\n\n" + "".join(f"- {name}: {value:.4g}\n" for name, value in measures.items())
