"""The priors that visitors choose from."""

from collections import OrderedDict
from pathlib import Path
from threading import Lock

from shared.errors import UserError
from shared.runs.run_directory import WEIGHTS, runs_holding
from shipped import BUNDLED
from web_page.run import Run, load_run, name_of

IN_MEMORY = 3  # priors at the same time, with their tokenizers


class Runs:
    """The priors that visitors choose from, by name.

    Each is loaded when it is first chosen, and again once it was trained on; the last few chosen stay in memory.
    """

    def __init__(self, first: Run) -> None:
        self.begun_with, self.directory, self.tokenizer_at = first.name, first.directory, first.tokenizer_at
        self.loaded = OrderedDict({first.name: first})
        self.lock = Lock()

    def directories(self) -> dict[str, Path]:
        """The run that the page began with, those under runs/ that have weights, the last trained first, and the model
        that comes along."""
        others = [path for path in (*reversed(runs_holding("prior", WEIGHTS[1])), BUNDLED) if path != self.directory]
        return {self.begun_with: self.directory, **{name_of(path): path for path in others}}

    def of(self, name: str) -> Run:
        """The run of a name. Raises UserError where there is none, or it cannot be loaded."""
        directory = self.directories().get(name)
        if directory is None:
            raise UserError(f"{name}: there is no such prior any more: choose another, or load this page again")
        with self.lock:
            run = self.loaded.get(name)
            if run is None or run.outdated:
                run = load_run(directory, self.tokenizer_at if name == self.begun_with else None)
            self.loaded[name] = run
            self.loaded.move_to_end(name)
            if len(self.loaded) > IN_MEMORY:
                self.loaded.popitem(last=False)
        return run
