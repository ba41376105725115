"""Priors of 343M weights on a GPU: drawing 1,024 tokens an image, and training (make bench BENCH=gpu).

One JSON line each. machine: what it is, gb_per_s (the larger of a copy and a sum), tflop_per_s (bfloat16 products of
8192 x 8192). Drawing, of batches of 1, 16 and 64: name, median_s, tokens_per_s and fraction_of_floor of ours; then of
each peer that is installed tokens_per_s, and ratios (its median / ours). The floor is the larger of (weights + state) /
bandwidth and operations / peak: matrices, keys and values (of half the length, on average) in bfloat16, recurrent
states in float32, read and written. Training, compiled, in bfloat16: tokens_per_s, fraction_of_peak (6 operations a
weight and token, and those of attention or recurrence), peak_mb, first_step_s. Random weights; shapes, and batches in
training, are those of configs/prior/*-343m.yaml. A first run of each does not count.

    python -m tests.benchmarks.gpu --only gpt-b64 --rounds 3 --peers x-transformers     some cases, against some peers
"""

import argparse
import gc
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from shared.config import load_config
from shared.environment import machine, now
from shared.training.optimisation.optimizer import make_optimizer
from stage2_prior.config import MambaConfig, PriorConfig
from stage2_prior.decoding.decoder import Decoder
from stage2_prior.prior import Prior
from stage2_prior.run_config import PriorRun
from tests.benchmarks import peers
from tests.benchmarks.peers import CODES, Generate, Peer, Size
from tests.benchmarks.timing import interleaved_medians, peak_mb

DEVICE = torch.device("cuda")
KINDS, BATCHES, GRID = ("gpt", "mamba"), (1, 16, 64), (32, 32)
TOKENS = GRID[0] * GRID[1]
CONFIGS = {kind: load_config(PriorRun, Path(f"configs/prior/{kind}-343m.yaml"), []) for kind in KINDS}
SIZES = ("width", "depth", "heads", "d_state", "headdim")  # options that are a peer's too
PEERS: dict[str, tuple[str, str, Peer]] = {  # name: package, the kind of ours whose size it has
    "x-transformers": ("x_transformers", "gpt", peers.x_transformers),
    "transformers-llama": ("transformers", "gpt", peers.llama),
    "mamba-ssm": ("mamba_ssm", "mamba", peers.mamba_ssm),
}


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    bandwidth, peak = measure_machine(options.rounds)
    report({"name": "machine", "what": machine(), "when": now(), "gb_per_s": bandwidth, "tflop_per_s": peak})
    for batch in BATCHES:
        kinds = [kind for kind in KINDS if f"{kind}-b{batch}" in options.only]
        draw(kinds, batch, options, bandwidth, peak)
    for kind in KINDS:
        if f"train-{kind}" in options.only:
            report(train(kind, options.rounds, peak))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    names = [*(f"{kind}-b{batch}" for batch in BATCHES for kind in KINDS), *(f"train-{kind}" for kind in KINDS)]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--rounds", type=int, default=5, help="runs of which the median is taken")
    parser.add_argument("--peer-rounds", type=int, default=3, help="likewise, of peers")
    installed = [name for name, (package, _, _) in PEERS.items() if importlib.util.find_spec(package) is not None]
    parser.add_argument("--peers", nargs="*", choices=installed, default=installed, help=", ".join(PEERS))
    return parser.parse_args(arguments)


def report(line: dict[str, object]) -> None:
    print(json.dumps(line), flush=True)


def measure_machine(rounds: int) -> tuple[float, float]:
    """GB/s and TFLOP/s."""
    source, matrix = torch.randn(2**30, device=DEVICE), torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    steps: dict[str, Callable[[], object]] = {
        "copy": lambda: target.copy_(source),
        "sum": source.sum,
        "product": lambda: [matrix @ matrix for _ in range(10)],
    }
    seconds = interleaved_medians(steps, DEVICE, 2 * rounds)
    bandwidth = max(2 * source.nbytes / seconds["copy"], source.nbytes / seconds["sum"])
    return round(bandwidth / 1e9, 1), round(10 * 2 * 8192**3 / seconds["product"] / 1e12, 1)


