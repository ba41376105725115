"""What a recipe draws, on sets of several sizes: distance from real images, copying, bits (make bench BENCH=quality).

Each row is what a user's own commands do: a tokenizer and its cache, a prior, its evaluation, and drawings held against
the real images, each a process in a folder of that row. What was done is not done again, and what was interrupted
resumes, so the table grows from call to call. Recipes with equal tokenizers share one. Minutes are those of both
trainings and the caching, so nothing else should run beside them.

    python -m tests.benchmarks.quality --sets openmoji:faces+people ~/faces --sizes 1000 3000 all --seeds 0 1 2 \\
        --try plain --try noise training.context_noise=0.3 --try "few codes" tokenizer.model.quantiser.codes=1024

--peer adds a row of diffusers' VQModel and x-transformers' GPT for the minutes of the first recipe (`quality_peer`).
Keys are those of a prior's configuration; with "tokenizer." before them, the tokenizer's. Prints, and writes to
OUT/table.md, a line for each set, size and recipe, with mean and deviation over the seeds. The pictures of a row
are samples.png and nearest.png in OUT/SET/SIZE/SEED/runs/prior/RECIPE/evaluation.
"""

import argparse
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shared.disk.atomic import write_text
from shared.environment import machine
from shared.errors import UserError, run_command
from tests.support.launch import ROOT

STAGE_ONE = "tokenizer."
COLUMNS = {
    "minutes": "minutes", "psnr": "PSNR", "bits_unseen": "bits unseen", "bits_training": "bits in training",
    "kd_vgg16": "kernel distance", "fd_vgg16": "Fréchet distance", "mind_vgg16": "MIND", "kid": "KID", "fid": "FID",
    "precision_vgg16": "precision", "recall_vgg16": "recall", "copying_vgg16": "copying, features",
    "copying_tokens": "copying, tokens", "nearest_held_out": "nearest is unseen",
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """name: in the table. tokenizer, prior: overrides of the two configurations."""

    name: str
    tokenizer: tuple[str, ...]
    prior: tuple[str, ...]

    @classmethod
    def of(cls, words: Sequence[str]) -> "Recipe":
        """From NAME key=value ...; UserError where something is neither."""
        name, *overrides = words
        if wrong := [word for word in overrides if "=" not in word]:
            raise UserError(f"--try {name}: {wrong[0]!r} is not key=value")
        of_tokenizer = [word.removeprefix(STAGE_ONE) for word in overrides if word.startswith(STAGE_ONE)]
        return cls(name, tuple(of_tokenizer), tuple(word for word in overrides if not word.startswith(STAGE_ONE)))


PEER = Recipe("diffusers + x-transformers", (), ())


@dataclass(frozen=True)
class Row:
    """A recipe on about `size` images of a set (None: all of them), trained from one seed."""

    source: str
    size: int | None
    seed: int
    recipe: Recipe

    @property
    def of(self) -> tuple[str, str, str]:
        """What rows of other seeds have in common with it."""
        return self.source, str(self.size or "all"), self.recipe.name

    def folder(self, out: Path) -> Path:
        """Where its commands run; shared by the recipes on the same images."""
        return out / _slug(Path(self.source).name) / str(self.size or "all") / str(self.seed)

    def measure(self, configs: tuple[str, str], samples: int, arguments: Sequence[str], out: Path) -> dict[str, float]:
        """Train, draw and measure, or read what was measured before; figures by the names of `COLUMNS`."""
        commands = Commands(self.folder(out))
        stage_one = [f"data.source={self.source}", f"training.seed={self.seed}", *self.recipe.tokenizer]
        stage_one += [] if self.size is None else [f"data.limit={self.size}"]
        tokenizer = f"runs/tokenizer/{_digest(configs[0], *stage_one)}"
        stage_two = [f"tokens={tokenizer}/tokens", f"training.seed={self.seed}", *self.recipe.prior]
        prior = f"runs/prior/{_slug(self.recipe.name)}-{_digest(configs[1], *stage_two)}"
        commands.run("-m", "stage1_tokenizer.train", configs[0], f"name={Path(tokenizer).name}", *stage_one)
        commands.run("-m", "stage1_tokenizer.cache", "--tokenizer", tokenizer)
        first = commands.seconds / 60
        commands.run("-m", "stage2_prior.train", configs[1], f"name={Path(prior).name}", *stage_two)
        minutes = commands.seconds / 60
        quality = commands.run(
            "-m", "stage1_tokenizer.evaluate", "--tokenizer", tokenizer, "--split", "validation", "--json"
        )
        bits = commands.run("-m", "stage2_prior.evaluate", "--prior", prior, "--json")
        found = commands.run("judge.py", "--prior", prior, "--samples", str(samples), *arguments, "--json")
        self._keep(out, {"prior": prior, "minutes": [f"{first:.2f}", f"{minutes - first:.2f}"]})
        return {
            "minutes": minutes,
            "psnr": quality["measures"]["psnr"],
            "bits_unseen": bits["validation"]["bits_per_token"],
            "bits_training": bits["train"]["bits_per_token"],
            **{name: value for name, value in found["measures"].items() if name in COLUMNS},
        }

    def measure_peer(self, samples: int, out: Path) -> dict[str, float]:
        """The same of the other projects, for the minutes that this row took."""
        own = json.loads((self.folder(out) / f"{_slug(self.recipe.name)}.json").read_text())
        options = ["--minutes", *own["minutes"], "--samples", str(samples), "--seed", str(self.seed)]
        commands = Commands(self.folder(out))
        return commands.run("-m", "tests.benchmarks.quality_peer", "--prior", own["prior"], *options)

    def _keep(self, out: Path, facts: dict[str, Any]) -> None:
        write_text(json.dumps(facts), (self.folder(out) / f"{_slug(self.recipe.name)}.json"))


class Commands:
    """Runs commands of this project in a folder, each once: how long it took and what it said last are kept there.

    seconds: what all commands asked for so far have taken, those of interrupted attempts included.
    """

    def __init__(self, folder: Path):
        self.folder, self.ledger = folder, folder / "commands.json"
        self.kept: dict[str, Any] = json.loads(self.ledger.read_text()) if self.ledger.exists() else {}
        self.seconds = 0.0

    def run(self, *command: str) -> dict[str, Any]:
        """What it printed on its last line, if that is JSON. Raises UserError where it fails."""
        name = " ".join(command)
        entry = self.kept.setdefault(name, {"seconds": 0.0, "done": False, "found": {}})
        if not entry["done"]:
            print(f"{self.folder}: {name}", flush=True)
            began = time.perf_counter()
            try:
                entry["found"], entry["done"] = self._output(command), True
            finally:
                entry["seconds"] += time.perf_counter() - began
                self.folder.mkdir(parents=True, exist_ok=True)
                write_text(json.dumps(self.kept, indent=1), self.ledger)
        self.seconds += entry["seconds"]
        found: dict[str, Any] = entry["found"]
        return found

    def _output(self, command: Sequence[str]) -> dict[str, Any]:
        self.folder.mkdir(parents=True, exist_ok=True)
        words = [
            str(ROOT / word) if word.endswith((".py", ".yaml")) and (ROOT / word).exists() else word for word in command
        ]
        result = subprocess.run(
            [sys.executable, *words], cwd=self.folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
            stdout=subprocess.PIPE, check=False,
        )  # fmt: skip
        if result.returncode:
            raise UserError(f"{' '.join(command)} failed in {self.folder}: what it said is above")
        last = (result.stdout.splitlines() or [""])[-1]
        found: dict[str, Any] = json.loads(last) if last.startswith("{") else {}
        return found


def table(rows: dict[Row, dict[str, float]]) -> str:
    """Markdown: a line for rows that differ by the seed only, with mean and standard deviation."""
    together: dict[tuple[str, str, str], list[dict[str, float]]] = defaultdict(list)
    for row, figures in rows.items():
        together[row.of].append(figures)
    names = [name for name in COLUMNS if any(name in figures for figures in rows.values())]
    lines = ["| set | images | recipe | seeds | " + " | ".join(COLUMNS[name] for name in names) + " |"]
    lines.append("|---|---:|---|---:|" + "---:|" * len(names))
    for of, seeds in together.items():
        cells = [
            *of,
            str(len(seeds)),
            *(_cell([figures[name] for figures in seeds if name in figures]) for name in names),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):.4g}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2g}"


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "row"


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:12]


