"""The commands that `tessera` runs: `tessera` alone lists them, `tessera sample --num 1` runs one.

Each is also a module of Python with a `main`. That is imported when its command runs, so that the list comes at once.
"""

import importlib
import signal
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from shared import signals
from shared.errors import UserError, run_command
from shared.presets import HOME, in_clone


class Command(NamedTuple):
    """module: whose `main` it is; one without a dot is a script. purpose: in a line."""

    module: str
    purpose: str


COMMANDS = {
    "plan": Command("plan", "train both stages on a folder of pictures, within a time limit"),
    "train-tokenizer": Command("stage1_tokenizer.train", "train a tokenizer"),
    "cache": Command("stage1_tokenizer.cache", "turn the images into the token grids that a prior trains on"),
    "train-prior": Command("stage2_prior.train", "train a prior on the cached token grids"),
    "sample": Command("sample", "draw images"),
    "refine": Command("refine", "train a tokenizer's decoder on what a prior draws"),
    "web": Command("web", "draw, complete and reconstruct pictures in the browser"),
    "judge": Command("judge", "judge a prior's drawings, or find the settings that it draws best with"),
    "evaluate-tokenizer": Command("stage1_tokenizer.evaluate", "measure how well a tokenizer reconstructs"),
    "evaluate-prior": Command("stage2_prior.evaluate", "measure how well a prior predicts tokens"),
    "share": Command("share", "share a run on the Hugging Face Hub"),
}
NAME = "tessera"


def main() -> None:
    """Run the command that is named first, with what follows as its command line; list all where none is named."""
    run_command(_run)


def _run() -> None:
    """Raises UserError where there is no such command."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(_listed())
        return
    name = sys.argv.pop(1)
    if name not in COMMANDS:
        raise UserError(_unknown(name))
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends an import, which takes seconds, without a traceback
    module = importlib.import_module(_importable(COMMANDS[name].module))
    signals.catch()
    module.main()


def _listed() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.purpose}" for name, command in COMMANDS.items()]
    title = f"usage: {NAME} COMMAND ...\n\ncommands ({NAME} COMMAND --help lists the options of one):"
    return "\n".join([title, *lines])


def _unknown(name: str) -> str:
    near = get_close_matches(name, COMMANDS, n=1)
    meant = f"did you mean `{NAME} {near[0]}`? " if near else ""
    return f"there is no command {name!r}: {meant}`{NAME}` alone lists the commands"


def _importable(module: str) -> str:
    """What to import a command's module as. A clone's scripts lie in its root, which Python need not look into."""
    if "." in module:
        return module
    if not in_clone():
        return f"{NAME}.{module}"
    sys.path.insert(0, str(HOME))
    return module


def command_of(name: str) -> str:
    """How to run a command from here: `tessera sample` where `tessera` runs, else as in `python sample.py`."""
    if Path(sys.argv[0]).stem == NAME:
        return f"{NAME} {name}"
    module = COMMANDS[name].module
    if "." not in module and in_clone():
        return f"python {module}.py"
    return f"python -m {module if '.' in module else f'{NAME}.{module}'}"
