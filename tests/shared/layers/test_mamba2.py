"""Mamba-2 against transformers' mixer, and against its own other form.

Shapes: B batch, L length, D model width, H heads, P headdim, N state size, G groups, J channels of a group.
"""

import importlib.util
import logging
import shutil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shared.data.vision  # noqa: F401  (makes torchvision importable, which transformers imports)
from shared.layers import mamba2
from shared.layers.mamba2 import Kernels, Mamba2
from tests.shared.layers.test_ssd import recurrence

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile on a CPU needs a C++ compiler"
)
needs_kernels = pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("mamba_ssm") is None,
    reason="the fused kernels need CUDA and mamba_ssm",
)


def small(**options: object) -> Mamba2:
    """48 wide, 6 heads; weights off their initial values, so that no term of the formulas is trivial."""
    mixer = Mamba2(**{"d_model": 48, "d_state": 16, "headdim": 16, **options})  # type: ignore[arg-type]
    with torch.no_grad():
        mixer.D.normal_()
        mixer.norm.weight.uniform_(0.5, 1.5)
        mixer.dt_bias.add_(2.0)
    return mixer


# --- the layer against transformers --------------------------------------------------------------------------------


def transformers_mixer(mixer: Mamba2) -> nn.Module:
    """transformers' Mamba-2 with the weights of `mixer`, loaded by name."""
    modeling = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    config = modeling.Mamba2Config(
        hidden_size=mixer.d_model,
        state_size=mixer.d_state,
        conv_kernel=mixer.d_conv,
        expand=mixer.d_inner // mixer.d_model,
        head_dim=mixer.headdim,
        num_heads=mixer.nheads,
        n_groups=mixer.ngroups,
        chunk_size=16,
        num_hidden_layers=1,
    )
    peer = modeling.Mamba2Mixer(config, layer_idx=0)
    peer.load_state_dict(mixer.state_dict())
    return peer


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("length", [1, 2, 3, 17, 64, 65, 131])
def test_output_and_gradients_are_those_of_transformers(length: int, groups: int) -> None:
    mixer = small(ngroups=groups)
    peer = transformers_mixer(mixer)
    u_BLD, weight_BLD = torch.randn(2, 2, length, 48)
    ours, theirs = (
        _output_and_gradients(module, u_BLD.clone().requires_grad_(), weight_BLD) for module in (mixer, peer)
    )
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        tolerance = 1e-5 if name in ("output", "input") else 5e-5  # weights' gradients are long sums
        assert (ours[name] - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-3), name


def _output_and_gradients(module: Any, u_BLD: Tensor, weight_BLD: Tensor) -> dict[str, Tensor]:
    y_BLD = module(u_BLD)
    (y_BLD * weight_BLD).sum().backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert u_BLD.grad is not None
    return {"output": y_BLD, "input": u_BLD.grad, **gradients}


def test_names_and_shapes_of_the_weights_are_those_of_mamba_ssm() -> None:
    mixer = Mamba2(d_model=64, d_state=16, d_conv=4, expand=2, headdim=32, ngroups=2)
    assert {name: tuple(t.shape) for name, t in mixer.state_dict().items()} == {
        "dt_bias": (4,),
        "A_log": (4,),
        "D": (4,),
        "in_proj.weight": (128 + 128 + 32 + 32 + 4, 64),  # z, x, B, C, dt
        "conv1d.weight": (128 + 32 + 32, 1, 4),
        "conv1d.bias": (128 + 32 + 32,),
        "norm.weight": (128,),
        "out_proj.weight": (64, 128),
    }


def test_initial_values_are_in_the_ranges_of_mamba_ssm() -> None:
    mixer = Mamba2(d_model=1024, headdim=1)
    dt_H, A_H = F.softplus(mixer.dt_bias), mixer.A_log.exp()
    assert 0.001 * 0.999 <= dt_H.min() < 0.0011
    assert 0.09 < dt_H.max() <= 0.1 * 1.001
    assert 0.009 < dt_H.log().mean().exp() < 0.011  # log-uniform: the geometric mean is the middle
    assert 1 <= A_H.min() < 1.1
    assert 15.9 < A_H.max() <= 16
    assert (mixer.D == 1).all()
    assert (mixer.norm.weight == 1).all()


