"""Train a tokenizer's decoder on what a prior draws: python refine.py [--prior RUN] [CONFIG.yaml] [key=value ...]

A decoder learns from the tokens of images. Those that a prior draws fit one another less well. Here the decoder learns
from these too, against a discriminator that knows real images. The encoder and the codes stay, so that the prior and
every token cache stay right.

Writes runs/tokenizer/<name>/, by default under the tokenizer's name with -refined behind it, and lets the prior draw
with it from then on. Resumes if interrupted: run the same command again. On several GPUs: torchrun --nproc-per-node 8
refine.py ...
"""

import shared  # noqa: F401  # before the libraries, which read their settings on import

# isort: split
import argparse
from pathlib import Path

from accelerate import Accelerator

from shared.config import merged, parse_config, read_extended
from shared.errors import UserError, run_command
from shared.options.command_line import parse_command_line
from shared.options.commands import command_of
from shared.presets import find_config
from shared.runs.fingerprint import tokenizing_fingerprint
from shared.runs.hub import TOKENIZER, local_run, tokenizer_directory
from shared.runs.run_directory import WEIGHTS, newest_run, read_yaml
from shared.runs.token_cache import TokenInfo
from shared.runs.uses import save_uses
from shared.training.devices.accelerator import plain_accelerator
from stage1_tokenizer.judging.report import write_report
from stage1_tokenizer.run_config import DrawsConfig, TokenizerRun
from stage1_tokenizer.tokenizer import matching_tokenizer
from stage1_tokenizer.train import train
from stage2_prior.decoding.guidance import GuidanceConfig
from stage2_prior.decoding.settings import read_settings
from stage2_prior.judging.drawing import Drawing, drawn_tokens
from stage2_prior.judging.reference import reference_images
from stage2_prior.own_tokens import OwnTokens
from stage2_prior.prior import Prior, load_prior
from stage2_prior.tokens import draw_with

DEFAULT_CONFIG = "configs/folder/refine.yaml"
BATCH = 16  # images drawn at a time


def refine(run: Path, preset: str, overrides: list[str]) -> Path:
    """Train the decoder of a prior's tokenizer as a preset says, and let the prior draw with it; returns its run.

    Raises UserError where the prior, its tokenizer or its images cannot be had.
    """
    prior, info = load_prior(run)
    before = unrefined(run, tokenizer_directory(run, info.tokenizer))
    weights = matching_tokenizer(info, run, before).state_dict()
    info = info.model_copy(update={"tokenizing": tokenizing_fingerprint(weights)})
    config, draws = refined_run(run, info, before, preset, overrides)
    accelerator = plain_accelerator()
    own_tokens = own_tokens_of(run, prior.to(accelerator.device), info, draws, accelerator)
    trained, held_out = train(config, prior_tokens=own_tokens)
    quality = held_out.quality()
    if accelerator.is_main_process:
        matching_tokenizer(info, run, trained.path)
        save_uses(before, info.fingerprint, trained.path)
        print(
            f"wrote {trained.path}: held-out PSNR {quality.psnr:.2f} dB over {quality.images} images, with the tokens "
            f"of {before}; look at {write_report(trained.path)}"
        )
        let_draw(run, info, before, trained.path)
    return trained.path


def unrefined(run: Path, tokenizer: Path) -> Path:
    """The tokenizer that `tokenizer` was, before its decoder was trained on what this prior draws."""
    config = read_yaml(tokenizer / "config.yaml")
    by_this = (config.get("draws") or {}).get("prior") == str(run)
    return Path(config["init"]) if by_this else tokenizer


def refined_run(
    run: Path, info: TokenInfo, tokenizer: Path, preset: str, overrides: list[str]
) -> tuple[TokenizerRun, DrawsConfig]:
    """How a decoder is trained: as the preset says, but for what its tokenizer is. Raises UserError."""
    own, path = read_yaml(tokenizer / "config.yaml"), Path(find_config(preset))
    of_tokenizer = {
        "model": own.get("model", {}),
        "data": {**own.get("data", {}), "source": info.data.source},
        "loss": own.get("loss", {}),
        "init": str(tokenizer),
        "draws": {"prior": str(run)},
        "training": {"decoder_only": True},
    }
    values = {**merged(of_tokenizer, read_extended(path)), "name": f"{tokenizer.name}-refined"}
    config = parse_config(TokenizerRun, values, str(path), overrides)
    if config.draws is None:
        raise UserError("draws=null leaves nothing to learn from: draws.replaced and draws.share say how much there is")
    return config, config.draws


def let_draw(run: Path, info: TokenInfo, before: Path, refined: Path) -> None:
    """Have a prior draw with a refined tokenizer from now on, unless it has one inside of it; says so."""
    draw = f"{command_of('sample')} --prior {run}"
    if (run / TOKENIZER).is_dir():
        print(f"next: {draw} --tokenizer {refined}    (a shared prior keeps the tokenizer inside of it)")
        return
    draw_with(run, info, refined)
    print(f"{run} now draws with it, and as before with --tokenizer {before}\nnext: {draw}")


def own_tokens_of(run: Path, prior: Prior, info: TokenInfo, draws: DrawsConfig, accelerator: Accelerator) -> OwnTokens:
    """What the prior draws, as its own settings say: this process's drawings of those that are asked for."""
    images = reference_images(info, "train")
    if images.source.class_names != info.class_names:
        raise UserError(f"{images.config.where} has other classes than when {run} was trained on it: bring those back")
    settings = read_settings(run)
    guidance = settings.guidance if prior.classes else GuidanceConfig()
    count = max(draws.drawings, accelerator.num_processes)
    drawing = Drawing(images=count, batch_size=BATCH, sampling=settings.sampling, guidance=guidance)
    drawings_Nhw = drawn_tokens(prior, images, drawing, accelerator)
    return OwnTokens(prior, settings.sampling, drawings_Nhw, draws.replaced, draws.share)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog=command_of("refine"), description=__doc__.split("\n")[0])
    parser.add_argument("--prior", type=Path, metavar="RUN", help="run directory (default: the last one trained)")
    parser.epilog = "Keys are those of a tokenizer's training. Resumes if interrupted."
    args = parse_command_line(parser, DEFAULT_CONFIG, TokenizerRun)
    run = local_run(args.prior) if args.prior else newest_run("prior", WEIGHTS[1])
    refine(run, args.config, args.overrides)


if __name__ == "__main__":
    run_command(main)
