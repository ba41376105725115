"""A row of the table of recipes: what is trained on what."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import UserError

STAGE_ONE = "tokenizer."


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

    def __str__(self) -> str:
        source, size, recipe = self.of
        return f"{source}, {size} images, {recipe}, seed {self.seed}"

    def folder(self, out: Path) -> Path:
        """Where its commands run; shared by the recipes on the same images."""
        return out / _slug(Path(self.source).name) / str(self.size or "all") / str(self.seed)

    def tokenizer(self, config: str) -> tuple[str, list[str]]:
        """Its run, below the folder, and the overrides that it is trained with."""
        overrides = [f"data.source={self.source}", f"training.seed={self.seed}", *self.recipe.tokenizer]
        overrides += [] if self.size is None else [f"data.limit={self.size}"]
        return f"runs/tokenizer/{_digest(config, *overrides)}", overrides

    def prior(self, config: str, tokenizer: str) -> tuple[str, list[str]]:
        """The same of the prior on the tokens of a tokenizer's run."""
        overrides = [f"tokens={tokenizer}/tokens", f"training.seed={self.seed}", *self.recipe.prior]
        return f"runs/prior/{_slug(self.recipe.name)}-{_digest(config, *overrides)}", overrides


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "row"


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:12]
