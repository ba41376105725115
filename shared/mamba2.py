"""The Mamba-2 mixer (Dao & Gu 2024, "Transformers are SSMs"): one set of weights, two forms of one function.

Training reads the whole sequence at once, by the chunked state-space dual (SSD) algorithm; decoding takes one input at a
time and keeps a state of fixed size. Weights carry the names and packing of `mamba_ssm.Mamba2`, so they move both ways.

Shapes: B batch, L length, D model width, I inner width = H heads x P headdim, N state size, G groups of R = H / G heads
and J = R P channels that share one B and one C, X = I + 2 G N convolved channels, K convolution width.
A chunked length is c chunks of Q positions (S where the position is a source).
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# The decay matrices cost length x chunk a head, and on a CPU their memory traffic outweighs the larger products long
# before the usual 256: 64 and 128 are equally fast, and 64 needs the least memory.
CPU_CHUNK = 64


@dataclass
class Mamba2State:
    """What decoding remembers of one layer; `step` and `prefill` update it in place. Float32 whatever the weights are:
    a decay near 1 applied a thousand times does not survive bfloat16.
    """

    conv_BXK: Tensor  # the last K inputs of the convolution, the newest last
    ssm_BGNJ: Tensor  # the state axis before the channels: twice as fast as mamba_ssm's order in the product with C

    def reset(self) -> None:
        """Forget everything, as before the first input."""
        self.conv_BXK.zero_()
        self.ssm_BGNJ.zero_()


class Mamba2(nn.Module):
    """Selective state space layer, (B, L, d_model) -> (B, L, d_model), causal.

    `y = out_proj(norm(SSD(silu(conv(x, B, C)), dt) * silu(z)))` with `[z, x, B, C, dt] = in_proj(u)` (section 7 of the
    paper). On CUDA with `mamba_ssm` installed its fused kernels do the scan of `forward`; elsewhere PyTorch does.
    Raises ValueError for sizes that do not divide.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 64,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1.0, 16.0),
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
    ) -> None:
        super().__init__()
        self.d_model, self.d_state, self.d_conv, self.headdim = d_model, d_state, d_conv, headdim
        self.ngroups, self.chunk_size = ngroups, chunk_size
        self.d_inner = int(expand * d_model)
        self._check_sizes()
        self.nheads = self.d_inner // headdim
        self.d_xBC = self.d_inner + 2 * ngroups * d_state

        # Random numbers are drawn in the order of mamba_ssm, so that one seed gives the same weights.
        self.in_proj = nn.Linear(d_model, self.d_inner + self.d_xBC + self.nheads, bias=bias)
        self.conv1d = nn.Conv1d(
            self.d_xBC, self.d_xBC, d_conv, groups=self.d_xBC, padding=d_conv - 1, bias=conv_bias
        )
        self.dt_bias = _without_decay(_inverse_softplus(_sample_dt(self.nheads, dt_min, dt_max, dt_init_floor)))
        self.A_log = _without_decay(torch.empty(self.nheads).uniform_(*A_init_range).log())
        self.D = _without_decay(torch.ones(self.nheads))
        self.norm = GatedRMSNorm(self.d_inner, ngroups)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)
        self._kernels = _fused_kernels()

    def forward(self, u_BLD: Tensor) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model), any L >= 1, differentiable. Scan and norm are float32 under autocast."""
        self._check_input(u_BLD, ndim=3)
        z_BLI, xBC_BLX, dt_BLH = self._project(u_BLD)
        if self._kernels is not None and u_BLD.is_cuda:
            y_BLHP = self._fused_scan(self._kernels, xBC_BLX, dt_BLH)
        else:
            y_BLHP, _ = self._scan(self._convolve(xBC_BLX), dt_BLH)
        return self.out_proj(self.norm(y_BLHP.flatten(2), z_BLI))

    def init_state(self, batch: int, device: torch.device | str | None = None) -> Mamba2State:
        """The state before the first input of `batch` sequences, on the weights' device unless another is given."""
        device = device or self.A_log.device
        J = self.d_inner // self.ngroups
        return Mamba2State(
            conv_BXK=torch.zeros(batch, self.d_xBC, self.d_conv, device=device),
            ssm_BGNJ=torch.zeros(batch, self.ngroups, self.d_state, J, device=device),
        )

    @torch.no_grad()
    def prefill(self, u_BLD: Tensor, state: Mamba2State) -> Tensor:
        """`forward` from `state` on, at the cost of `forward`; leaves `state` as L calls of `step` would. No gradient."""
        self._check_input(u_BLD, ndim=3, state=state)
        z_BLI, xBC_BLX, dt_BLH = self._project(u_BLD)
        history_BKX = state.conv_BXK.mT.to(xBC_BLX.dtype)
        seen_BLX = torch.cat((history_BKX, xBC_BLX), dim=1)
        convolved_BLX = self._convolve(seen_BLX)[:, self.d_conv :]
        y_BLHP, final_BGNJ = self._scan(convolved_BLX, dt_BLH, state.ssm_BGNJ)
        state.conv_BXK.copy_(seen_BLX[:, -self.d_conv :].mT)
        state.ssm_BGNJ.copy_(final_BGNJ)
        return self.out_proj(self.norm(y_BLHP.flatten(2), z_BLI))

    @torch.no_grad()
    def step(self, u_BD: Tensor, state: Mamba2State) -> Tensor:
        """Take in one input per sequence, (B, d_model) -> (B, d_model), updating `state` in place. No gradient."""
        self._check_input(u_BD, ndim=2, state=state)
        z_BI, xBC_BX, dt_BH = self._project(u_BD)
        x_BHP, B_BGN, C_BGN = self._split(self._convolve_step(xBC_BX, state.conv_BXK))
        y_BHP = ssd_step(x_BHP, self._positive(dt_BH), self._A(), B_BGN, C_BGN, _wide(self.D), state.ssm_BGNJ)
        return self.out_proj(self.norm(y_BHP.flatten(1), z_BI))

    def _project(self, u: Tensor) -> tuple[Tensor, ...]:
        return self.in_proj(u).split((self.d_inner, self.d_xBC, self.nheads), dim=-1)

    def _split(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., X) -> x (..., H, P), B (..., G, N), C (..., G, N), without a copy."""
        GN = self.ngroups * self.d_state
        x, B, C = xBC.split((self.d_inner, GN, GN), dim=-1)
        groups = (self.ngroups, self.d_state)
        return x.unflatten(-1, (self.nheads, self.headdim)), B.unflatten(-1, groups), C.unflatten(-1, groups)

    def _convolve(self, xBC_BLX: Tensor) -> Tensor:
        # As a picture of height 1 in channels-last order the sequence is used where it lies; conv1d would transpose it
        # there and back, and costs twice as much.
        conv = self.conv1d
        picture_BX1L = xBC_BLX.mT.unsqueeze(2)
        y_BX1L = F.conv2d(
            picture_BX1L, conv.weight.unsqueeze(2), conv.bias, padding=(0, self.d_conv - 1), groups=self.d_xBC
        )
        return F.silu(y_BX1L[:, :, 0, : xBC_BLX.shape[1]].mT)

    def _convolve_step(self, xBC_BX: Tensor, conv_BXK: Tensor) -> Tensor:
        conv_BXK.copy_(conv_BXK.roll(-1, dims=-1))
        conv_BXK[:, :, -1] = xBC_BX
        y_BX = (conv_BXK * self.conv1d.weight[:, 0]).sum(-1)
        return F.silu(y_BX if self.conv1d.bias is None else y_BX + self.conv1d.bias)

    def _scan(
        self, xBC_BLX: Tensor, dt_BLH: Tensor, initial_BGNJ: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        x_BLHP, B_BLGN, C_BLGN = self._split(xBC_BLX)
        chunk = min(self.chunk_size, CPU_CHUNK) if x_BLHP.device.type == "cpu" else self.chunk_size
        return ssd(x_BLHP, self._positive(dt_BLH), self._A(), B_BLGN, C_BLGN, _wide(self.D), chunk, initial_BGNJ)

    def _fused_scan(self, kernels: "Kernels", xBC_BLX: Tensor, dt_BLH: Tensor) -> Tensor:
        """Convolution and scan by Triton. The one-kernel-for-all of mamba_ssm (`use_mem_eff_path`) is left alone: it
        fails at its first step where causal_conv1d is absent, and skips the hooks of `norm` and `out_proj`.
        """
        # causal_conv1d reads a channels-last sequence only where its strides are multiples of 8.
        if kernels.conv is None or self.d_xBC % 8 or self.d_conv > 4:
            xBC_BLX = self._convolve(xBC_BLX)
        else:
            weight_XK, bias_X = self.conv1d.weight[:, 0], self.conv1d.bias
            xBC_BLX = kernels.conv(xBC_BLX.contiguous().mT, weight_XK, bias_X, activation="silu").mT
        x_BLHP, B_BLGN, C_BLGN = self._split(xBC_BLX)
        options = {"D": self.D, "dt_bias": self.dt_bias, "dt_softplus": True}
        return kernels.scan(x_BLHP, dt_BLH, self._A(), B_BLGN, C_BLGN, self.chunk_size, **options)

    def _A(self) -> Tensor:
        return -_wide(self.A_log).exp()

    def _positive(self, dt: Tensor) -> Tensor:
        return F.softplus(_wide(dt) + _wide(self.dt_bias))

    def _check_sizes(self) -> None:
        for name in ("d_model", "d_state", "d_conv", "d_inner", "headdim", "ngroups", "chunk_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, and must be at least 1")
        if self.d_inner % self.headdim:
            raise ValueError(f"headdim {self.headdim} must divide the inner width {self.d_inner} (expand x d_model)")
        if self.d_inner // self.headdim % self.ngroups:
            heads = f"{self.d_inner // self.headdim} heads ({self.d_inner} / {self.headdim})"
            raise ValueError(f"ngroups {self.ngroups} must divide the {heads}")

    def _check_input(self, u: Tensor, ndim: int, state: Mamba2State | None = None) -> None:
        if u.ndim != ndim or u.shape[-1] != self.d_model or 0 in u.shape:
            wanted = "(batch, length, d_model)" if ndim == 3 else "(batch, d_model)"
            raise ValueError(f"Mamba2 needs {wanted} with d_model {self.d_model}, and was given {tuple(u.shape)}")
        if state is not None and len(state.conv_BXK) != len(u):
            raise ValueError(f"the state holds {len(state.conv_BXK)} sequences, and {len(u)} inputs were given")


class GatedRMSNorm(nn.Module):
    """rms_norm(y * silu(z)) * weight in float32: the gate comes first; each of `groups` is normed by itself.

    Returns z's dtype, the one its successor computes in.
    """

    def __init__(self, dim: int, groups: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        gated = (_wide(y) * F.silu(_wide(z))).unflatten(-1, (self.groups, -1))
        normed = F.rms_norm(gated, gated.shape[-1:], eps=self.eps).flatten(-2)
        return (normed * _wide(self.weight)).to(z.dtype)


def ssd(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D_H: Tensor,
    chunk: int,
    initial_BGNJ: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t; y_t = C_t h_t + D x_t, for all t at once (Dao & Gu 2024, section 6).

    Inside a chunk this is masked attention with decays for its softmax; between chunks only their final states pass on.
    `dt_BLH` > 0 and `A_H` < 0 are float32 (or float64), and so are decays and states; the products inside a chunk run
    in x's dtype. Returns y (B, L, H, P), and the final state where `initial_BGNJ` is given (zeros, for none).
    """
    length, count = x_BLHP.shape[1], math.ceil(x_BLHP.shape[1] / chunk)
    with torch.autocast(x_BLHP.device.type, enabled=False):
        x, dt, B, C = (_chunked(t, count, B_BLGN.shape[2]) for t in (x_BLHP, dt_BLH, B_BLGN, C_BLGN))
        x_BcGRQP, dt_BcGRQ, B_BcGQN, C_BcGQN = x.movedim(2, 4), dt.movedim(2, 4), B[..., 0, :].movedim(2, 3), C[..., 0, :].movedim(2, 3)
        del x, dt, B, C
        raise NotImplementedError
