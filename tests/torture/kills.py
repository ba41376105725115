"""Kill training and caching again and again, and see that nothing is lost: make torture [ARGS="--kills 500 --seed 1"]

A tiny tokenizer is trained, its tokens cached, and a tiny prior trained, each first undisturbed. Then each is killed
(SIGKILL) and started again, over and over: at a random instant; shortly after an unfinished checkpoint or cache
appeared on the disk; right before a file operation chosen at random; or its disk is full, which must end in one
message. After every kill what is on the disk must be whole, and at every end equal to the undisturbed run's, bit for
bit.

Each attempt is a fork of this process, so that none waits for imports. This process itself computes nothing.
"""

import argparse
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from shared.errors import run_command
from shared.runs.run_directory import RunDirectory
from shared.runs.token_cache import open_cache
from stage1_tokenizer import train as stage1
from stage1_tokenizer.cache import cache_tokens
from stage2_prior import train as stage2
from tests.support.tiny import logged, prior_run, save_drawings, tokenizer_run

TOKENIZER, PRIOR = Path("runs/tokenizer/tiny"), Path("runs/prior/tiny")
DRAWINGS = Path("../drawings")
WAYS = ("at an instant", "in a write", "at a file operation", "full disk")


@dataclass(frozen=True)
class Job:
    """What is killed: `work` in the current directory; `unfinished` matches what it writes before it is whole;
    `check` raises unless what is on the disk is whole; `result` is what must not depend on kills.
    """

    name: str
    work: Callable[[], Any]
    unfinished: str
    check: Callable[[], None]
    result: Callable[[], Any]
    begin_again: Callable[[], None]


def train_tokenizer() -> None:
    stage1.train(tokenizer_run(DRAWINGS, save_every=16, evaluate_every=48))


def train_prior() -> None:
    stage2.train(prior_run("hybrid", save_every=16, evaluate_every=32))


def check_run(path: Path) -> None:
    """Every state is whole, and the weights for inference are those of one of them."""
    run = RunDirectory(path)
    for state in run.states():
        run.load(state)
    for name in ("model.safetensors", "ema.safetensors"):
        if (path / name).exists():
            run.check_published(name)


def result_of_run(path: Path) -> Any:
    """Weights, averages, optimiser and counters of the end, and every line of the log."""
    run = RunDirectory(path)
    found = run.load_newest()
    assert found is not None
    return found[0].name, *found[1], logged(path)


def check_cache() -> None:
    """A cache that was there once is there always, whole."""
    if Path("cached").exists():
        open_cache(TOKENIZER / "tokens")


def result_of_cache() -> Any:
    cache = open_cache(TOKENIZER / "tokens")
    arrays = [*cache.tokens.values(), *cache.labels.values()]
    return (
        cache.info.model_dump(),
        cache.code_vectors_KD,
        [None if array is None else torch.tensor(array.astype("int64")) for array in arrays],
    )


def make_stale_cache() -> None:
    """A cache with fewer views than the configuration asks for: it makes way for a new one."""
    config = TOKENIZER / "config.yaml"
    text = config.read_text()
    values = yaml.safe_load(text)
    values["cache"]["views"] = 1
    config.write_text(yaml.safe_dump(values))
    cache_tokens(TOKENIZER)
    config.write_text(text)
    Path("cached").touch()


JOBS = (
    Job(
        "tokenizer", train_tokenizer, f"{TOKENIZER}/state/unfinished-*", lambda: check_run(TOKENIZER),
        lambda: result_of_run(TOKENIZER), lambda: shutil.rmtree(TOKENIZER),
    ),
    Job(
        "cache", lambda: cache_tokens(TOKENIZER), f"{TOKENIZER}/.tokens.unfinished", check_cache,
        result_of_cache, make_stale_cache,
    ),
    Job(
        "prior", train_prior, f"{PRIOR}/state/unfinished-*", lambda: check_run(PRIOR),
        lambda: result_of_run(PRIOR), lambda: shutil.rmtree(PRIOR),
    ),
)  # fmt: skip


