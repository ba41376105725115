"""Drawing into a hole, against the prior's own distribution of it by enumeration."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from shared.errors import UserError
from stage2_prior.decoding.candidates import log_likelihoods
from stage2_prior.decoding.choosing.filters import SamplingConfig
from stage2_prior.decoding.decoder import Decoder
from stage2_prior.decoding.particles import Hole
from stage2_prior.prior import Prior, PriorState
from tests.stage2_prior.decoding.test_decoder import confident_prior
from tests.stage2_prior.decoding.test_engine import KINDS, random_prior
from tests.support.tiny import prior_config

HOLE_L = torch.zeros(4, 5, dtype=torch.bool)
HOLE_L[1:3, 1:4] = True
HOLE_L = HOLE_L.flatten()
LABELS_B = torch.tensor([2, 0, 1])


def tokens_of(prior: Prior, count: int) -> Tensor:
    return torch.randint(prior.codes, (count, prior.length), generator=torch.Generator().manual_seed(3))


def small_prior(kind: str, classes: int = 0, conditioning: str = "token") -> Prior:
    """2 x 3 tokens out of 3 codes, with distributions far from flat."""
    torch.manual_seed(1)
    config = prior_config(
        kind=kind, depth=1, width=16, heads=2, d_state=16, headdim=16, pattern="m", conditioning=conditioning
    )
    prior = Prior(config, 3, (2, 3), classes)
    with torch.no_grad():
        for name, parameter in prior.named_parameters():
            if parameter.ndim > 1 and "conv1d" not in name:
                parameter.copy_(2 * torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return prior.eval()


@pytest.mark.parametrize("kind", ["gpt", "mamba"])
def test_a_hole_is_drawn_as_the_prior_finds_it_given_all_around_it(kind: str) -> None:
    prior = small_prior(kind)
    hole_L = torch.tensor([0, 1, 0, 1, 0, 0], dtype=torch.bool)  # one in each row, with known tokens behind each
    tokens_1L = torch.tensor([[0, 0, 1, 0, 2, 1]])
    filled_NL = tokens_1L.repeat(9, 1)
    filled_NL[:, hole_L] = torch.tensor(list(product(range(3), repeat=2)))
    expected_N = (log_likelihoods(prior, filled_NL) * prior.length).softmax(0)
    plain_N = torch.bincount(pairs(Decoder(prior, 64).generate(range(2000)).flatten(1)[:, hole_L]), minlength=9) / 2000
    drawn_BL = Decoder(prior, rows=640).generate(
        range(2000), hole=Hole(hole_L, tokens_1L.expand(2000, -1), particles=64)
    ).flatten(1)  # fmt: skip
    assert torch.equal(drawn_BL[:, ~hole_L], tokens_1L[:, ~hole_L].expand(2000, -1))
    drawn_N = torch.bincount(pairs(drawn_BL[:, hole_L]), minlength=9) / 2000
    assert (drawn_N - expected_N).abs().sum() < 0.12  # the spread of 2,000 draws from it is 0.06
    assert (plain_N - expected_N).abs().sum() > 0.3  # so what is behind the hole matters


@pytest.mark.parametrize(("kind", "conditioning"), [("gpt", "token"), ("gpt", "norm"), ("mamba", "norm")])
def test_a_hole_of_no_class_is_drawn_of_the_classes_that_fit_all_around_it(kind: str, conditioning: str) -> None:
    prior = small_prior(kind, 3, conditioning)
    hole_L = torch.tensor([0, 1, 0, 1, 0, 0], dtype=torch.bool)
    tokens_1L = torch.tensor([[2, 0, 1, 0, 2, 1]])
    filled_NL = tokens_1L.repeat(9, 1)
    filled_NL[:, hole_L] = torch.tensor(list(product(range(3), repeat=2)))
    of_classes_CN = torch.stack([log_likelihoods(prior, filled_NL, torch.full((9,), c)) for c in range(3)])
    expected_N = (of_classes_CN * prior.length).logsumexp(0).softmax(0)
    of_one_N = (of_classes_CN[0] * prior.length).softmax(0)
    hole = Hole(hole_L, tokens_1L.expand(600, -1), particles=64)
    drawn_BL = Decoder(prior, rows=640).generate(range(600), hole=hole).flatten(1)
    drawn_N = torch.bincount(pairs(drawn_BL[:, hole_L]), minlength=9) / 600
    assert (drawn_N - expected_N).abs().sum() < 0.2  # the spread of 600 draws from it is 0.1
    assert (of_one_N - expected_N).abs().sum() > 0.3  # so the classes matter


def pairs(tokens_B2: Tensor) -> Tensor:
    return 3 * tokens_B2[:, 0] + tokens_B2[:, 1]


@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_around_a_hole_stays_and_an_image_does_not_depend_on_others(
    kind: dict[str, Any], cfg_scale: float
) -> None:
    prior = random_prior(**kind)
    tokens_BL = tokens_of(prior, 3)

    def drawn(images: list[int], rows: int) -> Tensor:
        hole = Hole(HOLE_L, tokens_BL[images], particles=4)
        labels_B = LABELS_B[images]
        return Decoder(prior, rows).generate(images, 7, labels_B=labels_B, cfg_scale=cfg_scale, hole=hole).flatten(1)

    together_BL = drawn([0, 1, 2], rows=100)
    assert torch.equal(together_BL[:, ~HOLE_L], tokens_BL[:, ~HOLE_L])
    assert not torch.equal(together_BL, tokens_BL)
    for rows in (1, 9):
        assert torch.equal(drawn([0, 1, 2], rows), together_BL)
    assert torch.equal(drawn([2], rows=16)[0], together_BL[2])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_guided_belongs_to_its_particle(kind: dict[str, Any]) -> None:
    prior = random_prior(**kind)
    tokens_BL = tokens_of(prior, 3)
    grids_BL = (
        Decoder(prior, exact=True)
        .generate(
            range(3), 3, SamplingConfig(top_k=2), labels_B=LABELS_B, cfg_scale=2.0, hole=Hole(HOLE_L, tokens_BL, 16)
        )
        .flatten(1)
    )
    with torch.no_grad():
        of_class, of_none = (prior(prior.inputs(grids_BL, labels_B)) for labels_B in (LABELS_B, None))
    likeliest_BL2 = (of_none + 2 * (of_class - of_none)).topk(2).indices
    drawn_BL = (likeliest_BL2 == grids_BL[:, :, None]).any(2)
    assert drawn_BL[:, HOLE_L].all()


def test_early_weights_follow_the_particles(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = confident_prior()
    early = Decoder(prior, early="none")
    early.early = early.weights
    seen: list[list[int]] = []
    reorder = PriorState.reorder

    def watching(self: PriorState, from_B: Tensor) -> None:
        seen.append(from_B.tolist())
        reorder(self, from_B)

    monkeypatch.setattr(PriorState, "reorder", watching)
    hole = Hole(HOLE_L, tokens_of(prior, 3), 16)
    early.generate(range(3), 3, labels_B=LABELS_B, autoguidance=2.0, hole=hole)
    assert len(seen) >= 2
    assert seen[::2] == seen[1::2]  # the prior's and the early one's


def test_a_hole_up_to_the_end_is_a_completion() -> None:
    prior = confident_prior()
    tokens_BL, hole_L = tokens_of(prior, 3), torch.arange(20) >= 7
    alone = Decoder(prior).generate(range(3), labels_B=LABELS_B, prefix_tokens_BK=tokens_BL[:, :7])
    one = Decoder(prior).generate(range(3), labels_B=LABELS_B, hole=Hole(hole_L, tokens_BL, particles=1))
    assert torch.equal(one, alone)


def test_of_many_particles_one_that_foresees_what_is_known_is_kept() -> None:
    prior, images = confident_prior(), range(48)
    labels_B = LABELS_B.repeat(16)
    tokens_BL = Decoder(prior).generate(images, labels_B=labels_B).flatten(1)

    def likelihood(particles: int) -> float:
        hole = Hole(HOLE_L, tokens_BL, particles)
        drawn_BHW = Decoder(prior).generate(images, 5, SamplingConfig(), labels_B=labels_B, hole=hole)
        return float(log_likelihoods(prior, drawn_BHW.flatten(1), labels_B).mean())

    assert likelihood(64) > likelihood(1) + 0.02


def test_rows_are_shown_of_one_particle_of_each_image() -> None:
    prior, shown = random_prior(kind="gpt"), list[tuple[int, ...]]()
    hole = Hole(HOLE_L, tokens_of(prior, 3), particles=4)
    Decoder(prior, rows=8).generate(
        range(3), labels_B=LABELS_B, hole=hole, on_row=lambda rows_Brw: shown.append(tuple(rows_Brw.shape))
    )
    assert shown == [(2, 2, 5), (2, 3, 5), (2, 4, 5), (1, 2, 5), (1, 3, 5), (1, 4, 5)]


@pytest.mark.parametrize("particles", [0, 1001])
def test_particles_out_of_their_range_are_refused(particles: int) -> None:
    with pytest.raises(UserError, match=f"{particles} particles for an image: it must be from 1 to 1000"):
        Hole(HOLE_L, torch.zeros(1, 20, dtype=torch.long), particles)


def test_a_hole_that_does_not_fit_is_refused() -> None:
    prior = random_prior(kind="gpt")
    with pytest.raises(UserError, match="the hole is empty"):
        Hole(torch.zeros(20, dtype=torch.bool), tokens_of(prior, 1))
    with pytest.raises(UserError, match="a hole is of 20 places and has tokens for each of 2 images"):
        Decoder(prior).generate(range(2), hole=Hole(HOLE_L, tokens_of(prior, 1)))
    with pytest.raises(UserError, match="neither candidates nor a prefix"):
        Decoder(prior).generate(range(1), candidates=2, hole=Hole(HOLE_L, tokens_of(prior, 1)))
    with pytest.raises(UserError, match="tokens outside this prior's codes"):
        Decoder(prior).generate(range(1), hole=Hole(HOLE_L, tokens_of(prior, 1) + prior.codes))
