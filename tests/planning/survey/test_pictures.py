"""What is found in a folder, against pictures that were put there."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from planning.choice.configurations import data_config
from planning.choice.rules import cache_settings
from planning.choice.setting import Setting
from planning.survey.pictures import held_out_share, is_grey, look_at
from shared.data.open import open_datasets
from shared.errors import UserError
from tests.planning.samples import pictures
from tests.support.pictures import picture


def test_a_folder_of_two_classes_with_copies(tmp_path: Path) -> None:
    for number in range(40):
        folder = tmp_path / "set" / ("cats" if number % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        picture(90, 30, (number, 2 * number, 200)).save(folder / f"{number}.png")
    for number in range(1, 21, 2):
        shutil.copy(tmp_path / f"set/cats/{number}.png", tmp_path / f"set/cats/again{number}.png")
    found = look_at(data_config(str(tmp_path / "set"), ()))
    assert found.train + found.held_out == 50
    assert found.train - found.distinct >= 1
    assert (found.height, found.width, found.ratio) == (30, 90, 3.0)
    assert (found.classes, found.grey, found.drawn) == (2, False, False)


def test_changes_of_how_pictures_are_read_are_heeded(drawings: Path) -> None:
    assert look_at(data_config(str(drawings), ["data.labels=none"])).classes == 0
    assert look_at(data_config(str(drawings), ["training.batch_size=8", "data.limit=6"])).train < 8


def test_drawings_that_have_any_size(drawings: Path) -> None:
    assert look_at(data_config("openmoji:faces", ())).drawn
    assert not look_at(data_config(str(drawings), ())).drawn


@pytest.mark.parametrize(
    ("width", "height", "ratio"),
    [(100, 100, 1), (120, 100, 1), (100, 120, 1), (300, 100, 3), (1000, 100, 4), (1, 9, 0.25)],
)
def test_the_ratio_trained_at(width: int, height: int, ratio: float) -> None:
    assert pictures(width=width, height=height).ratio == ratio


def test_grey_is_what_has_no_colours() -> None:
    assert is_grey(Image.linear_gradient("L").convert("RGB"))
    assert is_grey(picture(colour=(100, 104, 98)))
    assert not is_grey(picture(colour=(100, 109, 100)))


def test_nothing_there_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        look_at(data_config(str(tmp_path / "none"), ()))


@pytest.mark.parametrize(("changes", "share"), [([], 0.05), (["data.validation_fraction=0.2"], 0.2)])
def test_so_many_are_held_out_as_the_tokenizer_will_hold_out(
    changes: list[str], share: float, drawings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = data_config(str(drawings), changes)
    assert held_out_share(config, 1_000) == share
    assert held_out_share(config, 100_000) == (0.005 if not changes else share)
    monkeypatch.setattr("planning.survey.pictures.MOST_HELD_OUT", 4)
    found = look_at(data_config(str(drawings), changes))
    trained = config.model_copy(update={"validation_fraction": found.held_out_share})
    assert [found.train, found.held_out] == [len(part) for part in open_datasets(trained, seed=0)]


@pytest.mark.parametrize("changes", [[], ["data.held_out=val"]])
def test_of_a_limited_set_so_many_are_trained_on_and_held_out(
    changes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        folder = tmp_path / "set" / ("val" if number % 5 == 0 else "train")
        folder.mkdir(parents=True, exist_ok=True)
        picture(40, 40, (number, 2 * number, 200)).save(folder / f"{number}.png")
    monkeypatch.setattr("planning.survey.pictures.MOST_HELD_OUT", 4)
    found = look_at(data_config(str(tmp_path / "set"), changes)).limited(20)
    settings = [*cache_settings(found, 1, all_of_them=False), Setting("data.validation_fraction", found.held_out_share)]
    of_data = [f"{setting.key}={setting.value}" for setting in settings if setting.key.startswith("data.")]
    made = open_datasets(data_config(str(tmp_path / "set"), [*changes, *of_data]), seed=0)
    assert [found.train, found.held_out] == [len(part) for part in made]
    assert found.train == 20
