"""The recurrence of Mamba-2 for all positions at once: state-space duality (Dao & Gu 2024, "Transformers are SSMs").

Shapes: B batch, L length, G groups of R = H / G heads that share one B_t and one C_t, P headdim, J = R P channels of a
group, N state size. A chunked length is c chunks of Q positions (S where the position is a source).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_BLOCK = 1024  # positions; what lies between inputs and outputs of so many stays in a CPU's cache


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
    x's dtype. Returns y (B, L, H, P). Starts from `state_BGNJ` where one is given, leaves the final state in it, and
    then has no gradient. Otherwise it can be differentiated once.
    """
    length, groups = B_BLGN.shape[1:3]
    chunks, grouped = math.ceil(length / chunk), (groups, -1)
    with torch.autocast(x_BLHP.device.type, enabled=False):
        x_BcQGRP = _chunked(x_BLHP, chunks).unflatten(3, grouped)
        dt_BcGRQ = _chunked(dt_BLH, chunks).unflatten(3, grouped).movedim(2, 4).contiguous()
        B_BcGQN, C_BcGQN = _chunked(B_BLGN, chunks).transpose(2, 3), _chunked(C_BLGN, chunks).transpose(2, 3)
        D_B1GR1 = D_H.view(1, 1, *grouped, 1).expand(x_BLHP.shape[0], -1, -1, -1, -1)
        # At q the source s weighs exp(until_q - until_s) dt_s. With log(dt) in the exponent that is
        # exp(until_q + from_s), so neither x nor the decays are multiplied by dt. The clamp is for padding, dt = 0.
        until_BcGRQ = (dt_BcGRQ * A_H.view(groups, -1, 1)).cumsum(-1)
        from_BcGRQ = dt_BcGRQ.clamp_min(torch.finfo(dt_BcGRQ.dtype).tiny).log() - until_BcGRQ
        inputs = (x_BcQGRP, dt_BcGRQ, until_BcGRQ, from_BcGRQ, B_BcGQN, C_BcGQN, D_B1GR1)
        if state_BGNJ is None and torch.is_grad_enabled():
            y_BcQGRP = _Scan.apply(*inputs)
        else:
            with torch.no_grad():
                y_BcQGRP = _scan(*inputs, state_BGNJ)
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


class _Scan(torch.autograd.Function):
    """`_scan`, a few sequences at a time. It keeps its inputs only: decays and states, many times as large, are
    computed anew on the way back, where the gradients too are those of a few sequences at a time.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        x_BcQGRP = inputs[0]
        if x_BcQGRP.device.type != "cpu":  # that takes the whole batch at once
            return _scan(*inputs)
        y_BcQGRP = x_BcQGRP.new_empty(x_BcQGRP.shape)
        for rows in _blocks(x_BcQGRP):
            y_BcQGRP[rows] = _scan(*(t[rows] for t in inputs))
        return y_BcQGRP

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BcQGRP: Tensor) -> tuple[Tensor, ...]:
        inputs = ctx.saved_tensors
        if dy_BcQGRP.device.type != "cpu":
            return _scan_gradients(dy_BcQGRP, *inputs)
        gradients = tuple(t.new_empty(t.shape) for t in inputs)
        for rows in _blocks(dy_BcQGRP):
            parts = _scan_gradients(dy_BcQGRP[rows], *(t[rows] for t in inputs))
            for gradient, part in zip(gradients, parts, strict=True):
                gradient[rows] = part
        return gradients


def _blocks(x_BcQGRP: Tensor) -> Iterator[slice]:
    batch, chunks, size = x_BcQGRP.shape[:3]
    rows = max(1, CPU_BLOCK // (chunks * size))
    return (slice(start, start + rows) for start in range(0, batch, rows))


def _scan(
    x_BcQGRP: Tensor,
    dt_BcGRQ: Tensor,
    until_BcGRQ: Tensor,
    from_BcGRQ: Tensor,
    B_BcGQN: Tensor,
    C_BcGQN: Tensor,
    D_B1GR1: Tensor,
    state_BGNJ: Tensor | None = None,
) -> Tensor:
    """y (B, c, Q, G, R, P); leaves the final state in `state_BGNJ`."""
    scores_BcG1QS = (C_BcGQN @ B_BcGQN.mT)[:, :, :, None]  # shared by the heads of a group
    mix_BcGRQS = _mix(scores_BcG1QS, _decay(until_BcGRQ, from_BcGRQ), dt_BcGRQ, D_B1GR1, x_BcQGRP.dtype)
    y_BcQGRP = (mix_BcGRQS @ x_BcQGRP.movedim(2, 4)).movedim(4, 2)
    if x_BcQGRP.shape[1] == 1 and state_BGNJ is None:
        return y_BcQGRP
    weighted_BcGQJ = _grouped(x_BcQGRP * _to_the_end(until_BcGRQ, from_BcGRQ))
    states_BcGNJ = _states(weighted_BcGQJ, B_BcGQN, _chunk_decay(until_BcGRQ, x_BcQGRP.shape[-1]), state_BGNJ)
    if state_BGNJ is not None:
        state_BGNJ.copy_(states_BcGNJ[:, -1])
    read_BcGQJ = C_BcGQN @ states_BcGNJ[:, :-1].to(C_BcGQN.dtype)
    return torch.addcmul(y_BcQGRP, _ungrouped(read_BcGQJ, x_BcQGRP), _from_the_start(until_BcGRQ)).to(x_BcQGRP.dtype)


def _scan_gradients(dy_BcQGRP: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Of each input of `_scan`, given that of y; without an initial state."""
    dx, ddt, duntil, dfrom, dB, dC, dD = _within_chunks_gradients(dy_BcQGRP, *inputs)
    x_BcQGRP, _, until_BcGRQ, from_BcGRQ, B_BcGQN, C_BcGQN, _ = inputs
    if x_BcQGRP.shape[1] > 1:
        between = _between_chunks_gradients(dy_BcQGRP, x_BcQGRP, until_BcGRQ, from_BcGRQ, B_BcGQN, C_BcGQN)
        for gradient, part in zip((dx, duntil, dfrom, dB, dC), between, strict=True):
            gradient += part
    return dx, ddt, duntil, dfrom, dB, dC, dD


