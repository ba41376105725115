"""Train a prior on cached token grids: python -m stage2_prior.train [CONFIG.yaml] [key=value ...]

Writes runs/prior/<name>/. Started again after a stop, the same command goes on where the last checkpoint left it.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from shared.checkpoint import BEST, RUNS, RunDirectory, newest_run, write_atomically
from shared.config import Config, load_config
from shared.data import ImageBatches
from shared.errors import UserError, run_command
from shared.memory import TRAINING_BYTES, check_fits, kept_for_backward
from shared.token_cache import TokenCache, TokenInfo, open_cache, read_info
from shared.training import MAY_CHANGE_ON_RESUME, Log, Trainee, TrainingConfig, crossed, make_accelerator
from stage2_prior.evaluate import Evaluation, evaluate
from stage2_prior.prior import Prior, PriorConfig, build_prior
from stage2_prior.sampling import generate

DEFAULT_CONFIG = "configs/demo/prior.yaml"
SHOWN = 16  # grids drawn whenever held-out ones are evaluated


class PriorRun(Config):
    """Everything a stage-two run is made of; one "image" of its training is one token grid."""

    name: str = Field(pattern=r"^[\w][\w.-]*$")
    tokens: str | None = None  # a token cache; null: that of the tokenizer trained last
    model: PriorConfig = PriorConfig()
    training: TrainingConfig


def train(config: PriorRun, path: Path | None = None) -> tuple[RunDirectory, Evaluation]:
    """Train to the end of `config.training.images`, from the last checkpoint if there is one.

    Returns how the last weights do on held-out grids. Those that did best are kept too: on small data, a prior's bits
    are fewest long before it is done learning its training grids by heart.

    path: the run's directory, if not runs/prior/<name>.
    """
    accelerator = make_accelerator()
    device = accelerator.device
    cache = open_cache(find_tokens(config.tokens))
    config = config.model_copy(update={"tokens": str(cache.path)})
    run = RunDirectory(path or RUNS / "prior" / config.name)
    torch.manual_seed(config.training.seed)
    prior = build_prior(config.model, cache.info, cache.code_vectors_KD)
    memory = memory_line(prior, config.training, device)
    if accelerator.is_main_process:
        print(memory)
        run.begin(config, MAY_CHANGE_ON_RESUME)
        remember_tokens(run, cache)
    accelerator.wait_for_everyone()
    trainee = Trainee(prior, config.training, accelerator)
    trainee.resume(run)
    batches = token_batches(
        cache, config.training, trainee.images, accelerator.process_index, accelerator.num_processes
    )
    shown: dict[str, float] = {}
    log = Log(run, config.training.images, trainee.images, accelerator.is_main_process, unit="grid")
    means = trainee.means
    report = None
    best = best_so_far(run)[0] if accelerator.is_main_process else -math.inf  # one process keeps the best
    while not trainee.stop_asked and trainee.images < config.training.images:
        # Step
        trainee.begin_step()
        for tokens_BL, labels_B in trainee.accumulate(batches):
            tokens_BL = tokens_BL.to(device, non_blocking=True)
            inputs_BL = prior.inputs(tokens_BL, labels_B)
            with trainee.autocast():
                loss = trainee.wrapped(inputs_BL, targets_BL=tokens_BL)
            trainee.backward(loss)
            means.add({"bits_per_token": loss / torch.log(torch.tensor(2.0))})
        gradient_norm = trainee.end_step()
        # Log
        log.advance(trainee.step_images)
        if crossed(config.training.log_every, trainee.images, trainee.step_images):
            rate = trainee.optimizer.param_groups[0]["lr"]
            average = means.take()
            log.write(trainee.images, {**average, "gradient_norm": gradient_norm, "lr": rate})
            log.show(shown := shown | average)
        # Evaluate, save
        at_end = trainee.images >= config.training.images
        if at_end or crossed(config.training.evaluate_every, trainee.images, trainee.step_images):
            with trainee.ema.applied():
                report = evaluate(prior, cache, "validation")
                if accelerator.is_main_process:
                    save_grids(draw_grids(prior, cache), run.samples / f"{trainee.images:09d}.safetensors")
            log.write(trainee.images, {f"validation/{name}": value for name, value in report.figures().items()})
            log.show(shown := shown | {"held out": report.bits_per_token})
            if report.bits_per_token < best:
                best = report.bits_per_token
                run.save_best(trainee.ema.state_dict())
        if crossed(config.training.save_every, trainee.images, trainee.step_images):
            trainee.save(run)
    log.close()
    if trainee.saved != trainee.images:
        trainee.save(run)
    trainee.stop_if_asked(run)
    if report is None:  # the run was finished before
        with trainee.ema.applied():
            report = evaluate(prior, cache, "validation")
    return run, report


def draw_grids(prior: Prior, cache: TokenCache) -> Tensor:
    """Grids (B, h, w) int64 of seed 0, to be looked at; their classes are those of images spread over the training set.

    They stay tokens: what they look like is for report.py, which knows the tokenizer.
    """
    rows = torch.linspace(0, len(cache.tokens["train"]) // cache.info.views - 1, SHOWN).round().long()
    _, labels_B = cache.batch("train", rows)
    return generate(prior.eval(), range(SHOWN), seed=0, labels_B=labels_B)


def save_grids(tokens_Bhw: Tensor, path: Path) -> None:
    """Write grids as one file."""
    write_atomically(path, lambda temporary: save_file({"tokens": tokens_Bhw.int().contiguous()}, temporary))


def best_so_far(run: RunDirectory) -> tuple[float, int]:
    """Bits per token on held-out grids of the weights kept as best, and after how many grids they were; or (inf, 0)."""
    if not (run.path / BEST).exists() or not run.metrics.exists():
        return math.inf, 0
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    key = "validation/bits_per_token"
    return min(((line[key], line["images"]) for line in lines if key in line), default=(math.inf, 0))


def memory_line(prior: Prior, config: TrainingConfig, device: torch.device) -> str:
    """What a training step of `prior`, still on the CPU, takes. Raises UserError where it can never fit."""

    def kept(count: int) -> int:
        tokens_BL = torch.zeros(count, prior.length, dtype=torch.int64)
        return kept_for_backward(prior, lambda: prior.loss(tokens_BL), config.precision)

    prior.train()
    with torch.random.fork_rng(devices=[]):  # looking ahead takes nothing from the run's random numbers
        grid_bytes = kept(2) - kept(1)
    weight_bytes = TRAINING_BYTES * sum(parameter.numel() for parameter in prior.parameters())
    return check_fits(weight_bytes, grid_bytes, config.batch_size, config.accumulation, device)


def token_batches(
    cache: TokenCache, config: TrainingConfig, start: int, rank: int, ranks: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Endless batches of tokens (B, L) and labels (B,) from the `start`-th grid of the run on.

    An epoch has each image once; the next has its next view.
    """
    count = len(cache.tokens["train"]) // cache.info.views
    for batch in ImageBatches(count, config.batch_size, config.seed, start, rank, ranks):
        # By image and epoch, so that every epoch has all kinds of views.
        yield cache.batch(
            "train", torch.tensor([(image + epoch) % cache.info.views * count + image for epoch, image in batch])
        )


