"""The decoding engine: memory for a batch, and a step that touches nothing else.

A step takes in one id a row and draws the next token. On CUDA it is that of `gpu/step.py`, captured in a graph, filters
and draw included, and replayed for every position: nothing is launched from Python, and nothing waits for the host. On
a CPU it is that of `cpu/step.py`, elsewhere that of `plain.py`.

Shapes: B images, R rows (B; with guidance B conditional ones, then B unconditional ones), L grid length, K prefix
length, V codes, U random numbers per token.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.errors import UserError
from stage2_prior.decoding.backend import backend_of
from stage2_prior.decoding.choosing.choice import Choose
from stage2_prior.decoding.choosing.draw import strides
from stage2_prior.decoding.cpu.spare_cores import SpareCores
from stage2_prior.decoding.cpu.step import PackedWeights
from stage2_prior.decoding.particles import FREE, Particles
from stage2_prior.decoding.plain import PlainWeights
from stage2_prior.decoding.step import Weights
from stage2_prior.prior import Prior, PriorState

MOST_GRAPHS = 8  # batch sizes and ways to choose for which graphs are kept


@dataclass
class Batch:
    """What one batch uses of an engine's memory: views, so that a smaller batch needs no memory of its own."""

    state: PriorState
    early: PriorState | None  # of the prior that autoguidance draws against
    input_R: Tensor  # the ids to take in next
    tokens_LB: Tensor
    uniforms_LBU: Tensor
    scale_L: Tensor | None  # of guidance, at each position
    known_LB: Tensor | None  # tokens that are given, where particles are drawn
    log_weights_B: Tensor  # of those particles, since they were resampled last

    def reset_cursors(self) -> None:
        """Back to the first position."""
        self.state.cursor.reset()
        if self.early:
            self.early.cursor.reset()

    def reorder(self, from_B: Tensor) -> None:
        """Make each row a copy of one of them."""
        from_R = torch.cat([from_B + start for start in range(0, len(self.input_R), len(from_B))])
        self.input_R[:], self.tokens_LB[:] = self.input_R[from_R], self.tokens_LB[:, from_B]
        self.state.reorder(from_R)
        if self.early:
            self.early.reorder(from_B)


