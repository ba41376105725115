"""Train a tokenizer: python -m stage1_tokenizer.train [CONFIG.yaml] [key=value ...]

Writes runs/tokenizer/<name>/. Resumes from the last checkpoint if interrupted: run the same command again.
On several GPUs: torchrun --nproc-per-node 8 -m stage1_tokenizer.train ...
Keys are those of the YAML files under configs/, for example data.source=~/pictures training.images=100000.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState

from shared.code_counts import perplexity, usage
from shared.config import completed, load_config
from shared.data.config import DataConfig
from shared.data.dataset import ImageDataset
from shared.data.loader import Batch, training_loader
from shared.data.open import open_datasets
from shared.errors import UserError, run_command
from shared.options.command_line import parse_command_line
from shared.options.commands import command_of
from shared.presets import find_config
from shared.runs.fingerprint import TOKENIZING
from shared.runs.hub import CONFIG, TOKENIZER, TOKENS, local_run
from shared.runs.initial import start_from
from shared.runs.run_directory import RUNS, RunDirectory, read_yaml
from shared.text import shown
from shared.training.devices.accelerator import make_accelerator
from shared.training.devices.memory import check_fits
from shared.training.devices.precision import usable
from shared.training.length import begin
from shared.training.log import Log
from shared.training.optimisation.schedule import crossed
from shared.training.trainee import Trainee
from stage1_tokenizer.judging.description import description_of
from stage1_tokenizer.judging.instruments import Instrument, Readings
from stage1_tokenizer.judging.measure import measure
from stage1_tokenizer.judging.pictures import draw_reconstructions
from stage1_tokenizer.judging.quality import ReconstructionQuality, reconstruction_quality
from stage1_tokenizer.judging.report import write_report
from stage1_tokenizer.losses.objective import Objective, check_losses
from stage1_tokenizer.run_config import TokenizerRun
from stage1_tokenizer.token_noise import TokenNoise
from stage1_tokenizer.tokenizer import PriorTokens, Tokenizer

DEFAULT_CONFIG = "configs/demo/tokenizer.yaml"
# Keys of `DataConfig` that say which images there are, and of which classes.
WHICH_IMAGES = ("source", "count", "limit", "format", "split", "held_out", "validation_fraction", "labels", "label")


def train(
    config: TokenizerRun,
    path: Path | None = None,
    ended: Callable[[int], bool] = lambda images: False,
    prior_tokens: PriorTokens | None = None,
) -> tuple[RunDirectory, "HeldOut"]:
    """Train to the end of `config.training.images`, from the last checkpoint if there is one; returns the run, and the
    held-out images to try its averaged weights on.

    path: the run's directory, if not runs/tokenizer/<name>; one of several to compare, which keep their length.
    ended: called between steps with the images seen so far; training ends early where it returns True.
    prior_tokens: those of `config.draws`, where it has any. Raises UserError where they are missing.
    """
    if config.draws and not prior_tokens:
        raise UserError(f"draws: it is `{command_of('refine')}` that trains a decoder on a prior's tokens")
    accelerator = make_accelerator()
    training = config.training
    run = RunDirectory(path or RUNS / "tokenizer" / config.name)
    train_set, validation_set = open_datasets(config.data, training.seed)
    torch.manual_seed(training.seed)
    tokenizer = Tokenizer(config.model)
    begun = run.newest() is not None
    if config.init and not begun:
        kept = TOKENIZING if training.decoder_only else ()
        accelerator.print(begin_with(tokenizer, config.init, config.init_without, kept))
        if training.decoder_only and (line := other_images(config.data, config.init)):
            accelerator.print(line)
    if training.decoder_only:
        tokenizer.freeze_tokens()
    check_run(config, tokenizer, accelerator, begun)
    if begun:
        begin_run(config, run, train_set, accelerator, may_lengthen=path is None)
    if training.token_noise:
        tokenizer.token_noise = TokenNoise(training.token_noise, training.noise_neighbours)
    tokenizer.prior_tokens = prior_tokens
    trainee = Trainee(tokenizer, training, accelerator)
    objective = Objective(config.loss, tokenizer, trainee, config.data.height_width)
    if not begun:  # nothing is written where the discriminator cannot begin
        if line := objective.begin():
            accelerator.print(line)
        begin_run(config, run, train_set, accelerator, may_lengthen=path is None)
    trainee.resume(run)
    if not tokenizer.quantiser.initialised:  # nor in the checkpoint that a run was resumed from
        check_warm_up(config, math.prod(tokenizer.grid(config.data.height_width)))
    batches = training_batches(train_set, config, trainee)
    held_out = HeldOut(tokenizer, trainee, validation_set)
    log = Log(run, training.images, trainee.images, accelerator.is_main_process, unit="img")
    while not trainee.stop_asked and not ended(trainee.images) and trainee.images < training.images:
        # Step
        trainee.begin_step()
        tokenizer.begin_step(trainee.progress)
        objective.begin_step()
        for images, labels in trainee.accumulate(batches):
            images = images.to(accelerator.device, non_blocking=True)
            trainee.means.add(objective.learn(images, labels if prior_tokens else None))
        gradient_norm = trainee.end_step()
        objective.end_step()
        replaced = maintain_codes(tokenizer, trainee)
        # Log
        log.advance(trainee.step_images)
        if replaced:
            log.write(trainee.images, {"codes_replaced": replaced})
        first = trainee.images == trainee.step_images
        if first or crossed(training.log_every, trainee.images, trainee.step_images):
            log_means(log, trainee, tokenizer, gradient_norm)
        # Evaluate, draw, save
        if crossed(training.evaluate_every, trainee.images, trainee.step_images):
            log_quality(log, trainee, held_out.quality())
            held_out.draw(run.samples / f"{trainee.images:09d}.png")
        if crossed(training.save_every, trainee.images, trainee.step_images):
            trainee.save(run)
    log.close()
    trainee.save_last(run)
    trainee.stop_if_asked(run)
    held_out.draw(run.samples / "reconstructions.png")
    return run, held_out


def maintain_codes(tokenizer: Tokenizer, trainee: Trainee) -> int:
    """How many codes that nothing wins any more were replaced."""
    if tokenizer.frozen_tokens:
        return 0
    return tokenizer.quantiser.maintain(trainee.optimizer, trainee.ema.average.get("quantiser.codebook"))


def check_run(config: TokenizerRun, tokenizer: Tokenizer, accelerator: Accelerator, begun: bool) -> None:
    """Check what can be checked before losses are built and anything is written; print what a step takes of memory.

    begun: whether there is a checkpoint, which may hold codes. Raises UserError.
    """
    if not begun and not tokenizer.quantiser.initialised:
        check_warm_up(config, math.prod(tokenizer.grid(config.data.height_width)))
    check_losses(config.loss, config.data.height_width)
    # On every process, because quantisers talk to one another in training.
    accelerator.print(memory_line(config, accelerator.device))


def begin_run(
    config: TokenizerRun, run: RunDirectory, images: ImageDataset, accelerator: Accelerator, may_lengthen: bool
) -> None:
    """Create or check the run's directory. Raises UserError."""
    if accelerator.is_main_process:
        begin(run, config, accelerator.num_processes, may_lengthen)
        run.check_images(len(images.source), images.source.contents(), images.source.description)
    accelerator.wait_for_everyone()


