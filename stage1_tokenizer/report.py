"""One page on a tokenizer's training that opens offline: python -m stage1_tokenizer.report [--tokenizer RUN]

Writes RUN/report.html. Training does so when it ends.
"""

import argparse
from pathlib import Path

from shared.disk.outputs import check_writable
from shared.errors import run_command
from shared.runs.run_directory import newest_run
from stage1_tokenizer.judging.report import write_report


def main() -> None:
    """Read the command line, write the page, say where."""
    parser = argparse.ArgumentParser(prog="python -m stage1_tokenizer.report", description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, metavar="RUN", help="run directory (default: the last one trained)")
    run = parser.parse_args().tokenizer or newest_run("tokenizer", "ema.safetensors")
    check_writable(run)
    print(f"wrote {write_report(run)}: open it in a browser")


if __name__ == "__main__":
    run_command(main)
