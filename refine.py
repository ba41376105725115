"""Train a tokenizer's decoder on what a prior draws: python refine.py [--prior RUN] [CONFIG.yaml] [key=value ...]

A decoder learns from the tokens of images. Those that a prior draws fit one another less well. Here the decoder learns
from these too, against a discriminator that knows real images. The encoder and the codes stay, so that the prior and
every token cache stay right.

Writes runs/tokenizer/<name>/, by default under the prior's name with -refined behind it. With --use, the prior draws
with it from then on. Drawings become sharper, though hardly more than by a longer training without a prior
(docs/tokenizers.md): compare before you use it.
Resumes if interrupted: run the same command again. On several GPUs: torchrun --nproc-per-node 8 refine.py ...
"""

import shared  # noqa: F401  # before the libraries, which read their settings on import

# isort: split
import argparse
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from shared.config import completed, merged, parse_config, read_extended
from shared.data.dataset import ImageDataset
from shared.data.open import open_datasets
from shared.errors import UserError, run_command
from shared.options.command_line import parse_command_line
from shared.options.commands import command_of
from shared.presets import find_config
from shared.runs.fingerprint import fingerprint, tokenizing_fingerprint
from shared.runs.hub import TOKENIZER, local_run, tokenizer_directory
from shared.runs.run_directory import WEIGHTS, RunDirectory, newest_run, read_yaml
from shared.runs.token_cache import TokenInfo
from shared.runs.uses import save_uses
from shared.training.devices.accelerator import make_accelerator
from stage1_tokenizer.judging.report import write_report
from stage1_tokenizer.losses.adversarial import AdversarialConfig
from stage1_tokenizer.run_config import DrawsConfig, TokenizerRun
from stage1_tokenizer.tokenizer import Tokenizer, matching_tokenizer
from stage1_tokenizer.train import train
from stage2_prior.decoding.choosing.guidance import GuidanceConfig
from stage2_prior.decoding.settings import DrawingSettings, read_settings
from stage2_prior.judging.drawing import Drawing, drawn_tokens
from stage2_prior.own_tokens import OwnTokens
from stage2_prior.prior import Prior, load_prior
from stage2_prior.tokens import draw_with

DEFAULT_CONFIG = "configs/folder/refine.yaml"
BATCH = 16  # images drawn at a time
MOMENTS = ("start", "warm_up", "ramp")  # of loss.adversarial: the preset's


class RefinedRun(TokenizerRun):
    """A training of a decoder that has a prior."""

    draws: DrawsConfig


def refine(run: Path, preset: str, overrides: list[str], use: bool = False) -> Path:
    """Train the decoder of a prior's tokenizer as a preset says; returns its run.

    use: whether the prior draws with it from then on. Raises UserError where the prior, its tokenizer or its images
    cannot be had.
    """
    accelerator = make_accelerator()
    prior, info = load_prior(run)
    before = unrefined(run, tokenizer_directory(run, info.tokenizer))
    tokenizer = matching_tokenizer(info, run, before)
    info = info.model_copy(update={"tokenizing": tokenizing_fingerprint(tokenizer.state_dict())})
    settings = read_settings(run)
    draws = {"prior": str(run), "fingerprint": f"{fingerprint(prior)}, {settings}"}
    config = refined_run(run, draws, before, preset, overrides)
    images = images_of(config, info, tokenizer)
    own_tokens = own_tokens_of(prior.to(accelerator.device), settings, images, config.draws, accelerator)
    trained, held_out = train(config, prior_tokens=own_tokens)
    quality = held_out.quality()
    if accelerator.is_main_process:
        matching_tokenizer(info, run, trained.path)
        save_uses(before, info.fingerprint, trained.path)
        print(
            f"wrote {trained.path}: held-out PSNR {quality.psnr:.2f} dB over {quality.images} images, with the tokens "
            f"of {before}; look at {write_report(trained.path)}"
        )
        draw = f"{command_of('sample')} --prior {run}"
        if use:
            draw_with(run, info, trained.path)
            print(f"{run} now draws with it, and as before with --tokenizer {before}\nnext: {draw}")
        else:
            print(f"next: compare `{draw} --tokenizer {trained.path}` with `{draw} --tokenizer {before}`")
    return trained.path


