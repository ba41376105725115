"""A web page for a prior and its tokenizer: python web.py [--prior RUN] [--tokenizer RUN] [--port 7860]

It draws, reconstructs, completes, shows the codebook, and how the plans of plan.py come along. Works offline, and is
reachable from this computer only unless --host says otherwise.
"""

import shared  # noqa: F401  # before the libraries, which read their settings on import

# isort: split
import argparse
import sys
from pathlib import Path

from shared.errors import run_command
from shared.extras import install_hint
from shared.options.commands import command_of
from shared.runs.hub import WHICH_PRIOR, prior_directory

try:
    import gradio  # noqa: F401  # which the page is made with
except ModuleNotFoundError as error:
    sys.exit(f"error: the web page needs {error.name}, which is not installed: {install_hint('web')}")

from web_page.run import load_run
from web_page.server import serve


def main() -> None:
    """Read the command line, load, serve until stopped."""
    parser = argparse.ArgumentParser(prog=command_of("web"), description=__doc__.split("\n")[0])
    parser.add_argument("--prior", type=Path, metavar="RUN", help=f"the prior: {WHICH_PRIOR}")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="RUN", help="where its tokenizer is now, if it has moved since the training"
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: let other computers connect (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="default: the first free port from 7860 on")
    args = parser.parse_args()
    run = load_run(prior_directory(args.prior), args.tokenizer)
    page = serve(run, args.host, args.port)
    print(f"{run.name}: open {page.local_url} (stop with Ctrl-C)", flush=True)
    page.block_thread()


if __name__ == "__main__":
    run_command(main)
