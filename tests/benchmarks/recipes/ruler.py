"""What rows of the table of recipes are measured with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.disk.manifest import sha256
from shared.errors import UserError
from shared.runs.run_directory import EARLY, flat
from stage2_prior.decoding.settings import DrawingSettings, read_settings
from tests.benchmarks.recipes.commands import Commands
from tests.benchmarks.recipes.row import Row
from tests.benchmarks.recipes.table import COLUMNS, Measured, Outcome


@dataclass(frozen=True)
class Ruler:
    """configs: of the two stages. out: the folder of all rows.

    samples: images drawn of each row. drawing: how, as `judge.py --samples` takes it, on top of the settings that
    `sample.py` draws the row's prior with. plain: on top of none. search: `judge.py --search autoguidance` comes first.
    inception: a file with Inception's weights.
    """

    configs: tuple[str, str]
    out: Path
    samples: int
    drawing: tuple[str, ...] = ()
    plain: bool = False
    search: bool = False
    inception: Path | None = None

    def measure(self, row: Row) -> Measured:
        """Train, draw and measure, or read what was measured before. Raises UserError where a command fails."""
        commands = Commands(row.folder(self.out))
        tokenizer, of_tokenizer = row.tokenizer(self.configs[0])
        prior, of_prior = row.prior(self.configs[1], tokenizer)
        commands.run("-m", "stage1_tokenizer.train", self.configs[0], f"name={Path(tokenizer).name}", *of_tokenizer)
        commands.run("-m", "stage1_tokenizer.cache", "--tokenizer", tokenizer)
        first = commands.seconds / 60
        commands.run("-m", "stage2_prior.train", self.configs[1], f"name={Path(prior).name}", *of_prior)
        minutes = first, commands.seconds / 60 - first
        quality = commands.run(
            "-m", "stage1_tokenizer.evaluate", "--tokenizer", tokenizer, "--split", "validation", "--json",
            *self._weights,
        )  # fmt: skip
        bits = commands.run("-m", "stage2_prior.evaluate", "--prior", prior, "--json")
        found = self._judge(commands, prior)
        figures = {
            "minutes": sum(minutes),
            "psnr": quality["measures"]["psnr"],
            "bits_unseen": bits["validation"]["bits_per_token"],
            "bits_training": bits["train"]["bits_per_token"],
            **{name: value for name, value in found["measures"].items() if name in COLUMNS},
        }
        settings = DrawingSettings(**{name: found[name] for name in DrawingSettings.model_fields})
        evaluation = commands.folder / prior / "evaluation"
        sheets = evaluation / "samples.png", evaluation / "nearest.png"
        return Measured(figures, minutes, commands.folder / prior, str(settings), sheets)

    def measure_peer(self, row: Row, own: Outcome) -> Measured:
        """The same of the other projects, for the minutes that our row took. Raises UserError where either fails."""
        if isinstance(own, UserError):
            raise UserError("how many minutes it has is not known: the row that it is to be compared with failed")
        commands = Commands(row.folder(self.out))
        minutes = [f"{part:.2f}" for part in own.minutes]
        prior = str(own.prior.relative_to(commands.folder))
        figures = commands.run(
            "-m", "tests.benchmarks.quality_peer", "--prior", prior, "--minutes", *minutes,
            "--samples", str(self.samples), "--seed", str(row.seed), *self._weights,
        )  # fmt: skip
        return Measured(figures, own.minutes, own.prior, "temperature 1.0", (commands.folder / "peer.png",))

    @property
    def _weights(self) -> list[str]:
        return ["--inception", str(self.inception)] if self.inception else []

    def _judge(self, commands: Commands, prior: str) -> dict[str, Any]:
        """Anew where the prior is drawn in another way than the last time, or against other early weights."""
        if self.search:
            commands.run("judge.py", "--prior", prior, "--search", "autoguidance", "--json")
        run = commands.folder / prior
        own = [] if self.plain else own_settings(run, self.drawing)
        early = run / EARLY
        return commands.run(
            "judge.py", "--prior", prior, "--json",
            options=["--samples", str(self.samples), *own, *self.drawing, *self._weights],
            state=sha256(early) if early.exists() else "",
        )  # fmt: skip


def own_settings(run: Path, given: Sequence[str]) -> list[str]:
    """What `sample.py` draws a prior with, as `judge.py --samples` takes it. Raises UserError where that is unreadable.

    given: key=value of what is asked for besides: either kind of guidance takes the place of the other.
    """
    settings, keys = read_settings(run), {word.partition("=")[0] for word in given}
    if "autoguidance" in keys:
        settings = settings.without_guidance()
    if "guidance.scale" in keys:
        settings = settings.model_copy(update={"autoguidance": 1.0})
    return [f"{key}={value}" for key, value in flat(settings.model_dump(mode="json", exclude_defaults=True)).items()]
