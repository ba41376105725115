"""Distances between sets of images against closed forms, direct sums and torch-fidelity itself."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.optimize import linear_sum_assignment

from shared.errors import UserError
from shared.reporting import set_distances
from shared.reporting.feature_networks import open_inception
from shared.reporting.findings import NotMeasured
from shared.reporting.set_distances import (
    distances,
    few_images,
    frechet_distance,
    inception_score,
    kernel_distance,
    monge_distance,
    precision_recall,
)
from tests.support.narrow import present

# isort: split
from torch_fidelity import FeatureExtractorInceptionV3, calculate_metrics, metric_kid
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric


def correlated(count: int, dimensions: int) -> torch.Tensor:
    return torch.randn(count, dimensions, dtype=torch.float64) @ torch.randn(dimensions, dimensions).double() + 1


def exactly_gaussian(mean_D: torch.Tensor, covariance_DD: torch.Tensor) -> torch.Tensor:
    """Features whose sample mean and covariance are these to the last bits."""
    x_ND = torch.randn(50, len(mean_D), dtype=torch.float64)
    x_ND = torch.linalg.qr(x_ND - x_ND.mean(0)).Q * math.sqrt(49)
    return x_ND @ torch.linalg.cholesky(covariance_DD).T + mean_D


def test_frechet_distance_of_gaussians_in_closed_form() -> None:
    # In one dimension it is (m - m')^2 + (s - s')^2; independent dimensions add up.
    deviations, others = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3.0, 2.0, 0.1]).double()
    means, other_means = torch.tensor([0.0, 1.0, -1.0]).double(), torch.tensor([0.5, 1.0, 4.0]).double()
    one = exactly_gaussian(means, deviations.square().diag())
    other = exactly_gaussian(other_means, others.square().diag())
    expected = ((means - other_means).square() + (deviations - others).square()).sum().item()
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_correlated_gaussians_is_that_of_the_matrix_root() -> None:
    one, other = correlated(200, 6), correlated(300, 6)
    s, t = torch.cov(one.T).numpy(), torch.cov(other.T).numpy()
    expected = (one.mean(0) - other.mean(0)).square().sum().item() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("count", "other"), [(400, 300), (20, 30), (20, 300)])
def test_frechet_distance_is_torch_fidelitys(count: int, other: int) -> None:
    one, two = correlated(count, 64).float(), correlated(other, 64).float()
    statistics = [fid_features_to_statistics(features.double()) for features in (one, two)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    assert frechet_distance(one, two) == pytest.approx(theirs, rel=1e-6)


def test_a_set_is_at_no_distance_from_itself_even_with_fewer_images_than_dimensions() -> None:
    x_ND = correlated(20, 64)
    scale = torch.cov(x_ND.T).trace().item()
    assert frechet_distance(x_ND, x_ND.flip(0)) == pytest.approx(0, abs=1e-11 * scale)


def test_kernel_distance_is_the_unbiased_sum_of_the_paper() -> None:
    x, y = torch.randn(7, 5), torch.randn(7, 5) + 0.5

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return (float(a.double() @ b.double()) / 5 + 1) ** 3

    same = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    across = sum(kernel(a, b) for a in x for b in y) / 49
    mean, deviation = kernel_distance(x, y)
    assert mean == pytest.approx(same - 2 * across)
    assert deviation == pytest.approx(0, abs=1e-12)  # each subset is the whole set


def test_kernel_distance_is_torch_fidelitys_of_the_same_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_distances, "SUBSET_SIZE", 12)
    one, two = correlated(30, 6), correlated(50, 6)
    theirs = metric_kid.kid_features_to_metric(
        one, two, kid_subsets=100, kid_subset_size=12, rng_seed=5, verbose=False
    ).values()
    assert kernel_distance(one, two, seed=5) == pytest.approx(tuple(theirs), rel=1e-9)


def test_roots_of_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x_ND = correlated(50, 7)
    monkeypatch.setattr(set_distances, "PART", 9)
    mean_D, root_RD = set_distances.fit_gaussian(x_ND.float())
    assert mean_D.numpy() == pytest.approx(x_ND.mean(0).numpy(), rel=1e-5)
    assert (root_RD.T @ root_RD).numpy() == pytest.approx(torch.cov(x_ND.T).numpy(), rel=1e-4, abs=1e-5)


def test_monge_distance_of_a_shift_is_three_times_its_square() -> None:
    # Along a unit line u a shift v is (u.v), whose mean square over all lines is |v|^2 / D.
    x_ND, v_D = torch.randn(40, 6).double(), torch.tensor([1.0, 0, 2, 0, 0, -1]).double()
    assert monge_distance(x_ND, (x_ND + v_D).flip(0)) == pytest.approx(3 * 6, rel=0.1)  # of 1,000 lines
    assert monge_distance(x_ND, x_ND.flip(0)) == pytest.approx(0, abs=1e-20)


def test_monge_distance_of_gaussians_in_closed_form() -> None:
    # Of N(0, a^2 I) and N(0, b^2 I), 3 D (a - b)^2.
    one_ND, other_ND = torch.randn(4000, 8) * 2, torch.randn(4000, 8) * 0.5
    assert monge_distance(one_ND, other_ND) == pytest.approx(3 * 8 * 1.5**2, rel=0.05)


def test_monge_distance_in_one_dimension_is_optimal_transport() -> None:
    one_N1, other_N1 = torch.randn(13, 1).double(), torch.rand(13, 1).double()
    costs_NN = (one_N1 - other_N1.T).square().numpy()
    rows, columns = linear_sum_assignment(costs_NN)
    assert monge_distance(one_N1, other_N1) == pytest.approx(3 * costs_NN[rows, columns].mean())


def test_monge_distance_takes_as_many_of_either_set() -> None:
    one_ND, other_ND = torch.randn(30, 4), torch.randn(90, 4)
    assert monge_distance(one_ND, other_ND, seed=3) == monge_distance(one_ND, other_ND, seed=3)
    assert monge_distance(one_ND, other_ND, seed=3) != monge_distance(one_ND, other_ND, seed=4)


def test_of_a_large_set_images_spread_over_it_have_balls(monkeypatch: pytest.MonkeyPatch) -> None:
    judged_ND, real_MD = torch.randn(30, 3), torch.randn(45, 3)
    few = precision_recall(judged_ND[::3], real_MD[[position * 45 // 10 for position in range(10)]])
    monkeypatch.setattr(set_distances, "MOST_BALLS", 10)
    assert precision_recall(judged_ND, real_MD) == few


def test_kernel_distance_of_one_distribution_is_zero_on_average_and_repeats() -> None:
    values = [kernel_distance(torch.randn(30, 4), torch.randn(60, 4))[0] for _ in range(40)]
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error
    one, other = torch.randn(30, 4), torch.randn(60, 4)
    assert kernel_distance(one, other, seed=3) == kernel_distance(one, other, seed=3)
    assert kernel_distance(one, other, seed=3) != kernel_distance(one, other, seed=4)


def test_precision_and_recall_are_counts_of_images_inside_balls() -> None:
    judged, real = torch.randn(30, 3) * 0.5, torch.randn(40, 3)

    def covered(points: torch.Tensor, others: torch.Tensor) -> float:
        radii = [
            sorted((others[i] - others[j]).norm().item() for j in range(len(others)))[3] for i in range(len(others))
        ]
        inside = [any((p - o).norm().item() <= r for o, r in zip(others, radii, strict=True)) for p in points]
        return sum(inside) / len(inside)

    precision, recall = precision_recall(judged, real)
    assert precision == pytest.approx(covered(judged, real))
    assert recall == pytest.approx(covered(real, judged))
    assert recall < precision  # the judged ones are in the middle only


def test_inception_score_of_sure_and_of_unsure_guesses() -> None:
    classes = torch.arange(4000) % 4
    sure = torch.nn.functional.one_hot(classes, 4) * 200.0
    assert inception_score(sure)[0] == pytest.approx(4, rel=0.05)  # a part may not hold the four in equal numbers
    assert inception_score(torch.zeros(20, 4)) == pytest.approx((1.0, 0.0))
    with pytest.raises(NotMeasured, match="9 images are too few"):
        inception_score(torch.zeros(9, 4))


def test_too_few_images_are_named() -> None:
    with pytest.raises(NotMeasured, match="3 images are too few"):
        distances(torch.randn(3, 2), torch.randn(9, 2))
    assert few_images("FID", 2049, 2048) is None
    assert "FID is of 2048 images in 2048 dimensions" in present(few_images("FID", 2048, 2048))


class Untrained(FeatureExtractorInceptionV3):
    """Random weights in the file's place."""

    def load_state_dict(self, *_: object, **__: object) -> None:
        pass


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    torch.save(Untrained("untrained", ["2048"], str(path)).state_dict(), path)
    return path


