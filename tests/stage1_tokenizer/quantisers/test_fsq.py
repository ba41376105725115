"""FSQ with either bound against its formula in numpy, and against the normal distribution's own levels."""

from statistics import NormalDist

import numpy as np
import pytest
import torch

from stage1_tokenizer.quantisers.fsq import FiniteScalarQuantiser, FSQConfig
from tests.support.narrow import present

each_bound = pytest.mark.parametrize("bound", ["tanh", "ifsq"])
LEVELS = (8, 7, 6, 5, 3)
EDGE = 1e-3  # of the package: the bounded range reaches so much beyond the outermost levels


def bounded(x: np.ndarray, bound: str) -> np.ndarray:
    return np.tanh(x) if bound == "tanh" else 2 / (1 + np.exp(-1.6 * x)) - 1


def unbounded(y: float, bound: str) -> float:
    return float(np.arctanh(y)) if bound == "tanh" else float(np.log((1 + y) / (1 - y)) / 1.6)


def half_range(levels: int) -> tuple[float, float]:
    """Half the bounded range in levels, and by how much an even number of levels is moved down."""
    return (levels - 1) * (1 + EDGE) / 2, 0.5 if levels % 2 == 0 else 0.0


def rounded(x: np.ndarray, levels: int, bound: str) -> np.ndarray:
    """The level of each x, counted from the lowest: Mentzer et al. 2023, appendix A.1."""
    half, offset = half_range(levels)
    shift = unbounded(offset / half, bound)
    return np.rint(bounded(x + shift, bound) * half - offset) + levels // 2


def chances(levels: int, bound: str) -> np.ndarray:
    """How likely each level is for a normal x, by where its borders are."""
    half, offset = half_range(levels)
    shift = unbounded(offset / half, bound)
    borders = [unbounded((level + 0.5 - levels // 2 + offset) / half, bound) - shift for level in range(levels - 1)]
    return np.diff([0.0, *map(NormalDist().cdf, borders), 1.0])


def entropy(p: np.ndarray) -> float:
    return float(-(p * np.log2(p)).sum())


def quantiser_of(bound: str, levels: tuple[int, ...] = LEVELS) -> FiniteScalarQuantiser:
    return FiniteScalarQuantiser(FSQConfig.model_validate({"levels": levels, "bound": bound}))


@each_bound
def test_tokens_are_those_of_the_formula(bound: str) -> None:
    z_ND = 2 * torch.randn(4000, len(LEVELS), dtype=torch.float64)
    digits = [rounded(z_ND[:, d].numpy(), levels, bound) for d, levels in enumerate(LEVELS)]
    expected = sum(digit * np.prod(LEVELS[:d]) for d, digit in enumerate(digits))
    found = quantiser_of(bound).tokenize(z_ND.float().view(1, 40, 100, -1)).flatten().numpy()
    assert (found != expected).mean() < 1e-3  # float32 may round a value at a border to the other side


@each_bound
def test_the_gradient_is_the_slope_of_the_bound(bound: str) -> None:
    z_BHWD = torch.randn(1, 5, 5, 2, requires_grad=True)
    quantiser_of(bound, (5, 7))(z_BHWD).z_BHWD.sum().backward()
    x = z_BHWD.detach().double().numpy()
    slope = (bounded(x + 1e-6, bound) - bounded(x - 1e-6, bound)) / 2e-6
    np.testing.assert_allclose(present(z_BHWD.grad).numpy(), slope * (1 + EDGE), rtol=1e-3, atol=1e-5)


@each_bound
def test_every_code_is_found_again_from_vectors_that_are_bounded_to_it(bound: str) -> None:
    quantiser = quantiser_of(bound)
    tokens = torch.arange(quantiser.codes)
    codes_KD = quantiser.lookup(tokens.view(1, 1, -1))[0, 0].double().numpy()
    z_KD = np.empty_like(codes_KD)
    for d, levels in enumerate(LEVELS):
        half, offset = half_range(levels)
        places = (codes_KD[:, d] * (levels // 2) + offset) / half
        z_KD[:, d] = [unbounded(place, bound) - unbounded(offset / half, bound) for place in places]
    assert torch.equal(quantiser.tokenize(torch.from_numpy(z_KD).float().view(1, 1, -1, len(LEVELS))).flatten(), tokens)


@each_bound
@pytest.mark.parametrize("levels", [5, 8])
def test_normal_vectors_use_levels_as_often_as_the_normal_distribution_says(bound: str, levels: int) -> None:
    tokens = quantiser_of(bound, (levels,)).tokenize(torch.randn(1, 200, 1000, 1)).flatten()
    found = np.bincount(tokens.numpy(), minlength=levels) / len(tokens)
    np.testing.assert_allclose(found, chances(levels, bound), atol=0.005)


def test_ifsq_spreads_bounded_values_more_evenly_and_few_levels_less_evenly() -> None:
    """As the option's description says. The paper's aim is the first; the second is due to the narrow outer levels."""
    x = np.array([NormalDist().inv_cdf((k + 0.5) / 10_000) for k in range(10_000)])
    uniform = (np.arange(10_000) + 0.5) / 10_000
    tanh, ifsq = (np.abs((bounded(x, bound) + 1) / 2 - uniform).max() for bound in ("tanh", "ifsq"))
    assert ifsq < 0.5 * tanh
    for levels in range(3, 65):
        assert entropy(chances(levels, "ifsq")) < entropy(chances(levels, "tanh"))
    assert entropy(chances(128, "ifsq")) > entropy(chances(128, "tanh"))


def test_the_default_is_the_package_alone() -> None:
    quantiser, z_BHWD = quantiser_of("tanh"), 2 * torch.randn(2, 8, 8, len(LEVELS))
    assert FSQConfig().bound == "tanh"
    assert torch.equal(quantiser(z_BHWD).z_BHWD.flatten(0, 2), quantiser.fsq(z_BHWD.flatten(0, 2)[None])[0][0])
