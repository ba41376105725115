"""What a tokenizer begins with, wherever the bundled one's weights fit, and how its decoder is judged."""

import pytest
import torch

from planning.choice.configurations import decoder_run, tokenizer_run
from planning.choice.rules import decoder_settings, tokenizer_settings
from planning.choice.shape import shape_of
from stage1_tokenizer.losses.objective import check_losses
from stage1_tokenizer.tokenizer import Tokenizer
from stage1_tokenizer.train import begin_with
from tests.planning.samples import MACHINE, pictures
from tests.support.narrow import present

STARTS = {"init", "init_without"}


@pytest.mark.parametrize("patch", [4, 6, 8])
def test_a_tokenizer_begins_with_the_bundled_ones_layers(patch: int) -> None:
    settings = tokenizer_settings("pictures", pictures(), MACHINE, shape_of(96, patch, 1.0))
    run = tokenizer_run(settings, "mine", images=1000)
    tokenizer = Tokenizer(run.model)
    before = {name: weight.clone() for name, weight in tokenizer.state_dict().items()}
    begin_with(tokenizer, str(run.init), run.init_without)
    after = tokenizer.state_dict()
    same = {name for name, weight in before.items() if torch.equal(weight, after[name])}
    assert {name for name in before if name.startswith("quantiser.")} <= same
    assert not any(name.startswith(("encoder.layers.0.", "decoder.layers.0.")) for name in same)
    assert ("encoder.stem_projection.weight" in same) == (patch != 8)


@pytest.mark.parametrize("change", ["init=runs/tokenizer/other", "model.backbone.kind=mamba", "init=null"])
def test_it_does_not_where_that_would_be_of_no_use(change: str) -> None:
    settings = tokenizer_settings("pictures", pictures(), MACHINE, shape_of(96, 8, 1.0), changes=[change])
    assert not STARTS & {setting.key for setting in settings}


def test_a_decoder_begins_with_its_own_tokenizer_as_a_whole() -> None:
    shape = shape_of(96, 8, 1.0)
    settings = tokenizer_settings("pictures", pictures(), MACHINE, shape)
    run = decoder_run([*settings, *decoder_settings("mine", MACHINE, shape)], "mine", images=1000)
    assert (run.init, list(run.init_without)) == ("runs/tokenizer/mine", [])


@pytest.mark.parametrize("change", ["loss.causal.weight=0.5", "loss.causal={weight: 0.5}"])
def test_a_users_causal_model_shapes_tokens_and_leaves_the_decoder_alone(change: str) -> None:
    shape = shape_of(96, 8, 1.0)
    settings = tokenizer_settings("pictures", pictures(), MACHINE, shape)
    both = [*settings, *decoder_settings("mine", MACHINE, shape)]
    assert present(tokenizer_run(settings, "mine", 1000, [change]).loss.causal).weight == 0.5
    assert decoder_run(both, "mine", 1000, [change]).loss.causal is None


@pytest.mark.parametrize(("size", "patch"), [(96, 6), (64, 8), (16, 8), (8, 4)])
def test_each_image_is_moved_by_up_to_a_patch_so_that_no_pixel_keeps_its_place_in_one(size: int, patch: int) -> None:
    shape = shape_of(size, patch, 1.0)
    settings = [*tokenizer_settings("pictures", pictures(), MACHINE, shape), *decoder_settings("mine", MACHINE, shape)]
    run = decoder_run(settings, "mine", images=1000)
    check_losses(run.loss, run.data.height_width)
    assert present(run.loss.adversarial).translation == patch
