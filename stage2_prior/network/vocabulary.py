"""How a prior takes in ids and scores codes.

A vocabulary gives `table()` (K, R), computed once per training step or decoding state; `embed(ids, table)` (..., D);
and `query(h)` (..., R). The logits are query(h) @ table^T + bias.

Shapes: D width of the prior, K codes, R width of the output table, E width of a tokenizer's code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_prior.network.block import INIT_STD


class FullVocabulary(nn.Module):
    """Embeds ids and scores codes: one free vector per id on the way in, another per code on the way out."""

    bias_K: Tensor | None = None

    def __init__(self, codes: int, starts: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes + starts, width)
        self.output = nn.Linear(width, codes, bias=False)
        nn.init.normal_(self.embedding.weight, std=INIT_STD)
        nn.init.normal_(self.output.weight, std=INIT_STD)

    def table(self) -> Tensor:
        return self.output.weight

    def embed(self, ids: Tensor, table_KR: Tensor) -> Tensor:
        return self.embedding(ids)

    def query(self, h: Tensor) -> Tensor:
        return h


class TiedVocabulary(nn.Module):
    """The same vector per code on the way in and out (Press & Wolf 2017).

    Logits are divided by `growth`, the width over that at which they need no factor (shared/layers/mup.py).
    """

    bias_K: Tensor | None = None

    def __init__(self, codes: int, starts: int, width: int, growth: float = 1.0) -> None:
        super().__init__()
        self.codes, self.growth = codes, growth
        self.embedding = nn.Embedding(codes + starts, width)
        nn.init.normal_(self.embedding.weight, std=INIT_STD)

    def table(self) -> Tensor:
        return self.embedding.weight[: self.codes]

    def embed(self, ids: Tensor, table_KR: Tensor) -> Tensor:
        return self.embedding(ids)

    def query(self, h: Tensor) -> Tensor:
        return h if self.growth == 1 else h / self.growth


class CodeVocabulary(nn.Module):
    """A code's row is a function of the tokenizer's vector for it, plus a correction of its own.

    Most of 16,384 codes are rare in a small data set: codes that look alike then share what is learned of either.
    The tokenizer's vectors are frozen; they are kept in the checkpoint, standardised to mean 0 and variance 1.
    """

    vectors_KE: Tensor

    def __init__(self, vectors_KE: Tensor, starts: int, width: int, rank: int) -> None:
        super().__init__()
        codes, dim = vectors_KE.shape
        vectors_KE = vectors_KE.detach().float()
        vectors_KE = (vectors_KE - vectors_KE.mean(0)) / vectors_KE.std(correction=0).clamp(min=1e-6)
        self.register_buffer("vectors_KE", vectors_KE)
        self.mlp_in = nn.Linear(dim, 4 * rank)
        self.mlp_out = nn.Linear(4 * rank, rank, bias=False)
        self.free_KR = nn.Parameter(torch.zeros(codes, rank))
        self.free_KR._no_weight_decay = True  # type: ignore[attr-defined]
        self.bias_K = nn.Parameter(torch.zeros(codes))
        self.starts = nn.Embedding(starts, width)
        self.up = nn.Linear(rank, width, bias=False)
        self.down = nn.Linear(width, rank, bias=False)
        self._init_weights()

    def _init_weights(self) -> None:
        for weight in (self.starts.weight, self.up.weight, self.down.weight):
            nn.init.normal_(weight, std=INIT_STD)
        for linear in (self.mlp_in, self.mlp_out):  # table rows of about unit variance
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(self.mlp_in.bias)

    def table(self) -> Tensor:
        return self.mlp_out(F.silu(self.mlp_in(self.vectors_KE))) + self.free_KR

    def embed(self, ids: Tensor, table_KR: Tensor) -> Tensor:
        codes = len(table_KR)
        z = self.up(F.embedding(ids.clamp(max=codes - 1), table_KR))
        return torch.where((ids < codes)[..., None], z, self.starts((ids - codes).clamp(min=0)))

    def query(self, h: Tensor) -> Tensor:
        # As in attention: without the scale the first logits grow with the rank, and the first loss beyond log(codes).
        query = self.down(h)
        return query * query.shape[-1] ** -0.5