class Engine:
    """Draws a batch of up to `rows` rows at a time, on the device where the weights are.

    early: the weights that autoguidance draws against; an engine that has them always draws so.
    """

    def __init__(self, weights: Weights, rows: int, early: Weights | None = None) -> None:
        prior, self.weights, self.rows, self.early = weights.model, weights, rows, early
        self.device = device = prior.norm.weight.device
        self.backend = backend_of(device)
        self.state = prior.init_state(rows, dtype=weights.dtype)
        self.early_state = early.model.init_state(rows, dtype=early.dtype) if early else None
        self.input_R = torch.zeros(rows, dtype=torch.long, device=device)
        self.tokens_LR = torch.zeros(prior.length, rows, dtype=torch.long, device=device)
        levels = len(strides(prior.codes))
        where = device if self.backend == "triton" else "cpu"  # what tokens are chosen on
        self.uniforms_LRU = torch.zeros(prior.length, rows, levels, dtype=torch.float64, device=where)
        self.scale_L = torch.ones(prior.length, device=device)
        self.known_LR = torch.full_like(self.tokens_LR, FREE)
        self.log_weights_R = torch.zeros(rows, device=device)
        self.spare_cores = SpareCores()
        self.graphs: dict[tuple[int, bool, bool, Choose], Callable[[], None]] = {}

    def decode(
        self,
        start_R: Tensor,
        prefix_BK: Tensor,
        uniforms_BLU: Tensor,
        choose: Choose,
        scale_L: Tensor | None = None,
        progress: Callable[[int], None] | None = None,
        on_row: Callable[[Tensor], None] | None = None,
        particles: Particles | None = None,
    ) -> Tensor:
        """(B, L) tokens, on the CPU, behind these start tokens and prefixes.

        With `particles`, whose rows B are, (I, L): of each image's particles the one that is kept.

        With guidance of `scale_L` (L,) there are twice as many start tokens as prefixes: B of classes, then B of none;
        with autoguidance there are as many.
        `progress` is called with the number of tokens at each step; a GPU may be behind it. `on_row` is called with the
        rows (B, r, w) so far, on this device, after each whole one.
        """
        width = self.weights.model.grid[1]
        count, known = prefix_BK.shape
        batch = self._batch(count, len(start_R), scale_L is not None, particles is not None)
        step = self._step(batch, choose)
        if batch.scale_L is not None and scale_L is not None:
            batch.scale_L.copy_(scale_L)
        if batch.known_LB is not None and particles is not None:
            batch.known_LB.copy_(particles.known_LB)
            batch.log_weights_B.copy_(particles.log_weights_B)
        batch.uniforms_LBU.copy_(uniforms_BLU.transpose(0, 1))
        self._take_in_known(batch, start_R.to(self.device), prefix_BK.to(self.device))
        cursors = [state.cursor for state in (batch.state, batch.early) if state]
        with self.spare_cores.adapting() if self.backend == "numba" else nullcontext(_nothing) as adapt:
            for position in range(known, len(self.tokens_LR)):
                adapt()
                step()
                for cursor in cursors:
                    cursor.position += 1
                if progress is not None:
                    progress(count)
                if (position + 1) % width:
                    continue
                if particles is not None and position + 1 < len(self.tokens_LR):
                    self._resample(batch, particles, position // width)
                if on_row is not None:
                    each = particles.each if particles is not None else 1
                    on_row(batch.tokens_LB[: position + 1, ::each].T.unflatten(1, (-1, width)))
        tokens_BL = batch.tokens_LB.T.to("cpu", copy=True)
        return tokens_BL if particles is None else tokens_BL[particles.last(batch.log_weights_B)]

    def _resample(self, batch: Batch, particles: Particles, row: int) -> None:
        from_B = particles.resample(batch.log_weights_B, row)
        batch.log_weights_B.zero_()
        if not torch.equal(from_B, torch.arange(len(from_B))):
            batch.reorder(from_B.to(self.device))

    def _batch(self, count: int, rows: int, guided: bool, with_particles: bool) -> Batch:
        return Batch(
            self.state.rows(rows),
            self.early_state.rows(rows) if self.early_state else None,
            self.input_R[:rows],
            self.tokens_LR[:, :count],
            self.uniforms_LRU[:, :count],
            self.scale_L if guided else None,
            self.known_LR[:, :count] if with_particles else None,
            self.log_weights_R[:count],
        )

    def _take_in_known(self, batch: Batch, start_R: Tensor, prefix_BK: Tensor) -> None:
        """Take in all that is known but its last id, which is left for the first step."""
        known = prefix_BK.shape[1]
        batch.tokens_LB[:known] = prefix_BK.T
        inputs_RK = torch.cat((start_R[:, None], prefix_BK.repeat(len(start_R) // len(prefix_BK), 1)), dim=1)
        for weights, state in ((self.weights, batch.state), (self.early, batch.early)):
            if weights and state:
                state.reset()
                if known:
                    weights.fill(inputs_RK[:, :-1], state)
                else:
                    weights.model.condition(start_R, state)
        batch.input_R.copy_(inputs_RK[:, -1])

    def _step(self, batch: Batch, choose: Choose) -> Callable[[], None]:
        """The step of this batch; on CUDA captured, and kept for batches of the same size."""
        if self.backend != "triton":
            return partial(take_step, batch, self._logits_of(batch), choose)
        key = (len(batch.input_R), batch.scale_L is not None, batch.known_LB is not None, choose)
        if key not in self.graphs:
            if len(self.graphs) == MOST_GRAPHS:
                self.graphs.clear()
            step = partial(take_step, batch, self._logits_of(batch), choose)
            self.graphs[key] = capture(step, batch.reset_cursors)
        return self.graphs[key]

    def _logits_of(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        """From the ids taken in to the logits of the next: with autoguidance the prior's rows, then the early one's."""
        step = self.weights.step(batch.state)
        if self.early is None or batch.early is None:
            return step
        early_step = self.early.step(batch.early)
        return lambda ids_R: torch.cat((step(ids_R), early_step(ids_R)))


def _nothing() -> None: ...


def take_step(batch: Batch, step: Callable[[Tensor], Tensor], choose: Choose) -> None:
    """Take in an id a row, draw the next, move on. All that changes from step to step is in tensors.

    `step` leads from the ids taken in to the logits of the next.
    """
    index_1 = batch.state.cursor.index_1
    logits_RV = step(batch.input_R)
    scale_1 = None if batch.scale_L is None else batch.scale_L.index_select(0, index_1)
    uniforms_BU = batch.uniforms_LBU.index_select(0, index_1.to(batch.uniforms_LBU.device))[0]
    drawn_B = choose(logits_RV, uniforms_BU, scale_1)
    if batch.known_LB is not None:
        known_B = batch.known_LB.index_select(0, index_1)[0]
        given_B = known_B != FREE
        drawn_B = torch.where(given_B, known_B, drawn_B)
        likelihoods_B = -F.cross_entropy(logits_RV[: len(drawn_B)].float(), drawn_B, reduction="none")
        batch.log_weights_B.add_(likelihoods_B.where(given_B, 0))
    batch.tokens_LB.index_copy_(0, index_1, drawn_B[None])
    batch.input_R.view(-1, len(drawn_B)).copy_(drawn_B)
    index_1.add_(1)
    if batch.early:
        batch.early.cursor.index_1.add_(1)


def capture(step: Callable[[], None], reset: Callable[[], None]) -> Callable[[], None]:
    """A function that replays what `step` does on the GPU, whose side effects here are undone by whoever begins anew.

    It runs twice on a side stream first, since libraries set themselves up in their first calls; `reset` comes before
    each run.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            reset()
            step()
    torch.cuda.current_stream().wait_stream(stream)
    reset()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may draw meanwhile
        step()
    return partial(_replay, graph, step)


def _replay(graph: torch.cuda.CUDAGraph, step: Callable[[], None]) -> None:
    """`step` is what owns the memory that the graph works in; it does not own the engine, which owns this."""
    graph.replay()


def lay_out(prior: Prior, exact: bool) -> Weights:
    """A prior's weights for the device that it is on. Raises UserError for a GPU where Triton is missing."""
    backend = backend_of(prior.norm.weight.device)
    if backend == "numba":
        return PackedWeights(prior, exact)
    if backend == "plain":
        return PlainWeights(prior)
    try:
        from stage2_prior.decoding.gpu.step import StaticWeights  # Triton comes with PyTorch's builds for GPUs only
    except ImportError as error:
        raise UserError(
            f"drawing on a GPU needs Triton, which cannot be imported ({error}): pip install triton"
        ) from error
    return StaticWeights(prior, exact)