def find_tokens(tokens: str | None) -> Path:
    """The cache that was asked for, or that of the tokenizer trained last."""
    if tokens is not None:
        return Path(tokens).expanduser()
    return newest_run("tokenizer", "tokens/tokens.json") / "tokens"


def remember_tokens(run: RunDirectory, cache: TokenCache) -> None:
    """Keep beside the weights what says which tokenizer decodes this prior's tokens.

    Raises UserError where the run was begun on other tokens than the cache holds now.
    """
    if run.newest() is not None and (before := read_info(run.path)) != cache.info:
        raise UserError(
            f"{run.path} was begun on the tokens of tokenizer {before.fingerprint} ({before.source}), but {cache.path} "
            f"now holds those of {cache.info.fingerprint} ({cache.info.source}; "
            f"{', '.join(changes(before, cache.info))} changed): give this prior a name of its own (name=...), or "
            "remove that directory"
        )
    write_atomically(
        run.path / "tokens.json", lambda temporary: temporary.write_text(cache.info.model_dump_json(indent=2))
    )


def changes(before: TokenInfo, now: TokenInfo) -> list[str]:
    """What two caches say of themselves differently, by its key in tokens.json."""
    return [name for name, value in now if value != getattr(before, name)]


def main() -> None:
    """Read the command line, train, say what was written."""
    parser = argparse.ArgumentParser(prog="python -m stage2_prior.train", description=__doc__.split("\n")[0])
    parser.add_argument("config", nargs="?", default=DEFAULT_CONFIG, help=f"a YAML file (default: {DEFAULT_CONFIG})")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a key of the file, e.g. name=mine")
    parser.epilog = "Keys are those of the YAML files under configs/. Started again, a stopped run goes on."
    args = parser.parse_args()
    if "=" in args.config:
        args.config, args.overrides = DEFAULT_CONFIG, [args.config, *args.overrides]
    run, report = train(load_config(PriorRun, args.config, args.overrides))
    best, images = best_so_far(run)
    print(
        f"wrote {run.path}: {report.bits_per_token:.2f} bits per token on held-out grids; at its best, after {images} "
        f"grids, {best:.2f} (`sample.py --weights best` draws from those weights)\n"
        f"next: make sample    (or: python sample.py --prior {run.path} --num 16)"
    )


if __name__ == "__main__":
    run_command(main)
