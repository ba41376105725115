"""Train a prior on cached token grids: python -m stage2_prior.train [CONFIG.yaml] [key=value ...]

Writes runs/prior/<name>/. Resumes from the last checkpoint if interrupted: run the same command again. On
several GPUs: torchrun --nproc-per-node 8 -m stage2_prior.train ..., with training.shard=true where one has no room for
the prior.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from safetensors.torch import save_file
from torch import Tensor

from shared.config import load_config
from shared.data.order import ImageBatches
from shared.disk.atomic import write_atomically
from shared.errors import UserError, run_command
from shared.options.command_line import parse_command_line
from shared.options.commands import command_of
from shared.presets import find_config
from shared.runs.hub import local_run
from shared.runs.initial import start_from
from shared.runs.run_directory import BEST, DRAWING, EARLY, RUNS, RunDirectory
from shared.runs.token_cache import TokenCache, TokenInfo, open_cache, read_info
from shared.text import shown
from shared.training.config import TrainingConfig
from shared.training.devices.accelerator import make_accelerator
from shared.training.devices.memory import check_fits
from shared.training.devices.precision import usable
from shared.training.devices.sharding import whole
from shared.training.length import begin
from shared.training.log import Log
from shared.training.optimisation.schedule import crossed
from shared.training.trainee import Trainee
from stage2_prior.decoding.choosing.guidance import GuidanceConfig
from stage2_prior.decoding.decoder import Decoder
from stage2_prior.decoding.early import early_name, use_early
from stage2_prior.decoding.settings import SURE, DrawingSettings, keep_if_sure
from stage2_prior.evaluate import TokenPrediction, evaluate
from stage2_prior.judging.description import describe
from stage2_prior.memory import training_memory
from stage2_prior.prior import Prior, build_prior
from stage2_prior.replacement import Replacement
from stage2_prior.run_config import PriorRun, PriorTrainingConfig
from stage2_prior.tokens import Amount, find_tokens, remember_tokens

DEFAULT_CONFIG = "configs/demo/prior.yaml"
SHOWN = 16  # grids drawn whenever held-out ones are evaluated


def train(
    config: PriorRun, path: Path | None = None, ended: Callable[[int], bool] = lambda grids: False
) -> tuple[RunDirectory, TokenPrediction]:
    """Train to the end of `config.training.images`, from the last checkpoint if there is one.

    Returns how the last weights do on held-out grids. Those that did best are kept too: on small data, a prior's bits
    are fewest long before it is done learning its training grids by heart.

    path: the run's directory, if not runs/prior/<name>; one of several to compare, which keep their length.
    ended: called between steps with the grids seen so far; training ends early where it returns True.
    """
    accelerator = make_accelerator()
    device = accelerator.device
    training = config.training
    cache = open_cache(find_tokens(config.tokens))
    config = config.model_copy(update={"tokens": str(cache.path)})
    run = RunDirectory(path or RUNS / "prior" / config.name)
    prepare_run(config, run, cache, accelerator, may_lengthen=path is None)
    torch.manual_seed(training.seed)
    prior = build_prior(config.model, cache.info, cache.code_vectors_KD)
    if config.init and run.newest() is None:
        accelerator.print(begin_with(prior, cache.info, config.init, config.init_without))
    trainee = Trainee(prior, training, accelerator, prior.blocks if training.shard else ())
    trainee.resume(run)
    begun = trainee.images
    batches = token_batches(cache, training, trainee.images, accelerator.process_index, accelerator.num_processes)
    noise = Replacement.of(training.context_noise, training, cache, device)
    smoothing = Replacement.of(training.label_smoothing, training, cache, device)
    held_out = HeldOut(prior, trainee, cache, run)
    early = EarlyWeights(run, training, trainee)
    log = Log(run, training.images, trainee.images, accelerator.is_main_process, unit="grid")
    while not trainee.stop_asked and not ended(trainee.images) and trainee.images < training.images:
        # Step
        trainee.begin_step()
        for tokens_BL, labels_B, views_B in trainee.accumulate(batches):
            tokens_BL = tokens_BL.to(device, non_blocking=True)
            inputs_BL = prior.inputs(noise(tokens_BL, 1 - trainee.progress), labels_B, views_B)
            with trainee.autocast():
                loss = trainee.wrapped(inputs_BL, targets_BL=smoothing(tokens_BL))
            trainee.backward(loss)
            trainee.means.add({"bits_per_token": loss / math.log(2)})
        gradient_norm = trainee.end_step()
        # Log
        log.advance(trainee.step_images)
        if crossed(training.log_every, trainee.images, trainee.step_images):
            means = {**trainee.means.take(), **trainee.data_wait.take()}
            rate = trainee.optimizer.param_groups[0]["lr"]
            log.write(trainee.images, {**means, "gradient_norm": gradient_norm, "lr": rate})
            log.show(means)
        # Evaluate, draw, save
        early.keep()
        at_end = trainee.images >= training.images
        if at_end or crossed(training.evaluate_every, trainee.images, trainee.step_images):
            log_evaluation(log, trainee, held_out.evaluate())
            held_out.keep_best()
            held_out.draw(run.samples / f"{trainee.images:09d}.safetensors")
        if crossed(training.save_every, trainee.images, trainee.step_images):
            trainee.save(run)
    log.close()
    trainee.save_last(run)
    trainee.stop_if_asked(run)
    report = held_out.evaluate()
    chosen_for_these = trainee.images == begun and (run.path / DRAWING).exists()
    if accelerator.is_main_process and not chosen_for_these and keep_if_sure(run.path, report.bits_per_token):
        print(f"nearly sure of its tokens, so it is drawn with {SURE}")
    return run, report


def prepare_run(
    config: PriorRun, run: RunDirectory, cache: TokenCache, accelerator: Accelerator, may_lengthen: bool
) -> None:
    """Check what can be checked before training, and create or check the run's directory. Raises UserError."""
    processes = accelerator.num_processes if config.training.shard else 1
    memory = memory_line(config, cache, accelerator.device, processes)
    if accelerator.is_main_process:
        classes = len(cache.info.class_names or ()) or "none"
        print(f"{memory}\ntokens: {shown(str(cache.path))}, classes: {classes}; {Amount.of(cache)}")
        begin(run, config, accelerator.num_processes, may_lengthen)
        if run.newest() is None:
            (run.path / DRAWING).unlink(missing_ok=True)  # found for another beginning
        remember_tokens(run, cache)
    accelerator.wait_for_everyone()


