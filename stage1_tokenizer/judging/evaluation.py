"""A run's evaluation: everything that can be measured of its reconstructions, written beside it."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from shared.data.dataset import ImageDataset
from shared.errors import UserError
from shared.reporting.findings import Findings
from shared.runs.fingerprint import fingerprint
from stage1_tokenizer.judging.figures import TITLES
from stage1_tokenizer.judging.images import datasets_of
from stage1_tokenizer.judging.instruments import NOISED_NEIGHBOURS, NOISED_SHARE, Kit, open_kit
from stage1_tokenizer.judging.measure import measure
from stage1_tokenizer.judging.pictures import draw_reconstructions
from stage1_tokenizer.tokenizer import Tokenizer, load_tokenizer


def evaluate_run(run: Path, split: str, batch_size: int, inception: Path | None, accelerator: Accelerator) -> Findings:
    """Measure the tokenizer of `run` on a split of its images and write what was found into RUN/evaluation.

    Every process of `accelerator` must call it. Raises UserError where the run has no codebook yet, where there are
    fewer images than processes, and where `inception` cannot be used.
    """
    tokenizer = load_tokenizer(run).to(accelerator.device)
    if not tokenizer.quantiser.initialised:
        raise UserError(f"{run} has no codebook yet: train it further")
    datasets = datasets_of(run, split)
    count = sum(map(len, datasets))
    if count < accelerator.num_processes:
        raise UserError(f"{count} images are fewer than processes ({accelerator.num_processes}): start fewer")
    with accelerator.main_process_first():  # so that weights are downloaded once
        kit = open_kit(tokenizer, datasets[0].config.height_width, inception, accelerator.device)
    facts = facts_of(run, split, tokenizer, datasets, kit) | {"processes": accelerator.num_processes}
    readings = measure(tokenizer, datasets, kit.instruments, accelerator, batch_size)
    ordered = {name: readings.figures[name] for name in TITLES if name in readings.figures}
    not_measured = kit.missing | readings.not_measured
    found = Findings(f"Reconstructions of {run}", TITLES, facts, ordered, not_measured, readings.warnings)
    if accelerator.is_main_process:
        found.write(run / "evaluation" / split)
        draw_reconstructions([tokenizer], datasets[-1], run / "evaluation" / f"{split}.png")
    return found


def facts_of(run: Path, split: str, tokenizer: Tokenizer, datasets: list[ImageDataset], kit: Kit) -> dict[str, Any]:
    """All that the figures depend on."""
    count, height_width = sum(map(len, datasets)), datasets[0].config.height_width
    return {
        "tokenizer": str(run),
        "fingerprint": fingerprint(tokenizer),
        "split": split,
        "images": count,
        "reference": f"the same {count} images of {datasets[0].source.description}",
        "resolution": "{} x {}".format(*height_width),
        "codes": tokenizer.codes,
        "replaced tokens": f"{NOISED_SHARE:.0%} of each image's, each by one of the {NOISED_NEIGHBOURS} nearest codes",
        "seeds": {"subsets of the kernel distance": 0, "replaced tokens": "the image's own, CRC-32 of its tokens"},
        "weights": kit.fingerprints,
    }
