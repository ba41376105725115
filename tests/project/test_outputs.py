"""Every command that writes finds out that it cannot before it loads, draws or measures anything."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import judge
import sample
from shared.errors import UserError
from shipped import BUNDLED
from stage1_tokenizer import cache, compare, evaluate, export, report
from stage2_prior import evaluate as evaluate_prior
from tests.support.launch import ROOT

COMMANDS: dict[str, tuple[Callable[[], None], list[str]]] = {
    "sample": (sample.main, ["--prior", str(BUNDLED), "--out", "taken"]),
    "sample below a file": (sample.main, ["--prior", str(BUNDLED), "--out", "taken/deeper"]),
    "judge": (judge.main, ["--prior", "RUN"]),
    "judge --samples": (judge.main, ["--prior", "RUN", "--samples", "8"]),
    "cache": (cache.main, ["--tokenizer", "taken"]),
    "evaluate": (evaluate.main, ["--tokenizer", "RUN"]),
    "report": (report.main, ["--tokenizer", "taken"]),
    "export": (lambda: print(export.export(Path("nowhere"), Path("taken"))), []),
    "evaluate a prior": (evaluate_prior.main, ["--prior", "taken"]),
    "compare": (compare.main, [str(ROOT / "configs/compare/backbones-demo.yaml"), "name=taken"]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_in_the_way_is_found_first(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("taken", "RUN/evaluation", "runs/compare/taken"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("mine")
    main, arguments = COMMANDS[command]
    monkeypatch.setattr(sys, "argv", [command, *arguments])
    with pytest.raises(UserError, match="cannot write into .* is a file, not a folder. Give another place"):
        main()
    assert (tmp_path / "taken").read_text() == "mine"
