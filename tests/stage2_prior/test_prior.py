"""The prior: its decoding form against its training form, its heads, its labels, its initialisation, learning."""

import math
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import UserError
from shared.layers.mamba2 import Mamba2
from stage2_prior.config import parse_prior
from stage2_prior.network.attention import Attention
from stage2_prior.prior import Prior
from tests.support.narrow import part, present
from tests.support.tiny import prior_config

SMALL: dict[str, Any] = {
    "depth": 3,
    "width": 32,
    "heads": 4,
    "d_state": 16,
    "headdim": 16,
    "pattern": "ma",
    "chunk_size": 4,
}
KINDS: list[dict[str, Any]] = [
    {"kind": "mamba"},
    {"kind": "mamba", "mlp_ratio": 2.0},
    {"kind": "gpt"},
    {"kind": "gpt", "positions": "rotary"},
    {"kind": "gpt", "qk_norm": False},
    {"kind": "hybrid"},
    {"kind": "hybrid", "positions": "rotary"},
    {"kind": "hybrid", "conditioning": "norm"},
    {"kind": "mamba", "conditioning": "norm", "mlp_ratio": 2.0},
    {"kind": "hybrid", "head": "tied", "mup_base_width": 16, "mup_base_heads": 4},
]


def small_prior(codes: int = 50, grid: tuple[int, int] = (3, 5), classes: int = 4, **options: Any) -> Prior:
    torch.manual_seed(0)
    vectors_KD = F.normalize(torch.randn(codes, 8), dim=-1)
    return Prior(prior_config(**(SMALL | options)), codes, grid, classes, vectors_KD).eval()


def random_weights(prior: Prior) -> Prior:
    """Weights large enough that no part of the model hides behind small initial values."""
    with torch.no_grad():
        for name, parameter in prior.named_parameters():
            if parameter.ndim > 1 and "conv1d" not in name:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return prior


def random_tokens(prior: Prior, batch: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randint(prior.codes, (batch, prior.length)), torch.randint(prior.classes, (batch,))


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (4, 4), (1, 7)])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_step_is_forward(kind: dict[str, Any], grid: tuple[int, int]) -> None:
    prior = random_weights(small_prior(grid=grid, **kind))
    inputs_BL = prior.inputs(*random_tokens(prior))
    state = prior.init_state(2)
    with torch.no_grad():
        stepped = torch.stack([prior.step(token_B, state) for token_B in inputs_BL.T], dim=1)
        torch.testing.assert_close(stepped, prior(inputs_BL), atol=1e-4, rtol=0)


@pytest.mark.parametrize("known", [1, 6, 15])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_prefill_and_steps_are_forward(kind: dict[str, Any], known: int) -> None:
    prior = random_weights(small_prior(**kind))
    inputs_BL = prior.inputs(*random_tokens(prior))
    state = prior.init_state(2)
    with torch.no_grad():
        logits = [prior.prefill(inputs_BL[:, :known], state)]
        logits += [prior.step(token_B, state) for token_B in inputs_BL[:, known:].T]
        torch.testing.assert_close(torch.stack(logits, 1), prior(inputs_BL)[:, known - 1 :], atol=1e-4, rtol=0)


@pytest.mark.parametrize("head", ["full", "tied", "codes"])
@pytest.mark.parametrize("kind", ["mamba", "gpt", "hybrid"])
def test_every_head_steps_as_it_trains(kind: str, head: str) -> None:
    prior = random_weights(small_prior(kind=kind, head=head, head_rank=12))
    tokens_BL, labels_B = random_tokens(prior)
    inputs_BL = prior.inputs(tokens_BL, labels_B)
    state = prior.init_state(2)
    with torch.no_grad():
        stepped = torch.stack([prior.step(token_B, state) for token_B in inputs_BL.T], dim=1)
        logits_BLV = prior(inputs_BL)
        torch.testing.assert_close(stepped, logits_BLV, atol=1e-4, rtol=0)
        expected = F.cross_entropy(logits_BLV.flatten(0, 1), tokens_BL.flatten())
        torch.testing.assert_close(prior.loss(tokens_BL, labels_B), expected)


