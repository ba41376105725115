"""How good the images are that a prior draws: distances from real ones, how much of either the other covers, copies.

Shapes: B a batch, N images drawn (n by this process), M images of the reference, D features, h x w = L tokens.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from shared.data.dataset import ImageDataset
from shared.data.pixels import to_float
from shared.disk.atomic import write_text
from shared.errors import UserError
from shared.reporting.contact_sheet import save_grid
from shared.reporting.feature_networks import Extractor, Inception
from shared.reporting.findings import Findings, NotMeasured
from shared.reporting.set_distances import distances, few_images, inception_score
from shared.runs.fingerprint import fingerprint
from shared.training.devices.gather import gather_rows
from stage2_prior.judging.codec import decoded
from stage2_prior.judging.drawing import Drawing, drawn_tokens
from stage2_prior.judging.features import Networks, features_of
from stage2_prior.judging.nearest_images import COPIES_SHOWN, Copies, KnownGrids, copies_by_features, copies_by_tokens
from stage2_prior.judging.real_features import RealFeatures
from stage2_prior.judging.reference import reference_images
from stage2_prior.judging.subject import Subject
from stage2_prior.judging.titles import COPYING, MEASURES, TITLES


def measure_samples(
    subject: Subject, drawing: Drawing, networks: Networks, known: KnownGrids, accelerator: Accelerator
) -> Findings:
    """Draw images from a prior, judge them and write what was found into RUN/evaluation.

    Each process draws its share; all return the same. Raises UserError where the images that the prior was trained on
    cannot be had, or are fewer than processes.
    """
    info, codec = subject.info, subject.codec
    dataset = reference_images(info, drawing.reference)
    if min(drawing.images, len(dataset)) < accelerator.num_processes:
        raise UserError(f"{accelerator.num_processes} processes are more than images: start fewer")
    tokens_nhw = drawn_tokens(subject.prior, dataset, drawing, accelerator)
    images = decoded(tokens_nhw, codec, drawing.batch_size)
    drawn, shown_BCHW = features_of(images, networks, drawing.images, accelerator, "looking at drawn images")
    known_features = RealFeatures(networks, drawing.batch_size, accelerator)
    real = known_features.of(dataset)
    found = Findings(f"Samples of {subject.run}", TITLES, facts_of(subject, drawing, dataset, networks))
    found.facts["processes"] = accelerator.num_processes
    found.not_measured |= {
        name: reason for part, reason in networks.missing.items() for name in (*MEASURES[part], COPYING[part])
    }
    for network in networks.opened:
        add_distances(network, drawn[network.name], real[network.name], found)
    by_features = copies_by_features(drawn, known_features, subject)
    grids_NL = gather_rows(accelerator, tokens_nhw.flatten(1), drawing.images).to(accelerator.device)
    by_tokens = copies_by_tokens(grids_NL, known, info.grid, codec)
    found.measures |= by_features.measures | by_tokens.measures
    if accelerator.is_main_process:
        write_findings(found, shown_BCHW, by_features, by_tokens, subject.run / "evaluation")
    return found


def add_distances(network: Extractor, drawn_ND: Tensor, real_MD: Tensor, found: Findings) -> None:
    """Add what is found in one network's features."""
    names = MEASURES[network.name]
    try:
        values = list(distances(drawn_ND, real_MD))
        if isinstance(network, Inception):
            values += inception_score(network.logits(drawn_ND))
    except NotMeasured as error:
        found.not_measured |= dict.fromkeys(names, str(error))
        return
    found.measures |= zip(names, values, strict=True)
    if warning := few_images(TITLES[names[0]], min(len(drawn_ND), len(real_MD)), drawn_ND.shape[1]):
        found.warnings.append(warning)


def facts_of(subject: Subject, drawing: Drawing, dataset: ImageDataset, networks: Networks) -> dict[str, Any]:
    """All that the measures depend on."""
    info = subject.info
    return {
        "prior": str(subject.run),
        "prior_weights": subject.weights,
        "fingerprint": fingerprint(subject.prior),
        "tokenizer": info.tokenizer,
        "tokenizer_fingerprint": info.fingerprint,
        "images": drawing.images,
        "reference": f"{len(dataset)} {drawing.reference} images of {dataset.source.description}",
        "resolution": "{} x {}".format(*info.data.height_width),
        "classes": "each as often as in the reference" if subject.prior.classes else "none",
        "sampling": drawing.sampling.model_dump(),
        "guidance": drawing.guidance.model_dump(),
        "autoguidance": drawing.autoguidance,
        "candidates": drawing.candidates,
        "seeds": {"drawing": drawing.seed, "subsets and parts": 0},
        "weights": {network.name: network.fingerprint for network in networks.opened},
    }


def write_findings(found: Findings, shown_BCHW: Tensor, by_features: Copies, by_tokens: Copies, folder: Path) -> None:
    """Write samples.json, .md and .png into `folder`, nearest.png: the first images, and below them the nearest, and
    nearest.md: what those are called.

    shown_BCHW: the first of the images drawn, uint8.
    """
    found.write(folder / "samples")
    save_grid(to_float(shown_BCHW), folder / "samples.png", columns=8)
    lines = [f"| {number} | {kin} |" for number, kin in enumerate(by_features.kin)]
    write_text("\n".join(["| drawn image | nearest real image |", "|---:|---|", *lines, ""]), folder / "nearest.md")
    rows = [to_float(shown_BCHW[:COPIES_SHOWN]), by_features.nearest_BCHW, by_tokens.nearest_BCHW]
    save_grid(torch.cat(rows), folder / "nearest.png", columns=len(by_tokens.nearest_BCHW))
