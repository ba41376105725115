"""What an evaluation found, for programs (JSON) and for people (Markdown): measures, and all that they depend on."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shared.disk.atomic import write_text
from shared.environment import now

ROUNDING = "every image is rounded to the nearest of 8 bits before it is measured"
LIBRARIES = ("torch", "torchvision", "torchmetrics", "torch-fidelity")


@dataclass
class Findings:
    """Measures by name; those that could not be taken, with the reason; what to beware of; what all of it stands on.

    titles: of every measure, for people; they order the table.
    facts: model, images, reference, resolution, seeds and fingerprints of weights.
    """

    title: str
    titles: Mapping[str, str]
    facts: dict[str, Any]
    measures: dict[str, float] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.facts |= {
            "rounding": ROUNDING,
            "versions": {name: version(name) for name in LIBRARIES},
            "date": now(),
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON: facts at the top, then measures, not_measured and warnings."""
        values = asdict(self)
        return values["facts"] | {key: values[key] for key in ("measures", "not_measured", "warnings")}

    def markdown(self) -> str:
        """A table of measures, what was not measured and why, and the facts."""
        rows = [f"| {self.titles[name]} | {value:.5g} |" for name, value in self.measures.items()]
        missing = [f"- Not measured: {', '.join(names)}. {reason}" for reason, names in self._missing().items()]
        warnings = [f"- Beware: {warning}." for warning in self.warnings]
        facts = [f"- {key}: {_plain(value)}" for key, value in self.facts.items()]
        parts = [[f"# {self.title}"], ["| measure | value |", "|---|---:|", *rows], missing + warnings, facts]
        return "\n\n".join("\n".join(part) for part in parts if part) + "\n"

    def write(self, path: Path) -> None:
        """Write `path`.json and `path`.md."""
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = {".json": json.dumps(self.as_dict(), indent=1) + "\n", ".md": self.markdown()}
        for suffix, text in texts.items():
            write_text(text, path.with_suffix(suffix))

    def _missing(self) -> dict[str, list[str]]:
        """Titles of what was not measured, by the reason."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.not_measured.items():
            reasons.setdefault(reason, []).append(self.titles[name])
        return reasons


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    return str(value)


class NotMeasured(Exception):
    """Why some measure cannot be taken here."""
