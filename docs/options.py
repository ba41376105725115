"""Writes docs/options.md, every key of every configuration, and their schemas for editors: python docs/options.py"""

from pathlib import Path

from shared.config import Config
from shared.options.keys import as_markdown, keys_of
from shared.options.schema import schema_text
from stage1_tokenizer.comparing.config import Comparison
from stage1_tokenizer.run_config import TokenizerRun
from stage2_prior.run_config import PriorRun

DOCS = Path(__file__).parent
COMMANDS: dict[str, tuple[str, type[Config]]] = {
    "Stage one": ("`.venv/bin/python -m stage1_tokenizer.train`, `make tokenizer`", TokenizerRun),
    "Stage two": ("`.venv/bin/python -m stage2_prior.train`, `make prior`", PriorRun),
    "Comparisons": ("`.venv/bin/python -m stage1_tokenizer.compare`, `make compare`", Comparison),
}
SCHEMAS: dict[str, type[Config]] = {"tokenizer": TokenizerRun, "prior": PriorRun, "comparison": Comparison}
OPENING = """\
# Options

Every key of every configuration. Change one on the command line with `key=value`, or in a YAML file. `--keys` lists the
keys of a command, `--keys model.quantiser` those below a key. After a file (`CONFIG.yaml --keys`), it lists the keys
that the file reads, with its values. `--json` prints them for programs. A key with names in brackets is read by those
kinds only.

An editor with YAML schemas (such as VS Code with Red Hat's YAML extension) completes keys, explains them and marks
misspelt ones in a file that begins, as those in `configs/` do, with `# yaml-language-server: $schema=` and the path of
`tokenizer.json`, `prior.json` or `comparison.json` of `docs/schema/`. Without a clone, write that file with
`tessera train-tokenizer --schema > tokenizer.json` or `tessera train-prior --schema > prior.json`.

This page is generated, and so are the schemas: `make docs` writes them from the code.
"""


def options_page() -> str:
    """What the page is to hold."""
    sections = [
        f"## {title}\n\n{commands}\n\n{as_markdown(keys_of(model))}\n" for title, (commands, model) in COMMANDS.items()
    ]
    return "\n".join([OPENING, *sections])


def pages() -> dict[Path, str]:
    """Every file that is made from the code, and what it is to hold."""
    schemas = {DOCS / f"schema/{name}.json": schema_text(model) for name, model in SCHEMAS.items()}
    return {DOCS / "options.md": options_page(), **schemas}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