def training_batches(images: ImageDataset, config: TokenizerRun, trainee: Trainee) -> Iterator[Batch]:
    """This process's batches, from where the run stands."""
    return training_loader(
        images,
        config.training.batch_size,
        seed=config.training.seed,
        start_image=trainee.images,
        rank=trainee.accelerator.process_index,
        world_size=trainee.accelerator.num_processes,
        workers=config.data.workers,
        device=trainee.accelerator.device,
    )


class HeldOut:
    """Held-out images, which the averaged weights are tried on."""

    def __init__(self, tokenizer: Tokenizer, trainee: Trainee, images: ImageDataset) -> None:
        self.tokenizer, self.trainee, self.images = tokenizer, trainee, images
        self.newest: tuple[int, ReconstructionQuality] | None = None  # after how many images of training

    def quality(self) -> ReconstructionQuality:
        """How the weights do as they are now, found once; the processes, each of which must call it, share the work."""
        if self.newest is None or self.newest[0] != self.trainee.images:
            with self.trainee.ema.applied():
                quality = reconstruction_quality(self.tokenizer, [self.images], self.trainee.accelerator)
            if not math.isfinite(quality.l2):
                raise UserError(
                    f"the squared error of held-out images is {quality.l2} after {self.trainee.images} images: these "
                    f"weights are of no use. {self.trainee.advice()}"
                )
            self.newest = self.trainee.images, quality
        return self.newest[1]

    def measure(self, instruments: Sequence[Instrument]) -> Readings:
        """What these instruments say of the weights as they are now; every process must call it."""
        with self.trainee.ema.applied():
            return measure(self.tokenizer, [self.images], instruments, self.trainee.accelerator)

    def draw(self, path: Path) -> None:
        """Some of the images above their reconstructions."""
        if self.trainee.accelerator.is_main_process:
            with self.trainee.ema.applied():
                draw_reconstructions([self.tokenizer], self.images, path)


