"""Find a tokenizer's learning rate at a small width: python -m stage1_tokenizer.sweep [CONFIG.yaml] [key=value ...]

Trains short runs over widths x learning rates, in the standard parametrisation and under muP, and draws where the
optimum lies. Keys are those of a run of stage1_tokenizer.train; its backbone must be a sequence backbone.
"""

from shared.config import load_config
from shared.data.open import open_datasets
from shared.errors import UserError, run_command
from shared.layers.mup import MupConfig
from shared.presets import find_config
from shared.training.sweep import Study, main
from stage1_tokenizer.run_config import TokenizerRun
from stage1_tokenizer.train import train

DEFAULT_CONFIG = "configs/sweep/tokenizer.yaml"


def study_of(path: str, overrides: list[str]) -> Study:
    """The sweep around a run's configuration. Raises UserError where its backbone has no single width."""
    config = load_config(TokenizerRun, find_config(path), overrides)
    backbone = config.model.backbone
    if not isinstance(backbone, MupConfig):
        raise UserError(
            f"{path}: a sweep over widths needs a sequence backbone, and model.backbone.kind is {backbone.kind}: use "
            "attention, mamba, bimamba or mambavision"
        )
    contents = open_datasets(config.data, config.training.seed)[0].source.contents()
    return Study(config, part="model.backbone", data=contents, train=train, metric="loss")


if __name__ == "__main__":
    run_command(lambda: main("stage1_tokenizer.sweep", __doc__.split("\n")[0], DEFAULT_CONFIG, TokenizerRun, study_of))