def unrefined(run: Path, tokenizer: Path) -> Path:
    """The tokenizer that `tokenizer` was, before its decoder was trained on what this prior draws."""
    config = read_yaml(tokenizer / "config.yaml")
    draws = config.get("draws") or {}
    return Path(config["init"]) if draws.get("prior") == str(run) else tokenizer


def refined_run(run: Path, draws: dict[str, str], tokenizer: Path, preset: str, overrides: list[str]) -> RefinedRun:
    """How a decoder is trained: as its tokenizer was, discriminator included, and as the preset says of the rest.

    Raises UserError.
    """
    own, path = read_yaml(tokenizer / "config.yaml"), Path(find_config(preset))
    cached, loss = (own.get("cache") or {}).get("source"), dict(own.get("loss", {}))
    adversarial = loss.pop("adversarial", None)
    loss.pop("causal", None)  # tokens stay as they are
    of_tokenizer = {
        "model": own.get("model", {}),
        "data": own.get("data", {}) | ({"source": cached} if cached else {}),
        "loss": loss,
        "init": str(tokenizer),
        "draws": draws,
        "training": {"decoder_only": True},
    }
    values = merged(of_tokenizer, read_extended(path))
    if adversarial and RunDirectory(tokenizer).newest():  # its discriminator goes on, with the settings it had
        had = completed(adversarial, AdversarialConfig)
        kept = {key: value for key, value in had.items() if key not in MOMENTS}
        values = merged(values, {"loss": {"adversarial": kept | {"init": str(tokenizer)}}})
    return parse_config(RefinedRun, values | {"name": f"{run.name}-{values.get('name')}"}, str(path), overrides)


def images_of(config: TokenizerRun, info: TokenInfo, tokenizer: Tokenizer) -> ImageDataset:
    """The training images, as they are. Raises UserError where the prior's tokens are not of such images."""
    images, _ = open_datasets(config.data.model_copy(update={"augment": None}), seed=0)
    if (grid := tokenizer.grid(config.data.height_width)) != info.grid:
        raise UserError(
            f"data.image_size={list(config.data.height_width)}: those become {grid[0]} x {grid[1]} tokens, and the "
            f"prior draws {info.grid[0]} x {info.grid[1]}"
        )
    if info.class_names and images.source.class_names != info.class_names:
        raise UserError(
            f"{images.config.where} has other classes than the prior was trained on: bring those back, or name the "
            "right images with data.source=..."
        )
    return images


def own_tokens_of(
    prior: Prior, settings: DrawingSettings, images: ImageDataset, draws: DrawsConfig, accelerator: Accelerator
) -> OwnTokens:
    """What the prior draws, as its own settings say, one candidate each: this process's share."""
    drawing = Drawing(
        images=max(draws.drawings, accelerator.num_processes), batch_size=BATCH, sampling=settings.sampling,
        guidance=settings.guidance if prior.classes else GuidanceConfig(),
        autoguidance=settings.autoguidance,
    )  # fmt: skip
    draw = partial(drawn_tokens, prior, images, drawing, accelerator)
    return OwnTokens(prior, settings.sampling, draw, draws.replaced, draws.share)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog=command_of("refine"), description=__doc__.split("\n")[0])
    parser.add_argument("--prior", type=Path, metavar="RUN", help="run directory (default: the last one trained)")
    parser.add_argument("--use", action="store_true", help="have the prior draw with the new decoder from then on")
    parser.epilog = "Keys are those of a tokenizer's training. Resumes if interrupted."
    args = parse_command_line(parser, DEFAULT_CONFIG, TokenizerRun)
    if args.use and args.prior and (args.prior / TOKENIZER).is_dir():
        raise UserError(
            f"--use: {args.prior} is a shared prior, which keeps the tokenizer inside of it: leave out --use"
        )
    run = local_run(args.prior) if args.prior else newest_run("prior", WEIGHTS[1])
    if run.resolve().is_relative_to(Path.cwd()):
        run = run.resolve().relative_to(Path.cwd())  # one spelling, which the configuration keeps
    refine(run, args.config, args.overrides, args.use)


if __name__ == "__main__":
    run_command(main)