def begin_with(prior: Prior, info: TokenInfo, init: str, without: Sequence[str]) -> str:
    """Give a prior the weights of another that fit; says which in a line. Raises UserError where there are none.

    Tokens of another tokenizer mean something else: what stands for them then begins at random. Where the classes
    differ, tokens are taken without the classes beside them.
    """
    run = local_run(init)
    if not (run / "tokens.json").exists():
        raise UserError(f"init={init} is not a prior's run: it holds no tokens.json")
    before = read_info(run)
    if before.class_names != info.class_names and prior.modulation is not None:
        without = [*without, "modulation.embedding"]
    if before.fingerprint == info.fingerprint:
        rows = {} if before.class_names == info.class_names else {"vocabulary.embedding.weight": info.codes}
        return start_from(prior, run, without, rows=rows)
    line = start_from(prior, run, [*without, "vocabulary"])
    return f"{line} (the tokens of {init} are another tokenizer's)"


def keep(run: RunDirectory, name: str, trainee: Trainee) -> None:
    """Write the averaged weights as they are now as a file of the run; every process must call it."""
    weights = whole(trainee.ema.state_dict())
    if trainee.accelerator.is_main_process:
        run.keep(weights, name)


class EarlyWeights:
    """Keeps the averaged weights of the shares of a training that `training.early` names."""

    def __init__(self, run: RunDirectory, training: PriorTrainingConfig, trainee: Trainee) -> None:
        self.run, self.trainee = run, trainee
        self.first = min(training.early, default=0.0)
        self.missing = {}
        for share in training.early:
            images = math.ceil(share * training.images)
            [missing] = trainee.any_process(images > trainee.images or not (run.path / early_name(share)).exists())
            if missing:
                self.missing[share] = images

    def keep(self) -> None:
        """Keep them if the last step reached a share; every process must call it.

        Where a training was shortened, a share may lie behind it: then too, if not more than as far again.
        """
        seen = self.trainee.images
        for share, images in list(self.missing.items()):
            if images <= seen < 2 * images + self.trainee.step_images:
                keep(self.run, early_name(share), self.trainee)
                first = share == self.first or not (self.run.path / EARLY).exists()
                if first and self.trainee.accelerator.is_main_process:
                    use_early(self.run.path, early_name(share))
                del self.missing[share]


