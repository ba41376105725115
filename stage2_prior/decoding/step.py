"""One decoding step, whatever computes it: each part of the model bound to the memory of a batch's rows.

`cpu/step.py` and `gpu/step.py` supply what a backend has of its own: how rows begin, norms, mixes and scores.
`plain.py` takes the prior's own step instead.

Shapes: R rows, D width, K = V of the table.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from shared.layers.rms_norm import RMSNorm
from stage2_prior.network.block import Mix, MixState
from stage2_prior.prior import Prior, PriorState

Rows = TypeVar("Rows")  # the residual stream of all rows, as the backend has it
Added = TypeVar("Added")  # what a mix adds to it


class Weights(Protocol):
    """A prior's weights laid out for a backend, as they were when that was done.

    dtype: what keys and values are to be kept in. model: the prior whose parts a step takes; its linear maps may be
    others than PyTorch's. table_KR: that of the codes.
    """

    dtype: torch.dtype
    model: Prior
    table_KR: Tensor

    def fill(self, inputs_RK: Tensor, state: PriorState) -> None:
        """`Prior.prefill`, but for the logits."""
        ...

    def step(self, state: PriorState) -> Callable[[Tensor], Tensor]:
        """`Prior.step` for this state, whose cursor it does not move: (R,) ids -> (R, V) logits."""
        ...


class Step(ABC, Generic[Rows, Added]):
    """`Prior.step` of one batch, without moving its cursor."""

    def __init__(self, model: Prior, table_KR: Tensor, state: PriorState) -> None:
        self.model, self.table_KR, self.state = model, table_KR, state
        self.branches: list[tuple[Callable[[Rows, Added | None], None], Callable[[], Added]]] = []
        gate_RD = None  # of the branch before
        for branch, mix_state in model.branches(state):
            shift_scale, following = (None, None) if branch.modulation is None else branch.modulation.split((2, 1))
            norm = self.bind_norm(branch.norm, shift_scale, gate_RD)
            self.branches.append((norm, self.bind_mix(branch.mix, mix_state)))
            gate_RD = None if following is None else following[0]
        self.last_norm = self.bind_norm(model.norm, state.modulations[-1], gate_RD)

    def __call__(self, ids_R: Tensor) -> Tensor:
        """Take in an id a row where the state stands; (R, V) logits of the next."""
        embedded_RD = self.model._embed(ids_R[:, None], self.table_KR, offset=self.state.cursor.index_1)[:, 0]
        x_RD, added = self.begin(embedded_RD.float().contiguous()), None
        for norm, mix in self.branches:
            norm(x_RD, added)
            added = mix()
        self.last_norm(x_RD, added)
        return self.scores()

    @abstractmethod
    def begin(self, embedded_RD: Tensor) -> Rows:
        """The residual stream that starts from these float32 numbers, in their memory."""

    @abstractmethod
    def bind_norm(
        self, norm: RMSNorm, modulation_2RD: Tensor | None, gate_RD: Tensor | None
    ) -> Callable[[Rows, Added | None], None]:
        """A function that adds to the rows what the branch before had to say, times its gate, and norms them.

        Their norm, modulated by (shift, scale), goes where mixes and `scores` find it.
        """

    @abstractmethod
    def bind_mix(self, mix: Mix, state: MixState) -> Callable[[], Added]:
        """A function that does `mix.step` of the normed rows. A new kind of branch needs a case here."""

    @abstractmethod
    def scores(self) -> Tensor:
        """(R, V) logits of the normed rows."""
