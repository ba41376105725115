"""The Mamba-2 mixer (Dao & Gu 2024, "Transformers are SSMs"): one set of weights, two forms of one function.

Training reads the whole sequence at once, by the chunked algorithm of state-space duality (SSD); decoding takes one
input at a time and keeps a state of fixed size. Weights carry the names and packing of `mamba_ssm.Mamba2`, so they move
both ways.

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

    conv_KBC: Tensor  # the last K inputs of the convolution, the newest last; this order makes the shift K - 1 copies
    ssm_BGNJ: Tensor  # the state axis before the channels: twice as fast as mamba_ssm's order in the product with C

    def reset(self) -> None:
        """Forget everything, as before the first input."""
        self.conv_KBC.zero_()
        self.ssm_BGNJ.zero_()

    def rows(self, count: int) -> "Mamba2State":
        """The state of the first `count` sequences, in the same memory."""
        return Mamba2State(self.conv_KBC[:, :count], self.ssm_BGNJ[:count])


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
        self.dt_bias = _without_decay(_inverse_softplus(_sample_dt(self.nheads, dt_min, dt_max, dt_init_floor)))
        self.A_log = _without_decay(torch.empty(self.nheads).uniform_(*A_init_range).log())
        self.D = _without_decay(torch.ones(self.nheads))
        self.norm = GatedRMSNorm(self.d_inner, ngroups)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)
        self._kernels = _fused_kernels()

    def forward(self, u_BLD: Tensor) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model), any L >= 1, differentiable. Scan and norm are float32 under autocast."""
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
            conv_KBC=torch.zeros(self.d_conv, batch, self.d_xBC, device=device),
            ssm_BGNJ=torch.zeros(batch, self.ngroups, self.d_state, J, device=device),
        )

    @torch.no_grad()
    def prefill(self, u_BLD: Tensor, state: Mamba2State) -> Tensor:
        """`forward` from where `state` stands, any L >= 1; leaves `state` as L calls of `step` would. No gradient."""
        self._check_input(u_BLD, ndim=3, state=state)
        z_BLI, xBC_BLC, dt_BLH = self._project(u_BLD)
        history_BKC, dtype = state.conv_KBC.transpose(0, 1), self.conv1d.weight.dtype  # in_proj's may be a narrower one
        seen_BLC = torch.cat((history_BKC.to(dtype), xBC_BLC.to(dtype)), dim=1)
        convolved_BLC = self._convolve(seen_BLC)[:, self.d_conv :]
        y_BLHP = self._scan(convolved_BLC, dt_BLH, state.ssm_BGNJ)
        state.conv_KBC.copy_(seen_BLC[:, -self.d_conv :].transpose(0, 1))
        return self.out_proj(self.norm(y_BLHP.flatten(2), z_BLI))

    @torch.no_grad()
    def step(self, u_BD: Tensor, state: Mamba2State) -> Tensor:
        """Take in one input per sequence, (B, d_model) -> (B, d_model), updating `state` in place. No gradient."""
        self._check_input(u_BD, ndim=2, state=state)
        z_BI, xBC_BC, dt_BH = self._project(u_BD)
        x_BHP, B_BGN, C_BGN = self._split(self._convolve_step(xBC_BC, state.conv_KBC))
        if self._kernels is not None and u_BD.is_cuda and self.ngroups == 1:
            y_BHP = self._fused_step(self._kernels, x_BHP, dt_BH, B_BGN, C_BGN, state.ssm_BGNJ)
        else:
            y_BHP = ssd_step(x_BHP, self._positive(dt_BH), self._A(), B_BGN, C_BGN, _wide(self.D), state.ssm_BGNJ)
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
        # As a picture of height 1 in channels-last order the sequence is used where it lies; conv1d transposes it there
        # and back, and takes up to twice as long on a CPU.
        conv = self.conv1d
        picture_BC1L = xBC_BLC.mT.unsqueeze(2)
        y_BC1L = F.conv2d(
            picture_BC1L, conv.weight.unsqueeze(2), conv.bias, padding=(0, self.d_conv - 1), groups=self.d_xBC
        )
        return F.silu(y_BC1L[:, :, 0, : xBC_BLC.shape[1]].mT)

    def _convolve_step(self, xBC_BC: Tensor, conv_KBC: Tensor) -> Tensor:
        for older_BC, newer_BC in itertools.pairwise(conv_KBC.unbind(0)):
            older_BC.copy_(newer_BC)
        conv_KBC[-1].copy_(xBC_BC)
        y_BC = (conv_KBC * self.conv1d.weight[:, 0].T[:, None]).sum(0)
        return F.silu(y_BC if self.conv1d.bias is None else y_BC + self.conv1d.bias)

    def _scan(self, xBC_BLC: Tensor, dt_BLH: Tensor, state_BGNJ: Tensor | None = None) -> Tensor:
        x_BLHP, B_BLGN, C_BLGN = self._split(xBC_BLC)
        chunk = min(self.chunk_size, CPU_CHUNK) if x_BLHP.device.type == "cpu" else self.chunk_size
        return ssd(x_BLHP, self._positive(dt_BLH), self._A(), B_BLGN, C_BLGN, _wide(self.D), chunk, state_BGNJ)

    def _fused_scan(self, kernels: "Kernels", xBC_BLC: Tensor, dt_BLH: Tensor) -> Tensor:
        """Convolution and scan by mamba_ssm's kernels, but not its one kernel for everything (`use_mem_eff_path`): that
        one fails at the first step where causal_conv1d is absent.
        """
        # causal_conv1d takes widths 2 to 4, and channels-last sequences only where strides are multiples of 8.
        if kernels.conv is None or self.d_xBC % 8 or not 2 <= self.d_conv <= 4:
            xBC_BLC = self._convolve(xBC_BLC)
        else:
            weight_CK, bias_C = self.conv1d.weight[:, 0], self.conv1d.bias
            xBC_BLC = kernels.conv(xBC_BLC.contiguous().mT, weight_CK, bias_C, activation="silu").mT
        x_BLHP, B_BLGN, C_BLGN = self._split(xBC_BLC)
        options = {"D": self.D, "dt_bias": self.dt_bias, "dt_softplus": True}
        return kernels.scan(x_BLHP, dt_BLH, self._A(), B_BLGN, C_BLGN, self.chunk_size, **options)

    def _fused_step(
        self, kernels: "Kernels", x_BHP: Tensor, dt_BH: Tensor, B_BGN: Tensor, C_BGN: Tensor, ssm_BGNJ: Tensor
    ) -> Tensor:
        """The recurrence in one pass over the state instead of three. The kernel takes any strides, so it reads our
        order of the axes; expanded arguments tell it that a head's channels share them.
        """
        state_BHPN = ssm_BGNJ[:, 0].unflatten(2, (self.nheads, self.headdim)).permute(0, 2, 3, 1)
        of_channels = (self.nheads, self.headdim)
        return kernels.step(
            state_BHPN,
            x_BHP,
            dt_BH[..., None].expand(-1, *of_channels),
            self._A()[:, None, None].expand(*of_channels, self.d_state),
            B_BGN,
            C_BGN,
            D=_wide(self.D)[:, None].expand(of_channels),
            dt_bias=_wide(self.dt_bias)[:, None].expand(of_channels),
            dt_softplus=True,
        )

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
        if state is not None and len(state.ssm_BGNJ) != len(u):
            raise ValueError(f"the state holds {len(state.ssm_BGNJ)} sequences, and {len(u)} inputs were given")


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
    state_BGNJ: Tensor | None = None,
) -> Tensor:
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t; y_t = C_t h_t + D x_t, for all t at once (Dao & Gu 2024, section 6).

    Inside a chunk this is attention with decays for its softmax; between chunks only their final states pass on.
    `dt_BLH` >= 0 and `A_H` < 0 are float32 (or float64), and so are decays and states; the products that make y run in
    x's dtype. Returns y (B, L, H, P). Starts from `state_BGNJ` where one is given, and leaves the final state in it.
    """
    length, groups = B_BLGN.shape[1:3]
    chunks, grouped = math.ceil(length / chunk), (groups, -1)
    with torch.autocast(x_BLHP.device.type, enabled=False):
        x_BcQGRP = _chunked(x_BLHP, chunks).unflatten(3, grouped)
        dt_BcGRQ = _chunked(dt_BLH, chunks).unflatten(3, grouped).movedim(2, 4).contiguous()
        B_BcGQN, C_BcGQN = _chunked(B_BLGN, chunks).transpose(2, 3), _chunked(C_BLGN, chunks).transpose(2, 3)
        # At q the source s weighs exp(until_q - until_s) dt_s. With log(dt) in the exponent that is
        # exp(until_q + from_s), so neither x nor the decays are multiplied by dt. The clamp is for padding, dt = 0.
        until_BcGRQ = (dt_BcGRQ * A_H.view(groups, -1, 1)).cumsum(-1)
        from_BcGRQ = dt_BcGRQ.clamp_min(torch.finfo(dt_BcGRQ.dtype).tiny).log() - until_BcGRQ

        y_BcQGRP = _within_chunks(x_BcQGRP, dt_BcGRQ, until_BcGRQ, from_BcGRQ, B_BcGQN, C_BcGQN, D_H)
        if chunks > 1 or state_BGNJ is not None:
            before_BcGNJ, final_BGNJ = _chunk_states(x_BcQGRP, until_BcGRQ, from_BcGRQ, B_BcGQN, state_BGNJ)
            y_BcQGRP = _from_states(before_BcGNJ, until_BcGRQ, C_BcGQN) + y_BcQGRP
            if state_BGNJ is not None:
                state_BGNJ.copy_(final_BGNJ)
    return y_BcQGRP.flatten(3, 4).flatten(1, 2)[:, :length]


def ssd_step(
    x_BHP: Tensor, dt_BH: Tensor, A_H: Tensor, B_BGN: Tensor, C_BGN: Tensor, D_H: Tensor, ssm_BGNJ: Tensor
) -> Tensor:
    """One step of the recurrence that `ssd` computes; updates `ssm_BGNJ` in place and returns y (B, H, P)."""
    grouped = (len(x_BHP), ssm_BGNJ.shape[1], 1, -1)
    with torch.autocast(x_BHP.device.type, enabled=False):
        decay_BG1J = (dt_BH * A_H).exp()[..., None].expand_as(x_BHP).reshape(grouped)
        input_BG1J = (dt_BH[..., None] * x_BHP).reshape(grouped)
        ssm_BGNJ.mul_(decay_BG1J).addcmul_(B_BGN[..., None].to(ssm_BGNJ.dtype), input_BG1J.to(ssm_BGNJ.dtype))
        y_BG1J = C_BGN[:, :, None].to(ssm_BGNJ.dtype) @ ssm_BGNJ
    return y_BG1J.view(x_BHP.shape) + D_H[:, None] * x_BHP


def _chunked(t_BL: Tensor, chunks: int) -> Tensor:
    """(B, L, ...) -> (B, c, Q, ...), the tail filled with zeros: a position with dt = 0 leaves the state as it is."""
    size = math.ceil(t_BL.shape[1] / chunks)  # equal chunks: 65 positions are 2 of 33, not 64 and 1 of 64
    tail = size * chunks - t_BL.shape[1]
    if tail:
        t_BL = F.pad(t_BL, (0, 0) * (t_BL.ndim - 2) + (0, tail))
    return t_BL.unflatten(1, (chunks, size))


def _within_chunks(
    x_BcQGRP: Tensor,
    dt_BcGRQ: Tensor,
    until_BcGRQ: Tensor,
    from_BcGRQ: Tensor,
    B_BcGQN: Tensor,
    C_BcGQN: Tensor,
    D_H: Tensor,
) -> Tensor:
    """What each position takes from its own chunk, the skip D x included: (C B^T * decay + D) x."""
    size, grouped = dt_BcGRQ.shape[-1], dt_BcGRQ.shape[2:4]
    scores_BcG1QS = (C_BcGQN @ B_BcGQN.mT)[:, :, :, None]  # shared by the heads of a group
    not_past_QS = torch.full((size, size), -math.inf, dtype=dt_BcGRQ.dtype, device=dt_BcGRQ.device).triu()
    decay_BcGRQS = (until_BcGRQ[..., :, None] + from_BcGRQ[..., None, :]).add_(not_past_QS).exp_()
    # A position weighs itself by dt, without a decay. As exp(until_q - until_q) it would add two opposite gradients,
    # whose rounding drowns the gradient of A in heads that forget fast.
    itself_BcGRQ = scores_BcG1QS.diagonal(dim1=-2, dim2=-1) * dt_BcGRQ + D_H.view(*grouped, 1)
    mix_BcGRQS = scores_BcG1QS * decay_BcGRQS.to(x_BcQGRP.dtype)
    mix_BcGRQS = mix_BcGRQS.diagonal_scatter(itself_BcGRQ.to(x_BcQGRP.dtype), dim1=-2, dim2=-1)
    return (mix_BcGRQS @ x_BcQGRP.movedim(2, 4)).movedim(4, 2)


def _chunk_states(
    x_BcQGRP: Tensor, until_BcGRQ: Tensor, from_BcGRQ: Tensor, B_BcGQN: Tensor, initial_BGNJ: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The state before each chunk (B, c, G, N, J), and the one after the last (B, G, N, J)."""
    weight_BcQGR1 = (until_BcGRQ[..., -1:] + from_BcGRQ).exp().movedim(4, 2)[..., None]
    weighted_BcGQJ = (x_BcQGRP * weight_BcQGR1).flatten(4).transpose(2, 3)
    added_BcGNJ = B_BcGQN.mT.to(weighted_BcGQJ.dtype) @ weighted_BcGQJ
    headdim = x_BcQGRP.shape[-1]
    decay_BcG1J = until_BcGRQ[..., -1].exp().repeat_interleave(headdim, dim=-1)[:, :, :, None]

    state_BGNJ = torch.zeros_like(added_BcGNJ[:, 0]) if initial_BGNJ is None else initial_BGNJ.to(added_BcGNJ.dtype)
    before = []
    for added_BGNJ, decay_BG1J in zip(added_BcGNJ.unbind(1), decay_BcG1J.unbind(1), strict=True):
        before.append(state_BGNJ)
        state_BGNJ = state_BGNJ * decay_BG1J + added_BGNJ
    return torch.stack(before, dim=1), state_BGNJ