def _within_chunks_gradients(
    dy_BcQGRP: Tensor,
    x_BcQGRP: Tensor,
    dt_BcGRQ: Tensor,
    until_BcGRQ: Tensor,
    from_BcGRQ: Tensor,
    B_BcGQN: Tensor,
    C_BcGQN: Tensor,
    D_B1GR1: Tensor,
) -> tuple[Tensor, ...]:
    """Of what each position takes from its own chunk, with regard to all inputs.

    y_q = sum_s M_qs x_s, where S = C B^T is shared by the heads of a group and, with u = until and f = from,
    M_qs = S_qs E_qs with E_qs = exp(u_q + f_s) for s < q, and M_qq = S_qq dt_q + D. So dx_s = sum_q M_qs dy_q,
    dM_qs = dy_q . x_s, and for s < q: dS_qs = sum over heads of E_qs dM_qs; the exponent has the gradient
    e_qs = S_qs E_qs dM_qs, hence du_q = sum_s e_qs and df_s = sum_q e_qs. On the diagonal: dS_qq = sum over heads of
    dt_q dM_qq, ddt_q = S_qq dM_qq, dD = sum_q dM_qq. At last dC_q = sum_s dS_qs B_s and dB_s = sum_q dS_qs C_q.
    """
    scores_BcG1QS = (C_BcGQN @ B_BcGQN.mT)[:, :, :, None]
    decay_BcGRQS = _decay(until_BcGRQ, from_BcGRQ)
    mix_BcGRQS = _mix(scores_BcG1QS, decay_BcGRQS, dt_BcGRQ, D_B1GR1, x_BcQGRP.dtype)
    dy_BcGRQP = dy_BcQGRP.movedim(2, 4).contiguous()  # for two products
    dx_BcQGRP = (mix_BcGRQS.mT @ dy_BcGRQP).movedim(4, 2)
    del mix_BcGRQS
    dmix_BcGRQS = dy_BcGRQP @ x_BcQGRP.movedim(2, 4).mT

    ditself_BcGRQ = _diagonal(dmix_BcGRQS).to(dt_BcGRQ.dtype)
    dweight_BcGRQS = decay_BcGRQS.mul_(dmix_BcGRQS)
    dscores_BcGQS = dweight_BcGRQS.sum(3)
    _diagonal(dscores_BcGQS).add_((ditself_BcGRQ * dt_BcGRQ).sum(3))
    dexponent_BcGRQS = dweight_BcGRQS.mul_(scores_BcG1QS)
    dscores_BcGQS = dscores_BcGQS.to(B_BcGQN.dtype)
    return (
        dx_BcQGRP,
        ditself_BcGRQ * _diagonal(scores_BcG1QS),
        dexponent_BcGRQS.sum(-1),
        dexponent_BcGRQS.sum(-2),
        dscores_BcGQS.mT @ C_BcGQN,
        dscores_BcGQS @ B_BcGQN,
        ditself_BcGRQ.sum((1, 4), keepdim=True),
    )


