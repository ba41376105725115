"""The table of recipes: what goes where, what is done once, what is told of several seeds."""

from pathlib import Path

import pytest

from shared.errors import UserError
from tests.benchmarks.quality import Commands, Recipe, Row, table


def test_a_recipe_divides_its_keys_between_the_stages() -> None:
    recipe = Recipe.of(["both", "training.images=9", "tokenizer.training.images=8", "model.width=7"])
    assert recipe == Recipe("both", ("training.images=8",), ("training.images=9", "model.width=7"))
    with pytest.raises(UserError, match=r"--try x: 'noise' is not key=value"):
        Recipe.of(["x", "noise"])


def test_a_command_is_run_once_and_its_time_counts_each_time(tmp_path: Path) -> None:
    program = tmp_path / "count.py"
    program.write_text(
        "import json, pathlib\nfile = pathlib.Path('count'); file.write_text(file.exists() * file.read_text() + 'x' "
        "if file.exists() else 'x')\nprint('first')\nprint(json.dumps({'length': len(file.read_text())}))\n"
    )
    for _ in range(2):
        commands = Commands(tmp_path / "row")
        assert commands.run(str(program), "a") == {"length": 1}
        taken = commands.seconds
        assert taken > 0
        assert commands.run(str(program), "a") == {"length": 1}
        assert commands.seconds == 2 * taken
    assert Commands(tmp_path / "row").run(str(program), "b") == {"length": 2}


def test_a_command_that_fails_is_run_again(tmp_path: Path) -> None:
    program = tmp_path / "fail.py"
    program.write_text("import pathlib, sys\nready = pathlib.Path('ready').exists()\nsys.exit(not ready)\n")
    commands = Commands(tmp_path / "row")
    with pytest.raises(UserError, match=r"fail.py failed in .*row"):
        commands.run(str(program))
    (tmp_path / "row" / "ready").touch()
    again = Commands(tmp_path / "row")
    assert again.run(str(program)) == {}
    assert again.seconds > again.kept[str(program)]["seconds"] * 0.99


def test_a_line_of_the_table_is_of_all_seeds() -> None:
    plain, noise = Recipe("plain", (), ()), Recipe("noise", (), ("a=b",))
    rows = {
        Row("faces", 1000, 0, plain): {"kd_vgg16": 0.1, "minutes": 3.0},
        Row("faces", 1000, 1, plain): {"kd_vgg16": 0.3, "minutes": 3.0},
        Row("faces", None, 0, noise): {"kd_vgg16": 0.25, "fid": 7.0},
    }
    assert table(rows).splitlines() == [
        "| set | images | recipe | seeds | minutes | kernel distance | FID |",
        "|---|---:|---|---:|---:|---:|---:|",
        "| faces | 1000 | plain | 2 | 3 ± 0 | 0.2 ± 0.14 |  |",
        "| faces | all | noise | 1 |  | 0.25 | 7 |",
    ]
