"""Train a tokenizer: python -m stage1_tokenizer.train [CONFIG.yaml] [key=value ...]

Writes runs/tokenizer/<name>/. Started again after a stop, the same command goes on where the last checkpoint left it.
Keys are those of the YAML files under configs/, for example data.source=~/pictures training.images=100000.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from pydantic import Field, PositiveInt

from shared.checkpoint import RUNS, RunDirectory
from shared.config import Config, load_config
from shared.data import DataConfig, open_datasets, training_loader
from shared.errors import UserError, run_command
from shared.memory import check_fits
from shared.training import MAY_CHANGE_ON_RESUME, Log, Trainee, TrainingConfig, crossed, make_accelerator
from stage1_tokenizer.describe import describe
from stage1_tokenizer.evaluate import Evaluation, draw_reconstructions, evaluate
from stage1_tokenizer.losses.adversarial import AdversarialConfig
from stage1_tokenizer.losses.adversary import Adversary
from stage1_tokenizer.losses.discriminators import check_discriminator_size
from stage1_tokenizer.losses.perceptual import PerceptualConfig, build_perceptual, check_perceptual_size
from stage1_tokenizer.losses.reconstruction import ReconstructionConfig, reconstruction_loss
from stage1_tokenizer.quantisers.counts import perplexity, usage
from stage1_tokenizer.report import write_report
from stage1_tokenizer.tokenizer import Tokenizer, TokenizerConfig

DEFAULT_CONFIG = "configs/demo/tokenizer.yaml"


class LossConfig(Config):
    """What a reconstruction is judged by, besides the codebook loss, whose weights are the quantiser's."""

    reconstruction: ReconstructionConfig = ReconstructionConfig()
    perceptual: PerceptualConfig | None = Field(None, discriminator="kind")
    adversarial: AdversarialConfig | None = None


class CacheConfig(Config):
    """Which images are tokenized for stage two once the tokenizer is trained, and how often."""

    source: str | None = None  # null: those it was trained on (data.source)
    # Views of each training image: as it is, mirrored (where data.augment.flip allows it), and then augmented as in
    # training.
    views: PositiveInt = 2


class TokenizerRun(Config):
    """Everything a stage-one run is made of."""

    name: str = Field(pattern=r"^[\w][\w.-]*$")
    data: DataConfig = DataConfig()
    model: TokenizerConfig = TokenizerConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig
    cache: CacheConfig = CacheConfig()


def train(
    config: TokenizerRun, path: Path | None = None, ended: Callable[[int], bool] = lambda images: False
) -> tuple[RunDirectory, Evaluation]:
    """Train to the end of `config.training.images`, from the last checkpoint if there is one.

    path: the run's directory, if not runs/tokenizer/<name>.
    ended: called between steps with the images seen so far; training ends early where it returns True.
    """
    accelerator = make_accelerator()
    device = accelerator.device
    run = RunDirectory(path or RUNS / "tokenizer" / config.name)
    train_set, validation_set = open_datasets(config.data, config.training.seed)
    torch.manual_seed(config.training.seed)
    tokenizer = Tokenizer(config.model)
    check_warm_up(config, math.prod(tokenizer.grid(config.data.height_width)))
    check_losses(config.loss, config.data.height_width)
    memory = memory_line(config, device)  # on every process, because quantisers talk to one another in training
    if accelerator.is_main_process:
        print(memory)
        run.begin(config, MAY_CHANGE_ON_RESUME)
        run.check_images(len(train_set.source), train_set.source.contents())
    accelerator.wait_for_everyone()
    perceptual = build_perceptual(config.loss.perceptual, device) if config.loss.perceptual else None
    trainee = Trainee(tokenizer, config.training, accelerator)
    adversary = None
    if config.loss.adversarial:
        adversary = Adversary(config.loss.adversarial, trainee, config.data.height_width, tokenizer.decoder.last_layer)
    trainee.resume(run)
    batches = training_loader(
        train_set,
        config.training.batch_size,
        seed=config.training.seed,
        start_image=trainee.images,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        workers=config.data.workers,
        device=device,
    )
    shown: dict[str, float] = {}
    log = Log(run, config.training.images, trainee.images, accelerator.is_main_process, unit="img")
    means = trainee.means
    while not trainee.stop_asked and not ended(trainee.images) and trainee.images < config.training.images:
        # Step
        trainee.begin_step()
        tokenizer.quantiser.begin_step(trainee.images / config.training.images)
        if adversary:
            adversary.begin_step()
        for images, _ in trainee.accumulate(batches):
            x_BCHW = images.to(device, non_blocking=True)
            with trainee.autocast():
                result = trainee.wrapped(x_BCHW)
                reconstruction = reconstruction_loss(result.images_BCHW, x_BCHW, config.loss.reconstruction)
                terms = {"l2": torch.nn.functional.mse_loss(result.images_BCHW, x_BCHW)}
                if perceptual and config.loss.perceptual:
                    terms["perceptual"] = perceptual(result.images_BCHW, x_BCHW).mean()
                    reconstruction = reconstruction + config.loss.perceptual.weight * terms["perceptual"]
                loss = reconstruction + result.codebook_loss
                if adversary:
                    adversarial, adversary_terms = adversary.mislead(result.images_BCHW, reconstruction)
                    loss, terms = loss + adversarial, terms | adversary_terms
            trainee.backward(loss)
            if adversary:
                terms |= adversary.learn(x_BCHW, result.images_BCHW)
            means.add({"loss": loss, **terms, "codebook": result.codebook_loss})
        gradient_norm = trainee.end_step()
        if adversary:
            adversary.end_step()
        replaced = tokenizer.quantiser.maintain(trainee.optimizer, trainee.ema.average.get("quantiser.codebook"))
        # Log
        log.advance(trainee.step_images)
        if replaced:
            log.write(trainee.images, {"codes_replaced": replaced})
        first = trainee.images == trainee.step_images
        if first or crossed(config.training.log_every, trainee.images, trainee.step_images):
            counts_K = tokenizer.quantiser.window_counts()
            codes = {"usage": usage(counts_K).item(), "perplexity": perplexity(counts_K).item()}
            rate = trainee.optimizer.param_groups[0]["lr"]
            average = {**means.take(), **codes}
            log.write(trainee.images, {**average, "gradient_norm": gradient_norm, "lr": rate})
            log.show(shown := shown | average)
        # Evaluate, draw, save
        if crossed(config.training.evaluate_every, trainee.images, trainee.step_images):
            with trainee.ema.applied():
                report = evaluate(tokenizer, [validation_set])
                draw_reconstructions(tokenizer, validation_set, run.samples / f"{trainee.images:09d}.png")
            log.write(trainee.images, {f"validation/{name}": value for name, value in report._asdict().items()})
            log.show(shown := shown | {"psnr": report.psnr})
        if crossed(config.training.save_every, trainee.images, trainee.step_images):
            trainee.save(run)
    log.close()
    if trainee.saved != trainee.images:
        trainee.save(run)
    trainee.stop_if_asked(run)
    with trainee.ema.applied():
        report = evaluate(tokenizer, [validation_set])
        draw_reconstructions(tokenizer, validation_set, run.samples / "reconstructions.png")
    return run, report