def _between_chunks_gradients(
    dy_BcQGRP: Tensor,
    x_BcQGRP: Tensor,
    until_BcGRQ: Tensor,
    from_BcGRQ: Tensor,
    B_BcGQN: Tensor,
    C_BcGQN: Tensor,
) -> tuple[Tensor, ...]:
    """Of what each position takes from the chunks before its own, with regard to x, until, from, B and C.

    With H_k the state before chunk k, of Q positions: H_(k+1) = a_k H_k + sum_s B_s w_s x_s^T, where w_s =
    exp(u_Q + f_s) is what is left of an input after its chunk (`_to_the_end`) and a_k = exp(u_Q) of the state before it
    (`_chunk_decay`); and y_q gains exp(u_q) C_q H_k. With g_q = exp(u_q) dy_q ("dgained"): du_q = g_q . (C_q H_k),
    dC_q = H_k g_q. The states' gradients run backwards, dH_k = sum_q C_q g_q^T + a_k dH_(k+1) ("dadded" is dH_(k+1)).
    Of it: dB_s = dH_(k+1) w_s x_s; v_s = B_s dH_(k+1) is the gradient of w_s x_s, so dx_s = w_s v_s and
    df_s = w_s x_s . v_s. The last position's u stands in every w_s and in a_k, so du_Q gains sum_s df_s and
    a_k <dH_(k+1), H_k>.
    """
    headdim = x_BcQGRP.shape[-1]
    weight_BcQGR1, gain_BcQGR1 = _to_the_end(until_BcGRQ, from_BcGRQ), _from_the_start(until_BcGRQ)
    decay_BcG1J, wide_B_BcGQN = _chunk_decay(until_BcGRQ, headdim), B_BcGQN.to(until_BcGRQ.dtype)
    weighted_BcGQJ = _grouped(x_BcQGRP * weight_BcQGR1)
    before_BcGNJ = _states(weighted_BcGQJ, B_BcGQN, decay_BcG1J)[:, :-1]
    narrow_BcGNJ = before_BcGNJ.to(C_BcGQN.dtype)

    dgained_BcQGRP = dy_BcQGRP * gain_BcQGR1
    read_BcQGRP = _ungrouped(C_BcGQN @ narrow_BcGNJ, x_BcQGRP)
    duntil_BcGRQ = (dgained_BcQGRP * read_BcQGRP).sum(-1).movedim(2, 4)
    dread_BcGQJ = _grouped(dgained_BcQGRP).to(C_BcGQN.dtype)
    dC_BcGQN = dread_BcGQJ @ narrow_BcGNJ.mT

    # The state before a chunk is read in it, and decays to the state before the next one.
    dbefore_BcGNJ = (C_BcGQN.mT @ dread_BcGQJ).to(before_BcGNJ.dtype)
    *dadded, _ = _decayed_sums(dbefore_BcGNJ.unbind(1)[::-1], decay_BcG1J.unbind(1)[-2::-1])
    dadded_BcGNJ = torch.stack((*dadded[::-1], torch.zeros_like(dadded[0])), dim=1)
    dB_BcGQN = weighted_BcGQJ @ dadded_BcGNJ.mT
    dweighted_BcQGRP = _ungrouped(wide_B_BcGQN @ dadded_BcGNJ, x_BcQGRP)
    ddecay_BcGJ = (dadded_BcGNJ * before_BcGNJ).sum(3) * decay_BcG1J[:, :, :, 0]

    dfrom_BcGRQ = ((dweighted_BcQGRP * x_BcQGRP).sum(-1) * weight_BcQGR1[..., 0]).movedim(2, 4)
    duntil_BcGRQ[..., -1] += ddecay_BcGJ.unflatten(-1, (-1, headdim)).sum(-1) + dfrom_BcGRQ.sum(-1)
    return dweighted_BcQGRP * weight_BcQGR1, duntil_BcGRQ, dfrom_BcGRQ, dB_BcGQN, dC_BcGQN


