"""What is typed after a command that reads a configuration."""

import argparse
import json
from pathlib import Path

import pytest

from shared.config import Config
from shared.errors import UserError
from shared.options.command_line import parse_command_line
from stage1_tokenizer.run_config import TokenizerRun


class Size(Config):
    """A configuration."""

    side: int = 3
    """In pixels."""


@pytest.mark.parametrize(
    ("typed", "config", "overrides"),
    [([], "usual.yaml", []), (["mine.yaml"], "mine.yaml", []), (["a=1", "b.c=2"], "usual.yaml", ["a=1", "b.c=2"]),
     (["mine.yaml", "--quiet", "a=1"], "mine.yaml", ["a=1"]), (["./a=b.yaml"], "./a=b.yaml", []),
     (["a.b=-1 #2", "c= x"], "usual.yaml", ["a.b=-1 #2", "c= x"])],
)  # fmt: skip
def test_a_command_reads_a_file_that_may_be_left_out_and_overrides(
    typed: list[str], config: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["command", *typed])
    parser = argparse.ArgumentParser()
    parser.add_argument("--quiet", action="store_true")
    args = parse_command_line(parser, "usual.yaml", Size)
    assert (args.config, args.overrides, args.quiet) == (config, overrides, "--quiet" in typed)


@pytest.mark.parametrize("typed", [["--keys"], ["--keys", "side"], ["side", "--keys"]])
def test_keys_are_listed_and_nothing_else_is_done(
    typed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["command", *typed])
    with pytest.raises(SystemExit) as ended:
        parse_command_line(argparse.ArgumentParser(), "usual.yaml", Size)
    assert ended.value.code == 0
    assert capsys.readouterr().out == "side   integer, default 3\n    In pixels.\n"


def test_keys_are_listed_for_programs_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["command", "--keys", "--json"])
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    with pytest.raises(SystemExit):
        parse_command_line(parser, "usual.yaml", Size)
    [key] = json.loads(capsys.readouterr().out)
    assert (key["key"], key["default"], key["meaning"]) == ("side", "3", "In pixels.")


@pytest.mark.parametrize("typed", [["mine.yaml", "--keys", "model"], ["--keys", "mine.yaml", "model"]])
def test_keys_of_a_file_are_those_that_it_reads_with_its_values(
    typed: list[str], own_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("base.yaml").write_text("model: {quantiser: {codes: 64}, backbone: {widths: [8, 16]}}")
    Path("mine.yaml").write_text("{extends: base.yaml, model: {quantiser: {kind: fsq, levels: [5, 3]}}}")
    monkeypatch.setattr("sys.argv", ["command", *typed, "--json"])
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    with pytest.raises(SystemExit):
        parse_command_line(parser, "usual.yaml", TokenizerRun)
    values = {key["key"]: key["default"] for key in json.loads(capsys.readouterr().out)}
    assert values["model.backbone.widths"] == "[8, 16]"
    read = {key: value for key, value in values.items() if key.startswith("model.quantiser.")}
    assert read == {
        "model.quantiser.kind": "fsq", "model.quantiser.levels": "[5, 3]", "model.quantiser.groups": "1",
        "model.quantiser.bound": "tanh",
    }  # fmt: skip
    assert values["model.backbone.kind"] == "conv"  # by itself
    assert "model.backbone.channels" not in values


@pytest.mark.parametrize(
    ("typed", "said"),
    [(["gone.yaml", "--keys"], "there is no configuration gone.yaml"), (["--keys", "side", "x"], "leave out 'x'"),
     (["--keys", "side=1"], "leave out 'side=1'")],
)  # fmt: skip
def test_what_keys_cannot_list_is_one_message(
    typed: list[str], said: str, own_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["command", *typed])
    with pytest.raises(UserError, match=said):
        parse_command_line(argparse.ArgumentParser(), "usual.yaml", Size)


def test_the_schema_is_printed_and_nothing_else_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["command", "--schema"])
    with pytest.raises(SystemExit) as ended:
        parse_command_line(argparse.ArgumentParser(), "usual.yaml", Size)
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["properties"]["side"]["description"] == "In pixels."


def test_a_key_that_is_not_there_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["command", "--keys", "sid"])
    with pytest.raises(UserError, match="did you mean 'side'"):
        parse_command_line(argparse.ArgumentParser(), "usual.yaml", Size)
