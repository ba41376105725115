"""Find a prior's learning rate at a small width: python -m stage2_prior.sweep [CONFIG.yaml] [key=value ...]

Trains short runs over widths x learning rates, in the standard parametrisation and under muP, and draws where the
optimum lies. Keys are those of a run of stage2_prior.train.
"""

from shared.config import load_config
from shared.errors import run_command
from shared.presets import find_config
from shared.runs.token_cache import read_info
from shared.training.sweep import Study, main
from stage2_prior.run_config import PriorRun
from stage2_prior.tokens import find_tokens
from stage2_prior.train import train

DEFAULT_CONFIG = "configs/sweep/prior.yaml"


def study_of(path: str, overrides: list[str]) -> Study:
    """The sweep around a run's configuration. Raises UserError where there are no tokens to train on."""
    config = load_config(PriorRun, find_config(path), overrides)
    tokens = find_tokens(config.tokens)
    config = config.model_copy(update={"tokens": str(tokens)})
    return Study(config, part="model", data=read_info(tokens).fingerprint, train=train, metric="bits_per_token")


if __name__ == "__main__":
    run_command(lambda: main("stage2_prior.sweep", __doc__.split("\n")[0], DEFAULT_CONFIG, PriorRun, study_of))
