"""The command line of what reads a configuration: CONFIG.yaml key=value ..., and --keys, which says what there is, to
people; --schema says it to editors.
"""

import argparse
import json
import re
import sys

from shared.config import Config
from shared.options.keys import as_plain, as_text, keys_of
from shared.options.schema import schema_text


def parse_command_line(parser: argparse.ArgumentParser, default: str, model: type[Config]) -> argparse.Namespace:
    """What `parser` reads, and beside it `config`, a YAML file (`default` where none is named), and its `overrides`.

    With --keys, prints the keys of `model` instead and ends the command; --json, which the parser may have, prints them
    as one JSON array. --schema prints its JSON schema instead. Raises UserError where there is no such key.
    """
    parser.add_argument("config", nargs="?", default=default, help=f"a YAML file (default: {default})")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="set a key of the file, e.g. name=mine")
    parser.add_argument(
        "--keys", action="store_true",
        help="list every key with its type, default and meaning, and exit; give a key instead of a file to list only "
        "what is below it: --keys training",
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
    if args.keys:
        keys = keys_of(model, "" if args.config == default else args.config)
        print(json.dumps(as_plain(keys)) if vars(args).get("json") else as_text(keys))
        sys.exit(0)
    if re.match(r"[\w.]*=", args.config):  # a file of such a name is ./a=b.yaml
        args.config, args.overrides = default, [args.config, *args.overrides]
    return args
