"""Two ways to tell positions apart: a learned vector for each, and rotation of queries and keys.

Shapes: B batch, H heads, L length, D width, A axes (1 for a sequence, 2 for a grid), F rotary frequencies.
"""

import torch
from torch import Tensor, nn


class LearnedPositions(nn.Module):
    """Adds one learned vector for each of `length` positions.

    `offset` is the position of the first one given. Where only one is given, it may also be a tensor (1,) on the
    device, which a captured step reads anew at each replay; nothing then checks that it is within the length.
    """

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(length, dim) * 0.02)

    def forward(self, x_BLD: Tensor, offset: int | Tensor = 0) -> Tensor:
        if isinstance(offset, Tensor):
            return x_BLD + self.weight.index_select(0, offset)
        length = x_BLD.shape[-2]
        if offset + length > len(self.weight):
            last = offset + length - 1
            raise ValueError(f"positions {offset}..{last} are beyond the {len(self.weight)} learned ones")
        return x_BLD + self.weight[offset : offset + length]


class Rotary(nn.Module):
    """Rotary position embedding: turns pairs of query and key channels by position-dependent angles (Su et al. 2021).

    `positions_LA` holds each position's coordinates; the frequencies are shared out among the A axes, so a column
    (L, 1) gives the usual form and rows and columns (L, 2) the axial form for grids. The scores of turned queries and
    keys depend on differences of coordinates only. Raises ValueError where `headdim` is not a multiple of 2 A.
    """

    cos_LF: Tensor
    sin_LF: Tensor

    def __init__(self, headdim: int, positions_LA: Tensor, base: float = 10_000.0) -> None:
        super().__init__()
        axes = positions_LA.shape[1]
        if headdim % (2 * axes):
            raise ValueError(f"headdim {headdim} must be a multiple of {2 * axes} for rotary positions on {axes} axes")
        frequencies = base ** -torch.linspace(0, 1, headdim // 2 // axes + 1, dtype=torch.float64)[:-1]
        angles_LF = (positions_LA.double()[:, :, None] * frequencies).flatten(1)
        self.register_buffer("cos_LF", angles_LF.cos().float(), persistent=False)
        self.register_buffer("sin_LF", angles_LF.sin().float(), persistent=False)

    def forward(self, x_BHLD: Tensor, offset: int | Tensor = 0) -> Tensor:
        """Turn queries or keys whose first position is `offset`; same shape and dtype, float32 inside.

        For a single position `offset` may be a tensor (1,), as in `LearnedPositions`.
        """
        if isinstance(offset, Tensor):
            cos_LF, sin_LF = self.cos_LF.index_select(0, offset), self.sin_LF.index_select(0, offset)
        else:
            span = slice(offset, offset + x_BHLD.shape[-2])
            cos_LF, sin_LF = self.cos_LF[span], self.sin_LF[span]
        return turned(x_BHLD.float(), cos_LF, sin_LF).to(x_BHLD.dtype)


def turned(x_BHLD: Tensor, cos_LF: Tensor, sin_LF: Tensor) -> Tensor:
    """Each pair of channels, of which one is in either half, turned by the angle of its position and frequency."""
    a, b = x_BHLD.chunk(2, dim=-1)
    return torch.cat((a * cos_LF - b * sin_LF, a * sin_LF + b * cos_LF), dim=-1)
