"""How far one set of images lies from another, in the features of a frozen network.

The two distances that everybody reports, FID and KID; MIND, which needs fewer images; and precision, recall and the
Inception score, by torch-fidelity. In another network's features they go by that network's name, because they are other
numbers. Numbers of two papers agree only where the reference images, N, the resolution and the rounding do.

Features may be mapped into memory from a file: no more of them than a part is at hand, or is made float64, at a time.

Shapes: N images to be judged, M images of the reference, S images of a subset, P projections, D features, R rows of a
root of a covariance, K classes.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shared.data.vision import torchvision  # noqa: F401  # before torch-fidelity imports it

# isort: split
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from shared.data.sources.source import spread
from shared.reporting.findings import NotMeasured

PART = 4096  # images whose features are at hand at once
SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance, as torch-fidelity's
PROJECTIONS, MOST_PROJECTED = 1000, 5000  # of the Monge distance: lines, and images
NEIGHBOURS = 3  # whose distance is the radius of an image's ball (Kynkäänniemi et al. 2019)
MOST_BALLS = 10_000  # of either set: each image is compared with all others
SPLITS = 10  # of the Inception score (Salimans et al. 2016)
SMALLEST_SET = NEIGHBOURS + 1  # images without which nothing here is defined


class Distances(NamedTuple):
    """`frechet` distance of fitted Gaussians; `kernel` distance, mean and deviation over subsets; `monge` distance,
    along lines; `precision` the share of judged images that look like the reference's, `recall` the share of the
    reference's that some judged one looks like."""

    frechet: float
    kernel: float
    kernel_std: float
    monge: float
    precision: float
    recall: float


def distances(judged_ND: Tensor, reference_MD: Tensor, seed: int = 0) -> Distances:
    """Every distance between two sets of features. Raises NotMeasured where a set has fewer than four images."""
    smallest = min(len(judged_ND), len(reference_MD))
    if smallest < SMALLEST_SET:
        raise NotMeasured(f"{smallest} images are too few: {SMALLEST_SET} are needed on either side")
    return Distances(
        frechet_distance(judged_ND, reference_MD),
        *kernel_distance(judged_ND, reference_MD, seed),
        monge_distance(judged_ND, reference_MD, seed),
        *precision_recall(judged_ND, reference_MD),
    )


def frechet_distance(judged_ND: Tensor, reference_MD: Tensor) -> float:
    """|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)) of the Gaussians that fit two sets of features, in float64.

    (Heusel et al. 2017, eq. 6.) With roots S = R^T R and S' = Q^T Q, the trace of (S S')^(1/2) is the sum of the
    singular values of R Q^T: no product of covariances is formed, whose small eigenvalues would drown in rounding, and
    fewer images than dimensions do no harm to the arithmetic (their estimate is biased all the same: `few_images`).
    """
    mean_D, root_RD = fit_gaussian(judged_ND)
    other_mean_D, other_root_RD = fit_gaussian(reference_MD)
    means = (mean_D - other_mean_D).square().sum()
    traces = root_RD.square().sum() + other_root_RD.square().sum()
    return float(means + traces - 2 * torch.linalg.svdvals(root_RD @ other_root_RD.T).sum())


