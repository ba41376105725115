"""A run's length: what lengthening makes of the schedules, and what is remembered and refused."""

import math
from pathlib import Path

import pytest
import torch

from shared.errors import UserError
from shared.runs.run_directory import RunDirectory, read_yaml
from shared.training.config import RunConfig, TrainingConfig
from shared.training.length import FILE, Length, begin, load_length
from shared.training.optimisation.schedule import learning_rate

CONFIG = TrainingConfig(images=1000, warm_up=100, learning_rate=1.0, final_learning_rate=0.1)


def config_of(images: int, **training: object) -> RunConfig:
    return RunConfig.model_validate({"name": "mine", "training": {"images": images, "batch_size": 10, **training}})


def saved(run: RunDirectory, images: int) -> RunDirectory:
    """The run with a checkpoint after so many images."""
    weights = {"weight": torch.zeros(1)}
    run.save(images, weights, weights, {})
    return run


def lengths(path: Path, *steps: tuple[int, int]) -> Length:
    """Of a run that is begun with a length, and then has a checkpoint and is begun again with another."""
    for seen, images in steps:
        run = RunDirectory(path)
        if seen:
            saved(run, seen)
        begin(run, config_of(images), processes=1)
    return load_length(RunDirectory(path), config_of(1).training)


def test_a_run_that_was_not_lengthened_has_the_plain_schedules() -> None:
    length = Length(((0, 1000),))
    for images in range(0, 1000, 37):
        assert length.learning_rate(images, CONFIG) == learning_rate(images, CONFIG)
        assert length.progress(images) == images / 1000


def test_a_lengthened_run_goes_over_to_the_schedule_of_its_new_length() -> None:
    length, longer = Length(((0, 1000), (1000, 3000))), CONFIG.model_copy(update={"images": 3000})
    for images in (0, 50, 500, 999):
        assert length.learning_rate(images, CONFIG) == learning_rate(images, CONFIG)
    assert length.learning_rate(1000, CONFIG) == pytest.approx(0.1)
    half_way = 0.5 * 0.1 + 0.5 * learning_rate(1100, longer)
    assert length.learning_rate(1100, CONFIG) == pytest.approx(half_way)
    for images in (1200, 2000, 2999):
        cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (images - 100) / 2900))
        assert length.learning_rate(images, longer) == pytest.approx(cosine)
    assert length.learning_rate(3000, longer) == pytest.approx(0.1)


def test_lengthening_takes_back_nothing_that_rises_with_a_run() -> None:
    finished = Length(((0, 1000), (1000, 3000)))
    assert [finished.progress(images) for images in (500, 1000, 2000, 3000)] == [0.5, 1, 1, 1]
    unfinished = Length(((0, 1000), (500, 2500), (1500, 1600)))
    assert [unfinished.progress(images) for images in (0, 500, 1500, 1550, 1600)] == [0, 0.5, 0.75, 0.875, 1]


def test_lengths_are_remembered_where_training_stood(tmp_path: Path) -> None:
    assert lengths(tmp_path / "a", (0, 100)).stretches == ((0, 100),)
    assert lengths(tmp_path / "b", (0, 100), (0, 300)).stretches == ((0, 300),)  # not begun: nothing to go on from
    assert lengths(tmp_path / "c", (0, 100), (100, 100)).stretches == ((0, 100),)
    assert lengths(tmp_path / "d", (0, 100), (100, 300)).stretches == ((0, 100), (100, 300))
    changed_twice = lengths(tmp_path / "e", (0, 100), (100, 300), (100, 200))
    assert changed_twice.stretches == ((0, 100), (100, 200))
    again = lengths(tmp_path / "f", (0, 100), (100, 300), (200, 300), (300, 500))
    assert again.stretches == ((0, 100), (100, 300), (300, 500))
    shortened = lengths(tmp_path / "g", (0, 100), (50, 60))
    assert shortened.stretches == ((0, 100), (50, 60))


def test_a_run_of_before_lengths_were_remembered_has_the_one_of_its_configuration(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    begin(run, config_of(100), processes=1)
    (tmp_path / FILE).unlink()
    saved(run, 100)
    begin(run, config_of(300), processes=1)
    assert load_length(run, config_of(300).training).stretches == ((0, 100), (100, 300))


def test_fewer_images_than_were_seen_are_refused_and_nothing_changes(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    begin(run, config_of(95), processes=1)
    saved(run, 100)  # the last step goes beyond the end
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"has seen 100 images, and training.images=90 are fewer: give 100 or more"):
        begin(run, config_of(90), processes=1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    begin(run, config_of(95), processes=1)  # as it was
    assert load_length(run, config_of(95).training).stretches == ((0, 95),)


def test_runs_that_are_compared_keep_their_length(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    begin(run, config_of(100), processes=1, may_lengthen=False)
    saved(run, 100)
    with pytest.raises(UserError, match=r"another configuration:\n  training.images: 100 -> 300"):
        begin(run, config_of(300), processes=1, may_lengthen=False)
    assert read_yaml(tmp_path / "config.yaml")["training"]["images"] == 100
    assert load_length(run, config_of(100).training).stretches == ((0, 100),)


def test_what_changes_is_said_where_it_changes() -> None:
    length = Length(((0, 1000), (1000, 3000)))
    said = length.lengthening(1000, CONFIG)
    assert "was to end after 1000 images, has seen 1000, and now ends after 3000" in said
    assert f"goes from 0.1 to {learning_rate(1200, CONFIG, 3000):.3g} over 200 images" in said
    assert "falls to 0.1," in said
    assert length.lengthening(1200, CONFIG) == ""
    assert Length(((0, 1000),)).lengthening(0, CONFIG) == ""


def test_a_damaged_file_is_a_message(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("[[0,")
    with pytest.raises(UserError, match=f"cannot read .*{FILE}"):
        load_length(RunDirectory(tmp_path), CONFIG)
