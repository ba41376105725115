"""How long a run is, and was to be before: a run may be lengthened or shortened, and its schedules continue from there.

RUN/length.json holds it, so that a lengthened run that is stopped and resumed is the same run.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from shared.disk.atomic import write_text
from shared.errors import UserError
from shared.runs.run_directory import RunDirectory, read_yaml
from shared.training.config import MAY_CHANGE_ON_RESUME, RunConfig, TrainingConfig
from shared.training.optimisation.schedule import learning_rate

FILE = "length.json"
REWARM = 0.1  # of the images that a lengthening adds: over these the learning rate goes to what it is then to be


@dataclass(frozen=True)
class Length:
    """What the schedules of a run follow, a pure function of the images seen.

    stretches: (images seen at which it began, images at which the run was then to end), the first from 0 on.
    """

    stretches: tuple[tuple[int, int], ...]

    def learning_rate(self, images: int, config: TrainingConfig) -> float:
        """That of a run which was to end there from the start; a lengthened run goes over to it linearly."""
        begin, end = self.stretches[-1]
        if images < begin:
            return self.before().learning_rate(images, config)
        there = learning_rate(images, config, end)
        rewarm = round(REWARM * (end - begin))
        if not begin or images >= begin + rewarm:
            return there
        start = self.before().learning_rate(begin, config)
        return start + (there - start) * (images - begin) / rewarm

    def progress(self, images: int) -> float:
        """How much of the run is over, 0 to 1, for what rises or falls with it: lengthening takes nothing back."""
        begin, end = self.stretches[-1]
        if not begin:
            return images / end
        if images < begin:
            return self.before().progress(images)
        start = min(1.0, self.before().progress(begin))
        return start + (1 - start) * (images - begin) / (end - begin)

    def before(self) -> "Length":
        """What it was before it was changed last."""
        return Length(self.stretches[:-1])

    def lengthening(self, images: int, config: TrainingConfig) -> str:
        """What resuming at `images` changes, as a line; empty where the run's length is not changed there."""
        begin, end = self.stretches[-1]
        if not images or begin != images:
            return ""
        then = begin + round(REWARM * (end - begin))
        rates = [self.learning_rate(at, config) for at in (begin, then, end)]
        return (
            f"this run was to end after {self.stretches[-2][1]} images, has seen {begin}, and now ends after {end}. "
            f"Its learning rate goes from {rates[0]:.3g} to {rates[1]:.3g} over {then - begin} images, and then falls "
            f"to {rates[2]:.3g}, as in a run of {end}; everything else that changes over a run continues from where it "
            "was"
        )


def begin(run: RunDirectory, config: RunConfig, processes: int, may_lengthen: bool = True) -> None:
    """Create a run's directory, or check that a run begun earlier had the same configuration but for its length.

    Raises UserError where it had another, or has seen more images than it is now to have; nothing is changed then.
    """
    training = config.training
    step_images = training.batch_size * training.accumulation * processes
    length = _next_length(run, training, step_images)
    run.begin(config, MAY_CHANGE_ON_RESUME | ({"training.images"} if may_lengthen else set()))
    write_text(json.dumps(length.stretches) + "\n", run.path / FILE)


def _next_length(run: RunDirectory, config: TrainingConfig, step_images: int) -> Length:
    """The length that a run has from now on, whose new configuration is not written yet."""
    seen = int(newest.name) if (newest := run.newest()) else 0
    if not seen:
        return Length(((0, config.images),))
    first, *others = _saved(run).stretches
    stretches = [first, *(stretch for stretch in others if stretch[0] < seen)]
    if config.images <= seen - step_images and config.images != stretches[-1][1]:
        raise UserError(
            f"{run.path} has seen {seen} images, and training.images={config.images} are fewer: give {seen} or more to "
            "resume it, or start another run (name=...)"
        )
    if config.images > seen and config.images != stretches[-1][1]:
        stretches.append((seen, config.images))
    return Length(tuple(stretches))


def load_length(run: RunDirectory, config: TrainingConfig) -> Length:
    """What `begin` wrote, or else what the configuration says. Raises UserError where it cannot be read."""
    return _read(run.path / FILE) if (run.path / FILE).exists() else Length(((0, config.images),))


def _saved(run: RunDirectory) -> Length:
    """Of a run that has begun; its configuration says it where it began before there was such a file."""
    if (run.path / FILE).exists():
        return _read(run.path / FILE)
    return Length(((0, int(read_yaml(run.path / "config.yaml")["training"]["images"])),))


def _read(path: Path) -> Length:
    try:
        return Length(tuple((int(begin), int(end)) for begin, end in json.loads(path.read_text())))
    except (OSError, TypeError, ValueError) as error:
        reason = f"cannot read {path}: {error}"
        raise UserError(f"{reason}. Remove it to resume as if the run had been this long from the start") from None