def equal(one: Any, other: Any) -> bool:
    """Whether two nests of containers hold the same tensors and values, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@dataclass
class Child:
    """A fork of this process that does some work in a directory, its output going to a file there."""

    directory: Path
    operations: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 8))  # shared: how many it has done
    pid: int = 0

    def start(self, work: Callable[[], Any], die_at: int = 0, largest_file: int | None = None) -> None:
        """Begin. die_at: right before which file operation to be killed; largest_file: bytes it can write to one."""
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            os.chdir(self.directory)
            output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.addaudithook(lambda event, arguments: self._count(event, arguments, die_at))
            if largest_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
            run_command(work)
            status = 0
        except SystemExit as ended:
            print(ended.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _count(self, event: str, arguments: tuple, die_at: int) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not writes and event not in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link"):
            return
        count = self.count() + 1
        struct.pack_into("q", self.operations, 0, count)
        if count == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def count(self) -> int:
        """File operations done so far."""
        return struct.unpack_from("q", self.operations)[0]

    def ended(self) -> bool:
        """Whether it has ended, by now; `wait` may still be called."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self) -> int:
        """Its exit status; -9 if it was killed."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def output(self) -> str:
        """What it said."""
        return (self.directory / "output").read_text(errors="replace")


def do(work: Callable[[], Any], directory: Path, what: str) -> Child:
    """Do some work that must succeed, in a child."""
    child = Child(directory)
    child.start(work)
    if child.wait() != 0:
        raise AssertionError(f"{what}:\n{child.output()}")
    return child


class Torturer:
    """Tortures one job after another in `root`, and counts."""

    def __init__(self, root: Path, seed: int) -> None:
        self.straight, self.tortured = root / "straight", root / "tortured"
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()

    def torture(self, job: Job, kills: int) -> None:
        """Do `job` undisturbed, then with at least `kills` kills, and again to its end."""
        begun = time.monotonic()
        operations = do(job.work, self.straight, f"{job.name}, undisturbed").count()
        seconds = time.monotonic() - begun
        killed = 0
        while killed < kills:
            way = WAYS[self.counts["attempts"] % len(WAYS)]
            finished = self.attempt(job, way, seconds, operations)
            killed += not finished and way != "full disk"
            do(job.check, self.tortured, f"{job.name} is not whole after a kill {way}")
            if finished:
                self.compare(job)
                do(job.begin_again, self.tortured, f"{job.name}, beginning again")
        do(job.work, self.tortured, f"{job.name} did not go on")
        self.compare(job)

    def attempt(self, job: Job, way: str, seconds: float, operations: int) -> bool:
        """Start the job, disturb it in this way; whether it came to its end all the same."""
        child = Child(self.tortured)
        child.start(
            job.work,
            die_at=self.random.randint(1, operations) if way == "at a file operation" else 0,
            largest_file=int(10 ** self.random.uniform(4, 5.5)) if way == "full disk" else None,
        )
        if way == "at an instant":
            self.wait(child, seconds=self.random.uniform(0, seconds))
        if way == "in a write":
            self.wait(child, pattern=job.unfinished)
            time.sleep(self.random.uniform(0, 0.02))
        if way in ("at an instant", "in a write"):
            os.kill(child.pid, signal.SIGKILL)
        status = child.wait()
        self.count(job, way, status)
        if status > 0 and (way != "full disk" or "error: " not in child.output() or "Traceback" in child.output()):
            raise AssertionError(f"{job.name}, {way}: ended with status {status}:\n{child.output()}")
        return status == 0

    def wait(self, child: Child, seconds: float = 300, pattern: str | None = None) -> None:
        """Wait so long, or until a path below the directory matches, or the child has ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not child.ended():
            if pattern and next(self.tortured.glob(pattern), None):
                return
            time.sleep(0.0005)

    def count(self, job: Job, way: str, status: int) -> None:
        """Count an attempt by how it ended."""
        self.counts["attempts"] += 1
        self.counts[f"{job.name}: {'killed' if status < 0 else 'full disk' if status else 'finished'}"] += 1
        if status < 0:
            self.counts["kills"] += 1
            self.counts["kills with a write half done"] += next(self.tortured.glob(job.unfinished), None) is not None
        elif status:
            self.counts["full disks"] += 1

    def compare(self, job: Job) -> None:
        """The result must be the undisturbed run's."""

        def compare() -> None:
            ours = job.result()
            os.chdir(self.straight)
            assert equal(ours, job.result()), "differs"

        do(compare, self.tortured, f"{job.name} does not equal the undisturbed run")
        self.counts["results bit-equal"] += 1


def main() -> None:
    """Read the command line, torture, report."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.kills", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=60, help="at least how many, over all jobs (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="torture-"))
    os.environ["TESSERA_CACHE"] = str(root / "cache")
    torch.set_num_threads(1)
    for name in ("straight", "tortured"):
        (root / name).mkdir()
    do(lambda: save_drawings(root / "drawings"), root, "drawing")
    torturer = Torturer(root, args.seed)
    for job in JOBS:
        torturer.torture(job, -(-args.kills // len(JOBS)))
    shutil.rmtree(root)
    print(json.dumps(torturer.counts))


if __name__ == "__main__":
    main()