def _from_states(before_BcGNJ: Tensor, until_BcGRQ: Tensor, C_BcGQN: Tensor) -> Tensor:
    """What each position takes from the chunks before its own, (B, c, Q, G, R, P)."""
    read_BcGQJ = C_BcGQN @ before_BcGNJ.to(C_BcGQN.dtype)
    read_BcQGRP = read_BcGQJ.transpose(2, 3).unflatten(4, (until_BcGRQ.shape[3], -1))
    return read_BcQGRP * until_BcGRQ.exp().movedim(4, 2)[..., None]


class Kernels(NamedTuple):
    """mamba_ssm's Triton scan and step, and causal_conv1d's convolution where that package is present too."""

    scan: Callable[..., Tensor]
    step: Callable[..., Tensor]
    conv: Callable[..., Tensor] | None


@cache  # so that it is looked up, and said, once a process
def _fused_kernels() -> Kernels | None:
    kernels, reason = _find_kernels()
    logger.info("Mamba-2 runs %s: %s", "PyTorch" if kernels is None else "mamba_ssm's fused kernels", reason)
    return kernels


def _find_kernels() -> tuple[Kernels | None, str]:
    if not torch.cuda.is_available():
        return None, "there is no CUDA device"
    try:
        from mamba_ssm.ops.triton.selective_state_update import selective_state_update
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except Exception as error:  # a Triton or CUDA that does not fit raises far more than ImportError
        return None, f"mamba_ssm cannot be imported ({error})"
    try:
        from causal_conv1d import causal_conv1d_fn
    except Exception as error:
        reason = f"mamba_ssm is installed; PyTorch's convolution ({error})"
        return Kernels(mamba_chunk_scan_combined, selective_state_update, None), reason
    reason = "mamba_ssm and causal_conv1d are installed"
    return Kernels(mamba_chunk_scan_combined, selective_state_update, causal_conv1d_fn), reason


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


def _wide(t: Tensor) -> Tensor:
    """At least float32."""
    return t.to(torch.promote_types(t.dtype, torch.float32))
