"""How far one set of images lies from another, in the features of a frozen network.

The two distances that everybody reports, FID and KID, and precision, recall and the Inception score, all by
torch-fidelity; in another network's features they go by that network's name, because they are other numbers. Numbers of
two papers agree only where the reference images, N, the resolution and the rounding do.

Shapes: N images to be judged, M images of the reference, D features, R rows of a root of a covariance, K classes.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from shared.data.vision import torchvision  # noqa: F401  # before torch-fidelity imports it

# isort: split
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from shared.reporting.findings import NotMeasured

SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance, as torch-fidelity's
NEIGHBOURS = 3  # whose distance is the radius of an image's ball (Kynkäänniemi et al. 2019)
SPLITS = 10  # of the Inception score (Salimans et al. 2016)
SMALLEST_SET = NEIGHBOURS + 1  # images without which nothing here is defined


class Distances(NamedTuple):
    """`frechet` distance of fitted Gaussians; `kernel` distance, mean and deviation over subsets; `precision` the share
    of judged images that look like the reference's, `recall` the share of the reference's that some judged one looks
    like."""

    frechet: float
    kernel: float
    kernel_std: float
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
    """Mean (D,) and a root R (min(N, D), D) of the unbiased covariance R^T R, both float64."""
    features_ND = features_ND.double().cpu()
    mean_D = features_ND.mean(0)
    return mean_D, torch.linalg.qr((features_ND - mean_D) / math.sqrt(len(features_ND) - 1), mode="r").R


def kernel_distance(judged_ND: Tensor, reference_MD: Tensor, seed: int = 0) -> tuple[float, float]:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3, mean and deviation over subsets (Bińkowski et al. 2018).

    100 subsets of 1,000 images of either set, or of as many as the smaller one has.
    """
    result = kid_features_to_metric(
        judged_ND.double(),
        reference_MD.double(),
        kid_subsets=SUBSETS,
        kid_subset_size=min(SUBSET_SIZE, len(judged_ND), len(reference_MD)),
        rng_seed=seed,
        verbose=False,
    )
    return result[KEY_METRIC_KID_MEAN], result[KEY_METRIC_KID_STD]


def precision_recall(judged_ND: Tensor, reference_MD: Tensor) -> tuple[float, float]:
    """Shares of images within the other set's balls, each as wide as to the third neighbour (Kynkäänniemi et al. 2019).

    In float64: in float32, distances by matrix products are off by more than those between near-copies.
    """
    result = prc_features_to_metric(
        judged_ND.double(),
        reference_MD.double(),
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
