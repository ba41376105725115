"""Draw images from a prior and its tokenizer: python sample.py [--prior RUN] [--num 16] [--seed 0] ...

Image k of a seed has random numbers of its own. On a CPU its tokens are the same whatever --num, --batch-size or the
number of threads; pixels may differ by rounding. On a GPU the last bits of matrix products depend on the former two,
and may in rare cases turn one token into another.
"""

import shared  # noqa: F401  # before the libraries, which read their settings on import

# isort: split
import time
from functools import partial
from pathlib import Path

from tqdm import tqdm

from sampling.arguments import check, parse_arguments, settings_of
from sampling.panel import Panel, Stream, size_of, write
from sampling.task import make_task
from shared.disk.outputs import check_writable
from shared.errors import run_command
from shared.runs.hub import local_run, prior_directory
from shared.runs.run_directory import RUNS
from shared.training.devices.device import best_device
from stage1_tokenizer.tokenizer import matching_tokenizer
from stage2_prior.decoding.decoder import Decoder
from stage2_prior.decoding.settings import read_settings
from stage2_prior.prior import load_prior


def main() -> None:
    """Draw, decode, write, say what was written."""
    args = parse_arguments(str(__doc__).split("\n")[0])
    check(args)
    device = best_device()
    run = prior_directory(args.prior)
    settings = settings_of(args, read_settings(run))
    out = args.out or (run if RUNS in run.parents or run == args.prior else Path()) / "samples"
    check_writable(out)
    prior, info = load_prior(run, args.weights)
    scale_L = settings.guidance.scales(prior.length)
    tokenizer = matching_tokenizer(info, run, local_run(args.tokenizer) if args.tokenizer else None).to(device)
    task = make_task(args, info, tokenizer)
    panel = Panel(task, size_of(task, tokenizer, info), out / ("completions.png" if task.photos else "grid.png"))
    stream = Stream(task, panel, tokenizer, info.grid[0]) if args.stream else None
    to_draw = task.to_draw(prior.length, settings.candidates)
    drawing, start = 0.0, time.perf_counter()
    decoder = Decoder(prior.to(device), args.batch_size)
    with tqdm(total=to_draw, unit="tok", desc="drawing", leave=False) as bar:
        for numbers in task.batches(max(1, args.batch_size // max(1, task.particles))):
            began = time.perf_counter()
            tokens_BHW = decoder.generate(
                task.images(numbers), args.seed, settings.sampling, labels_B=task.labels(numbers), cfg_scale=scale_L,
                autoguidance=settings.autoguidance, candidates=settings.candidates,
                progress=bar.update, on_row=partial(stream.show, numbers) if stream else None, **task.given(numbers),
            )  # fmt: skip
            drawing += time.perf_counter() - began
            images_BCHW = task.finish(tokenizer.detokenize(tokens_BHW.to(device)).cpu(), numbers)
            write(images_BCHW, [out / f"{task.name(number, args.seed)}.png" for number in numbers])
            panel.put(numbers, images_BCHW)
    panel.save()
    seconds = time.perf_counter() - start
    print(
        f"wrote {task.total} images and {panel.path}: {task.total / seconds:.1f} images/s, "
        f"{to_draw / drawing:.0f} tokens/s on {device.type}\n"
        f"next: look at them; draw others with --seed {args.seed + 1}, tamer ones with --temperature 0.85"
    )


if __name__ == "__main__":
    run_command(main)
