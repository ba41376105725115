"""How good the images are that a prior draws: distances from real ones, how much of either the other covers, copies.

The one file of stage two that knows stage one: its tokenizer turns tokens into images here. Training never reads it.

Shapes: B a batch, N images drawn (n by this process), M images of the reference or of training, H held out, D features,
h x w = L tokens.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import Field, PositiveInt
from torch import Tensor
from tqdm import tqdm

from shared.config import Config
from shared.data.dataset import ImageDataset
from shared.data.loader import validation_loader
from shared.data.open import open_datasets
from shared.data.pixels import to_float, to_uint8
from shared.errors import UserError
from shared.reporting.contact_sheet import save_grid
from shared.reporting.feature_networks import Extractor, Inception
from shared.reporting.findings import Findings, NotMeasured
from shared.reporting.set_distances import distances, few_images, inception_score
from shared.runs.fingerprint import fingerprint
from shared.runs.token_cache import Split, TokenInfo, open_cache
from shared.training.devices.gather import gather_rows
from stage1_tokenizer.cache import open_views, tokens_of_views
from stage1_tokenizer.judging.instruments import open_networks
from stage1_tokenizer.tokenizer import Tokenizer, matching_tokenizer
from stage2_prior.decoding.filters import SamplingConfig
from stage2_prior.decoding.generate import generate
from stage2_prior.decoding.guidance import GuidanceConfig
from stage2_prior.evaluate import tokens_of
from stage2_prior.memorisation import copying, nearest, nearest_grids
from stage2_prior.prior import Prior, Weights, load_prior

SHOWN = 64  # images in the picture
COPIES_SHOWN = 16  # of them, above the nearest training image of each
PERCENTILES = {50: "median", 95: "95th percentile", 100: "highest"}
SHARED_TOKENS = {"shared_tokens": "drawn images", "shared_tokens_held_out": "held-out images"}
TITLES = {
    "fid": "FID",
    "kid": "KID",
    "kid_std": "KID, deviation between subsets",
    "precision": "precision",
    "recall": "recall",
    "copying": "chance of being nearer to a training image than a held-out image is",
    "inception_score": "Inception score",
    "inception_score_std": "Inception score, deviation between parts",
    "fd_vgg16": "Fréchet distance in ST-LPIPS' VGG16",
    "kd_vgg16": "kernel distance in ST-LPIPS' VGG16",
    "kd_vgg16_std": "kernel distance in ST-LPIPS' VGG16, deviation between subsets",
    "precision_vgg16": "precision in ST-LPIPS' VGG16",
    "recall_vgg16": "recall in ST-LPIPS' VGG16",
    "copying_vgg16": "chance of being nearer to a training image than a held-out image is, in ST-LPIPS' VGG16",
    "copying_tokens": "chance of sharing more tokens with a training grid than a held-out image does",
} | {
    f"{name}_{percent}": f"share of tokens in common with the nearest training grid, {of}: {title}"
    for name, of in SHARED_TOKENS.items()
    for percent, title in PERCENTILES.items()
}
COPYING = {"inception": "copying", "vgg16": "copying_vgg16"}
# Names of the fields of `Distances` in each network's features, and then of the Inception score.
MEASURES = {
    "inception": ("fid", "kid", "kid_std", "precision", "recall", "inception_score", "inception_score_std"),
    "vgg16": ("fd_vgg16", "kd_vgg16", "kd_vgg16_std", "precision_vgg16", "recall_vgg16"),
}


class Drawing(Config):
    """What is drawn to be judged, how, and which real images it is held against.

    reference: all training or all validation images. Of a class-conditional prior, each class is drawn as often as it
        occurs among them.
    """

    images: PositiveInt
    reference: Split = "train"
    seed: int = Field(0, ge=0)
    batch_size: PositiveInt = 16
    sampling: SamplingConfig = SamplingConfig()
    guidance: GuidanceConfig = GuidanceConfig()


def measure_samples(
    run: Path, weights: Weights, drawing: Drawing, inception: Path | None, accelerator: Accelerator
) -> Findings:
    """Draw images from the prior of `run`, judge them and write what was found into RUN/evaluation.

    Each process draws its share; all return the same. Raises UserError where the prior, its tokenizer or the images
    that it was trained on cannot be had.
    """
    prior, info = load_prior(run, weights)
    tokenizer = matching_tokenizer(info, run).to(accelerator.device)
    dataset = reference_images(info, drawing.reference)
    if min(drawing.images, len(dataset)) < accelerator.num_processes:
        raise UserError(f"{accelerator.num_processes} processes are more than images: start fewer")
    with accelerator.main_process_first():  # so that weights are downloaded once
        networks, missing = open_networks(info.data.height_width, inception, accelerator.device)
    tokens_nhw = drawn_tokens(prior.to(accelerator.device), dataset, drawing, accelerator)
    images = decoded(tokens_nhw, tokenizer, drawing.batch_size)
    drawn, shown_BCHW = rows_of(images, networks, drawing.images, accelerator)
    real, _ = rows_of(reference_batches(dataset, drawing.batch_size, accelerator), networks, len(dataset), accelerator)
    found = Findings(f"Samples of {run}", TITLES, facts(run, weights, prior, info, drawing, dataset, networks))
    found.facts["processes"] = accelerator.num_processes
    found.not_measured |= {
        name: reason for part, reason in missing.items() for name in (*MEASURES[part], COPYING[part])
    }
    for network in networks:
        judge(network, drawn[network.name], real[network.name], found)
    training = real if drawing.reference == "train" else None
    by_features = find_copies(drawn, training, info, tokenizer, networks, drawing.batch_size, accelerator)
    grids_NL = gather_rows(accelerator, tokens_nhw.flatten(1), drawing.images).to(accelerator.device)
    known = known_grids(run, info, tokenizer, drawing.batch_size, accelerator)
    by_tokens = find_copied_grids(grids_NL, *known, info.grid, tokenizer)
    found.measures |= by_features.measures | by_tokens.measures
    if accelerator.is_main_process:
        found.write(run / "evaluation" / "samples")
        save_grid(to_float(shown_BCHW), run / "evaluation" / "samples.png", columns=8)
        rows = [to_float(shown_BCHW[:COPIES_SHOWN]), by_features.nearest_BCHW, by_tokens.nearest_BCHW]
        save_grid(torch.cat(rows), run / "evaluation" / "nearest.png", columns=len(by_tokens.nearest_BCHW))
    return found


def reference_images(info: TokenInfo, split: Split) -> ImageDataset:
    """The images of a split that the prior's tokens were made from, without augmentation."""
    train, validation = open_datasets(info.data.model_copy(update={"augment": None}), seed=0)
    return train if split == "train" else validation


