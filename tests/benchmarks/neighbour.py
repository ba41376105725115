"""Training, caching and drawing beside a busy process, by how long threads spin (make bench BENCH=neighbour).

The neighbour is one Python process in an endless loop, bound to no core. For each setting of the OpenMP runtime, which
reads it once, a process of its own does all work, one at a time; the others sleep meanwhile. They take turns within
each round, so that a slow spell of the machine falls on all. Prints a table of medians over the rounds, in images (or
grids) per second, and then a JSON line for each row: work, neighbour, setting, per_second, share (of what the
first setting does alone). Models are those of configs/demo with random weights, inputs random.

    python -m tests.benchmarks.neighbour --rounds 3 --seconds 2 --settings unset GOMP_SPINCOUNT=1000
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from typing import IO, Any

import torch

from shared.config import load_config
from shared.environment import machine
from shared.training.devices.accelerator import make_accelerator
from shared.training.trainee import Trainee
from shared.waiting import SETTINGS
from stage1_tokenizer.losses.objective import Objective
from stage1_tokenizer.run_config import TokenizerRun
from stage1_tokenizer.tokenizer import Tokenizer
from stage2_prior.decoding.decoder import Decoder
from stage2_prior.prior import Prior
from stage2_prior.run_config import PriorRun
from tests.support.launch import ROOT

UNSET = "unset"  # as the runtime has it by itself
SPINS = (0, 100, 1_000, 10_000, 100_000)
CANDIDATES = (UNSET, *(f"GOMP_SPINCOUNT={spins}" for spins in SPINS), "OMP_WAIT_POLICY=PASSIVE")
NEIGHBOUR = "while True: pass"
CACHED = 64  # images of one step of caching
Work = Callable[[], int]  # does a step, and returns of how many images


def main() -> None:
    arguments = parse()
    if arguments.serve:
        serve()
        return
    print(f"{machine()}; neighbour: python -c '{NEIGHBOUR}', bound to no core", flush=True)
    lines = measure(arguments.settings, arguments.rounds, arguments.seconds)
    print(f"{'work':<20}{'neighbour':<11}{'setting':<26}{'per second':>11}{'share':>8}")
    for line in lines:
        work, neighbour, setting, rate, share = line.values()
        print(f"{work!s:<20}{neighbour!s:<11}{setting!s:<26}{rate:>11.1f}{share:>8.2f}")
    for line in lines:
        print(json.dumps(line))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each piece of work in each round")
    parser.add_argument("--settings", nargs="+", default=CANDIDATES, metavar="NAME=VALUE", help=f"or {UNSET}")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(settings: Sequence[str], rounds: int, seconds: float) -> list[dict[str, str | float]]:
    """The medians; the first round warms up and does not count."""
    rates: dict[tuple[str, str, str], list[float]] = {}
    with ExitStack() as stack:
        workers = {setting: stack.enter_context(worker(setting)) for setting in settings}
        names, *_ = [workers[setting].works() for setting in settings]  # of each, as then all are ready
        for turn in range(rounds + 1):
            for neighbour in ("alone", "beside"):
                with busy_neighbour(neighbour == "beside"):
                    for name, setting in product(names, settings):
                        rate = workers[setting].per_second(name, seconds)
                        if turn:
                            rates.setdefault((name, neighbour, setting), []).append(rate)
    medians = {key: statistics.median(found) for key, found in rates.items()}
    return [
        {
            "work": work,
            "neighbour": neighbour,
            "setting": setting,
            "per_second": round(rate, 2),
            "share": round(rate / medians[work, "alone", settings[0]], 3),
        }
        for (work, neighbour, setting), rate in sorted(medians.items(), key=lambda item: item[0][:2])
    ]


class Worker:
    """A process with a setting of its own, which answers one question at a time."""

    def __init__(self, questions: IO[str], answers: IO[str]) -> None:
        self.questions, self.answers = questions, answers

    def works(self) -> list[str]:
        """The names of what it can do."""
        return self._ask({})

    def per_second(self, work: str, seconds: float) -> float:
        """How many images it does of that."""
        return self._ask({"work": work, "seconds": seconds})

    def _ask(self, question: dict[str, str | float]) -> Any:
        self.questions.write(json.dumps(question) + "\n")
        self.questions.flush()
        return json.loads(self.answers.readline())


@contextmanager
def worker(setting: str) -> Iterator[Worker]:
    """A worker, until the block ends."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    # The runtime takes an empty KMP_BLOCKTIME for none, which keeps the commands' own setting away.
    name, _, value = ("KMP_BLOCKTIME=" if setting == UNSET else setting).partition("=")
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.neighbour", "--serve"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment | {name: value}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        yield Worker(process.stdin, process.stdout)
        process.stdin.close()  # which ends it


