"""A prior's own tokens, from which a decoder learns what the prior will give it.

After the post-training of Qiu et al. 2025, "Image Tokenizer Needs Post-Training" (RobusTok, arXiv 2509.12474), where
images are drawn token by token and a share of their tokens is kept. Here all are predicted at once, given the images'
tokens before them, which costs one forward pass.

Shapes: B images, S drawings of a batch, N drawings in all, h x w = L tokens, D width, K codes, n tokens replaced.
"""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from stage2_prior.decoding.choosing.filters import SamplingConfig, filter_logits
from stage2_prior.prior import Prior

TILE = 2**22  # logits held at once: 16 MiB


class OwnTokens:
    """Gives a decoder images' tokens with a share replaced by a prior's, and whole drawings of the prior.

    Replaced tokens are drawn without guidance, and as of an image that is as it is, though it may be augmented.
    """

    def __init__(
        self, prior: Prior, sampling: SamplingConfig, draw: Callable[[], Tensor], replaced: float, share: float
    ) -> None:
        """prior: in eval mode, on the device of the tokens to come. sampling: how it draws a token.

        draw: makes the drawings to choose from, (N, h, w) int64, when they are first needed. replaced: the share of
        tokens. share: S / B.
        """
        self.prior, self.sampling, self.draw = prior, sampling, draw
        self.replaced, self.share = replaced, share

    @cached_property
    def drawings_Nhw(self) -> Tensor:
        """All drawings there are."""
        return self.draw()

    @torch.compiler.disable
    @torch.no_grad()
    def __call__(self, tokens_Bhw: Tensor, labels_B: Tensor | None = None) -> Tensor:
        """(B + S, h, w): the images' tokens, some replaced, and some drawings, by torch's global generator."""
        replaced_Bhw = self.teacher_forced(tokens_Bhw, labels_B) if self.replaced else tokens_Bhw
        count = round(self.share * len(tokens_Bhw))
        if not count:
            return replaced_Bhw
        which_S = torch.randint(len(self.drawings_Nhw), (count,))
        return torch.cat((replaced_Bhw, self.drawings_Nhw[which_S].to(tokens_Bhw.device)))

    @torch.no_grad()
    def teacher_forced(self, tokens_Bhw: Tensor, labels_B: Tensor | None = None) -> Tensor:
        """The tokens, of which a share is replaced by what the prior draws there, given the true ones before it.

        labels_B: the images' classes, of no use to a prior without classes.
        """
        tokens_BL = tokens_Bhw.flatten(1)
        inputs_BL = self.prior.inputs(tokens_BL, labels_B if self.prior.classes else None)
        table_KR = self.prior.vocabulary.table()
        h_MD = self.prior.hidden(inputs_BL, table_KR).flatten(0, 1)
        tokens_M = tokens_BL.flatten().clone()
        places_n = torch.randperm(len(tokens_M), device=tokens_M.device)[: round(self.replaced * len(tokens_M))]
        for part_n in places_n.split(max(1, TILE // self.prior.codes)):
            logits_nK = filter_logits(self.prior.logits(h_MD[part_n], table_KR), self.sampling)
            tokens_M[part_n] = torch.multinomial(logits_nK.softmax(-1), 1)[:, 0]
        return tokens_M.view_as(tokens_Bhw)