def drawn_tokens(prior: Prior, dataset: ImageDataset, drawing: Drawing, accelerator: Accelerator) -> Tensor:
    """This process's share of the grids drawn, (n, h, w) int64: of p processes, every p-th."""
    labels_N = labels_like(dataset, drawing.images) if prior.classes else None
    scale_L = drawing.guidance.scales(prior.length)
    mine = torch.arange(accelerator.process_index, drawing.images, accelerator.num_processes)
    grids = []
    with tqdm(total=len(mine), unit="img", desc="drawing", disable=not accelerator.is_main_process, leave=False) as bar:
        for numbers_B in mine.split(drawing.batch_size):
            tokens_Bhw = generate(
                prior, numbers_B.tolist(), drawing.seed, drawing.sampling, cfg_scale=scale_L,
                labels_B=None if labels_N is None else labels_N[numbers_B], batch_size=drawing.batch_size,
            )  # fmt: skip
            grids.append(tokens_Bhw)
            bar.update(len(numbers_B))
    return torch.cat(grids)


def decoded(tokens_Nhw: Tensor, tokenizer: Tokenizer, batch_size: int) -> Iterator[Tensor]:
    """The images of some grids, in uint8 batches (B, 3, H, W) on the tokenizer's device."""
    for tokens_Bhw in tokens_Nhw.split(batch_size):
        yield to_uint8(tokenizer.detokenize(tokens_Bhw.to(tokenizer.device)))


