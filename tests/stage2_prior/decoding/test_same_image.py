"""Image k of a seed is one image: whatever is drawn beside it, and on however many threads."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from shared.kernels import kernel
from stage2_prior.decoding.choosing import choice
from stage2_prior.decoding.choosing.filters import SamplingConfig
from stage2_prior.decoding.cpu import spare_cores
from stage2_prior.decoding.cpu import step as cpu
from stage2_prior.decoding.decoder import Decoder
from stage2_prior.prior import Prior
from tests.stage2_prior.decoding.cpu.test_product import packed_dtypes
from tests.stage2_prior.decoding.test_engine import random_prior

IMAGES = 64
BATCHES = {64: 64, 16: 64, 3: 18, 2: 16, 1: 16}  # rows side by side: of how many images, as few of them take long
GRID, CODES, KNOWN = (2, 4), 203, 3
# No width is a multiple of a CPU's vectors.
SIZES: dict[str, Any] = {"width": 72, "heads": 3, "headdim": 24, "d_state": 20}
KINDS: list[dict[str, Any]] = [
    {"kind": "mamba", "head": "codes"},
    {"kind": "mamba", "mlp_ratio": 2.0, "conditioning": "norm"},
    {"kind": "gpt", "head": "tied", "mup_base_width": 24, "mup_base_heads": 1},
    {"kind": "gpt", "positions": "rotary", "qk_norm": False, "conditioning": "norm"},
    {"kind": "hybrid", "head": "codes", "conditioning": "norm", "positions": "rotary"},
]
PRECISIONS = ["exact", *(dtype for dtype in packed_dtypes() if dtype != torch.float32)]
SAMPLING = SamplingConfig(temperature=0.9, top_k=150, top_p=0.98, min_p=0.001)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets none be given to other processes, and gives PyTorch its own back."""
    monkeypatch.setattr(spare_cores, "LOOK_EVERY", math.inf)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("asked", ["free", "guided"])
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_image_is_the_same_whatever_is_drawn_beside_it(
    kind: dict[str, Any], precision: str | torch.dtype, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(precision, torch.dtype):
        monkeypatch.setattr(cpu, "narrowest", lambda: precision)
    monkeypatch.setattr(kernel, "SERIAL", 2**9)  # so that large batches wake another thread, and small ones do not
    prior = random_prior(codes=CODES, grid=GRID, **(SIZES | kind))
    asked_for: dict[str, Any] = {}
    if asked == "guided":  # of every class, behind prefixes that some share
        prefixes_BK = torch.randint(CODES, (IMAGES, KNOWN))
        prefixes_BK[::2] = prefixes_BK[0]
        asked_for = {"labels_B": torch.arange(IMAGES) % 3, "cfg_scale": 2.5, "prefix_tokens_BK": prefixes_BK}
    expected: tuple[Tensor, Tensor] | None = None
    for count in (1, 2):
        torch.set_num_threads(count)
        for rows, images in BATCHES.items():
            part = {name: of[:images] if isinstance(of, Tensor) else of for name, of in asked_for.items()}
            drawn = draw(prior, rows, images, precision == "exact", part, monkeypatch)
            expected = expected or drawn
            for found, wanted in zip(drawn, expected, strict=True):
                assert torch.equal(found, wanted[:images]), f"{rows} side by side on {count} threads"
    assert expected is not None
    assert len(expected[0].flatten(1).unique(dim=0)) == IMAGES


def draw(
    prior: Prior, rows: int, images: int, exact: bool, asked_for: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor]:
    """The grids (B, h, w), and the logits (B, steps, V) that their codes were chosen from."""
    seen: list[Tensor] = []
    choose = choice.choose_on_cpu

    def note(logits_RV: Tensor, uniforms_RU: Tensor, config: SamplingConfig) -> Tensor:
        seen.append(logits_RV.clone())
        return choose(logits_RV, uniforms_RU, config)

    with monkeypatch.context() as patch:
        patch.setattr(choice, "choose_on_cpu", note)
        tokens_BHW = Decoder(prior, rows, exact).generate(range(images), 0, SAMPLING, **asked_for)
    steps = len(seen) // -(-images // rows)
    batches = [torch.stack(seen[first : first + steps], dim=1) for first in range(0, len(seen), steps)]
    return tokens_BHW, torch.cat(batches)
