"""MPS has no float64, and is asked for none. In shapes and types only: there is no such device here."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shared.code_counts import perplexity
from shared.training.means import Means
from stage1_tokenizer.judging.patch_grid import patch_gradients
from stage2_prior.decoding.plain import PlainWeights
from stage2_prior.judging.copies import between_features
from tests.stage2_prior.decoding.test_engine import KINDS, random_prior


class NoFloat64(TorchDispatchMode):
    """TypeError, as on MPS, where an operation makes float64."""

    def __torch_dispatch__(
        self, operation: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = operation(*args, **(kwargs or {}))
        if any(isinstance(tensor, Tensor) and tensor.dtype == torch.float64 for tensor in tree_leaves(made)):
            raise TypeError(f"{operation} makes float64")
        return made


@pytest.fixture
def mps() -> Iterator[torch.device]:
    """A device whose tensors have no numbers."""
    with FakeTensorMode(), NoFloat64():
        yield torch.device("mps")


def test_means(mps: torch.device) -> None:
    means = Means(SimpleNamespace(device=mps))  # type: ignore[arg-type]
    for _ in range(2):
        means.add({"loss": torch.ones((), device=mps)})
    assert means.sums["loss"].device.type == "mps"


def test_perplexity(mps: torch.device) -> None:
    assert perplexity(torch.ones(8, dtype=torch.int64, device=mps)).dtype == torch.float32


def test_distances_of_features(mps: torch.device) -> None:
    features_BD = torch.zeros(2, 6, device=mps)
    assert between_features(features_BD, features_BD).dtype == torch.float32


def test_elsewhere_sums_are_float64() -> None:
    assert patch_gradients(torch.zeros(1, 3, 8, 8), 4).dtype == torch.float64
    with pytest.raises(TypeError, match="makes float64"), NoFloat64():
        patch_gradients(torch.zeros(1, 3, 8, 8), 4)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_plain_step(kind: dict[str, Any]) -> None:
    """On the CPU, where it has numbers too."""
    weights = PlainWeights(random_prior(**kind))
    with torch.inference_mode(), NoFloat64():
        state = weights.model.init_state(2, dtype=weights.dtype)
        weights.fill(torch.tensor([[42, 3, 4], [41, 5, 6]]), state)
        assert weights.step(state)(torch.tensor([7, 8])).shape == (2, 40)
