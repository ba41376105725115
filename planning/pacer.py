"""When a training must become shorter, or may become longer, to end when its time is up."""

from dataclasses import dataclass, field

LOOKS = (0.15, 0.3, 0.5, 0.7, 0.85)  # of the time allowed: a training is not changed more often
RESTART = 20.0  # seconds that stopping and starting a training takes
LEAST = 0.03  # of a training: what is left of it at least when it is changed, so that its learning rate falls


@dataclass
class Pacer:
    """Watches a training of `images` images that is allowed `allowed` seconds, and may be `tolerance` seconds off."""

    images: int
    allowed: float
    tolerance: float
    stale: int | None = None  # what was logged before this training began, or went on
    readings: list[tuple[int, float]] = field(default_factory=list)
    looks: list[float] = field(default_factory=lambda: list(LOOKS))

    def look(self, seen: int, spent: float) -> int | None:
        """How long the training is to be from now on, in images; None where it stays as it is.

        seen: images, as the training logged them last. spent: seconds of it so far, those before a restart included.
        """
        if self.stale is None or seen < self.stale:
            self.stale = seen
        if seen > (self.readings[-1][0] if self.readings else self.stale):
            self.readings.append((seen, spent))
            if len(self.readings) == 1:
                self._is_due(spent)  # looks before this start were taken, or are too late
        if len(self.readings) < 2 or not self._is_due(spent):
            return None
        (first, then), (seen, at) = self.readings[0], self.readings[-1]
        rate = (seen - first) / max(at - then, 1e-3)
        late = at + (self.images - seen) / rate - self.allowed
        if abs(late) <= self.tolerance:
            return None
        left = max(rate * (self.allowed - at - RESTART), LEAST * self.images)
        length = round(seen + left)
        return min(length, self.images) if late > 0 else length  # never longer because it is late

    def _is_due(self, spent: float) -> bool:
        due = [look for look in self.looks if spent >= look * self.allowed]
        self.looks = self.looks[len(due) :]
        return bool(due)
