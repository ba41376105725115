"""One Mamba-2 layer, forward and backward, against transformers' mixer with the same weights (make bench BENCH=mamba2).

One JSON line a case: name, median_s (ours), peak_mb (null: not measured), peer, ratio (peer's median / ours).
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import shared.vision  # noqa: F401  (makes torchvision importable, which transformers imports)
from shared.mamba2 import Mamba2

BATCH, LENGTH, D_MODEL, D_STATE, HEADDIM = 4, 1024, 384, 64, 64
ROUNDS = 7


def main() -> None:
    torch.manual_seed(0)
    ours = Mamba2(D_MODEL, d_state=D_STATE, headdim=HEADDIM)
    peers = {f"transformers, chunk {chunk}": transformers_mixer(ours, chunk) for chunk in (256, 64)}
    u_BLD = torch.randn(BATCH, LENGTH, D_MODEL)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        medians = interleaved_medians(
            {"ours": training_step(ours, u_BLD, dtype)}
            | {peer: training_step(module, u_BLD, dtype) for peer, module in peers.items()}
        )
        for peer in peers:
            report(f"mamba2 layer fwd+bwd {name}", medians["ours"], peer, medians[peer])


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


def interleaved_medians(steps: Mapping[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of each step. They take turns, so that a slow spell of the machine falls on all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(ROUNDS + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def report(name: str, median_s: float, peer: str, peer_s: float) -> None:
    line = {"name": name, "median_s": round(median_s, 4), "peak_mb": None, "peer": peer}
    print(json.dumps(line | {"ratio": round(peer_s / median_s, 2)}), flush=True)


if __name__ == "__main__":
    main()