def _chunked(t_BL: Tensor, chunks: int) -> Tensor:
    """(B, L, ...) -> (B, c, Q, ...), the tail filled with zeros: a position with dt = 0 leaves the state as it is."""
    size = math.ceil(t_BL.shape[1] / chunks)  # equal chunks: 65 positions are 2 of 33, not 64 and 1 of 64
    tail = size * chunks - t_BL.shape[1]
    if tail:
        t_BL = F.pad(t_BL, (0, 0) * (t_BL.ndim - 2) + (0, tail))
    return t_BL.unflatten(1, (chunks, size))


def _decay(until_BcGRQ: Tensor, from_BcGRQ: Tensor) -> Tensor:
    """exp(until_q + from_s) of earlier sources s < q, else 0."""
    size = until_BcGRQ.shape[-1]
    not_past_QS = torch.full((size, size), -math.inf, dtype=until_BcGRQ.dtype, device=until_BcGRQ.device).triu()
    return (until_BcGRQ[..., :, None] + from_BcGRQ[..., None, :]).add_(not_past_QS).exp_()


def _mix(scores_BcG1QS: Tensor, decay_BcGRQS: Tensor, dt_BcGRQ: Tensor, D_B1GR1: Tensor, dtype: torch.dtype) -> Tensor:
    """What a chunk's outputs take from each of its inputs, the skip D x included: C B^T * decay + D."""
    mix_BcGRQS = scores_BcG1QS * decay_BcGRQS.to(dtype)
    # A position weighs itself by dt, without a decay. As exp(until_q - until_q) it would add two opposite gradients,
    # whose rounding drowns the gradient of A in heads that forget fast.
    _diagonal(mix_BcGRQS).copy_(_diagonal(scores_BcG1QS) * dt_BcGRQ + D_B1GR1)
    return mix_BcGRQS


def _states(weighted_BcGQJ: Tensor, B_BcGQN: Tensor, decay_BcG1J: Tensor, initial_BGNJ: Tensor | None = None) -> Tensor:
    """(B, c + 1, G, N, J): the state before each chunk, and the one after the last."""
    added_BcGNJ = B_BcGQN.mT.to(weighted_BcGQJ.dtype) @ weighted_BcGQJ
    if initial_BGNJ is None:
        initial_BGNJ = torch.zeros_like(added_BcGNJ[:, 0])
    first = initial_BGNJ.to(added_BcGNJ.dtype)
    return torch.stack(_decayed_sums((first, *added_BcGNJ.unbind(1)), decay_BcG1J.unbind(1)), dim=1)


def _decayed_sums(added: Sequence[Tensor], decays: Sequence[Tensor]) -> list[Tensor]:
    """y_0 = added_0, then y_i = added_i + decays_(i-1) y_(i-1).

    Not in place: compiled, each write into a part would be a copy of the whole. It costs the sums' memory once more.
    """
    sums = [added[0]]
    for added_now, decay in zip(added[1:], decays, strict=True):
        sums.append(torch.addcmul(added_now, sums[-1], decay))
    return sums


def _chunk_decay(until_BcGRQ: Tensor, headdim: int) -> Tensor:
    """How much of the state before a chunk is left after it."""
    return until_BcGRQ[..., -1].exp().repeat_interleave(headdim, dim=-1)[:, :, :, None]


def _to_the_end(until_BcGRQ: Tensor, from_BcGRQ: Tensor) -> Tensor:
    """(B, c, Q, G, R, 1): how much of an input's part in the state is left after its chunk."""
    return (until_BcGRQ[..., -1:] + from_BcGRQ).exp().movedim(4, 2)[..., None]


def _from_the_start(until_BcGRQ: Tensor) -> Tensor:
    """(B, c, Q, G, R, 1): how much of the state before its chunk is left at a position."""
    return until_BcGRQ.exp().movedim(4, 2)[..., None]


def _grouped(t_BcQGRP: Tensor) -> Tensor:
    """(B, c, G, Q, J)"""
    return t_BcQGRP.flatten(4).transpose(2, 3)


def _ungrouped(t_BcGQJ: Tensor, like_BcQGRP: Tensor) -> Tensor:
    return t_BcGQJ.transpose(2, 3).unflatten(4, like_BcQGRP.shape[4:])


def _diagonal(t_QS: Tensor) -> Tensor:
    """(..., Q, Q) -> (..., Q), a view."""
    return t_QS.diagonal(dim1=-2, dim2=-1)