def labels_like(dataset: ImageDataset, count: int) -> Tensor:
    """`count` labels (N,), each class as often as in the dataset: those of images spread evenly over it."""
    if dataset.source.labels is None:
        raise UserError(f"{dataset.config.source} has no classes any more, but the prior was trained with them")
    places = torch.arange(count) * len(dataset) // count
    return torch.tensor([dataset.source.labels[index] for index in dataset.indices[places].tolist()])


def reference_batches(dataset: ImageDataset, batch_size: int, accelerator: Accelerator) -> Iterator[Tensor]:
    """This process's share of the real images, as `decoded` gives them."""
    rank, ranks = accelerator.process_index, accelerator.num_processes
    for images, _ in validation_loader(dataset, batch_size, rank=rank, world_size=ranks):
        yield to_uint8(images).to(accelerator.device)


@torch.inference_mode()
def rows_of(
    batches: Iterator[Tensor], networks: list[Extractor], total: int, accelerator: Accelerator
) -> tuple[dict[str, Tensor], Tensor]:
    """Every network's features (total, D) of the images of all processes, in order, and the first of the images."""
    rows: dict[str, list[Tensor]] = defaultdict(list)
    pictures: list[Tensor] = []
    for pixels_BCHW in batches:
        pictures.append(pixels_BCHW[: SHOWN - sum(len(part) for part in pictures)])
        for network in networks:
            rows[network.name].append(network(pixels_BCHW))
    gathered = {name: gather_rows(accelerator, torch.cat(parts), total) for name, parts in rows.items()}
    return gathered, gather_rows(accelerator, torch.cat(pictures), min(total, SHOWN))


class Copies(NamedTuple):
    """How near drawn images are to training images, and the nearest ones of the first `COPIES_SHOWN`, in [-1, 1]."""

    measures: dict[str, float]
    nearest_BCHW: Tensor


def find_copies(
    drawn: dict[str, Tensor], real: dict[str, Tensor] | None, info: TokenInfo, tokenizer: Tokenizer,
    networks: list[Extractor], batch_size: int, accelerator: Accelerator,
) -> Copies:  # fmt: skip
    """Copies in the features of networks; the nearest training images are those in the first one's.

    drawn, real: by network, features of the images drawn and, where they are known already, of the training images.
    Held-out images count as the tokenizer reconstructs them, for drawn ones are decoded too; training images count
    mirrored as well, where training mirrors them.
    """
    training, held_out = reference_images(info, "train"), reference_images(info, "validation")
    plain = (
        real or rows_of(reference_batches(training, batch_size, accelerator), networks, len(training), accelerator)[0]
    )
    parts = [plain]
    if info.data.augment and info.data.augment.flip:
        mirrored = (batch.flip(-1) for batch in reference_batches(training, batch_size, accelerator))
        parts.append(rows_of(mirrored, networks, len(training), accelerator)[0])
    unseen = (
        to_uint8(tokenizer.detokenize(tokenizer.tokenize(to_float(images_BCHW))))
        for images_BCHW in reference_batches(held_out, batch_size, accelerator)
    )
    unseen_rows, _ = rows_of(unseen, networks, len(held_out), accelerator)
    found, measures = {}, {}
    for name in drawn:
        training_MD = torch.cat([part[name] for part in parts])
        found[name] = nearest(drawn[name], training_MD)
        usual_H = nearest(unseen_rows[name], training_MD).distances_N
        measures[COPYING[name]] = copying(found[name].distances_N, usual_H)
    rows_B = next(iter(found.values())).rows_N[:COPIES_SHOWN]
    return Copies(measures, torch.stack([training_view(training, row) for row in rows_B.tolist()]))