def test_a_state_can_be_reset_and_only_an_empty_one_prefilled() -> None:
    prior = random_weights(small_prior(kind="hybrid"))
    inputs_BL = prior.inputs(*random_tokens(prior))
    state = prior.init_state(2)
    with torch.no_grad():
        first = prior.prefill(inputs_BL, state)
        with pytest.raises(ValueError, match="15 tokens are in this one"):
            prior.prefill(inputs_BL, state)
        state.reset()
        torch.testing.assert_close(prior.prefill(inputs_BL, state), first, atol=0, rtol=0)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_logits_do_not_see_the_future(kind: dict[str, Any]) -> None:
    prior = random_weights(small_prior(**kind))
    inputs_BL = prior.inputs(*random_tokens(prior))
    changed_BL = inputs_BL.clone()
    changed_BL[:, 8] = (changed_BL[:, 8] + 1) % prior.codes
    with torch.no_grad():
        before, after = prior(inputs_BL), prior(changed_BL)
    torch.testing.assert_close(before[:, :8], after[:, :8], atol=1e-5, rtol=0)
    assert not torch.allclose(before[:, 8:], after[:, 8:], atol=1e-3)


@pytest.mark.parametrize("head", ["full", "tied", "codes"])
@pytest.mark.parametrize("kind", ["mamba", "gpt", "hybrid"])
def test_the_first_loss_is_log_of_the_codes(kind: str, head: str) -> None:
    prior = small_prior(codes=16_384, kind=kind, head=head, width=128)
    with torch.no_grad():
        assert abs(prior.loss(*random_tokens(prior, 4)).item() - math.log(16_384)) < 0.15


@pytest.mark.parametrize("head", ["full", "tied", "codes"])
def test_every_parameter_learns(head: str) -> None:
    prior = small_prior(kind="hybrid", head=head, conditioning="norm")
    for _ in range(3):  # the first gradient of a zero-initialised product's other side is zero
        prior.loss(*random_tokens(prior, 16)).backward()
        with torch.no_grad():
            for parameter in prior.parameters():
                assert parameter.grad is not None
                parameter.sub_(0.1 * parameter.grad)
    assert [name for name, parameter in prior.named_parameters() if not present(parameter.grad).any()] == []


@pytest.mark.parametrize(("kind", "head"), [("mamba", "codes"), ("gpt", "full"), ("hybrid", "tied")])
def test_four_random_grids_are_learnt_by_heart(kind: str, head: str) -> None:
    prior = small_prior(kind=kind, head=head, width=64, depth=2, codes=64, label_dropout=0.0).train()
    tokens_BL, labels_B = torch.randint(64, (4, 15)), torch.arange(4)
    optimiser = torch.optim.AdamW(prior.parameters(), lr=5e-3)
    for _ in range(100):
        loss = prior.loss(tokens_BL, labels_B)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1


def test_inputs_are_the_start_token_and_the_tokens_shifted() -> None:
    prior = small_prior(codes=50, classes=4)
    tokens_BL, _ = random_tokens(prior)
    inputs_BL = prior.inputs(tokens_BL, torch.tensor([3, 0]))
    assert inputs_BL[:, 0].tolist() == [53, 50]
    assert torch.equal(inputs_BL[:, 1:], tokens_BL[:, :-1])
    assert prior.inputs(tokens_BL)[:, 0].tolist() == [54, 54]


def test_label_dropout_hides_its_share_in_training_only() -> None:
    prior = small_prior(classes=4, label_dropout=0.25)
    tokens_BL, labels_B = random_tokens(prior, 4000)
    assert torch.equal(prior.inputs(tokens_BL, labels_B)[:, 0], 50 + labels_B)
    starts_B = prior.train().inputs(tokens_BL, labels_B)[:, 0]
    hidden_B = starts_B == 54
    assert torch.equal(starts_B[~hidden_B], 50 + labels_B[~hidden_B])
    assert abs(hidden_B.float().mean().item() - 0.25) < 0.03


def test_a_label_changes_the_prediction() -> None:
    prior = random_weights(small_prior(kind="mamba"))
    tokens_BL, _ = random_tokens(prior, 1)
    with torch.no_grad():
        logits = [prior(prior.inputs(tokens_BL, label_B)) for label_B in (torch.tensor([0]), torch.tensor([1]), None)]
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)
    assert not torch.allclose(logits[0], logits[2], atol=1e-3)


