"""Does what a plan says, one command after another, within its hours; resumes if interrupted."""

import json
import math
import time
from pathlib import Path

from planning.choice.budget import drawing, searching
from planning.choice.configurations import EVALUATIONS, LINES
from planning.choice.rules import tells_classes
from planning.choice.stage import Stage, kind_of, run_of
from planning.clock import Clock
from planning.commands import STOPPED, Command, check, module, running, script, stop
from planning.pacer import RESTART, Pacer
from planning.plan import Plan
from shared.options.commands import command_of
from shared.runs.run_directory import DRAWING, EARLY, TRAINERS
from stage2_prior.decoding.settings import MILD, DrawingSettings, read_settings, write_settings

LEAST_OF_PLANNED = 0.3  # of what was planned for the prior: it is trained so long, though the hours are over
POLL = 0.5  # seconds between two looks at a command
TOLERANCE = 0.02  # of all hours: a training that will end within this of its time is let be
TAIL = 4096  # bytes at the end of metrics.jsonl, which hold its last line
MOST_ROWS = 16  # classes of which each gets a row of drawings


class Course:
    """A plan on its way. What is done is not done again; the clock resumes where it stopped."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.clock = Clock.read(plan.folder / "clock.json")
        self.prior = run_of("prior", plan.name)
        self.tokenizer = run_of("decoder", plan.name)  # the one that is used from then on

    def run(self) -> None:
        """Train, cache, train, find how to draw, draw, judge.

        Raises UserError where a command fails, `Stopped` where one is stopped.
        """
        self._train("tokenizer")
        self._train("decoder")
        self._do("caching", [*module("stage1_tokenizer.cache"), "--tokenizer", str(self.tokenizer)])
        self._train("prior")
        self._search()
        self._do("drawing", [*script("sample"), "--prior", str(self.prior), *self._drawn()])
        self._do("judging", [*script("judge"), "--prior", str(self.prior)])

    def allowed(self, stage: Stage) -> float:
        """Seconds for a stage, all together: what the parts before it left of their hours, or a least share."""
        planned = self.plan.seconds(stage)
        if stage == "tokenizer":
            return planned
        late = self.clock.of("tokenizer") - self.plan.seconds("tokenizer")
        left = planned - late if stage == "decoder" else self._left_for_prior()
        return max(left, LEAST_OF_PLANNED * planned)

    def _left_for_prior(self) -> float:
        """Seconds, less than none where the parts before it took all."""
        spent = self.clock.total - self.clock.of("prior")
        return self.plan.budget.total - self.plan.budget.ending - spent

    def _drawn(self) -> list[str]:
        out = ["--out", str(self.plan.folder / "samples")]
        if tells_classes(self.plan.pictures) and 2 <= self.plan.pictures.classes <= MOST_ROWS:
            return [*out, "--class-label", "all", "--num", "8"]
        return [*out, "--num", "64"]

    def _train(self, stage: Stage) -> None:
        if stage in self.clock.done:
            return
        if stage == "prior" and self._left_for_prior() < self.allowed("prior"):
            print("what came before the prior took longer than planned: the hours will not be enough", flush=True)
        planned = max(1, round(self.plan.rate(stage) * self.allowed(stage)))
        images: int | None = self.clock.lengths.get(stage, planned)
        while images is not None:
            self.clock.lengths[stage] = images
            images = self._train_to(stage, images)
        self.clock.finish(stage)

    def _train_to(self, stage: Stage, images: int) -> int | None:
        """Train until a stage has seen so many images, or is to have another length, which is returned."""
        configuration = str(self.plan.folder / f"{stage}.yaml")
        run = run_of(stage, self.plan.name)
        # As often as in a run of this length, so that the last figures are of its end.
        log_every, evaluate_every = max(1, images // LINES), max(1, images // EVALUATIONS)
        command = [
            *module(f"{TRAINERS[kind_of(stage)]}.train"), configuration,
            f"name={run.name}", f"training.images={images}",
            f"training.log_every={log_every}", f"training.evaluate_every={evaluate_every}",
        ]  # fmt: skip
        worth = max(TOLERANCE * self.plan.budget.total, 3 * RESTART)  # a change must gain more than it costs
        pacer = Pacer(images, self.allowed(stage), worth)
        with self.clock.running(stage) as tick, running(command) as process:
            while process.poll() is None:
                time.sleep(POLL)
                tick()
                length = pacer.look(images_seen(run), self.clock.of(stage))
                if length is not None and length != images:
                    print(
                        f"\nto finish in time, the {stage} now trains on {length} images instead of {images}",
                        flush=True,
                    )
                    stop(process)
                    return length
        check(process.returncode, command)
        return None

    def _search(self) -> None:
        """Find how much autoguidance this prior draws best with, where there is time; a plan does not fail for it."""
        if "searching" in self.clock.done:
            return
        total, ending = self.plan.budget.total, self.plan.budget.ending
        found = searching(total, self.plan.rates) > 0
        if found:
            command = [*script("judge"), "--prior", str(self.prior), "--search", "autoguidance"]
            # It has the time that was planned for it, however late it begins.
            began = self.clock.total - self.clock.of("searching")
            end = max(total, began + ending) - drawing(total)
            status = self._status("searching", command, end)
            if status in STOPPED:
                check(status, command)
            found = status == 0
        if not found:
            self._draw_without_searching()
        self.clock.finish("searching")

    def _draw_without_searching(self) -> None:
        """With what a search found before it was stopped; or else with a mild autoguidance, which was a gain for nearly
        every prior that was judged, also where a stronger one did harm (docs/drawing.md).
        """
        if not (self.prior / DRAWING).exists():
            settings = MILD if (self.prior / EARLY).exists() else DrawingSettings()
            write_settings(self.prior, settings, "plan", {})
        print(
            f"no search for settings was finished, so images are drawn with {read_settings(self.prior)}; "
            f"`{command_of('judge')} --search` finds how to draw best",
            flush=True,
        )

    def _do(self, part: str, command: Command) -> None:
        if part not in self.clock.done:
            check(self._status(part, command), command)
            self.clock.finish(part)

    def _status(self, part: str, command: Command, end: float = math.inf) -> int | None:
        """The exit status of a command, run as a part; None where the clock came to `end` first and it was stopped."""
        with self.clock.running(part) as tick, running(command) as process:
            while (status := process.poll()) is None and self.clock.total < end:
                time.sleep(POLL)
                tick()
        return status


def images_seen(run: Path) -> int:
    """How many images a training had seen when it logged last; 0 where it has not."""
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return 0
    return max((_images_of(line) for line in lines), default=0)


def _images_of(line: bytes) -> int:
    """0 where a line was cut short."""
    try:
        return int(json.loads(line)["images"])
    except (ValueError, KeyError, TypeError):
        return 0
