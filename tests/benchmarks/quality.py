"""What a recipe draws, on sets of several sizes: distance from real images, copying, bits (make bench BENCH=quality).

Each row is what a user's own commands do: a tokenizer and its cache, a prior, its evaluation, and drawings held against
the real images, each a process in a folder of that row. What was done is not done again, and what was interrupted
resumes, so the table grows from call to call. Recipes with equal tokenizers share one. Minutes are those of both
trainings and the caching, so nothing else should run beside them.

    python -m tests.benchmarks.quality --sets openmoji:faces+people ~/faces --sizes 1000 3000 all --seeds 0 1 2 \\
        --try plain --try noise training.context_noise=0.3 --try "few codes" tokenizer.model.quantiser.codes=1024

--peer adds a row of diffusers' VQModel and x-transformers' GPT for the minutes of the first recipe (`quality_peer`).
Keys are those of a prior's configuration; with "tokenizer." before them, the tokenizer's.

Each prior is drawn from as `sample.py` does: with the settings of its drawing.json, or else the usual ones.
--search finds how much autoguidance it bears first, as a plan does. --drawing guidance.scale=2 changes settings;
--plain begins with none, so that what is measured is the prior alone. --inception PATH takes a file with Inception's
weights, as judge.py does; without it they are downloaded, or KID and FID are left out.

Prints, and writes to OUT/table.md, a line for each set, size and recipe, with mean and deviation over the seeds, and
below it links to the pictures of each row. A row that fails is told there too ("2 of 3" seeds), the others go on, the
exit status is 1, and the same command tries it again.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from shared.config import config_of
from shared.disk.atomic import write_text
from shared.environment import machine
from shared.errors import UserError, run_command
from stage2_prior.judging.drawing import Drawing
from tests.benchmarks.recipes.row import PEER, Recipe, Row
from tests.benchmarks.recipes.ruler import Ruler
from tests.benchmarks.recipes.table import Measured, Outcome, page


def _size(text: str) -> int | None:
    return None if text == "all" else int(text)


def _source(text: str) -> str:
    """A folder by its whole path, for commands run elsewhere."""
    path = Path(text).expanduser()
    return str(path.resolve()) if path.exists() else text


def parse() -> argparse.Namespace:
    """The command line; UserError where an option cannot be used, or nothing would read it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sets", nargs="+", default=["openmoji:faces+people"], metavar="SOURCE")
    parser.add_argument("--sizes", nargs="+", type=_size, default=[1000, 3000], metavar="IMAGES", help="or all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--try", dest="recipes", nargs="+", action="append", metavar="NAME [key=value ...]")
    parser.add_argument("--tokenizer", default="configs/folder/tokenizer.yaml", metavar="YAML")
    parser.add_argument("--prior", default="configs/folder/prior.yaml", metavar="YAML")
    parser.add_argument("--peer", action="store_true", help="and diffusers + x-transformers, for the same minutes")
    parser.add_argument("--samples", type=int, default=1000, help="images drawn of each row")
    parser.add_argument(
        "--drawing", nargs="+", default=[], metavar="key=value",
        help="of judge.py --samples, on top of the settings that sample.py draws a row's prior with",
    )  # fmt: skip
    parser.add_argument("--plain", action="store_true", help="do not begin with those settings")
    parser.add_argument("--search", action="store_true", help="judge.py --search autoguidance finds them first")
    parser.add_argument(
        "--inception", type=Path, metavar="PATH", help="a file with Inception's weights, for KID and FID"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    arguments = parser.parse_args()
    if arguments.plain and arguments.search:
        raise UserError("--plain draws without the settings that --search finds: give one of them")
    if arguments.inception and not arguments.inception.is_file():
        raise UserError(f"--inception {arguments.inception}: there is no such file")
    config_of(Drawing, [f"images={arguments.samples}", *arguments.drawing], where="--samples N --drawing key=value ...")
    return arguments


def ruler_of(arguments: argparse.Namespace) -> Ruler:
    """What all rows are measured with; paths as commands that run elsewhere find them."""
    return Ruler(
        (arguments.tokenizer, arguments.prior), arguments.out.resolve(), arguments.samples, tuple(arguments.drawing),
        arguments.plain, arguments.search, arguments.inception and arguments.inception.resolve(),
    )  # fmt: skip


def attempt(measure: Callable[..., Measured], row: Row, *more: Outcome) -> Outcome:
    """What a row comes to, by a method of the ruler; where it fails, that is told."""
    try:
        return measure(row, *more)
    except UserError as error:
        print(f"failed: {row}: {error}", file=sys.stderr, flush=True)
        return error


def main() -> None:
    """Measure each row in turn, the first seed of all of them first, and print the table after each.

    Raises UserError at the end where rows failed.
    """
    arguments = parse()
    recipes = [Recipe.of(words) for words in arguments.recipes or [["plain"]]]
    rows = [
        Row(_source(source), size, seed, recipe)
        for seed in arguments.seeds
        for source in arguments.sets
        for size in arguments.sizes
        for recipe in recipes
    ]
    ruler = ruler_of(arguments)
    found: dict[Row, Outcome] = {}
    for row in rows:
        found[row] = attempt(ruler.measure, row)
        if arguments.peer and row.recipe == recipes[0]:
            peer = replace(row, recipe=PEER)
            found[peer] = attempt(ruler.measure_peer, peer, found[row])
        text = f"{machine()}\n\n{page(found, ruler.out)}\n"
        write_text(text, ruler.out / "table.md")
        print(text, flush=True)
    if failed := sum(isinstance(one, UserError) for one in found.values()):
        raise UserError(f"{failed} of {len(found)} rows failed: the same command tries them again")


if __name__ == "__main__":
    run_command(main)
