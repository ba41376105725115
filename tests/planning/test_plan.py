"""What is chosen: valid configurations that say why, larger images for more hours, read back as they were written."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from planning.choice.configurations import as_file
from planning.choice.prior_size import CPU
from planning.choice.stage import STAGES, Stage
from planning.page import as_text
from planning.plan import FILE, Plan, read_plan
from shared.config import load_config
from shared.errors import UserError
from shared.training.config import RunConfig
from shared.training.devices.memory import DoesNotFit
from stage1_tokenizer.losses.objective import check_losses
from stage1_tokenizer.run_config import TokenizerRun
from stage2_prior.run_config import PriorRun
from tests.planning.samples import plan_of
from tests.support.narrow import present

SETS: list[dict[str, Any]] = [
    {},
    {"train": 19, "distinct": 19, "held_out": 1},
    {"train": 1_280_000, "distinct": 1_280_000, "classes": 1000},
    {"height": 96, "width": 384, "lowest": 4.0, "highest": 4.0},
    {"height": 16, "width": 16, "grey": True},
    {"height": 1, "width": 4000},
]


@pytest.mark.parametrize("of_pictures", SETS)
@pytest.mark.parametrize("hours", [0.02, 2, 100])
def test_its_files_are_valid_and_fill_the_hours(of_pictures: dict[str, Any], hours: float) -> None:
    plan = plan_of(hours, **of_pictures)
    plan.write()
    tokenizer = load_config(TokenizerRun, plan.folder / "tokenizer.yaml")
    decoder = load_config(TokenizerRun, plan.folder / "decoder.yaml")
    prior = load_config(PriorRun, plan.folder / "prior.yaml")
    runs: dict[Stage, RunConfig] = {"tokenizer": tokenizer, "decoder": decoder, "prior": prior}
    assert all(runs[stage].training.images == plan.length(stage) for stage in STAGES)
    assert tokenizer.data.height_width == decoder.data.height_width == plan.shape[:2]
    assert (decoder.init, decoder.training.decoder_only) == ("runs/tokenizer/mine", True)
    assert (decoder.name, decoder.data, decoder.cache) == ("mine-decoder", tokenizer.data, tokenizer.cache)
    assert decoder.model.backbone == tokenizer.model.backbone
    check_losses(decoder.loss, decoder.data.height_width)
    assert prior.tokens == "runs/tokenizer/mine-decoder/tokens"
    assert plan.budget.total == pytest.approx(3600 * hours)
    tokens = plan.shape.tokens
    quantiser = tokenizer.model.quantiser
    assert quantiser.warm_up_vectors / tokens <= max(1 + quantiser.codes / tokens, plan.length("tokenizer") / 8)
    assert tokenizer.training.warm_up <= max(1, plan.length("tokenizer") / 8)
    assert min(asdict(plan.budget).values()) > 0
    assert read_plan(plan.folder) == plan
    assert str(plan.shape) in as_text(plan)


def test_more_hours_are_for_more_tokens_and_then_for_larger_images() -> None:
    shapes = [plan_of(hours).shape for hours in (0.25, 1, 4, 16)]
    assert [shape.tokens for shape in shapes] == sorted(shape.tokens for shape in shapes)
    assert (shapes[0].height, shapes[0].patch) == (64, 8)
    assert (shapes[-1].height, shapes[-1].patch) == (96, 4)


def test_a_shape_that_was_asked_for_is_the_one_that_is_timed() -> None:
    small = plan_of(changes=("data.image_size=[32,48]",))
    assert small.shape == (32, 48, 4)
    assert "32 x 48" in as_text(small)
    coarse = plan_of(16, changes=("data.image_size=64", "model.backbone.stem=8"))
    assert (coarse.shape, coarse.shape.tokens) == ((64, 64, 16), 16)
    assert coarse.length("prior") == pytest.approx(coarse.budget.prior * coarse.rates.grids, rel=0.01)
    assert coarse.rates.images == 40 * 256 / 16
    coarse.write()
    run = load_config(TokenizerRun, coarse.folder / "tokenizer.yaml")
    assert run.model.backbone.patch == 16
    assert run.model.quantiser.warm_up_vectors / 16 == pytest.approx(2_000, rel=0.05)  # images of 16 tokens
    more = plan_of(0.3, changes=("data.image_size=64", "model.quantiser.codes=16384"))
    more.write()
    quantiser = load_config(TokenizerRun, more.folder / "tokenizer.yaml").model.quantiser
    assert quantiser.warm_up_vectors / more.shape.tokens <= more.length("tokenizer") / 8


def test_a_prior_grows_with_the_hours_unless_its_size_was_asked_for() -> None:
    def width(plan: Plan) -> int:
        plan.write()
        return load_config(PriorRun, plan.folder / "prior.yaml").model.width

    plans = [plan_of(hours, changes=("data.image_size=64", "model.backbone.stem=4")) for hours in (0.1, 1, 4, 32)]
    assert [width(plan) for plan in plans] == [size.width for size in CPU]
    for plan, size in zip(plans, CPU, strict=True):
        assert plan.rates.grids == pytest.approx(40 * 256 / 64 * CPU[0].weights / size.weights)  # it is what was timed
    assert width(plan_of(4, changes=("data.image_size=64", "prior.model.width=96"))) == 96


@pytest.mark.parametrize(("train", "dropout"), [(1_000_000, 0.0), (9_500, 0.0), (4_000, 0.1), (2_000, 0.2), (400, 0.3)])
def test_what_is_seen_seldom_needs_no_dropout(train: int, dropout: float) -> None:
    plan = plan_of(2, train=train, distinct=train)
    plan.write()
    assert load_config(PriorRun, plan.folder / "prior.yaml").model.dropout == dropout


def test_images_that_do_not_fit_give_way_to_smaller_ones() -> None:
    assert plan_of(16).shape.height == 96
    assert plan_of(16, fits=64 * 64).shape.height == 64
    with pytest.raises(DoesNotFit, match="64 x 64"):
        plan_of(16, fits=10)


def test_a_faster_machine_is_as_good_as_more_hours() -> None:
    assert plan_of(3, speed=4).shape == plan_of(12).shape
    assert plan_of(3, speed=4).length("prior") == pytest.approx(plan_of(12).length("prior"), rel=0.05)


def test_a_plan_says_what_is_to_be_feared() -> None:
    assert "expect copies" in as_text(plan_of(train=300, distinct=300))
    assert "expect copies" not in as_text(plan_of())
    assert "these hours are short" in as_text(plan_of(0.1))
    assert "these hours are short" not in as_text(plan_of(4))
    assert "differ much in shape" in as_text(plan_of(lowest=0.5, highest=2.0))


def test_a_plan_says_what_may_be_hoped_for() -> None:
    plan = replace(plan_of(0.3), bare=20.0)
    assert plan.shape.patch == 8
    assert "reconstructions of 20.1 to 23.7 dB (PSNR): the nearest of 1,024 codes" in as_text(plan)
    assert "(PSNR)" not in as_text(replace(plan, bare=None))
    plan.write()
    assert read_plan(plan.folder) == plan
    said = next(line for line in as_text(plan).splitlines() if "would be enough for" in line)
    hours, shape = float(said.split()[0]), said.rpartition(" for ")[2]
    assert str(plan_of(hours * 1.1).shape) == shape
    assert str(plan_of(hours * 0.8).shape) != shape
    assert "would be enough" not in as_text(plan_of(100))
    assert "would be enough" not in as_text(plan_of(1, changes=("data.image_size=64",)))


def test_a_plan_of_an_older_version_can_be_read() -> None:
    plan = plan_of()
    plan.write()
    saved = json.loads((plan.folder / FILE).read_text())
    del saved["bare"]
    (plan.folder / FILE).write_text(json.dumps(saved))
    assert read_plan(plan.folder) == plan


@pytest.mark.parametrize("size", [64, 128])
def test_a_size_that_was_asked_for_has_patches_that_divide_it(size: int) -> None:
    plans = [plan_of(hours, changes=(f"data.image_size={size}",)) for hours in (0.3, 1, 2, 4, 8, 20)]
    assert all(plan.shape.is_whole for plan in plans)
    assert len({plan.shape for plan in plans}) > 1


def test_classes_of_few_pictures_are_left_out() -> None:
    few, enough = (plan_of(train=100, distinct=100, classes=classes) for classes in (11, 10))
    few.write()
    assert load_config(TokenizerRun, few.folder / "tokenizer.yaml").data.labels == "none"
    assert load_config(PriorRun, few.folder / "prior.yaml").model.conditioning == "token"
    enough.write()
    assert load_config(TokenizerRun, enough.folder / "tokenizer.yaml").data.labels is None
    assert load_config(PriorRun, enough.folder / "prior.yaml").model.conditioning == "norm"


def both_tokenizers(plan: Plan) -> tuple[TokenizerRun, TokenizerRun]:
    """As a plan that was written trains them: the whole, and then its decoder."""
    tokenizer, decoder = (plan.folder / f"{stage}.yaml" for stage in ("tokenizer", "decoder"))
    return load_config(TokenizerRun, tokenizer), load_config(TokenizerRun, decoder)


def test_changes_are_in_the_files_and_reasons_are_comments() -> None:
    plan = plan_of(changes=("data.augment.flip=0", "prior.model.dropout=0.4", "decoder.loss.adversarial.weight=0.1"))
    plan.write()
    tokenizer, decoder = both_tokenizers(plan)
    assert present(tokenizer.data.augment).flip == present(decoder.data.augment).flip == 0
    assert (tokenizer.loss.adversarial, present(decoder.loss.adversarial).weight) == (None, 0.1)
    assert load_config(PriorRun, plan.folder / "prior.yaml").model.dropout == 0.4
    text = (plan.folder / "prior.yaml").read_text()
    assert re.search(r"^# model: dropout 0, as it sees each picture \d\.\d+ times$", text, re.MULTILINE)


def test_what_a_tokenizer_begins_with_is_not_what_its_decoder_does() -> None:
    plan = plan_of(changes=("init=runs/tokenizer/other", "init_without=[quantiser]"))
    plan.write()
    tokenizer, decoder = both_tokenizers(plan)
    assert (tokenizer.init, tokenizer.init_without) == ("runs/tokenizer/other", ("quantiser",))
    assert (decoder.init, decoder.init_without) == ("runs/tokenizer/mine", ())


def test_a_change_that_no_configuration_has_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.quantisr"):
        plan_of(changes=("model.quantisr.codes=5",))
    with pytest.raises(UserError, match="dropot"):
        as_file("prior", plan_of().prior, "mine", 100, ["prior.model.dropot=0"])


def test_a_plan_that_was_damaged_is_one_message(tmp_path: Path) -> None:
    assert read_plan(tmp_path) is None
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(UserError, match="remove"):
        read_plan(tmp_path)
