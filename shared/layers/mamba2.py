"""The Mamba-2 mixer (Dao & Gu 2024, "Transformers are SSMs"): one set of weights, two forms of one function.

Training reads the whole sequence at once, by the chunked algorithm of `shared.layers.ssd`; decoding takes one input at
a time and keeps a state of fixed size. Weights carry the names and packing of `mamba_ssm.Mamba2`: they move both ways.

Shapes: B batch, L length, D model width, I inner width = H heads x P headdim, N state size, G groups of R = H / G heads
and J = R P channels that share one B_t and one C_t, C (as a suffix) = I + 2 G N convolved channels, K width of the
convolution.
A chunked length is c chunks of Q positions (S where the position is a source).
"""

import itertools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.layers.causal_conv import convolved_silu
from shared.layers.rms_norm import GatedRMSNorm
from shared.layers.ssd import ssd, ssd_step
from shared.layers.wide import wide

log = logging.getLogger(__name__)

# The decay matrices cost length x chunk a head, and on a CPU their memory traffic outweighs the larger products long
# before the usual 256: 64 and 128 are equally fast, and 64 needs the least memory.
CPU_CHUNK = 64


@dataclass
class Mamba2State:
    """What decoding remembers of one layer; `step` and `prefill` update it in place. Float32 whatever the weights are:
    a decay near 1 applied a thousand times does not survive bfloat16.
    """

    conv_BKC: Tensor  # the last K inputs of the convolution, the newest last
    ssm_BGNJ: Tensor  # the state axis before the channels: twice as fast as mamba_ssm's order in the product with C

    def reset(self) -> None:
        """Forget everything, as before the first input."""
        self.conv_BKC.zero_()
        self.ssm_BGNJ.zero_()

    def put(self, rows_N: Tensor, alone: "Mamba2State") -> None:
        """Make the state of these sequences that of the only one of another."""
        self.conv_BKC[rows_N], self.ssm_BGNJ[rows_N] = alone.conv_BKC, alone.ssm_BGNJ

    def reorder(self, from_B: Tensor) -> None:
        """Make each sequence a copy of one of them."""
        self.conv_BKC[:], self.ssm_BGNJ[:] = self.conv_BKC[from_B], self.ssm_BGNJ[from_B]

    def rows(self, count: int) -> "Mamba2State":
        """The state of the first `count` sequences, in the same memory."""
        return Mamba2State(self.conv_BKC[:count], self.ssm_BGNJ[:count])


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
        self.conv1d = nn.Conv1d(self.d_xBC, self.d_xBC, d_conv, groups=self.d_xBC, padding=d_conv - 1, bias=conv_bias)
        steps = (dt_min, dt_max, dt_init_floor)
        self.dt_bias, self.A_log, self.D = scan_parameters(self.nheads, A_init_range, *steps)
        self.norm = GatedRMSNorm(self.d_inner, ngroups)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)
        self._kernels = _fused_kernels()

    def forward(self, u_BLD: Tensor) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model), any L >= 1, differentiable once.

        Decays, states and norm are float32 under autocast.
        """
        self._check_input(u_BLD, ndim=3)
        z_BLI, xBC_BLC, dt_BLH = self._project(u_BLD)
        if self._kernels is not None and u_BLD.is_cuda:
            y_BLHP = self._fused_scan(self._kernels, xBC_BLC, dt_BLH)
        else:
            y_BLHP = self._scan(self._convolve(xBC_BLC), dt_BLH)
        return self.out_proj(self.norm(y_BLHP.flatten(2), z_BLI))

    def init_state(self, batch: int, device: torch.device | str | None = None) -> Mamba2State:
        """The state before the first input of `batch` sequences, on the weights' device unless another is given."""
        device = device or self.A_log.device
        J = self.d_inner // self.ngroups
        return Mamba2State(
            conv_BKC=torch.zeros(batch, self.d_conv, self.d_xBC, device=device),
            ssm_BGNJ=torch.zeros(batch, self.ngroups, self.d_state, J, device=device),
        )

    @torch.no_grad()
    def prefill(self, u_BLD: Tensor, state: Mamba2State) -> Tensor:
        """`forward` from where `state` stands, any L >= 1; leaves `state` as L calls of `step` would. No gradient."""
        self._check_input(u_BLD, ndim=3, state=state)
        z_BLI, xBC_BLC, dt_BLH = self._project(u_BLD)
        dtype = self.conv1d.weight.dtype  # in_proj's may be a narrower one
        seen_BLC = torch.cat((state.conv_BKC.to(dtype), xBC_BLC.to(dtype)), dim=1)
        convolved_BLC = self._convolve(seen_BLC)[:, self.d_conv :]
        y_BLHP = self._scan(convolved_BLC, dt_BLH, state.ssm_BGNJ)
        state.conv_BKC.copy_(seen_BLC[:, -self.d_conv :])
        return self.out_proj(self.norm(y_BLHP.flatten(2), z_BLI))

    @torch.no_grad()
    def step(self, u_BD: Tensor, state: Mamba2State) -> Tensor:
        """Take in one input per sequence, (B, d_model) -> (B, d_model), updating `state` in place. No gradient."""
        self._check_input(u_BD, ndim=2, state=state)
        z_BI, xBC_BC, dt_BH = self._project(u_BD)
        x_BHP, B_BGN, C_BGN = self._split(self._convolve_step(xBC_BC, state.conv_BKC))
        y_BHP = ssd_step(x_BHP, self._positive(dt_BH), self._A(), B_BGN, C_BGN, wide(self.D), state.ssm_BGNJ)
        return self.out_proj(self.norm(y_BHP.flatten(1), z_BI))

    def _project(self, u: Tensor) -> tuple[Tensor, ...]:
        return self.in_proj(u).split((self.d_inner, self.d_xBC, self.nheads), dim=-1)

    def _split(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., C) -> x (..., H, P), B (..., G, N), C (..., G, N), without a copy."""
        GN = self.ngroups * self.d_state
        x, B, C = xBC.split((self.d_inner, GN, GN), dim=-1)
        groups = (self.ngroups, self.d_state)
        return x.unflatten(-1, (self.nheads, self.headdim)), B.unflatten(-1, groups), C.unflatten(-1, groups)

    def _convolve(self, xBC_BLC: Tensor) -> Tensor:
        return convolved_silu(xBC_BLC, self.conv1d.weight[:, 0], self.conv1d.bias)

    def _convolve_step(self, xBC_BC: Tensor, conv_BKC: Tensor) -> Tensor:
        for older_BC, newer_BC in itertools.pairwise(conv_BKC.unbind(1)):
            older_BC.copy_(newer_BC)
        conv_BKC[:, -1].copy_(xBC_BC)
        y_BC = (conv_BKC * self.conv1d.weight[:, 0].T).sum(1)
        return F.silu(y_BC if self.conv1d.bias is None else y_BC + self.conv1d.bias)

    def _scan(self, xBC_BLC: Tensor, dt_BLH: Tensor, state_BGNJ: Tensor | None = None) -> Tensor:
        x_BLHP, B_BLGN, C_BLGN = self._split(xBC_BLC)
        chunk = min(self.chunk_size, CPU_CHUNK) if x_BLHP.device.type == "cpu" else self.chunk_size
        return ssd(x_BLHP, self._positive(dt_BLH), self._A(), B_BLGN, C_BLGN, wide(self.D), chunk, state_BGNJ)

    def _fused_scan(self, kernels: "Kernels", xBC_BLC: Tensor, dt_BLH: Tensor) -> Tensor:
        """Convolution and scan by mamba_ssm's kernels, but not its one kernel for everything (`use_mem_eff_path`): that
        one fails at the first step where causal_conv1d is absent.
        """
        # causal_conv1d takes widths 2 to 4, and channels-last sequences only where strides are multiples of 8.
        if kernels.conv is None or self.d_xBC % 8 or not 2 <= self.d_conv <= 4:
            xBC_BLC = self._convolve(xBC_BLC)
        else:
            weight_CK, bias_C = self.conv1d.weight[:, 0], self.conv1d.bias
            xBC_BLC = _run(kernels.conv, xBC_BLC.contiguous().mT, weight_CK, bias_C, activation="silu").mT
        x_BLHP, B_BLGN, C_BLGN = self._split(xBC_BLC)
        options = {"D": self.D, "dt_bias": self.dt_bias, "dt_softplus": True}
        return _run(kernels.scan, x_BLHP, dt_BLH, self._A(), B_BLGN, C_BLGN, self.chunk_size, **options)

    def _A(self) -> Tensor:
        return -wide(self.A_log).exp()

    def _positive(self, dt: Tensor) -> Tensor:
        return F.softplus(wide(dt) + wide(self.dt_bias))

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
        if state is not None and len(state.ssm_BGNJ) != len(u):
            raise ValueError(f"the state holds {len(state.ssm_BGNJ)} sequences, and {len(u)} inputs were given")


def scan_parameters(
    heads: int,
    A_init_range: tuple[float, float] = (1.0, 16.0),
    dt_min: float = 0.001,
    dt_max: float = 0.1,
    dt_init_floor: float = 1e-4,
) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    """What a scan learns beside its inputs, as Mamba-2 begins with it: dt_bias, A_log and D, each (heads,).

    softplus(dt_bias) is log-uniform in [dt_min, dt_max] and at least `dt_init_floor`, exp(A_log) uniform in
    `A_init_range`; random numbers are drawn in this order. D is one. None of them decays.
    """
    dt_bias_H = _inverse_softplus(_sample_dt(heads, dt_min, dt_max, dt_init_floor))
    A_log_H = torch.empty(heads).uniform_(*A_init_range).log()
    return _without_decay(dt_bias_H), _without_decay(A_log_H), _without_decay(torch.ones(heads))


class Kernels(NamedTuple):
    """mamba_ssm's Triton scan, and causal_conv1d's convolution where that package is present too."""

    scan: Callable[..., Tensor]
    conv: Callable[..., Tensor] | None


@torch.compiler.disable
def _run(kernel: Callable[..., Tensor], *arguments: Any, **options: Any) -> Tensor:
    """A kernel of another package, as it is."""
    return kernel(*arguments, **options)


@cache  # so that it is looked up, and said, once a process
def _fused_kernels() -> Kernels | None:
    kernels, reason = _find_kernels()
    log.info("Mamba-2 runs %s: %s", "PyTorch" if kernels is None else "mamba_ssm's fused kernels", reason)
    return kernels


def _find_kernels() -> tuple[Kernels | None, str]:
    if not torch.cuda.is_available():
        return None, "there is no CUDA device"
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except Exception as error:  # a Triton or CUDA that does not fit raises far more than ImportError
        return None, f"mamba_ssm cannot be imported ({error})"
    try:
        from causal_conv1d import causal_conv1d_fn
    except Exception as error:
        reason = f"mamba_ssm is installed; PyTorch's convolution ({error})"
        return Kernels(mamba_chunk_scan_combined, None), reason
    reason = "mamba_ssm and causal_conv1d are installed"
    return Kernels(mamba_chunk_scan_combined, causal_conv1d_fn), reason


def _sample_dt(count: int, low: float, high: float, floor: float) -> Tensor:
    """Log-uniform in [low, high], at least `floor`."""
    spread = math.log(high) - math.log(low)
    return torch.exp(torch.rand(count) * spread + math.log(low)).clamp(min=floor)


def _inverse_softplus(y: Tensor) -> Tensor:
    return y + torch.log(-torch.expm1(-y))


def _without_decay(values: Tensor) -> nn.Parameter:
    parameter = nn.Parameter(values)
    parameter._no_weight_decay = True  # type: ignore[attr-defined]  # mamba_ssm's mark, read by `shared.training`
    return parameter