@contextmanager
def busy_neighbour(wanted: bool) -> Iterator[None]:
    """The neighbour, until the block ends."""
    if not wanted:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) as process:
        try:
            yield
        finally:
            process.terminate()


def serve() -> None:
    """Answer each line of the standard input: the names of the works, or how many images a second one does."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what works print is no answer
    works = {
        "training tokenizer": tokenizer_training(),
        "training prior": prior_training(),
        "caching": caching(),
        "drawing, batch 1": drawing(1),
        "drawing, batch 8": drawing(8),
    }
    for line in sys.stdin:
        question = json.loads(line)
        answer = per_second(works[question["work"]], question["seconds"]) if question else list(works)
        print(json.dumps(answer), file=answers, flush=True)


def per_second(work: Work, seconds: float) -> float:
    work()  # what the others left in the caches goes
    images, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        images += work()
    return images / passed


def tokenizer_training() -> Work:
    config = load_config(TokenizerRun, ROOT / "configs/demo/tokenizer.yaml", [])
    torch.manual_seed(0)
    tokenizer = Tokenizer(config.model)
    trainee = Trainee(tokenizer, config.training, make_accelerator())
    objective = Objective(config.loss, tokenizer, trainee, config.data.height_width)
    images = torch.rand(config.training.batch_size, 3, *config.data.height_width) * 2 - 1

    def step() -> int:
        trainee.begin_step()
        tokenizer.quantiser.begin_step(0.5)
        objective.begin_step()
        for images_BCHW in trainee.accumulate(iter([images] * config.training.accumulation)):
            trainee.means.add(objective.learn(images_BCHW))
        trainee.end_step()
        objective.end_step()
        tokenizer.quantiser.maintain(trainee.optimizer, trainee.ema.average.get("quantiser.codebook"))
        trainee.images = 0  # the same step of the schedule again
        return trainee.step_images

    return step


def demo_prior() -> tuple[PriorRun, Prior]:
    tokenizer_config = load_config(TokenizerRun, ROOT / "configs/demo/tokenizer.yaml", [])
    tokenizer = Tokenizer(tokenizer_config.model)
    config = load_config(PriorRun, ROOT / "configs/demo/prior.yaml", [])
    torch.manual_seed(0)
    codes_KD = tokenizer.quantiser.codes_KD
    return config, Prior(config.model, len(codes_KD), tokenizer.grid(tokenizer_config.data.height_width), 2, codes_KD)


def prior_training() -> Work:
    config, prior = demo_prior()
    trainee = Trainee(prior, config.training, make_accelerator())
    tokens_BL = torch.randint(prior.codes, (config.training.batch_size, prior.length))

    def step() -> int:
        trainee.begin_step()
        for part_BL in trainee.accumulate(iter([tokens_BL] * config.training.accumulation)):
            with trainee.autocast():
                loss = trainee.wrapped(prior.inputs(part_BL), targets_BL=part_BL)
            trainee.backward(loss)
            trainee.means.add({"bits_per_token": loss / math.log(2)})
        trainee.end_step()
        trainee.images = 0
        return trainee.step_images

    return step


def caching() -> Work:
    config = load_config(TokenizerRun, ROOT / "configs/demo/tokenizer.yaml", [])
    tokenizer, images_BCHW = Tokenizer(config.model).eval(), torch.rand(CACHED, 3, *config.data.height_width) * 2 - 1
    return lambda: len(tokenizer.tokenize(images_BCHW))


def drawing(batch: int) -> Work:
    decoder = Decoder(demo_prior()[1].eval(), rows=batch)
    return lambda: len(decoder.generate(range(batch)))


if __name__ == "__main__":
    main()
