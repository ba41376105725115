"""A run's own settings: kept, read, and told where they cannot be."""

import math
from pathlib import Path

import pytest

from shared.errors import UserError
from stage2_prior.decoding.choosing.filters import SamplingConfig
from stage2_prior.decoding.choosing.guidance import GuidanceConfig
from stage2_prior.decoding.settings import (
    MILD,
    SURE,
    SURE_BITS,
    USUAL,
    DrawingSettings,
    keep_if_sure,
    read_settings,
    write_settings,
)


def test_settings_are_read_as_they_were_written(tmp_path: Path) -> None:
    settings = DrawingSettings(sampling=SamplingConfig(top_k=5), guidance=GuidanceConfig(scale=2, schedule="linear"))
    write_settings(tmp_path, settings, "search", {"images": 9})
    assert read_settings(tmp_path) == settings
    assert str(settings) == "top_k 5, guidance scale 2.0, guidance schedule linear"


def test_without_a_file_they_are_the_plain_ones(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == DrawingSettings()
    assert str(DrawingSettings()) == "temperature 1.0"


def test_where_early_weights_were_kept_they_are_used_unless_others_were_found(tmp_path: Path) -> None:
    (tmp_path / "early.safetensors").touch()
    assert read_settings(tmp_path) == USUAL
    assert str(USUAL) == "top_p 0.95, autoguidance 2.0"
    write_settings(tmp_path, DrawingSettings(), "search", {})
    assert read_settings(tmp_path) == DrawingSettings()


def test_a_prior_that_is_sure_of_its_tokens_is_drawn_with_a_filter_by_likelihood(tmp_path: Path) -> None:
    assert not keep_if_sure(tmp_path, 1.0)  # there are no early weights
    (tmp_path / "early.safetensors").touch()
    assert not keep_if_sure(tmp_path, SURE_BITS)
    assert read_settings(tmp_path) == USUAL
    assert keep_if_sure(tmp_path, SURE_BITS - 0.01)
    assert read_settings(tmp_path) == SURE
    assert str(SURE) == "min_p 0.2, autoguidance 1.5"


def test_what_was_searched_for_stays_when_a_prior_becomes_sure(tmp_path: Path) -> None:
    (tmp_path / "early.safetensors").touch()
    write_settings(tmp_path, USUAL, "search", {})
    assert not keep_if_sure(tmp_path, 1.0)
    assert read_settings(tmp_path) == USUAL


def test_what_a_person_wrote_stays_too(tmp_path: Path) -> None:
    (tmp_path / "early.safetensors").touch()
    (tmp_path / "drawing.json").write_text('{"settings": {"candidates": 4}}')
    assert not keep_if_sure(tmp_path, 1.0)
    assert read_settings(tmp_path) == DrawingSettings(candidates=4)


def test_a_longer_training_chooses_anew_where_no_search_did(tmp_path: Path) -> None:
    (tmp_path / "early.safetensors").touch()
    write_settings(tmp_path, MILD, "plan", {})
    assert keep_if_sure(tmp_path, 1.0)
    assert read_settings(tmp_path) == SURE
    assert not keep_if_sure(tmp_path, SURE_BITS)
    assert read_settings(tmp_path) == USUAL


def test_both_kinds_of_guidance_are_refused() -> None:
    with pytest.raises(UserError, match="autoguidance of 3 and guidance .* do not go together: set either to 1"):
        DrawingSettings(guidance=GuidanceConfig(scale=2), autoguidance=3)


@pytest.mark.parametrize("scale", [0.5, -1.0, 2000.0, math.inf, math.nan])
def test_a_scale_of_autoguidance_out_of_its_range_is_one_message(scale: float) -> None:
    with pytest.raises(UserError, match=f"autoguidance is {scale:g}: it must be from 1"):
        DrawingSettings(autoguidance=scale)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"settings": {"sampling": {"temprature": 1}}}'])
def test_what_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "drawing.json").write_text(text)
    with pytest.raises(UserError, match=r"drawing.json"):
        read_settings(tmp_path)
