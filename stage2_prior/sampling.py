"""Drawing token grids from a prior: logit filters, classifier-free guidance, the decode loop.

The filters have one signature and act in this order: temperature, top-k, top-p, min-p. What they remove gets the logit
-inf. Guidance comes before all of them.

Shapes: B batch, K prefix length, L grid length, V codes, U levels of the tree that `draw` descends, E = 8 branches,
N nodes of one level.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import ConfigDict, model_validator
from torch import Tensor

from shared.config import Config
from shared.errors import UserError
from stage2_prior.decoding import Choose, decoder_for
from stage2_prior.prior import Prior

BRANCHES = 8  # of each node in `draw`'s tree; more would be fewer steps, but more boundaries on the way to a leaf


class SamplingConfig(Config):
    """How a token is drawn from its logits. An option left at None (temperature: at 1) changes nothing.

    Raises UserError naming the option where a value is out of its range.
    """

    model_config = ConfigDict(allow_inf_nan=True)  # so that they too get the message below

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    @model_validator(mode="after")
    def _in_range(self) -> "SamplingConfig":
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}: it must be 0 (always the likeliest code) or more")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}: it must be 1 or more, or left out to keep every code")
        for name, value in (("top_p", self.top_p), ("min_p", self.min_p)):
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name} is {value}: it is a probability, from 0 to 1")
        return self


def temperature(logits_BV: Tensor, value: float) -> Tensor:
    """Divide by `value`; 0 keeps the likeliest code only (the first of equals)."""
    if value > 1e-6:  # below that it is 0 to float32
        # Relative to the largest logit, a tiny temperature gives -inf for the others and never inf for the best.
        return (logits_BV - logits_BV.amax(-1, keepdim=True)) / value
    best_B1 = logits_BV.argmax(-1, keepdim=True)
    return torch.full_like(logits_BV, -math.inf).scatter_(-1, best_B1, 0.0)


def top_k(logits_BV: Tensor, value: int) -> Tensor:
    """Keep the `value` likeliest codes, and those as likely as the last of them (Fan et al. 2018)."""
    if value >= logits_BV.shape[-1]:
        return logits_BV
    least_B1 = logits_BV.topk(value, dim=-1).values[..., -1:]
    return logits_BV.masked_fill(logits_BV < least_B1, -math.inf)


def top_p(logits_BV: Tensor, value: float) -> Tensor:
    """Keep the fewest likeliest codes that together have a probability of at least `value` (Holtzman et al. 2020).

    At least the best one stays; of equals, the lower id comes first.
    """
    if value >= 1:
        return logits_BV
    probs_BV, keys_BV = logits_BV.softmax(-1), _ordered(logits_BV)
    # The last key kept is the greatest whose equals and betters have the probability asked for. Halving its range 32
    # times takes a fraction of the time of sorting 16,384 codes on a CPU, and is exact as well.
    low_B1, high_B1 = keys_BV.amin(-1, keepdim=True), keys_BV.amax(-1, keepdim=True)
    for _ in range(32):
        middle_B1 = high_B1 - (high_B1 - low_B1) // 2
        enough_B1 = torch.where(keys_BV >= middle_B1, probs_BV, 0).sum(-1, keepdim=True) >= value
        low_B1 = torch.where(enough_B1, middle_B1, low_B1)
        high_B1 = torch.where(enough_B1, high_B1, middle_B1 - 1)
    better_BV, equal_BV = keys_BV > low_B1, keys_BV == low_B1
    missing_B1 = value - torch.where(better_BV, probs_BV, 0).sum(-1, keepdim=True)
    before_BV = torch.where(equal_BV, probs_BV, 0).cumsum(-1) - probs_BV
    first_BV = equal_BV & (equal_BV.cumsum(-1) == 1)
    return logits_BV.masked_fill(~(better_BV | first_BV | equal_BV & (before_BV < missing_B1)), -math.inf)


def _ordered(logits: Tensor) -> Tensor:
    """Float32 numbers as int64 in the same order."""
    bits = (logits + 0.0).contiguous().view(torch.int32)  # -0 becomes 0
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()


def min_p(logits_BV: Tensor, value: float) -> Tensor:
    """Keep the codes at least `value` times as probable as the best one (Nguyen et al. 2024)."""
    if value == 0:
        return logits_BV
    least_B1 = logits_BV.amax(-1, keepdim=True) + math.log(value)
    return logits_BV.masked_fill(logits_BV < least_B1, -math.inf)


def filter_logits(logits_BV: Tensor, config: SamplingConfig) -> Tensor:
    """Every filter that `config` asks for, in the documented order."""
    if config.temperature != 1:
        logits_BV = temperature(logits_BV, config.temperature)
    if config.top_k is not None:
        logits_BV = top_k(logits_BV, config.top_k)
    if config.top_p is not None:
        logits_BV = top_p(logits_BV, config.top_p)
    if config.min_p is not None:
        logits_BV = min_p(logits_BV, config.min_p)
    return logits_BV


def guide(logits_2BV: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance, uncond + scale * (cond - uncond), of B conditional rows and then B unconditional ones.

    Ho & Salimans 2021, with their w = scale - 1: scale 1 is the conditional model, 0 the unconditional one. A tensor
    (1,) is a scale that is not known on the host.
    """
    cond_BV, uncond_BV = logits_2BV.chunk(2)
    return torch.lerp(uncond_BV, cond_BV, scale)