def _size(text: str) -> int | None:
    return None if text == "all" else int(text)


def _source(text: str) -> str:
    """A folder by its whole path, for commands run elsewhere."""
    path = Path(text).expanduser()
    return str(path.resolve()) if path.exists() else text


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sets", nargs="+", default=["openmoji:faces+people"], metavar="SOURCE")
    parser.add_argument("--sizes", nargs="+", type=_size, default=[1000, 3000], metavar="IMAGES", help="or all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--try", dest="recipes", nargs="+", action="append", metavar="NAME [key=value ...]")
    parser.add_argument("--tokenizer", default="configs/folder/tokenizer.yaml", metavar="YAML")
    parser.add_argument("--prior", default="configs/folder/prior.yaml", metavar="YAML")
    parser.add_argument("--peer", action="store_true", help="and diffusers + x-transformers, for the same minutes")
    parser.add_argument("--samples", type=int, default=1000, help="images drawn of each row")
    parser.add_argument("--drawing", nargs="+", default=[], metavar="key=value", help="of judge.py --samples")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    return parser.parse_args()


def main() -> None:
    """Measure each row in turn, the first seed of all of them first, and print the table after each."""
    arguments = parse()
    recipes = [Recipe.of(words) for words in arguments.recipes or [["plain"]]]
    rows = [
        Row(_source(source), size, seed, recipe)
        for seed in arguments.seeds
        for source in arguments.sets
        for size in arguments.sizes
        for recipe in recipes
    ]
    configs = arguments.tokenizer, arguments.prior
    out = arguments.out.resolve()
    found: dict[Row, dict[str, float]] = {}
    for row in rows:
        found[row] = row.measure(configs, arguments.samples, arguments.drawing, out)
        if arguments.peer and row.recipe == recipes[0]:
            found[replace(row, recipe=PEER)] = row.measure_peer(arguments.samples, out)
        text = f"{machine()}\n\n{table(found)}\n"
        write_text(text, out / "table.md")
        print(text, flush=True)


if __name__ == "__main__":
    run_command(main)