def training_view(training: ImageDataset, row: int) -> Tensor:
    """The image (3, H, W) in [-1, 1] of a row of the training images, as they are and then mirrored."""
    mirrored, place = divmod(row, len(training))
    image_CHW = to_float(training[0, place][0])
    return image_CHW.flip(-1) if mirrored else image_CHW


def known_grids(
    run: Path, info: TokenInfo, tokenizer: Tokenizer, batch_size: int, accelerator: Accelerator
) -> tuple[np.ndarray, np.ndarray]:
    """The grids of every view that the prior was trained on, (M, L), and those of the held-out images, (H, L).

    From its token cache, or made anew where that is not at hand: a shared prior comes without it.
    """
    try:
        cache = open_cache(tokens_of(run))
        if cache.info == info:
            return cache.tokens["train"], cache.tokens["validation"]
    except UserError:
        pass
    train, held_out = open_views(info.data, info.views)
    grids = (tokens_of_views(tokenizer, views, batch_size, accelerator) for views in (train, [held_out]))
    kind = np.min_scalar_type(info.codes)
    train_ML, held_out_HL = (
        np.concatenate([tokens_Bhw.flatten(1).numpy().astype(kind) for tokens_Bhw, _ in batches]) for batches in grids
    )
    return train_ML, held_out_HL


def find_copied_grids(
    grids_NL: Tensor, training_ML: np.ndarray, held_out_HL: np.ndarray, grid: tuple[int, int], tokenizer: Tokenizer
) -> Copies:
    """Copies by the share of tokens that grids have in common with a training grid, place by place.

    Of the held-out grids no more are compared than were drawn: the highest of many is higher than the highest of few.
    """
    some_HL = torch.from_numpy(held_out_HL[:: -(-len(held_out_HL) // len(grids_NL))].astype(np.int64))
    drawn, held_out = (nearest_grids(grids, training_ML) for grids in (grids_NL, some_HL.to(grids_NL.device)))
    measures = {"copying_tokens": copying(drawn.distances_N, held_out.distances_N)}
    for name, found in zip(SHARED_TOKENS, (drawn, held_out), strict=True):
        shares_N = 1 - found.distances_N
        measures |= {f"{name}_{percent}": float(shares_N.quantile(percent / 100)) for percent in PERCENTILES}
    copied_BL = torch.from_numpy(training_ML[drawn.rows_N[:COPIES_SHOWN].numpy()].astype(np.int64))
    [nearest_BCHW] = decoded(copied_BL.unflatten(1, grid), tokenizer, COPIES_SHOWN)
    return Copies(measures, to_float(nearest_BCHW.cpu()))


def judge(network: Extractor, drawn_ND: Tensor, real_MD: Tensor, found: Findings) -> None:
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


def facts(
    run: Path, weights: Weights, prior: Prior, info: TokenInfo, drawing: Drawing, dataset: ImageDataset,
    networks: list[Extractor],
) -> dict[str, Any]:  # fmt: skip
    """All that the measures depend on."""
    return {
        "prior": str(run),
        "prior_weights": weights,
        "fingerprint": fingerprint(prior),
        "tokenizer": info.tokenizer,
        "tokenizer_fingerprint": info.fingerprint,
        "images": drawing.images,
        "reference": f"{len(dataset)} {drawing.reference} images of {dataset.source.description}",
        "resolution": "{} x {}".format(*info.data.height_width),
        "classes": "each as often as in the reference" if prior.classes else "none",
        "sampling": drawing.sampling.model_dump(),
        "guidance": drawing.guidance.model_dump(),
        "seeds": {"drawing": drawing.seed, "subsets and parts": 0},
        "weights": {network.name: network.fingerprint for network in networks},
    }