def uniforms(seed: int, image: int, length: int, codes: int) -> np.ndarray:
    """(length, levels) float64 in [0, 1): the random stream of one image, whatever batch or device it is drawn on."""
    return np.random.Generator(np.random.PCG64([seed, image])).random((length, len(_strides(codes))))


def draw(logits_BV: Tensor, uniforms_BU: Tensor) -> Tensor:
    """(B,) codes drawn by softmax(logits), choosing one of eight branches per level of a tree with a code at each leaf.

    One running sum over all codes would be as exact, but a batch of another size changes the last bits of every logit,
    and with them all 16,384 boundaries between codes: one draw in some hundred then falls on the other side of one.
    A tree has few boundaries on the way to a leaf, and each of its levels a random number of its own.
    """
    strides, weights_BN = _strides(logits_BV.shape[-1]), logits_BV.softmax(-1)
    levels: list[Tensor] = []  # of the tree, the leaves first, each in its branches
    for stride in strides:
        levels.append(_branches(weights_BN, stride))
        weights_BN = levels[-1].sum(1)
    index_B1 = torch.zeros(len(logits_BV), 1, dtype=torch.long, device=logits_BV.device)
    uniforms_BU = uniforms_BU.clamp(max=1 - 2**-53)  # then uniform * total is less than the total, however it rounds
    for level_BEN, stride, uniform_B in zip(levels[::-1], strides[::-1], uniforms_BU.unbind(1), strict=True):
        weights_BE = level_BEN.gather(2, index_B1[:, None].expand(-1, BRANCHES, -1))[..., 0]
        index_B1 = index_B1.add(_invert(weights_BE, uniform_B[:, None]), alpha=stride)
    return index_B1[:, 0]


