"""Writes docs/options.md, every key of every configuration: python docs/options.py"""

from pathlib import Path

from shared.config import Config
from shared.options.keys import as_markdown, keys_of
from stage1_tokenizer.comparing.config import Comparison
from stage1_tokenizer.run_config import TokenizerRun
from stage2_prior.run_config import PriorRun

PAGE = Path(__file__).with_name("options.md")
COMMANDS: dict[str, tuple[str, type[Config]]] = {
    "Stage one": ("`python -m stage1_tokenizer.train`, `make tokenizer`", TokenizerRun),
    "Stage two": ("`python -m stage2_prior.train`, `make prior`", PriorRun),
    "Comparisons": ("`python -m stage1_tokenizer.compare`, `make compare`", Comparison),
}
OPENING = """\
# Options

Every key of every configuration. Change one on the command line with `key=value`, or in a YAML file. `--keys` lists the
keys of a command, `--keys model.quantiser` those below a key; `--json` prints them for programs. A key with names in
brackets is read by those kinds only.

This page is generated: `make docs` writes it from the code.
"""


def options_page() -> str:
    """What the page is to hold."""
    sections = [
        f"## {title}\n\n{commands}\n\n{as_markdown(keys_of(model))}\n" for title, (commands, model) in COMMANDS.items()
    ]
    return "\n".join([OPENING, *sections])


if __name__ == "__main__":
    PAGE.write_text(options_page(), encoding="utf-8")
