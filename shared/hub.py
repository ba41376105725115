"""Models in a folder or on the Hugging Face hub: what inference needs of a run, and a card that says what it is.

A shared model is a run directory without what only training needs. So whatever takes a run takes a downloaded model
too, and a run can be loaded as it is.
"""

import json
import re
from pathlib import Path
from typing import Any, Self

import yaml
from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import save_file

from shared.checkpoint import WEIGHTS, read_yaml
from shared.errors import UserError

DESCRIPTIONS = ("config.yaml", "tokens.json")  # what a run's weights are weights of; tokens.json: of a prior only
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
    """The directory `name`, or a download of the hub's repository of that name (user/model).

    options: of `huggingface_hub.snapshot_download`, as revision or token. Raises UserError where there is neither.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        raise UserError(f"{name}: there is no such run directory, and it is no name on the hub either (user/model)")
    try:
        return Path(snapshot_download(str(name), allow_patterns=[*DESCRIPTIONS, WEIGHTS[1]], **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{name}: there is no such directory, and the hub gives no such model: {reason}") from None


class Shareable(ModelHubMixin):
    """Adds `from_pretrained(folder or hub name)`, `save_pretrained(folder)` and `push_to_hub(name)` to a model.

    A subclass says how to load a run (`load`) and sets `run`, the directory it was loaded from.
    """

    run: Path | None = None

    @classmethod
    def load(cls, run: Path) -> Self:
        """The model of a run directory. Raises UserError where it cannot be had."""
        raise NotImplementedError

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Self:  # type: ignore[override]
        downloads = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        return cls.load(local_run(model_id, **{key: options[key] for key in downloads if key in options}))

    def _save_pretrained(self, save_directory: Path) -> None:
        run = self._loaded_from()
        for name in DESCRIPTIONS:
            if (run / name).exists():
                (save_directory / name).write_bytes((run / name).read_bytes())
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}  # type: ignore[attr-defined]
        save_file(weights, save_directory / WEIGHTS[1])

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """A card with the run's name, images, configuration and last evaluation."""
        run = self._loaded_from()
        config = read_yaml(run / "config.yaml")
        stage = "prior" if (run / "tokens.json").exists() else "tokenizer"
        data = ModelCardData(library_name="tessera", tags=["image-generation", stage])
        text = CARD.format(
            name=run.name,
            stage=stage,
            stage_class=type(self).__name__,
            source=_images(run, config),
            figures=_figures(run),
            config=yaml.safe_dump(config.get("model", {}), sort_keys=False, allow_unicode=True),
        )
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")

    def _loaded_from(self) -> Path:
        if self.run is None:
            raise UserError("only a model that was loaded from a run can be shared: its run says what it is")
        return self.run


def _images(run: Path, config: dict[str, Any]) -> str:
    if (run / "tokens.json").exists():
        return json.loads((run / "tokens.json").read_text())["source"]
    return config.get("data", {}).get("source", "unknown")


def _figures(run: Path) -> str:
    """A line for each figure of the last evaluation on held-out images, where there was one."""
    file = run / "evaluation" / "validation.json"
    if not file.exists():
        return ""
    measures = json.loads(file.read_text())["measures"]
    return "\nOn held-out images:\n\n" + "".join(f"- {name}: {value:.4g}\n" for name, value in measures.items())
