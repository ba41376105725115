"""`tessera`: what it lists, runs and refuses, and how it and other commands are named."""

import os
import re
import signal
import subprocess
import sys

import pytest

from shared.options import commands
from shared.options.commands import COMMANDS, command_of
from tests.support.launch import ROOT

LIST = "import sys; from shared.options.commands import main; main(); assert 'torch' not in sys.modules"
RUN = "from shared.options.commands import main; main()"


def tessera(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/tessera", *arguments])
    monkeypatch.setattr("shared.signals.catch", lambda: None)
    handler = signal.getsignal(signal.SIGINT)
    try:
        commands.main()
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_alone_it_lists_every_command_in_a_line(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tessera(monkeypatch, *arguments)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: tessera COMMAND ..."
    assert [line.split()[0] for line in lines[3:]] == list(COMMANDS)
    assert all(len(line.split()) > 2 for line in lines[3:])


def test_the_list_comes_without_pytorch() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", LIST], env=environment, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smaple", "did you mean `tessera sample`? "),
        ("train_prior", "did you mean `tessera train-prior`? "),
        ("--num", ""),
    ],
)
def test_an_unknown_command_is_told_the_nearest_one(name: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as ended:
        tessera(monkeypatch, name)
    assert ended.value.code == f"error: there is no command {name!r}: {hint}`tessera` alone lists the commands"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_runs_under_its_own_name(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "web":
        pytest.importorskip("gradio", reason="gradio is not installed, which the web page needs")
    monkeypatch.syspath_prepend(ROOT)  # and undone, whatever the command adds
    with pytest.raises(SystemExit) as ended:
        tessera(monkeypatch, name, "--help")
    assert not ended.value.code
    assert capsys.readouterr().out.startswith(f"usage: tessera {name} ")


def test_a_clones_scripts_are_found_from_anywhere() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path != str(ROOT))}
    code = f"import sys; sys.path.append({str(ROOT)!r}); import shared; sys.path.pop(); {RUN}"
    done = subprocess.run([sys.executable, "-c", code, "share", "--help"], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_users_mistake_is_one_message_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as ended:
        tessera(monkeypatch, "share", "nowhere")
    assert re.match(r"error: give either the name on the hub", str(ended.value.code))


def test_commands_are_named_as_they_were_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command_of("sample") == "python sample.py"
    assert command_of("cache") == "python -m stage1_tokenizer.cache"
    monkeypatch.setattr(commands, "in_clone", lambda: False)
    assert command_of("sample") == "python -m tessera.sample"
    assert command_of("cache") == "python -m stage1_tokenizer.cache"
    for program in ("/usr/bin/tessera", "tessera.exe"):
        monkeypatch.setattr(sys, "argv", [program])
        assert [command_of("sample"), command_of("cache")] == ["tessera sample", "tessera cache"]


def test_the_installed_command_is_this_one() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'[project.scripts]\n{commands.NAME} = "{commands.__name__}:main"\n' in project
