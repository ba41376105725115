"""The chunked scan against the plain recurrence in float64, its gradients against finite differences and autograd's.

Shapes: B batch, L length, H heads, P headdim, N state size, G groups, J channels of a group.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.layers import ssd as ssd_module
from shared.layers.ssd import ssd


def random_ssd_inputs(length: int, groups: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    inputs = {
        "x_BLHP": torch.randn(2, length, 4, 8),
        "dt_BLH": F.softplus(torch.randn(2, length, 4)),
        "A_H": -torch.rand(4) - 0.1,
        "B_BLGN": torch.randn(2, length, groups, 5),
        "C_BLGN": torch.randn(2, length, groups, 5),
        "D_H": torch.randn(4),
    }
    return {name: t.to(dtype) for name, t in inputs.items()}


def recurrence(
    x_BLHP: Tensor, dt_BLH: Tensor, A_H: Tensor, B_BLGN: Tensor, C_BLGN: Tensor, D_H: Tensor, h_BHNP: Tensor | int = 0
) -> tuple[Tensor, Tensor]:
    """The definition, one position after the other, B and C repeated for each head. Returns y and the final state."""
    repeats = x_BLHP.shape[2] // B_BLGN.shape[2]
    B_BLHN, C_BLHN = B_BLGN.repeat_interleave(repeats, 2), C_BLGN.repeat_interleave(repeats, 2)
    ys = []
    for t in range(x_BLHP.shape[1]):
        decay_BH = torch.exp(dt_BLH[:, t] * A_H)
        h_BHNP = h_BHNP * decay_BH[..., None, None] + torch.einsum(
            "bh,bhn,bhp->bhnp", dt_BLH[:, t], B_BLHN[:, t], x_BLHP[:, t]
        )
        ys.append(torch.einsum("bhn,bhnp->bhp", C_BLHN[:, t], h_BHNP) + D_H[:, None] * x_BLHP[:, t])
    assert isinstance(h_BHNP, Tensor)
    return torch.stack(ys, 1), h_BHNP


def per_head(h_BGNJ: Tensor, headdim: int) -> Tensor:
    """(B, G, N, J) -> (B, H, N, P)."""
    return h_BGNJ.unflatten(3, (-1, headdim)).movedim(3, 2).flatten(1, 2)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("length", "chunk"), [(1, 8), (7, 8), (8, 8), (9, 8), (37, 8), (40, 1), (33, 64)])
def test_ssd_is_the_recurrence(length: int, chunk: int, groups: int) -> None:
    inputs = random_ssd_inputs(length, groups)
    torch.testing.assert_close(ssd(**inputs, chunk=chunk), recurrence(**inputs)[0], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("length", [1, 9, 32])
def test_ssd_goes_on_from_a_state_and_leaves_the_final_one(length: int) -> None:
    inputs, state_BGNJ = random_ssd_inputs(length, groups=2), torch.randn(2, 2, 5, 16, dtype=torch.float64)
    expected_y, expected_state = recurrence(**inputs, h_BHNP=per_head(state_BGNJ, 8))
    torch.testing.assert_close(ssd(**inputs, chunk=8, state_BGNJ=state_BGNJ), expected_y, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(per_head(state_BGNJ, 8), expected_state, atol=1e-10, rtol=1e-10)


def test_ssd_gradients_are_those_of_the_recurrence() -> None:
    inputs = {name: t.requires_grad_() for name, t in random_ssd_inputs(19, groups=2).items()}
    weight = torch.randn(2, 19, 4, 8, dtype=torch.float64)
    ours = torch.autograd.grad((ssd(**inputs, chunk=8) * weight).sum(), list(inputs.values()))
    expected = torch.autograd.grad((recurrence(**inputs)[0] * weight).sum(), list(inputs.values()))
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=1e-10)


def test_ssd_stays_exact_in_float32_where_time_steps_span_many_decades() -> None:
    """Large steps make the sums of dt A large, small ones then ask for small differences of them."""
    inputs = random_ssd_inputs(200, groups=1, dtype=torch.float32)
    inputs["dt_BLH"] = torch.exp(torch.empty(2, 200, 4).uniform_(-12, 2))
    inputs["dt_BLH"][:, ::17] = 0  # softplus of a very negative number
    inputs["A_H"] = torch.tensor([-0.01, -1.0, -4.0, -16.0])
    expected, _ = recurrence(**{name: t.double() for name, t in inputs.items()})
    y = ssd(**inputs, chunk=64).double()
    assert (y - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_time_step_of_zero_has_finite_gradients() -> None:
    inputs = {name: t.requires_grad_() for name, t in random_ssd_inputs(9, 1, torch.float32).items()}
    dt_BLH = (inputs["dt_BLH"] * 0).detach().requires_grad_()
    ssd(**{**inputs, "dt_BLH": dt_BLH}, chunk=4).sum().backward()
    assert dt_BLH.grad is not None
    assert dt_BLH.grad.isfinite().all()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("length", [3, 11])
def test_ssd_gradients_are_finite_differences(length: int, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssd_module, "CPU_BLOCK", 1)  # one sequence at a time
    inputs = [t[..., :2].contiguous() if t.ndim == 4 else t for t in random_ssd_inputs(length, groups).values()]
    inputs = [t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(lambda x, dt, A, B, C, D: ssd(x, dt, A, B, C, D, chunk=4), inputs, fast_mode=True)


def test_the_scan_keeps_nothing_but_its_inputs() -> None:
    inputs = {name: t.requires_grad_() for name, t in random_ssd_inputs(256, 1, torch.float32).items()}
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        ssd(**inputs, chunk=64)
    of_inputs = sum(t.nbytes for t in inputs.values())
    of_steps = inputs["dt_BLH"].nbytes
    assert sum(kept.values()) < of_inputs + 8 * of_steps  # one matrix of decays would be 64 steps


def test_ssd_without_a_gradient_is_the_same() -> None:
    inputs = random_ssd_inputs(37, groups=2)
    with torch.no_grad():
        plain_BLHP = ssd(**inputs, chunk=8)
    assert plain_BLHP.equal(ssd(**{name: t.requires_grad_() for name, t in inputs.items()}, chunk=8))
