"""How fast this machine trains what a plan may choose: a few real steps of either stage, timed."""

import contextlib
import gc
import io
import multiprocessing
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from planning.choice.configurations import decoder_run, prior_run, tokenizer_run
from planning.choice.setting import Setting
from planning.choice.shape import Shape
from planning.choice.stage import Stage
from shared import signals
from shared.errors import out_of_memory
from shared.runs.token_cache import TokenInfo, write_cache
from shared.training.devices.memory import DoesNotFit
from shared.training.pace import Pace
from stage1_tokenizer import train as stage1
from stage2_prior import train as stage2

Until = Callable[[int], bool]  # whether a training ends after so many images
NO_END = 10**9  # images: the clock ends it
SKIPPED, FEWEST = 2, 3  # steps not counted, and counted at least
GRIDS = 64  # random ones that a prior is timed on


@dataclass(frozen=True)
class Rates:
    """Trained on in a second: images by a tokenizer, token grids by a prior, and images by a decoder alone."""

    images: float
    grids: float
    decoded: float


class StageTimer:
    """Times trainings of a plan's stages: `with StageTimer(5) as timer: timer("prior", settings, shape, changes)`.

    They run in a process of their own, so that the memory they take is free again for the training itself, and in a
    folder that is gone afterwards. The process ends with this one.
    """

    def __init__(self, seconds: float) -> None:
        """seconds: of training that are timed, of each stage; compiling comes on top."""
        self._seconds = seconds
        self._folder = tempfile.TemporaryDirectory()
        self._process: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, raised: type[BaseException] | None, *_: object) -> None:
        for child in multiprocessing.active_children() if raised else ():
            child.terminate()
        self._end_process()
        self._folder.cleanup()

    def __call__(
        self, stage: Stage, settings: Mapping[Stage, Sequence[Setting]], shape: Shape, changes: Sequence[str]
    ) -> float:
        """Images, or token grids, that a stage trains on in a second at a shape; a decoder after its tokenizer.

        changes: `key=value` of the user's. Raises DoesNotFit where the memory is too small.
        """
        if self._process is None:
            self._process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _end_with_the_first)
        folder = Path(self._folder.name)
        try:
            return self._process.submit(_time_stage, stage, settings, shape, changes, folder, self._seconds).result()
        except (MemoryError, RuntimeError) as error:
            self._end_process()
            if not isinstance(error, BrokenProcessPool) and not out_of_memory(error):
                raise
            reason = "the system killed it, mostly for memory" if isinstance(error, BrokenProcessPool) else "no memory"
            raise DoesNotFit(
                f"a training of {shape} does not fit ({reason}): try smaller batches (training.batch_size=4 "
                "prior.training.batch_size=4), or smaller images (data.image_size=32)"
            ) from None

    def _end_process(self) -> None:
        if self._process:
            self._process.shutdown()
            self._process = None


def _end_with_the_first() -> None:
    """Leave signals to the process that was started first; where it ends this one, what is held is released."""
    signals.ignore()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())


def _time_stage(
    stage: Stage, settings: Mapping[Stage, Sequence[Setting]], shape: Shape, changes: Sequence[str], folder: Path,
    seconds: float,
) -> float:  # fmt: skip
    torch.compiler.reset()  # what was compiled for another shape counts against a limit
    gc.collect()
    shutil.rmtree(folder / stage, ignore_errors=True)
    pace = Pace(folder / stage / "pace.jsonl", None)
    (folder / stage).mkdir()
    until = _until(pace, seconds)
    with _quietly():
        if stage == "tokenizer":
            _train_tokenizer(settings[stage], changes, folder / stage, until)
        elif stage == "decoder":
            _train_decoder(settings[stage], changes, folder, until)
        else:
            _train_prior(settings[stage], changes, shape, folder / stage, until)
    return statistics.median(line["step"] / line["seconds"] for line in pace.lines[SKIPPED:])


def _train_tokenizer(settings: Sequence[Setting], changes: Sequence[str], run: Path, until: Until) -> None:
    # Codes of the first vectors that come, so that they are looked up as in most of a training.
    early = [*changes, "model.quantiser.warm_up=1"]
    stage1.train(tokenizer_run(settings, "paced", NO_END, early), run / "run", until)


def _train_decoder(settings: Sequence[Setting], changes: Sequence[str], folder: Path, until: Until) -> None:
    # Of the tokenizer that was timed; a discriminator counts from the first step.
    of_it = [*changes, "model.quantiser.warm_up=1", f"decoder.init={folder / 'tokenizer' / 'run'}"]
    if decoder_run(settings, "paced", NO_END, of_it).loss.adversarial:
        of_it += [f"decoder.loss.adversarial.{key}=0" for key in ("start", "warm_up", "ramp")]
    stage1.train(decoder_run(settings, "paced", NO_END, of_it), folder / "decoder" / "run", until)


def _train_prior(settings: Sequence[Setting], changes: Sequence[str], shape: Shape, folder: Path, until: Until) -> None:
    tokens = write_random_tokens(folder / "tokens", shape, codes=1024, classes=_classes(settings))
    stage2.train(prior_run(settings, "paced", NO_END, [*changes, f"prior.tokens={tokens}"]), folder / "run", until)


def _until(pace: Pace, seconds: float) -> Until:
    """Ends a training after so many seconds of steps, of which the first are not counted: they compile."""

    def ended(images: int) -> bool:
        pace(images)
        counted = [line["seconds"] for line in pace.lines[SKIPPED:]]
        return len(counted) >= FEWEST and sum(counted) >= seconds

    return ended


def _classes(settings: Sequence[Setting]) -> int:
    """Two where the prior is told classes: how many there are costs nothing."""
    return 2 if any("conditioning" in setting.value for setting in settings if setting.key == "model") else 0


def write_random_tokens(path: Path, shape: Shape, codes: int, classes: int) -> Path:
    """A token cache of random grids; its `classes` have names where there are any."""
    info = TokenInfo(
        grid=shape.grid, codes=codes, code_dim=16, tokenizer="none", fingerprint="none", source="random tokens",
        preprocessing={}, views=1, class_names=[str(label) for label in range(classes)] or None,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    tokens_Bhw = torch.randint(codes, (GRIDS, *shape.grid), generator=generator)
    labels_B = torch.arange(GRIDS) % classes if classes else None
    vectors_KD = torch.nn.functional.normalize(torch.randn(codes, 16, generator=generator), dim=1)
    write_cache(path, info, vectors_KD, {"train": [(tokens_Bhw, labels_B)], "validation": [(tokens_Bhw, labels_B)]})
    return path


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the lines and bars of a training, which would be taken for the real one."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
