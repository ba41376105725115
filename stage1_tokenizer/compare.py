"""Train several tokenizers on the same images: python -m stage1_tokenizer.compare [CONFIG.yaml] [key=value ...]

Each row of the configuration is a run under runs/compare/<name>/<row>/, trained on the same images in the same order
under the same budget. Beside them come report.html, table.md, results.json and the figures. Started again after a stop,
the same command resumes: finished rows are kept, and the interrupted one resumes from its last checkpoint.
"""

import argparse
import json
import shlex
import sys

from shared.errors import run_command
from shared.options.command_line import parse_command_line
from shared.presets import find_config
from shared.runs.run_directory import RUNS
from stage1_tokenizer.comparing.comparison import compare
from stage1_tokenizer.comparing.config import Comparison, load_comparison

DEFAULT_CONFIG = "configs/compare/backbones-demo.yaml"


def main() -> None:
    """Read the command line, train and measure every row, say what was written."""
    parser = argparse.ArgumentParser(prog="python -m stage1_tokenizer.compare", description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    args = parse_command_line(parser, DEFAULT_CONFIG, Comparison)
    command = shlex.join(["python", "-m", "stage1_tokenizer.compare", *sys.argv[1:]])
    comparison, runs = load_comparison(find_config(args.config), args.overrides)
    results = compare(comparison, runs, command)
    folder = RUNS / "compare" / comparison.name
    print(f"{(folder / 'table.md').read_text()}\nwrote {folder / 'report.html'}: open it in a browser")
    if args.json:
        print(json.dumps(results))


if __name__ == "__main__":
    run_command(main)
