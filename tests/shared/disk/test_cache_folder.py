"""Where caches are kept: at home, or where there is no home to write to, in a folder that is this user's only."""

import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.disk.cache_folder import LIBRARIES, cache_folder, find_room_for_caches
from tests.support.launch import ROOT
from tests.support.tiny import save_drawings

STRANGER = 54321  # a user's id without a name, as of `docker run --user`
# It may read all files, since Python and this clone may lie in a home that is closed to others; and write its own only.
AS_STRANGER = f"setpriv --reuid {STRANGER} --regid {STRANGER} --clear-groups --inh-caps=+dac_read_search".split()
AS_STRANGER += ["--ambient-caps=+dac_read_search"]


@pytest.fixture
def nowhere(own_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that cannot be written to, also not by root; and a temporary folder, which is returned."""
    (own_directory / "file").write_text("")
    monkeypatch.setenv("HOME", str(own_directory / "file"))
    for variable in ("TESSERA_CACHE", *LIBRARIES):
        monkeypatch.setenv(variable, "to be put back")  # whatever the test makes of it
        monkeypatch.delenv(variable)
    (own_directory / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own_directory / "temporary"))
    return own_directory / "temporary"


def test_where_there_is_a_home_everything_stays_there(
    own_directory: Path, nowhere: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(own_directory / "home"))
    find_room_for_caches()
    assert cache_folder() == own_directory / "home/.cache/tessera"
    assert not {"TESSERA_CACHE", *LIBRARIES} & os.environ.keys()
    assert not caplog.messages


def test_without_a_home_all_caches_are_in_one_private_folder_and_one_line_says_so(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_HOME", "/mine")
    with caplog.at_level(logging.WARNING):
        find_room_for_caches()
        find_room_for_caches()
    folder = nowhere / f"tessera-{os.getuid()}"
    assert cache_folder() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert os.environ["HF_HOME"] == "/mine"
    assert {Path(os.environ[name]).parent for name in LIBRARIES.keys() - {"HF_HOME"}} == {folder}
    (line,) = caplog.messages
    assert str(folder) in line
    assert "Set TESSERA_CACHE" in line


def test_a_folder_that_was_named_is_taken_without_a_word(
    nowhere: Path, own_directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TESSERA_CACHE", str(own_directory / "named"))
    find_room_for_caches()
    assert os.environ["MPLCONFIGDIR"] == str(own_directory / "named/matplotlib")
    assert not caplog.messages
    assert not list(nowhere.iterdir())


@pytest.mark.parametrize("prepared", ["link", "open", "file"])
def test_a_folder_that_another_has_prepared_is_not_taken(nowhere: Path, own_directory: Path, prepared: str) -> None:
    trap = nowhere / f"tessera-{os.getuid()}"
    if prepared == "link":
        (own_directory / "theirs").mkdir(mode=0o700)
        trap.symlink_to(own_directory / "theirs")
    elif prepared == "open":
        trap.mkdir()
        trap.chmod(0o777)
    else:
        trap.write_text("")
    find_room_for_caches()
    assert cache_folder() not in (trap, own_directory / "theirs")
    assert cache_folder().parent == nowhere
    assert stat.S_IMODE(cache_folder().stat().st_mode) == 0o700


@pytest.fixture
def place() -> Iterator[Path]:
    """A working directory of a user without a name; pytest's own folders are closed to others."""
    if not shutil.which("setpriv") or subprocess.run([*AS_STRANGER, sys.executable, "-c", ""]).returncode:
        pytest.skip("becoming another user needs setpriv and the right to")
    folder = Path(tempfile.mkdtemp(prefix="tessera-test-", dir="/tmp"))
    save_drawings(folder / "drawings")
    (folder / "tmp").mkdir()
    for path in (folder, *folder.rglob("*")):
        os.chown(path, STRANGER, STRANGER)
    yield folder
    shutil.rmtree(folder)


TOKENIZER = """
name: tiny
data: {image_size: 32, validation_fraction: 0.2, workers: 1}
model:
  backbone: {kind: conv, stem: 4, widths: [16, 32], depths: [1, 1], kernel_size: 3, transformer_layers: 0}
  quantiser: {kind: vector, codes: 64, dim: 8, warm_up: 4, revival_window: 4, revival_steps: 0}
training: {images: 32, batch_size: 8}
"""
PRIOR = """
name: tiny
model: {kind: mamba, depth: 1, width: 32, d_state: 16, headdim: 16, head: codes, head_rank: 16}
training: {images: 16, batch_size: 8}
"""
COMMANDS = f"""
import runpy, sys  # in one process: importing torch takes longer than all of it
for command, *arguments in (
    ("stage1_tokenizer.train", "tokenizer.yaml", "data.source=drawings"), ("stage1_tokenizer.cache",),
    ("stage2_prior.train", "prior.yaml"), ("{ROOT / "sample.py"}", "--num", "1"), ("{ROOT / "judge.py"}",),
):
    sys.argv = [command, *arguments]
    (runpy.run_path if command.endswith(".py") else runpy.run_module)(command, run_name="__main__")
"""


def run(place: Path, *arguments: str, home: str | None) -> str:
    """What a command of a user without a name says on stderr; it must not fail."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "OMP_NUM_THREADS")}
    environment = kept | {"PYTHONPATH": str(ROOT), "TMPDIR": str(place / "tmp")}
    if home is not None:
        environment["HOME"] = home
    command = [*AS_STRANGER, sys.executable, "-W", "ignore", *arguments]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_every_command_works_for_a_user_without_name_and_home(place: Path) -> None:
    (place / "tokenizer.yaml").write_text(TOKENIZER)
    (place / "prior.yaml").write_text(PRIOR)
    said = run(place, "-c", COMMANDS, home=None)
    assert said.count("TESSERA_CACHE") == 1, said
    assert "matplotlib" not in said.lower()
    assert (place / "runs/prior/tiny/report.html").exists()
    assert not list(place.glob("~*"))  # what some libraries make of a home that they cannot find
    assert {path.name for path in (place / "tmp").iterdir()} == {f"tessera-{STRANGER}"}


def test_a_script_looks_for_a_place_before_the_libraries_do(place: Path) -> None:
    code = "import judge, matplotlib, torch\nfrom torch._inductor.runtime.cache_dir_utils import cache_dir\n"
    code += "print(cache_dir(), matplotlib.get_cachedir(), torch.hub.get_dir(), file=__import__('sys').stderr)"
    folder = place / "tmp" / f"tessera-{STRANGER}"
    said = run(place, "-c", code, home="/").splitlines()[-1]
    assert said == f"{folder / 'torchinductor'} {folder / 'matplotlib'} {folder / 'torch/hub'}"
