"""What is published as a tokenizer or an autoencoder, but is not one that can be taken over, known by its weights."""

import re
from collections.abc import Mapping

from torch import Tensor

CODEBOOK = "quantize.embedding.weight"
ADOPTABLE = (
    "What can be taken over: VQGANs of taming-transformers (as latent diffusion has them too), of LlamaGen, VQModel of "
    "diffusers, and MaskGIT's VQGAN of 1d-tokenizer"
)
# By a name that only they have; the first that fits.
BY_NAME = (
    (r"latent_tokens$|latent_token_positional_embedding", "TiTok, whose tokens are a sequence and not a grid"),
    (r"quantize\.(?:quant_resi|ema_vocab_hit)", "VAR's multi-scale tokenizer, whose tokens are grids of many sizes"),
    (r"quantize\.(?:embed|proj)\.weight$", "a Gumbel VQGAN, whose tokens are chosen by a projection"),
    (r"quantize\.embedding_proj\.", "a VQGAN with SimVQ, whose codes are projected"),
    (
        r"(?:quantize|quantizer)\.(?:mask|basis|bit_mask)$",
        "a lookup-free tokenizer (LFQ or BSQ), which has no codebook",
    ),
    (
        r"(?:quantize|quantizer)\.(?:codebooks?|layers)\.\d+\.",
        "a residual tokenizer, with several codes for each place",
    ),
    (r"\.(?:norm_layer|conv_y|conv_b)\.", "MOVQ (norm_type: spatial), whose decoder is normalised by the codes"),
    (r"(?:^|\.)vquantizer\.", "Paella's VQ of Würstchen"),
    (r"(?:^|\.)pre_quant\.", "a ViT-VQGAN, which is a transformer"),
    (r"(?:^|\.)blocks\.group_\d", "the dVAE of DALL-E"),
)
# What stands beside a plain codebook without a say in what a token means: averages, counts, taming's shorter numbering.
BESIDE = re.compile(r"quantize\.(?:embedding\.(?:weight|cluster_size|embed_avg)|codebook_used|used)")


def stranger(tensors: Mapping[str, Tensor]) -> str | None:
    """What these weights are if they cannot be taken over and that can be told; None otherwise."""
    for pattern, what in BY_NAME:
        if any(re.search(pattern, name) for name in tensors):
            return what
    if any(name.endswith("encoder.conv_in.weight") and tensor.ndim == 5 for name, tensor in tensors.items()):
        return "a tokenizer of videos"
    convs = [tensor for name, tensor in tensors.items() if re.search(r"(?:^|\.)(?:post_)?quant_conv\.weight$", name)]
    if any(conv.ndim == 4 and conv.shape[-1] > 1 for conv in convs):
        return "VAR's multi-scale tokenizer or one of its kind: quant_conv is no 1 x 1 convolution"
    if any(name.endswith(CODEBOOK) for name in tensors):
        beyond = [name for name in tensors if name.startswith("quantize.") and not BESIDE.fullmatch(name)]
        return f"a tokenizer whose quantiser is more than a codebook ({beyond[0]})" if beyond else None
    if is_continuous(tensors):
        return "a KL autoencoder, such as Stable Diffusion's: its latents are numbers, it has no codes"
    return None


def is_continuous(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the encoder says two numbers, mean and variance, for each that the decoder takes."""
    sides: dict[str, dict[str, int]] = {}
    for name, tensor in tensors.items():
        if match := re.search(r"^(.*?)(encoder\.conv_out|decoder\.conv_in)\.weight$", name):
            sides.setdefault(match[1], {})[match[2]] = tensor.shape[0 if match[2].startswith("encoder") else 1]
    return any(side.get("encoder.conv_out") == 2 * side.get("decoder.conv_in", -1) for side in sides.values())