def check_warm_up(config: TokenizerRun, tokens: int) -> None:
    """UserError where the run would end before the codebook is even initialised; `tokens` is of one image."""
    quantiser, images = config.model.quantiser, config.training.images
    needed = quantiser.warm_up_vectors / tokens
    if needed >= images:
        raise UserError(
            f"training.images={images} is too short: the codebook is initialised after {needed:.0f} images "
            "(warm_up x codes / tokens an image). Train longer, or lower model.quantiser.warm_up or codes"
        )


def check_losses(config: LossConfig, image_size: tuple[int, int]) -> None:
    """UserError where images of (height, width) are too small for a network that is to judge them."""
    if config.perceptual:
        check_perceptual_size(config.perceptual, image_size)
    if config.adversarial:
        check_discriminator_size(config.adversarial.discriminator, image_size)


def memory_line(config: TokenizerRun, device: torch.device) -> str:
    """What a training step takes, a perceptual loss not counted. Raises UserError where it can never fit."""
    training = config.training
    parts = describe(config.model, config.data.height_width, training.precision)
    return check_fits(parts.weight_bytes, parts.activation_bytes, training.batch_size, training.accumulation, device)


def main() -> None:
    """Read the command line, train, say what was written."""
    parser = argparse.ArgumentParser(prog="python -m stage1_tokenizer.train", description=__doc__.split("\n")[0])
    parser.add_argument("config", nargs="?", default=DEFAULT_CONFIG, help=f"a YAML file (default: {DEFAULT_CONFIG})")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a key of the file, e.g. name=mine")
    parser.add_argument("--describe", action="store_true", help="say what the tokenizer is made of, and do not train")
    parser.add_argument("--json", action="store_true", help="with --describe: one JSON object on the last line")
    parser.epilog = "Keys are those of the YAML files under configs/. Started again, a stopped run goes on."
    args = parser.parse_intermixed_args()
    if "=" in args.config:
        args.config, args.overrides = DEFAULT_CONFIG, [args.config, *args.overrides]
    config = load_config(TokenizerRun, args.config, args.overrides)
    if args.describe:
        description = describe(config.model, config.data.height_width, config.training.precision)
        print(f"{config.name}:\n{description}")
        if args.json:
            print(json.dumps({"name": config.name, **description.as_dict()}))
        return
    run, report = train(config)
    if not PartialState().is_main_process:
        return
    print(
        f"wrote {run.path}: held-out PSNR {report.psnr:.2f} dB over {report.images} images; "
        f"look at {write_report(run.path)}\n"
        f"next: python -m stage1_tokenizer.cache --tokenizer {run.path}    (`make tokenizer` does it by itself)"
    )


if __name__ == "__main__":
    run_command(main)
