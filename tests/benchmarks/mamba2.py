"""One Mamba-2 layer, forward and backward, against transformers' mixer with the same weights (make bench BENCH=mamba2).

One JSON line a case: name, median_s and peak_mb (ours), peer, peer_peak_mb, ratio (peer's median / ours). In float32,
and in bfloat16 where the CPU multiplies it.
"""

import json
from collections.abc import Callable

import torch
from torch import Tensor, nn

import shared.data.vision  # noqa: F401  (makes torchvision importable, which transformers imports)
from shared.layers.mamba2 import Mamba2
from shared.training.devices.precision import multiplies_bfloat16
from tests.benchmarks.timing import interleaved_medians, peak_mb

BATCH, LENGTH, D_MODEL, D_STATE, HEADDIM = 4, 1024, 384, 64, 64
ROUNDS = 7


def main() -> None:
    torch.manual_seed(0)
    ours = Mamba2(D_MODEL, d_state=D_STATE, headdim=HEADDIM)
    peers = {f"transformers, chunk {chunk}": transformers_mixer(ours, chunk) for chunk in (256, 64)}
    u_BLD = torch.randn(BATCH, LENGTH, D_MODEL)
    dtypes = {"fp32": torch.float32}
    if multiplies_bfloat16(u_BLD.device):
        dtypes["bf16"] = torch.bfloat16
    for name, dtype in dtypes.items():
        steps = {"ours": training_step(ours, u_BLD, dtype)}
        steps |= {peer: training_step(module, u_BLD, dtype) for peer, module in peers.items()}
        medians = interleaved_medians(steps, rounds=ROUNDS)
        peaks = {name: peak_mb(step) for name, step in steps.items()}
        for peer in peers:
            line = {"name": f"mamba2 layer fwd+bwd {name}", "median_s": round(medians["ours"], 4)}
            line |= {"peak_mb": peaks["ours"], "peer": peer, "peer_peak_mb": peaks[peer]}
            print(json.dumps(line | {"ratio": round(medians[peer] / medians["ours"], 2)}), flush=True)


def transformers_mixer(ours: Mamba2, chunk: int) -> nn.Module:
    """transformers' Mamba-2 mixer with our weights, whose names are the same."""
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Config, Mamba2Mixer

    config = Mamba2Config(
        hidden_size=D_MODEL,
        state_size=D_STATE,
        head_dim=HEADDIM,
        num_heads=ours.nheads,
        n_groups=ours.ngroups,
        chunk_size=chunk,
        num_hidden_layers=1,
    )
    peer = Mamba2Mixer(config, layer_idx=0)
    peer.load_state_dict(ours.state_dict())
    return peer


def training_step(module: nn.Module, u_BLD: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """One forward and backward pass; float32 weights, under autocast where `dtype` is not float32."""

    def step() -> None:
        module.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            y_BLD = module(u_BLD.detach().requires_grad_())
        y_BLD.float().square().mean().backward()

    return step


if __name__ == "__main__":
    main()