def test_adaptive_norms_start_as_the_identity_and_tell_classes_apart_at_every_position() -> None:
    prior = small_prior(kind="hybrid", conditioning="norm", positions="rotary")
    tokens_BL, _ = random_tokens(prior, 1)
    with torch.no_grad():
        blind_BLD = prior.norm(prior.vocabulary.embed(prior.inputs(tokens_BL), prior.vocabulary.table()))
        torch.testing.assert_close(prior.hidden(prior.inputs(tokens_BL)), blind_BLD)
        random_weights(prior)
        part(prior, "vocabulary.embedding", nn.Embedding).weight[50:] = 0  # so that the start tokens tell nothing
        labelled = [prior(prior.inputs(tokens_BL, label_B)) for label_B in (torch.tensor([0]), torch.tensor([1]), None)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert ((labelled[one] - labelled[other]).abs().amax(-1) > 1e-3).all()


def test_adaptive_norms_need_classes() -> None:
    with pytest.raises(UserError, match="needs classes"):
        small_prior(classes=0, conditioning="norm")


def test_labels_for_a_prior_without_classes_are_a_user_error() -> None:
    with pytest.raises(UserError, match="trained without classes"):
        small_prior(classes=0).start_tokens(torch.tensor([0]), 1)


def test_dropout_acts_in_training_only() -> None:
    prior = random_weights(small_prior(dropout=0.5))
    tokens_BL, _ = random_tokens(prior)
    with torch.no_grad():
        assert torch.equal(prior.loss(tokens_BL), prior.loss(tokens_BL))
        assert not torch.equal(prior.train().loss(tokens_BL), prior.loss(tokens_BL))


def test_what_writes_into_the_residual_stream_starts_small_and_mamba_keeps_its_own() -> None:
    gpt = small_prior(kind="gpt", depth=8, width=256)
    assert abs(gpt.blocks[0].mixer.out_proj.weight.std().item() - 0.02 / 4) < 5e-4
    assert abs(part(gpt, "blocks.0.mixer", Attention).qkv_proj.weight.std().item() - 0.02) < 5e-4
    config: dict[str, Any] = {"d_model": 32, "d_state": 16, "headdim": 16, "expand": 2, "chunk_size": 4}
    torch.manual_seed(1)
    own = Mamba2(**config)
    torch.manual_seed(1)
    prior = Prior(prior_config(**(SMALL | {"depth": 1})), 1, (1, 1))
    mixer = part(prior, "blocks.0.mixer", Mamba2)
    with torch.no_grad():
        assert own.in_proj.weight.std().item() == pytest.approx(mixer.in_proj.weight.std().item(), rel=0.1)
    assert torch.equal(own.D, mixer.D)


def test_weights_without_decay_are_marked() -> None:
    prior = small_prior(kind="mamba", head="codes")
    unmarked = {
        name.split(".")[-1]
        for name, parameter in prior.named_parameters()
        if parameter.ndim > 1 and not getattr(parameter, "_no_weight_decay", False)
    }
    assert "free_KR" not in unmarked
    assert unmarked == {"weight"}


def test_code_vectors_travel_in_the_state_dict() -> None:
    prior = random_weights(small_prior(head="codes"))
    other = Prior(prior.config, 50, (3, 5), 4, torch.zeros(50, 8)).eval()
    other.load_state_dict(prior.state_dict())
    tokens_BL, labels_B = random_tokens(prior)
    assert torch.equal(other(prior.inputs(tokens_BL, labels_B)), prior(prior.inputs(tokens_BL, labels_B)))


def test_alike_codes_start_alike_in_the_codes_head() -> None:
    vectors_KD = torch.randn(50, 8)
    vectors_KD[7] = vectors_KD[3]
    table_KR = Prior(prior_config(**SMALL, head="codes"), 50, (3, 5), 0, vectors_KD).vocabulary.table()
    torch.testing.assert_close(table_KR[7], table_KR[3])
    assert not torch.allclose(table_KR[7], table_KR[4], atol=0.1)


def test_the_codes_head_needs_code_vectors_of_the_right_number() -> None:
    config = prior_config(**SMALL, head="codes")
    with pytest.raises(UserError, match="needs the tokenizer's code vectors"):
        Prior(config, 50, (3, 5))
    with pytest.raises(UserError, match="49 code vectors for a prior over 50 codes"):
        Prior(config, 50, (3, 5), 0, torch.zeros(49, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "gpt", "width": 30, "heads": 4}, "width 30 must be a multiple of heads 4"),
        ({"kind": "mamba", "width": 30, "headdim": 64}, "must be a multiple of headdim 64"),
        ({"kind": "mamba", "positions": "rotary"}, "use positions=learned"),
        ({"kind": "gpt", "positions": "rotary", "width": 36, "heads": 6}, "multiple of 4, not 6"),
        ({"kind": "gtp"}, "gtp"),
        ({"kind": "hybrid", "pattern": "mm"}, "use kind=mamba"),
        ({"kind": "hybrid", "pattern": "mxa"}, "pattern"),
        ({"label_dropout": 1.5}, "label_dropout"),
    ],
)
def test_options_that_do_not_fit_are_one_message(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_prior(options, where="prior.yaml")


def blocks_of(prior: Prior) -> str:
    return "".join("m" if isinstance(block.mixer, Mamba2) else "a" for block in prior.blocks)


@pytest.mark.parametrize(("kind", "pattern"), [("mamba", "mmmmmmmm"), ("gpt", "aaaaaaaa"), ("hybrid", "mmmammma")])
def test_block_pattern(kind: str, pattern: str) -> None:
    with torch.device("meta"):
        assert blocks_of(Prior(prior_config(kind, depth=8), 50, (3, 5))) == pattern


def test_any_hybrid_pattern_repeats_over_the_depth() -> None:
    assert blocks_of(small_prior(kind="hybrid", pattern="amm", depth=5)) == "ammam"


@pytest.mark.parametrize(("kind", "graphs"), [("gpt", 1), ("mamba", 1), ("hybrid", 2)])
def test_blocks_alike_are_compiled_once(kind: str, graphs: int) -> None:
    prior = random_weights(small_prior(kind=kind, depth=4))
    tokens_BL, labels_B = random_tokens(prior)
    expected = prior.loss(tokens_BL, labels_B)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    prior.compile(backend="eager")
    torch.testing.assert_close(prior.loss(tokens_BL, labels_B), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize("kind", ["gpt", "mamba", "hybrid"])
@pytest.mark.parametrize("conditioning", ["token", "norm"])
def test_views_are_told_in_training_and_drawing_knows_none(kind: str, conditioning: str) -> None:
    prior = random_weights(small_prior(classes=3, kind=kind, told_views=True, conditioning=conditioning))
    assert prior.views is not None
    tokens_BL, labels_B = torch.randint(50, (3, 15)), torch.tensor([0, 2, 1])
    inputs_BL = prior.inputs(tokens_BL, labels_B, torch.tensor([0, 1, 2]))
    assert inputs_BL[:, 0].tolist() == [50 + 0, 50 + 2 + 4, 50 + 1 + 8]
    logits_BLV, untold_BLV = prior(inputs_BL), prior(prior.inputs(tokens_BL, labels_B))
    assert torch.equal(logits_BLV[0], untold_BLV[0])  # as it is
    assert all((logits_BLV[number, 0] - untold_BLV[number, 0]).abs().max() > 1e-3 for number in (1, 2))
    plain = small_prior(classes=3, kind=kind, conditioning=conditioning)
    plain.load_state_dict({name: value for name, value in prior.state_dict().items() if name != "views.weight"})
    assert torch.equal(plain(plain.inputs(tokens_BL, labels_B)), untold_BLV)


def test_a_view_that_is_told_begins_as_if_it_were_not() -> None:
    prior = small_prior(kind="gpt", told_views=True)
    tokens_BL = torch.randint(50, (2, 15))
    assert torch.equal(prior.loss(tokens_BL), prior(prior.inputs(tokens_BL, None, torch.tensor([1, 2])), tokens_BL))
    prior(prior.inputs(tokens_BL, None, torch.tensor([1, 2])), tokens_BL).backward()
    assert prior.views is not None
    assert prior.views.weight.grad is not None
    assert all(row.abs().max() > 0 for row in prior.views.weight.grad)
