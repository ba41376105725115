"""The command line of what reads a configuration: CONFIG.yaml key=value ..., and --keys, which says what there is, to
people; --schema says it to editors.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from shared.config import Config, read_extended
from shared.errors import UserError
from shared.options.keys import as_in, as_plain, as_text, keys_of
from shared.options.schema import schema_text
from shared.presets import find_config


def parse_command_line(parser: argparse.ArgumentParser, default: str, model: type[Config]) -> argparse.Namespace:
    """What `parser` reads, and beside it `config`, a YAML file (`default` where none is named), and its `overrides`.

    With --keys, prints the keys of `model` instead and ends the command; --json, which the parser may have, prints them
    as one JSON array. --schema prints its JSON schema instead. Raises UserError where there is no such key.
    """
    parser.add_argument("config", nargs="?", help=f"a YAML file (default: {default})")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="set a key of the file, e.g. name=mine")
    parser.add_argument(
        "--keys", action="store_true",
        help="list every key with its type, default and meaning, and exit; after a file, those that it reads with its "
        "values; before a key, only what is below it: --keys training",
    )  # fmt: skip
    parser.add_argument(
        "--schema", action="store_true",
        help="print the JSON schema of the configuration, with which an editor completes and checks a YAML file, and "
        "exit",
    )  # fmt: skip
    args = parser.parse_intermixed_args()
    if args.schema:
        print(schema_text(model), end="")
        sys.exit(0)
    if args.config and re.match(r"[\w.]*=", args.config):  # a file of such a name is ./a=b.yaml
        args.config, args.overrides = None, [args.config, *args.overrides]
    if args.keys:
        file, below = _asked(args.config, args.overrides)
        keys = keys_of(model, below)
        if file:
            keys = as_in(keys, read_extended(file))
        if vars(args).get("json"):
            print(json.dumps(as_plain(keys)))
        else:
            print(as_text(keys, "here" if file else "default"))
        sys.exit(0)
    args.config = args.config or default
    return args


def _asked(config: str | None, others: Sequence[str]) -> tuple[Path | None, str]:
    """The file and the key that were typed with --keys, if any. Raises UserError where there are more words."""
    words = [*([config] if config else []), *others]
    file = None
    if words and (words[0].endswith((".yaml", ".yml")) or find_config(words[0]).is_file()):
        file = find_config(words.pop(0))
    if len(words) > 1 or any("=" in word for word in words):
        raise UserError(f"--keys takes a file, a key, or a file and a key: leave out {words[-1]!r}")
    return file, words[0] if words else ""
