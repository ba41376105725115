"""Drawing tokens, against x-transformers and transformers (make bench BENCH=decoding).

All models have random weights, a vocabulary of 16,384, width 384 and 6 layers. One JSON line a bar: name, median_s,
tokens_per_s and peak_mb (the most that torch holds in a first call beside the prior itself) of ours, fraction_of_floor,
peer, peer_tokens_per_s, ratio (of the medians), bar (the ratio demanded), gb_per_s and gflop_per_s of the machine.
The floor is the larger of (weights + state) / bandwidth and operations / peak: matrices, keys and values (of half the
length, on average) of 16 bits, recurrent states of 32; the peak is of products in bfloat16, or in float32 where the CPU
does not multiply that. Bars of one peer at one size are measured together, and so is the machine.

    python -m tests.benchmarks.decoding --only gpt-b1 mamba-b32x1024     some sizes: the names that --help lists
"""

import argparse
import copy
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from shared.training.devices.precision import multiplies_bfloat16
from stage2_prior.decoding.decoder import Decoder
from stage2_prior.prior import Prior
from tests.benchmarks import peers
from tests.benchmarks.peers import CODES, Peer, Size
from tests.benchmarks.timing import peak_mb
from tests.support.tiny import prior_config

SIZE = Size(width=384, depth=6, heads=6, d_state=64, headdim=64)
TOKENS = 256  # unless a name says how many
ROUNDS = 5
CONSTANCY = "mamba-constancy"
# What the machine is measured with.
MEMORY = torch.ones(2**26)
MATRIX = torch.ones(2048, 2048, dtype=torch.bfloat16 if multiplies_bfloat16(torch.device("cpu")) else torch.float32)
# On one thread, its CPU time is the time it would take on a machine where nothing else runs.
clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter


@dataclass(frozen=True)
class Bar:
    """Ours against one peer, at one size."""

    kind: str
    batch: int
    tokens: int
    peer: str
    ratio: float  # demanded

    @property
    def name(self) -> str:
        return f"{self.kind}-b{self.batch}" + (f"x{self.tokens}" if self.tokens != TOKENS else "")


BARS = [
    Bar("gpt", 1, TOKENS, "x-transformers", 6),
    Bar("gpt", 1, TOKENS, "transformers Llama, static cache", 3),
    Bar("gpt", 32, TOKENS, "transformers Llama, static cache", 3),
    Bar("gpt", 32, 1024, "x-transformers", 8),
    Bar("mamba", 1, TOKENS, "transformers Mamba-2", 3),
    Bar("mamba", 8, TOKENS, "transformers Mamba-2", 5),
    Bar("mamba", 32, TOKENS, "transformers Mamba-2", 5),
    Bar("mamba", 32, 1024, "x-transformers", 20),
]


def main(arguments: list[str] | None = None) -> None:
    only = parse(arguments).only
    print(json.dumps({"name": "machine", "threads": torch.get_num_threads()}), flush=True)
    for bars in by_peer(bar for bar in BARS if bar.name in only):
        for line in measure(bars):
            print(json.dumps(line), flush=True)
    if CONSTANCY in only:
        report_constancy()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    names = [*dict.fromkeys(bar.name for bar in BARS), CONSTANCY]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    return parser.parse_args(arguments)


def by_peer(bars: Iterable[Bar]) -> list[list[Bar]]:
    """Bars of one peer at one size together, so that it runs once for all of them."""
    groups: dict[tuple[str, int, int], list[Bar]] = {}
    for bar in bars:
        groups.setdefault((bar.peer, bar.batch, bar.tokens), []).append(bar)
    return list(groups.values())


def measure(bars: list[Bar]) -> list[dict[str, object]]:
    """A line for each bar of one peer and size."""
    peer = PEERS[bars[0].peer](SIZE, bars[0].batch, bars[0].tokens)
    *ours_s, peer_s, read_s, product_s = medians(
        *(ours(bar.kind, bar.batch, bar.tokens) for bar in bars), peer, MEMORY.sum, lambda: MATRIX @ MATRIX
    )
    machine = {
        "gb_per_s": round(MEMORY.nbytes / read_s / 1e9, 1),
        "gflop_per_s": round(2 * len(MATRIX) ** 3 / product_s / 1e9),
    }
    return [result(bar, seconds, peer_s, machine) for bar, seconds in zip(bars, ours_s, strict=True)]


def result(bar: Bar, ours_s: float, peer_s: float, machine: dict[str, float]) -> dict[str, object]:
    return {
        "name": bar.name,
        "median_s": round(ours_s, 3),
        "tokens_per_s": round(bar.batch * bar.tokens / ours_s),
        "peak_mb": peak_of_ours(bar),
        "fraction_of_floor": round(floor_s(bar, machine) * bar.tokens / ours_s, 3),
        "peer": bar.peer,
        "peer_tokens_per_s": round(bar.batch * bar.tokens / peer_s),
        "ratio": round(peer_s / ours_s, 2),
        "bar": bar.ratio,
        **machine,
    }


def medians(*runs: Callable[[], object]) -> list[float]:
    """Median seconds of each. They take turns, so that a slow spell of the machine falls on all."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, times in zip(runs, seconds, strict=True):
            start = clock()
            run()
            times.append(clock() - start)
    return [statistics.median(times) for times in seconds]


@cache
def prior(kind: str, tokens: int) -> Prior:
    torch.manual_seed(0)
    shape = {name: getattr(SIZE, name) for name in ("depth", "width", "heads", "d_state", "headdim")}
    config = prior_config(kind=kind, **shape)
    return Prior(config, CODES, (tokens // 16, 16)).eval()


def ours(kind: str, batch: int, tokens: int) -> Callable[[], object]:
    decoder = Decoder(prior(kind, tokens), rows=batch)
    return lambda: decoder.generate(range(batch))


def peak_of_ours(bar: Bar) -> float:
    """Of a first call, which allocates the state that later ones find in place."""
    fresh = copy.deepcopy(prior(bar.kind, bar.tokens))
    return peak_mb(lambda: Decoder(fresh, rows=bar.batch).generate(range(bar.batch)))


PEERS: dict[str, Peer] = {
    "x-transformers": peers.x_transformers,
    "transformers Llama, static cache": peers.llama,
    "transformers Mamba-2": peers.mamba2,
}


def floor_s(bar: Bar, machine: dict[str, float]) -> float:
    """The least seconds a step can take."""
    model = prior(bar.kind, bar.tokens)
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    keys_and_values = SIZE.depth * 2 * SIZE.width * bar.tokens / 2
    read_and_written = 2 * SIZE.depth * 2 * SIZE.width * SIZE.d_state
    state_bytes = 2 * keys_and_values if bar.kind == "gpt" else 4 * read_and_written
    traffic, operations = 2 * weights + bar.batch * state_bytes, 2 * bar.batch * weights
    return max(traffic / machine["gb_per_s"], operations / machine["gflop_per_s"]) / 1e9


def report_constancy() -> None:
    """Cost of Mamba's last tokens over its first, at batch 8 x 1,024."""
    times = [clock()]
    Decoder(prior("mamba", 1024), rows=8).generate(range(8), progress=lambda _: times.append(clock()))
    steps = [after - before for before, after in itertools.pairwise(times[1:])]
    growth = statistics.median(steps[-256:]) / statistics.median(steps[:256])
    print(
        json.dumps({"name": CONSTANCY, "what": "last 256 steps over first 256", "growth": round(growth, 3)}), flush=True
    )


if __name__ == "__main__":
    main()