class Pictures(torch.utils.data.Dataset):
    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.pixels[index]


def test_every_inception_measure_is_torch_fidelitys_of_the_same_images(weights: Path) -> None:
    judged, real = torch.randint(0, 256, (2, 12, 3, 16, 16), dtype=torch.uint8)
    inception = open_inception(weights, "cpu")
    with torch.inference_mode():
        features = inception(judged), inception(real)
        score = inception_score(inception.logits(features[0]), seed=2020)
    ours = distances(*features, seed=2020)
    theirs = calculate_metrics(
        input1=Pictures(judged), input2=Pictures(real), fid=True, kid=True, prc=True, isc=True, cuda=False,
        kid_subset_size=12, feature_extractor_weights_path=str(weights), verbose=False, rng_seed=2020,
        feature_extractor="inception-v3-compat", save_cpu_ram=True,
    )  # fmt: skip
    assert ours.frechet == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert ours.kernel == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3, abs=1e-7)
    assert (ours.precision, ours.recall) == pytest.approx((theirs["precision"], theirs["recall"]))
    assert score == pytest.approx((theirs["inception_score_mean"], theirs["inception_score_std"]), rel=1e-5)


def test_unusable_weights_are_refused_and_no_code_in_them_runs(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"fc.weight": Trap()}, tmp_path / "trap.pth")
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pth")
    for name in ("trap.pth", "other.pth", "missing.pth"):
        with pytest.raises(UserError, match=name):
            open_inception(tmp_path / name, "cpu")
    assert not (tmp_path / "ran").exists()


def test_weights_that_cannot_be_downloaded_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    with pytest.raises(NotMeasured, match=r"no route to host.*--inception PATH"):
        open_inception(None, "cpu")