def _strides(codes: int) -> list[int]:
    """Nodes of each level of the tree, from the leaves' parents to the root: 16,384 codes have 2048, 256, 32, 4, 1."""
    strides: list[int] = []
    while codes > 1:
        codes = -(-codes // BRANCHES)
        strides.append(codes)
    return strides


def _branches(weights_BN: Tensor, stride: int) -> Tensor:
    """(B, E, stride): node i of the level above has the children i, i + stride, i + 2 stride, ... (or zeros)."""
    missing = BRANCHES * stride - weights_BN.shape[-1]
    if missing:  # padding by nothing is a copy
        weights_BN = F.pad(weights_BN, (0, missing))
    return weights_BN.unflatten(-1, (BRANCHES, stride))


def _invert(weights_BE: Tensor, uniform_B1: Tensor) -> Tensor:
    """The first index whose running sum exceeds uniform * total: it has a weight above zero, as the sum rose there."""
    sums_BE = weights_BE.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(sums_BE, uniform_B1 * sums_BE[:, -1:], right=True)


@torch.inference_mode()
def generate(
    prior: Prior,
    images: Sequence[int],
    seed: int = 0,
    config: SamplingConfig | None = None,
    *,
    labels_B: Tensor | None = None,
    cfg_scale: float | Tensor = 1.0,
    prefix_tokens_BK: Tensor | None = None,
    batch_size: int = 16,
    exact: bool = False,
    progress: Callable[[int], None] | None = None,
    on_row: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Token grids (B, h, w) int64, on the CPU, of the images numbered `images`, one for each number.

    Image k depends on `seed` and k alone: not on the batch size, nor on which others are drawn with it. `labels_B` are
    their classes, `prefix_tokens_BK` their first K tokens, which are kept. With a `cfg_scale` other than 1, each image
    takes two rows of a batch; it may also be a tensor (L,), the scale at each position. `progress` is called with the
    number of tokens just drawn, `on_row` with the rows (B, r, w) of a batch's grids so far, on the prior's device, each
    time that a row of them is whole. Weights are rounded to bfloat16 where the hardware multiplies it, unless `exact`.

    Raises UserError for labels or prefixes that do not fit the prior, or guidance without labels.
    """
    prefix_BK = torch.empty(len(images), 0, dtype=torch.long) if prefix_tokens_BK is None else prefix_tokens_BK
    scale_L = torch.as_tensor(cfg_scale, dtype=torch.float32).expand(prior.length)
    guided = bool((scale_L[prefix_BK.shape[1] :] != 1).any())
    _check(prior, images, seed, labels_B, scale_L, prefix_BK, batch_size)
    rows = min(batch_size, len(images)) * (2 if guided else 1)
    decoder = decoder_for(prior, rows, levels=len(_strides(prior.codes)), exact=exact)
    choose = _chooser(config or SamplingConfig())
    grids = []
    for part in _batches(len(images), batch_size):
        numbers = images[part]
        uniforms_BLU = np.stack([uniforms(seed, image, prior.length, prior.codes) for image in numbers])
        starts = [prior.start_tokens(None if labels_B is None else labels_B[part], len(numbers))]
        if guided:
            starts.append(prior.start_tokens(None, len(numbers)))
        grids.append(
            decoder.decode(
                torch.cat(starts),
                prefix_BK[part],
                torch.from_numpy(uniforms_BLU),
                choose,
                scale_L if guided else None,
                progress,
                on_row,
            )
        )
    return torch.cat(grids).unflatten(1, prior.grid)


@cache  # equal configurations are the same function, so that what was captured with it can be used again
def _chooser(config: SamplingConfig) -> Choose:
    def choose(logits_RV: Tensor, uniforms_BU: Tensor, scale_1: Tensor | None) -> Tensor:
        logits_BV = logits_RV if scale_1 is None else guide(logits_RV, scale_1)
        return draw(filter_logits(logits_BV, config), uniforms_BU)

    return choose


def _batches(total: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, total, size))


def _check(
    prior: Prior,
    images: Sequence[int],
    seed: int,
    labels_B: Tensor | None,
    scale_L: Tensor,
    prefix_BK: Tensor,
    batch_size: int,
) -> None:
    if not images or min(images) < 0 or batch_size < 1:
        raise UserError(f"{len(images)} images in batches of {batch_size}: both must be 1 or more")
    if seed < 0:
        raise UserError(f"seed is {seed}: it must be 0 or more")
    for scale in scale_L.tolist():
        if not 0 <= scale <= 1000:
            raise UserError(f"the guidance scale is {scale:g}: it must be from 0 to 1000 (1: no guidance)")
        if labels_B is None and scale != 1:
            raise UserError(
                f"the guidance scale is {scale:g}, but guidance needs a class label: give one, or a scale of 1"
            )
    if labels_B is not None:
        _check_labels(prior, labels_B, len(images))
    _check_prefix(prior, prefix_BK, len(images))


def _check_labels(prior: Prior, labels_B: Tensor, count: int) -> None:
    if len(labels_B) != count:
        raise UserError(f"{len(labels_B)} class labels were given for {count} images: give one for each")
    if not prior.classes:
        raise UserError("a class label was given, but this prior was trained without classes: leave it out")
    if labels_B.min() < 0 or labels_B.max() >= prior.classes:
        wrong = next(label for label in labels_B.tolist() if not 0 <= label < prior.classes)
        raise UserError(f"class label {wrong} is unknown: this prior's labels are 0 to {prior.classes - 1}")


def _check_prefix(prior: Prior, prefix_BK: Tensor, count: int) -> None:
    if len(prefix_BK) != count:
        raise UserError(f"{len(prefix_BK)} prefixes were given for {count} images: give one for each")
    if prefix_BK.shape[1] > prior.length:
        raise UserError(f"the prefix holds {prefix_BK.shape[1]} tokens, more than an image's {prior.length}")
    if prefix_BK.numel() and (prefix_BK.min() < 0 or prefix_BK.max() >= prior.codes):
        raise UserError(f"the prefix holds tokens outside this prior's codes 0 to {prior.codes - 1}")