def log_means(log: Log, trainee: Trainee, tokenizer: Tokenizer, gradient_norm: float) -> None:
    """Log what the steps since the last line had on average, and how the codes are used once there are any."""
    means = {**trainee.means.take(), **trainee.data_wait.take()}
    if tokenizer.quantiser.initialised and not tokenizer.frozen_tokens:
        counts_K = tokenizer.quantiser.window_counts()
        means |= {"usage": usage(counts_K).item(), "perplexity": perplexity(counts_K).item()}
    rate = trainee.optimizer.param_groups[0]["lr"]
    log.write(trainee.images, {**means, "gradient_norm": gradient_norm, "lr": rate})
    log.show(means)


def log_quality(log: Log, trainee: Trainee, quality: ReconstructionQuality) -> None:
    """Log what held-out images say."""
    log.write(trainee.images, {f"validation/{name}": value for name, value in quality._asdict().items()})
    log.show({"psnr": quality.psnr})


def check_warm_up(config: TokenizerRun, tokens: int) -> None:
    """UserError where the run would end before the codebook is even initialised; `tokens` is of one image."""
    quantiser, images = config.model.quantiser, config.training.images
    needed = quantiser.warm_up_vectors / tokens
    if needed >= images:
        warm_up = quantiser.warm_up_vectors // quantiser.codes
        raise UserError(
            f"training.images={images} is too short: the codebook is initialised after {needed:.0f} images "
            f"(warm_up {warm_up} x {quantiser.codes} codes / {tokens} tokens an image). "
            "Train longer, or lower model.quantiser.warm_up or codes"
        )


def begin_with(tokenizer: Tokenizer, init: str, without: Sequence[str], kept: Sequence[str] = ()) -> str:
    """Give a tokenizer the weights of another that fit; says which in a line. Raises UserError where there are none.

    A codebook is taken with all that is known of its codes, or not at all. kept: parts that must be taken whole.
    """
    run = local_run(init)
    if (run / TOKENS).exists():
        hint = f"; a shared prior has one inside: init={init}/{TOKENIZER}"
        raise UserError(f"init={init} is a prior's run, and a tokenizer's is needed{hint}")
    return start_from(tokenizer, run, without, whole=["quantiser"], needed=kept)


def other_images(data: DataConfig, init: str) -> str:
    """Which keys choose other images or classes than those of the run `init`, as a line; empty where none does."""
    file = local_run(init) / CONFIG
    before = read_yaml(file).get("data") if file.exists() else None
    if not isinstance(before, dict):  # a tokenizer that was not trained here
        return ""
    there, here = completed(before, DataConfig), data.model_dump(mode="json")
    changed = [key for key in WHICH_IMAGES if key in there and here[key] != there[key]]
    if not changed:
        return ""
    said = ", ".join(f"data.{key}={_value(here[key])} (there {_value(there[key])})" for key in changed)
    return f"images: not those of init={init}: {said}. A token cache of this run has these, and their classes"


def _value(value: object) -> str:
    return "null" if value is None else shown(str(value))


def memory_line(config: TokenizerRun, device: torch.device) -> str:
    """What a training step takes, a perceptual loss not counted. Raises UserError where it can never fit."""
    training = config.training
    parts = description_of(config.model, config.data.height_width, usable(training.precision, device))
    decoded = round(training.batch_size * (1 + (config.draws.share if config.draws else 0)))
    return check_fits(parts.weight_bytes, parts.activation_bytes, decoded, training.accumulation, device)


def main() -> None:
    """Read the command line, train, say what was written."""
    parser = argparse.ArgumentParser(prog=command_of("train-tokenizer"), description=__doc__.split("\n")[0])
    parser.add_argument(
        "--describe", action="store_true", help="print what the tokenizer is made of and costs, but do not train"
    )
    parser.add_argument("--json", action="store_true", help="with --describe or --keys: print JSON, on the last line")
    parser.epilog = "Keys are those of the YAML files under configs/. Resumes if interrupted."
    args = parse_command_line(parser, DEFAULT_CONFIG, TokenizerRun)
    config = load_config(TokenizerRun, find_config(args.config), args.overrides)
    if args.describe:
        description = description_of(config.model, config.data.height_width, config.training.precision)
        description.show(config.name, args.json)
        return
    run, held_out = train(config)
    quality = held_out.quality()
    if not PartialState().is_main_process:
        return
    print(
        f"wrote {run.path}: held-out PSNR {quality.psnr:.2f} dB over {quality.images} images; "
        f"look at {write_report(run.path)}\n"
        f"next: {command_of('cache')} --tokenizer {run.path}    (`make tokenizer` does it by itself)"
    )


if __name__ == "__main__":
    run_command(main)