def fit_gaussian(features_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and a root R (min(N, D), D) of the unbiased covariance R^T R, both float64.

    The root of some rows and of those that follow is that of the first root with the others below it.
    """
    mean_D = torch.stack([part_D.double().cpu().sum(0) for part_D in features_ND.split(PART)]).sum(0) / len(features_ND)
    root_RD = torch.empty(0, len(mean_D), dtype=torch.float64)
    for part_ND in features_ND.split(PART):
        centred_ND = (part_ND.double().cpu() - mean_D) / math.sqrt(len(features_ND) - 1)
        root_RD = torch.linalg.qr(torch.cat([root_RD, centred_ND]), mode="r").R
    return mean_D, root_RD


def kernel_distance(judged_ND: Tensor, reference_MD: Tensor, seed: int = 0) -> tuple[float, float]:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3, mean and deviation over subsets (Bińkowski et al. 2018).

    100 subsets of 1,000 images of either set, or of as many as the smaller one has: those that torch-fidelity takes.
    """
    size = min(SUBSET_SIZE, len(judged_ND), len(reference_MD))
    numbers = np.random.RandomState(seed)
    values = []
    for _ in range(SUBSETS):
        judged_SD, reference_SD = (
            features[torch.from_numpy(numbers.choice(len(features), size, replace=False))].double()
            for features in (judged_ND, reference_MD)
        )
        values.append(_mmd(judged_SD, reference_SD))
    return float(np.mean(values)), float(np.std(values))


def _mmd(judged_SD: Tensor, reference_SD: Tensor) -> float:
    count, dimensions = judged_SD.shape

    def kernel(x_SD: Tensor, y_SD: Tensor) -> Tensor:
        return (x_SD @ y_SD.T / dimensions + 1) ** 3

    within = [kernel(x_SD, x_SD) for x_SD in (judged_SD, reference_SD)]
    pairs = sum(float(k_SS.sum() - k_SS.trace()) for k_SS in within) / (count * (count - 1))
    return pairs - 2 * float(kernel(judged_SD, reference_SD).mean())


def monge_distance(judged_ND: Tensor, reference_MD: Tensor, seed: int = 0) -> float:
    """MIND, 3 D times the mean squared 2-Wasserstein distance along 1,000 random lines (Berthet et al. 2026).

    (arXiv 2605.06797.) Along a line, both sets sorted, it is the mean squared difference. Of 5,000 images of either set
    drawn by `seed`, or of as many as the smaller one has; between numbers of images it is comparable only where they
    are equal, for fewer images are farther from any others.
    """
    count, dimensions = min(MOST_PROJECTED, len(judged_ND), len(reference_MD)), judged_ND.shape[1]
    generator = torch.Generator().manual_seed(seed)
    lines_PD = torch.randn(PROJECTIONS, dimensions, generator=generator, dtype=torch.float64)
    lines_PD /= lines_PD.norm(dim=1, keepdim=True)
    judged_PS, reference_PS = (
        (lines_PD @ features[torch.randperm(len(features), generator=generator)[:count]].double().cpu().T).sort().values
        for features in (judged_ND, reference_MD)
    )
    return float(3 * dimensions * (judged_PS - reference_PS).square().mean())


def precision_recall(judged_ND: Tensor, reference_MD: Tensor) -> tuple[float, float]:
    """Shares of images within the other set's balls, each as wide as to the third neighbour (Kynkäänniemi et al. 2019).

    Of at most 10,000 images of either set, evenly spread over it. In float64: in float32, distances by matrix products
    are off by more than those between near-copies.
    """
    result = prc_features_to_metric(
        judged_ND[spread(len(judged_ND), MOST_BALLS)].double(),
        reference_MD[spread(len(reference_MD), MOST_BALLS)].double(),
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=1000,
        save_cpu_ram=True,
        verbose=False,
    )
    return result[KEY_METRIC_PRECISION], result[KEY_METRIC_RECALL]


def inception_score(logits_NK: Tensor, seed: int = 0) -> tuple[float, float]:
    """exp of the mean KL divergence of p(class | image) from p(class), mean and deviation over ten parts.

    (Salimans et al. 2016.) Raises NotMeasured where the parts would be empty.
    """
    if len(logits_NK) < SPLITS:
        raise NotMeasured(f"{len(logits_NK)} images are too few for the {SPLITS} parts of an Inception score")
    result = isc_features_to_metric(logits_NK.cpu(), SPLITS, shuffle=True, rng_seed=seed)
    return result[KEY_METRIC_ISC_MEAN], result[KEY_METRIC_ISC_STD]


def few_images(name: str, images: int, dimensions: int) -> str | None:
    """A warning where a Fréchet distance stands on too few images to be compared with anybody's."""
    if images > dimensions:
        return None
    return (
        f"{name} is of {images} images in {dimensions} dimensions: too few for a covariance, so it is biased upwards "
        "and comparable only with others of as many images; go by the kernel distance, which is unbiased"
    )
