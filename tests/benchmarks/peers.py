"""Other projects' generation, of models of the same size as ours with random weights, drawing whole distributions."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import shared.data.vision  # noqa: F401  (makes torchvision importable, which transformers imports)

CODES = 16_384
MLP = 8 / 3  # hidden width of a gated MLP over the width


@dataclass(frozen=True)
class Size:
    """The shape of a prior, and where and in what it runs."""

    width: int
    depth: int
    heads: int = 0  # of attention
    d_state: int = 0  # of Mamba-2, as headdim
    headdim: int = 0
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def place(self, model: nn.Module) -> nn.Module:
        return model.to(self.device, self.dtype).eval()


Generate = Callable[[], object]
Peer = Callable[[Size, int, int], Generate]  # (size, batch, tokens)


def x_transformers(size: Size, batch: int, tokens: int) -> Generate:
    """Its GPT with flash attention, whose cache of keys and values grows."""
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    mlp = {"ff_glu": True, "ff_swish": True, "ff_mult": MLP}
    layers = Decoder(dim=size.width, depth=size.depth, heads=size.heads, attn_flash=True, **mlp)
    net = TransformerWrapper(num_tokens=CODES, max_seq_len=tokens + 1, attn_layers=layers)
    model = size.place(AutoregressiveWrapper(net))
    start = torch.zeros(batch, 1, dtype=torch.long, device=size.device)
    whole = {"filter_logits_fn": lambda logits, **_: logits, "temperature": 1.0}
    return lambda: model.generate(start, tokens, cache_kv=True, **whole)  # type: ignore[operator]


def llama(size: Size, batch: int, tokens: int) -> Generate:
    """transformers' Llama with its static cache, which it compiles on a GPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=CODES,
        hidden_size=size.width,
        intermediate_size=round(size.width * MLP / 32) * 32,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        max_position_embeddings=tokens + 1,
    )
    return _transformers_generate(LlamaForCausalLM(config), size, batch, tokens, cache_implementation="static")


def mamba2(size: Size, batch: int, tokens: int) -> Generate:
    """transformers' Mamba-2, in PyTorch."""
    from transformers import Mamba2Config, Mamba2ForCausalLM

    config = Mamba2Config(
        vocab_size=CODES,
        hidden_size=size.width,
        state_size=size.d_state,
        head_dim=size.headdim,
        num_heads=2 * size.width // size.headdim,
        n_groups=1,
        num_hidden_layers=size.depth,
    )
    return _transformers_generate(Mamba2ForCausalLM(config), size, batch, tokens)


def mamba_ssm(size: Size, batch: int, tokens: int) -> Generate:
    """mamba_ssm's own generation: its model's step in a CUDA graph, the draw outside of it."""
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    layer = {"layer": "Mamba2", "d_state": size.d_state, "headdim": size.headdim, "use_mem_eff_path": False}
    config = MambaConfig(d_model=size.width, n_layer=size.depth, vocab_size=CODES, ssm_cfg=layer, tie_embeddings=False)
    model = MambaLMHeadModel(config, device=size.device, dtype=size.dtype).eval()
    start = torch.zeros(batch, 1, dtype=torch.long, device=size.device)
    return lambda: model.generate(start, tokens + 1, cg=True, top_k=0)


def _transformers_generate(model: nn.Module, size: Size, batch: int, tokens: int, **options: object) -> Generate:
    start = torch.ones(batch, 1, dtype=torch.long, device=size.device)  # not the padding, which would be masked
    options |= {"do_sample": True, "top_k": 0, "eos_token_id": None, "pad_token_id": 0}
    options["disable_compile"] = size.device == "cpu"
    placed = size.place(model)
    return lambda: placed.generate(start, max_new_tokens=tokens, **options)  # type: ignore[operator]