class HeldOut:
    """Held-out grids, which the averaged weights are tried on; it keeps those that did best."""

    def __init__(self, prior: Prior, trainee: Trainee, cache: TokenCache, run: RunDirectory) -> None:
        self.prior, self.trainee, self.cache, self.run = prior, trainee, cache, run
        self.main = trainee.accelerator.is_main_process
        self.best = best_so_far(run)[0] if self.main else -math.inf  # the first process decides
        self.newest: tuple[int, TokenPrediction] | None = None  # after how many grids of training

    def evaluate(self) -> TokenPrediction:
        """How the weights do as they are now, found once; the processes, each of which must call it, share the work."""
        if self.newest is None or self.newest[0] != self.trainee.images:
            with self.trainee.ema.applied():
                report = evaluate(self.prior, self.cache, "validation", accelerator=self.trainee.accelerator)
            if not math.isfinite(report.bits_per_token):
                raise UserError(
                    f"held-out grids have {report.bits_per_token} bits per token after {self.trainee.images} grids: "
                    f"these weights are of no use. {self.trainee.advice()}"
                )
            self.newest = self.trainee.images, report
        return self.newest[1]

    def keep_best(self) -> None:
        """Write the weights as they are now, where they do better than any before; every process must call it."""
        bits = self.evaluate().bits_per_token
        [better] = self.trainee.any_process(bits < self.best)
        if better:
            self.best = bits
            keep(self.run, BEST, self.trainee)

    def draw(self, path: Path) -> None:
        """Draw some grids, to be looked at; every process must call it."""
        with self.trainee.ema.applied():
            weights = whole(self.prior.state_dict())
            if self.main:
                save_grids(draw_grids(self._unsharded(weights), self.cache), path)

    def _unsharded(self, weights: dict[str, Tensor]) -> Prior:
        """A prior that can decode, which is no forward pass of the sharded one; on the first process, for a while."""
        if not self.trainee.sharded:
            return self.prior
        prior = build_prior(self.prior.config, self.cache.info, self.cache.code_vectors_KD)
        prior.load_state_dict(weights)
        return prior.to(self.trainee.accelerator.device)


def log_evaluation(log: Log, trainee: Trainee, report: TokenPrediction) -> None:
    """Log what held-out grids say."""
    log.write(trainee.images, {f"validation/{name}": value for name, value in report.figures().items()})
    log.show({"held out": report.bits_per_token})


def draw_grids(prior: Prior, cache: TokenCache, settings: DrawingSettings | None = None) -> Tensor:
    """Grids (B, h, w) int64 of seed 0, to be looked at; their classes are those of images spread over the training set.

    They stay tokens: training knows nothing that decodes them. settings: how they are drawn; plainly, if not given.
    """
    settings = settings or DrawingSettings()
    rows = torch.linspace(0, len(cache.tokens["train"]) // cache.info.views - 1, SHOWN).round().long()
    _, labels_B = cache.batch("train", rows)
    guidance = GuidanceConfig() if labels_B is None else settings.guidance
    return Decoder(prior.eval()).generate(
        range(SHOWN), 0, settings.sampling, labels_B=labels_B, cfg_scale=guidance.scales(prior.length),
        autoguidance=settings.autoguidance, candidates=settings.candidates,
    )  # fmt: skip


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


def memory_line(config: PriorRun, cache: TokenCache, device: torch.device, processes: int = 1) -> str:
    """What a training step takes of one process, of the `processes` that share the prior's weights.

    Raises UserError where it can never fit.
    """
    training = config.training
    memory = training_memory(config.model, cache.info, usable(training.precision, device))
    always = memory.weights // processes + memory.once
    return check_fits(always, memory.grid, training.batch_size, training.accumulation, device, unit="grid")


def token_batches(
    cache: TokenCache, config: TrainingConfig, start: int, rank: int, ranks: int
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """Endless batches of tokens (B, L), labels (B,) and kinds of views (B,) from the `start`-th grid of the run on.

    An epoch has each image once; the next has its next view.
    """
    count = len(cache.tokens["train"]) // cache.info.views
    for batch in ImageBatches(count, config.batch_size, config.seed, start, rank, ranks):
        # By image and epoch, so that every epoch has all kinds of views.
        rows = torch.tensor([(image + epoch) % cache.info.views * count + image for epoch, image in batch])
        yield *cache.batch("train", rows), cache.views("train", rows)


def main() -> None:
    """Read the command line, train, say what was written."""
    parser = argparse.ArgumentParser(prog=command_of("train-prior"), description=__doc__.split("\n")[0])
    parser.epilog = "Keys are those of the YAML files under configs/. Resumes if interrupted."
    parser.add_argument(
        "--describe", action="store_true", help="print what the prior is made of and costs, but do not train"
    )
    parser.add_argument("--json", action="store_true", help="with --describe or --keys: print JSON, on the last line")
    args = parse_command_line(parser, DEFAULT_CONFIG, PriorRun)
    config = load_config(PriorRun, find_config(args.config), args.overrides)
    if args.describe:
        describe(config).show(config.name, args.json)
        return
    run, report = train(config)
    if not PartialState().is_main_process:
        return
    best, images = best_so_far(run)
    sample = command_of("sample")
    better = f"; at its best, after {images} grids, {best:.2f} (`{sample} --weights best` draws from those weights)"
    print(
        f"wrote {run.path}: {report.bits_per_token:.2f} bits per token on held-out grids"
        f"{better if best < report.bits_per_token else ''}\n"
        f"next: {sample} --prior {run.path} --num 16"
    )


if __name__ == "__main__":
    run_command(main)