def test_dynamics_are_marked_to_escape_weight_decay() -> None:
    marked = {name for name, p in small().named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert marked == {"dt_bias", "A_log", "D"}


# --- decoding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"ngroups": 2}, {"d_conv": 1}, {"bias": True, "conv_bias": False}])
@pytest.mark.parametrize("length", [1, 3, 71])
def test_step_is_forward_at_every_position(length: int, options: dict[str, int]) -> None:
    mixer, u_BLD = small(**options), torch.randn(3, length, 48)
    state = mixer.init_state(batch=3)
    steps_BLD = torch.stack([mixer.step(u_BD, state) for u_BD in u_BLD.unbind(1)], 1)
    torch.testing.assert_close(steps_BLD, mixer(u_BLD), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("parts", [(1, 1), (2, 5), (3, 1, 2), (64, 7), (65, 65), (100,)])
def test_prefill_in_parts_then_step_is_forward(parts: tuple[int, ...]) -> None:
    mixer, u_BLD = small(ngroups=2), torch.randn(2, sum(parts) + 1, 48)
    state = mixer.init_state(batch=2)
    ys = [mixer.prefill(part_BLD, state) for part_BLD in u_BLD[:, :-1].split(parts, dim=1)]
    ys.append(mixer.step(u_BLD[:, -1], state)[:, None])
    torch.testing.assert_close(torch.cat(ys, 1), mixer(u_BLD), atol=1e-5, rtol=1e-5)


def test_prefill_leaves_the_state_that_steps_leave() -> None:
    mixer, u_BLD = small(), torch.randn(2, 13, 48)
    prefilled, stepped = mixer.init_state(2), mixer.init_state(2)
    mixer.prefill(u_BLD, prefilled)
    for u_BD in u_BLD.unbind(1):
        mixer.step(u_BD, stepped)
    torch.testing.assert_close(prefilled.conv_BKC, stepped.conv_BKC, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(prefilled.ssm_BGNJ, stepped.ssm_BGNJ, atol=1e-5, rtol=1e-5)


def test_a_reset_state_is_a_new_one() -> None:
    mixer, u_BD = small(), torch.randn(2, 48)
    state = mixer.init_state(2)
    first_BD = mixer.step(u_BD, state)
    state.reset()
    assert mixer.step(u_BD, state).equal(first_BD)


def test_the_state_is_float32_for_bfloat16_weights() -> None:
    mixer, u_BD = small().bfloat16(), torch.randn(2, 48).bfloat16()
    state = mixer.init_state(2)
    assert mixer.step(u_BD, state).dtype == torch.bfloat16
    assert mixer.prefill(u_BD[:, None], state).dtype == torch.bfloat16
    assert state.ssm_BGNJ.dtype == state.conv_BKC.dtype == torch.float32


def test_no_output_depends_on_a_later_input() -> None:
    mixer, u_BLD = small(), torch.randn(1, 70, 48)
    changed_BLD = u_BLD.clone()
    changed_BLD[:, 41:] += 1
    torch.testing.assert_close(mixer(changed_BLD)[:, :41], mixer(u_BLD)[:, :41], atol=1e-6, rtol=1e-5)
    assert not mixer(changed_BLD)[:, 41].allclose(mixer(u_BLD)[:, 41])


# --- precision, compilation, kernels, mistakes ----------------------------------------------------------------------


@pytest.mark.parametrize("length", [5, 130])
def test_autocast_to_bfloat16_is_finite_and_close(length: int) -> None:
    mixer, u_BLD = small(), torch.randn(2, length, 48, requires_grad=True)
    expected_BLD = mixer(u_BLD)
    state = mixer.init_state(2)
    with torch.autocast("cpu", torch.bfloat16):
        y_BLD = mixer(u_BLD)
        mixer.prefill(u_BLD[:, :-1], state)
        last_BD = mixer.step(u_BLD[:, -1], state)
    y_BLD.float().square().sum().backward()
    assert y_BLD.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())
    scale = expected_BLD.abs().max()
    assert (y_BLD - expected_BLD).abs().max() < 0.02 * scale
    assert (last_BD - expected_BLD[:, -1]).abs().max() < 0.02 * scale


@needs_compiler
def test_torch_compile_takes_forward_whole() -> None:
    mixer = small()
    compiled = torch.compile(mixer, fullgraph=True)
    u_BLD = torch.randn(2, 40, 48)  # a chunk and a part of one: each takes seconds to compile
    weight_BLD = torch.randn_like(u_BLD)
    ours = _output_and_gradients(compiled, u_BLD.clone().requires_grad_(), weight_BLD)
    compiled_gradients = [p.grad for p in mixer.parameters()]
    mixer.zero_grad()
    expected = _output_and_gradients(mixer, u_BLD.clone().requires_grad_(), weight_BLD)
    for name in ("output", "input"):
        torch.testing.assert_close(ours[name], expected[name], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(compiled_gradients, [p.grad for p in mixer.parameters()], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("with_conv", [False, True])
def test_fused_kernels_are_given_what_they_document(with_conv: bool) -> None:
    """Stand-ins with the signatures of mamba_ssm and causal_conv1d, computed by their definitions."""

    def scan(x, dt, A, B, C, chunk_size, D, dt_bias, dt_softplus):  # type: ignore[no-untyped-def]
        assert dt_softplus
        return recurrence(x, F.softplus(dt + dt_bias), A, B, C, D)[0]

    def conv(x_BCL, weight_CK, bias_C, activation):  # type: ignore[no-untyped-def]
        assert activation == "silu"
        assert x_BCL.stride(1) == 1
        assert x_BCL.stride(2) % 8 == 0
        width = weight_CK.shape[1]
        return F.silu(F.conv1d(F.pad(x_BCL, (width - 1, 0)), weight_CK[:, None], bias_C, groups=len(weight_CK)))

    mixer, u_BLD = small(ngroups=2), torch.randn(2, 11, 48)
    z_BLI, xBC_BLC, dt_BLH = mixer._project(u_BLD)
    y_BLHP = mixer._fused_scan(Kernels(scan, conv if with_conv else None), xBC_BLC, dt_BLH)
    y_BLD = mixer.out_proj(mixer.norm(y_BLHP.flatten(2), z_BLI))
    torch.testing.assert_close(y_BLD, mixer(u_BLD), atol=1e-5, rtol=1e-5)


def test_rows_of_a_state_are_views() -> None:
    mixer, u_BD = small(), torch.randn(3, 48)
    state, alone = mixer.init_state(3), mixer.init_state(2)
    for _ in range(3):
        y_BD = mixer.step(u_BD[:2], state.rows(2))
        assert y_BD.equal(mixer.step(u_BD[:2], alone))
    assert state.ssm_BGNJ[:2].equal(alone.ssm_BGNJ)
    assert not state.ssm_BGNJ[2].any()


@needs_kernels
def test_fused_kernels_agree_with_pytorch() -> None:
    mixer = Mamba2(d_model=256, d_state=64).cuda()
    u_BLD, weight_BLD = torch.randn(2, 2, 300, 256, device="cuda")
    fused = _output_and_gradients(mixer, u_BLD.clone().requires_grad_(), weight_BLD)
    mixer._kernels = None
    mixer.zero_grad()
    expected = _output_and_gradients(mixer, u_BLD.clone().requires_grad_(), weight_BLD)
    for name in ("output", "input"):  # the kernels' products are in TF32
        assert (fused[name] - expected[name]).abs().max() < 1e-2 * expected[name].abs().max(), name


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is logged depends on mamba_ssm where there is a GPU")
def test_the_choice_is_logged_once_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    mamba2._fused_kernels.cache_clear()
    with caplog.at_level(logging.INFO, logger="shared.layers.mamba2"):
        small(), small()
    assert [r.message for r in caplog.records] == ["Mamba-2 runs PyTorch: there is no CUDA device"]


@pytest.mark.parametrize(
    ("options", "numbers"),
    [({"headdim": 36}, "36.*96"), ({"ngroups": 4}, "4.*6 heads"), ({"d_state": 0}, "d_state is 0")],
)
def test_sizes_that_do_not_divide_are_named(options: dict[str, int], numbers: str) -> None:
    with pytest.raises(ValueError, match=numbers):
        small(**options)


def test_inputs_of_the_wrong_shape_are_named() -> None:
    mixer = small()
    with pytest.raises(ValueError, match=r"d_model 48.*\(2, 5, 32\)"):
        mixer(torch.randn(2, 5, 32))
    with pytest.raises(ValueError, match=r"\(2, 0, 48\)"):
        mixer(torch.randn(2, 0, 48))
    with pytest.raises(ValueError, match="holds 4 sequences, and 1 inputs"):
        mixer.step(torch.randn(1, 48), mixer.init_state(4))