def draw(kinds: list[str], batch: int, options: argparse.Namespace, bandwidth: float, peak: float) -> None:
    """Report each kind's drawing of one batch, and its peers'."""
    priors = {kind: build(kind) for kind in kinds}
    ours = interleaved_medians({kind: drawing(prior, batch) for kind, prior in priors.items()}, DEVICE, options.rounds)
    for kind, prior in priors.items():
        fraction = floor_s(prior, batch, bandwidth, peak) * TOKENS / ours[kind]
        report(result(f"{kind}-b{batch}", batch, ours[kind]) | {"fraction_of_floor": round(fraction, 3)})
        del prior
    priors.clear()
    for name in options.peers if kinds else []:
        gc.collect()
        torch.cuda.empty_cache()
        seconds = interleaved_medians({name: drawing_of_peer(name, batch)}, DEVICE, options.peer_rounds)[name]
        ratios = {f"ratio_{kind}": round(seconds / ours[kind], 2) for kind in kinds}
        report(result(f"b{batch}, {name}", batch, seconds) | ratios)


def result(name: str, batch: int, seconds: float) -> dict[str, object]:
    return {"name": name, "median_s": round(seconds, 3), "tokens_per_s": round(batch * TOKENS / seconds)}


def build(kind: str) -> Prior:
    torch.manual_seed(0)
    with DEVICE:
        return Prior(CONFIGS[kind].model, CODES, GRID).eval()


def drawing(prior: Prior, batch: int) -> Generate:
    decoder = Decoder(prior, rows=batch)
    return lambda: decoder.generate(range(batch))


def drawing_of_peer(name: str, batch: int) -> Generate:
    _, kind, peer = PEERS[name]
    options = {key: value for key, value in CONFIGS[kind].model if key in SIZES}
    return peer(Size(**options, device="cuda", dtype=torch.bfloat16), batch, TOKENS)


def floor_s(prior: Prior, batch: int, bandwidth: float, peak: float) -> float:
    """The least seconds a step can take."""
    traffic = 2 * linear_weights(prior) + batch * prior.config.depth * bytes_of_a_row(prior.config)
    return max(traffic / bandwidth / 1e9, 2 * batch * linear_weights(prior) / peak / 1e12)


def bytes_of_a_row(model: PriorConfig) -> float:
    """State that a step of one block reads and writes for one image."""
    if not isinstance(model, MambaConfig):
        return 2 * 2 * model.width * TOKENS / 2
    inner = model.expand * model.width
    return 4 * (2 * inner * model.d_state + 4 * (inner + 2 * model.d_state))  # and 4 taps of the convolution


def linear_weights(prior: Prior) -> int:
    return sum(module.weight.numel() for module in prior.modules() if isinstance(module, nn.Linear))


def train(kind: str, rounds: int, peak: float) -> dict[str, object]:
    """One optimiser step of one batch."""
    config, prior = CONFIGS[kind].training, build(kind).train()
    prior.compile()
    optimizer = make_optimizer(prior, config)
    tokens_BL = torch.randint(CODES, (config.batch_size, TOKENS), device=DEVICE)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = prior(prior.inputs(tokens_BL), targets_BL=tokens_BL)
        loss.backward()
        nn.utils.clip_grad_norm_(prior.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()

    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    compiling = time.perf_counter() - start
    seconds = interleaved_medians({"step": step}, DEVICE, 2 * rounds)["step"]
    operations = operations_of(prior) * tokens_BL.numel()
    return {
        "name": f"train-{kind}", "batch": config.batch_size, "median_s": round(seconds, 4),
        "tokens_per_s": round(tokens_BL.numel() / seconds),
        "fraction_of_peak": round(operations / seconds / peak / 1e12, 3),
        "peak_mb": peak_mb(step, DEVICE), "first_step_s": round(compiling, 1),
    }  # fmt: skip


def operations_of(prior: Prior) -> float:
    """Floating-point operations of training on one token."""
    model = prior.config
    mixing = (
        2 * model.expand * model.width * model.d_state
        if isinstance(model, MambaConfig)
        else 2 * model.width * TOKENS / 2
    )
    return 6 * (linear_weights(prior) + model.depth * mixing)


if __name__ == "__main__":
    main()
