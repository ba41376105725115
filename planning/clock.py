"""What a plan has done so far, and how long each part took: kept on the disk, so that a stopped plan resumes."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shared.disk.atomic import write_text
from shared.errors import UserError

EVERY = 5.0  # seconds between two writings


@dataclass
class Clock:
    """seconds: that each part took so far. lengths: images that each stage is to see. done: parts that are over.

    Time between a stop and the next start counts for nothing.
    """

    path: Path
    seconds: dict[str, float] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Clock":
        """What was written there, or a clock at 0. Raises UserError where it cannot be read."""
        try:
            return cls(path, **json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls(path)
        except (OSError, TypeError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error!r}): remove it to count the hours from 0 again") from None

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())

    def of(self, part: str) -> float:
        """Seconds of a part."""
        return self.seconds.get(part, 0.0)

    @contextmanager
    def running(self, part: str) -> Iterator["Ticks"]:
        """Count what happens inside as time of a part; call the ticks now and then, which also keeps it on the disk."""
        ticks = Ticks(self, part)
        try:
            yield ticks
        finally:
            ticks()
            self.write()

    def finish(self, part: str) -> None:
        """A part is over, and is not done again."""
        self.done.append(part)
        self.write()

    def write(self) -> None:
        """Keep it on the disk."""
        values = {name: value for name, value in asdict(self).items() if name != "path"}
        write_text(json.dumps(values) + "\n", self.path)


class Ticks:
    """Adds the time since the last call to a part."""

    def __init__(self, clock: Clock, part: str) -> None:
        self.clock, self.part = clock, part
        self.last = self.written = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        self.clock.seconds[self.part] = self.clock.of(self.part) + now - self.last
        self.last = now
        if now - self.written >= EVERY:
            self.clock.write()
            self.written = now
