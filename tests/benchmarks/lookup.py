"""The quantiser's bar: 16,384 vectors of dimension 16 among 16,384 codes (make bench BENCH=lookup).

One JSON line a case: name, median_s and peak_mb (ours), peer, peer_peak_mb, ratio (peer's median / ours). Memory is
what torch has allocated at the worst moment of a call, with the call's outputs and gradients but without its inputs. On
a CUDA device also `float32_peak`: our products a second as a fraction of what a large float32 matrix product reaches.
"""

import json
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shared.data.vision  # noqa: F401  (makes torchvision importable, which diffusers imports)
from stage1_tokenizer.quantisers.codebook.lookup import HAS_TRITON, full_float32, nearest_codes, nearest_codes_blocked
from stage1_tokenizer.quantisers.vector import VectorConfig, VectorQuantiser
from tests.benchmarks.timing import Step, interleaved_medians, peak_mb

VECTORS, CODES, DIM = 16_384, 16_384, 16  # 16 images of 32 x 32 tokens


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    quantiser = VectorQuantiser(VectorConfig(codes=CODES, dim=DIM, warm_up=0)).to(device)
    z_BHWD = torch.randn(16, 32, 32, DIM, device=device)
    whole: dict[str, Step] = {"ours": whole_step(quantiser, z_BHWD)}
    compare("quantiser fwd+bwd", whole | peer_steps(quantiser, z_BHWD), device)
    unit_ND, codes_KD = F.normalize(z_BHWD, dim=-1).view(VECTORS, DIM), quantiser.codes_KD.detach()
    compare("lookup", lookup_steps(unit_ND, codes_KD), device)


def whole_step(module: nn.Module, z: Tensor) -> Step:
    """Forward and backward of a whole quantiser in training. Its outputs are the codes, then its loss and its tokens in
    either order."""

    def step() -> None:
        module.zero_grad()
        outputs = module(z.detach().requires_grad_())
        loss = next(out for out in outputs[1:] if out is not None and out.is_floating_point())
        (outputs[0].square().mean() + loss.sum()).backward()

    return step


def peer_steps(ours: VectorQuantiser, z_BHWD: Tensor) -> dict[str, Step]:
    """The same of the peers, with our codes where they take them."""
    from diffusers.models.autoencoders.vae import VectorQuantizer
    from vector_quantize_pytorch import VectorQuantize

    taming = VectorQuantizer(CODES, DIM, beta=0.25).to(z_BHWD.device)
    taming.embedding.weight.data.copy_(ours.codebook)
    cosine = VectorQuantize(dim=DIM, codebook_size=CODES, use_cosine_sim=True, kmeans_init=False).to(z_BHWD.device)
    cosine._codebook.embed.data.copy_(ours.codebook[None])
    return {
        "diffusers VectorQuantizer": whole_step(taming, z_BHWD.permute(0, 3, 1, 2).contiguous()),
        "vector-quantize-pytorch cosine": whole_step(cosine, z_BHWD.view(16, -1, DIM)),
    }


def lookup_steps(x_ND: Tensor, codes_KD: Tensor) -> dict[str, Step]:
    """Our lookup on this device against plain products, compiled ones on CUDA, and our own fallback there."""

    def product(x_ND: Tensor, codes_KD: Tensor) -> Tensor:
        return (x_ND @ codes_KD.T).argmax(1)

    steps: dict[str, Step] = {"ours": lambda: nearest_codes(x_ND, codes_KD)}
    steps["matmul + argmax"] = lambda: product(x_ND, codes_KD)
    if x_ND.is_cuda and HAS_TRITON:
        compiled = torch.compile(product)
        steps["matmul + argmax, compiled"] = lambda: compiled(x_ND, codes_KD)
        steps["our blocked product"] = lambda: nearest_codes_blocked(x_ND, codes_KD)
    return steps


def compare(name: str, steps: Mapping[str, Step], device: torch.device) -> None:
    """Print a line for each peer of "ours"."""
    medians = interleaved_medians(steps, device)
    peaks = {name: peak_mb(step, device) for name, step in steps.items()}
    operations = 2 * VECTORS * CODES * DIM / medians["ours"]
    rate = float32_rate(device) if device.type == "cuda" else None
    for peer in list(steps)[1:]:
        line = {"name": f"{name} {device.type}", "median_s": round(medians["ours"], 6), "peak_mb": peaks["ours"]}
        line |= {"peer": peer, "peer_peak_mb": peaks[peer], "ratio": round(medians[peer] / medians["ours"], 2)}
        if rate:
            line["float32_peak"] = round(operations / rate, 3)
        print(json.dumps(line), flush=True)


def float32_rate(device: torch.device, size: int = 8192) -> float:
    """Operations a second of a large float32 matrix product, TF32 off: in practice the device's float32 peak."""
    square = torch.randn(size, size, device=device)
    with full_float32():
        seconds = interleaved_medians({"product": lambda: square @ square}, device)["product"]
    return 2 * size**3 / seconds


if __name__ == "__main__":
    main()
