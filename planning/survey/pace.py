"""How fast this machine trains what a plan may choose: a few real steps of either stage, timed."""

import contextlib
import io
import multiprocessing
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

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

NO_END = 10**9  # images: the clock ends it
SKIPPED, FEWEST = 2, 3  # steps not counted, and counted at least
GRIDS = 64  # random ones that a prior is timed on


@dataclass(frozen=True)
class Rates:
    """Trained on in a second: images by a tokenizer, token grids by a prior, and images by a decoder alone."""

    images: float
    grids: float
    decoded: float


def time_stages(
    settings: Mapping[Stage, Sequence[Setting]], shape: Shape, changes: Sequence[str], seconds: float
) -> Rates:
    """Train each stage for a third of `seconds`, in a folder that is gone afterwards; compiling comes on top.

    It runs in a process of its own, so that the memory it takes is free again for the training itself; that ends with
    this one. changes: `key=value` of the user's. Raises DoesNotFit where the memory is too small.
    """
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, spawn, _end_with_the_first) as process:
        try:
            return process.submit(_time_stages, settings, shape, changes, Path(folder), seconds / 3).result()
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, BrokenProcessPool) and not out_of_memory(error):
                raise
            reason = "the system killed it, mostly for memory" if isinstance(error, BrokenProcessPool) else "no memory"
            raise DoesNotFit(
                f"a training of {shape} does not fit ({reason}): try smaller batches (training.batch_size=4 "
                "prior.training.batch_size=4), or smaller images (data.image_size=32)"
            ) from None
        except signals.Stopped:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _end_with_the_first() -> None:
    """Leave signals to the process that was started first; where it ends this one, what is held is released."""
    signals.ignore()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())


def _time_stages(
    settings: Mapping[Stage, Sequence[Setting]], shape: Shape, changes: Sequence[str], folder: Path, seconds: float
) -> Rates:
    with _quietly():
        images = _time_tokenizer(settings["tokenizer"], changes, folder, seconds)
        decoded = _time_decoder(settings["decoder"], changes, folder, seconds)
        grids = _time_prior(settings["prior"], changes, shape, folder, seconds)
    return Rates(images, grids, decoded)


def _time_tokenizer(settings: Sequence[Setting], changes: Sequence[str], folder: Path, seconds: float) -> float:
    # Codes of the first vectors that come, so that they are looked up as in most of a training.
    early = [*changes, "model.quantiser.warm_up=1"]
    pace = Pace(folder / "tokenizer.jsonl", None)
    stage1.train(tokenizer_run(settings, "paced", NO_END, early), folder / "tokenizer", _until(pace, seconds))
    return _rate(pace)


def _time_decoder(settings: Sequence[Setting], changes: Sequence[str], folder: Path, seconds: float) -> float:
    # Of the tokenizer that was timed; a discriminator counts from the first step.
    of_it = [*changes, "model.quantiser.warm_up=1", f"decoder.init={folder / 'tokenizer'}"]
    if decoder_run(settings, "paced", NO_END, of_it).loss.adversarial:
        of_it += [f"decoder.loss.adversarial.{key}=0" for key in ("start", "warm_up", "ramp")]
    pace = Pace(folder / "decoder.jsonl", None)
    run = decoder_run(settings, "paced", NO_END, of_it)
    stage1.train(run, folder / "decoder", _until(pace, seconds))
    return _rate(pace)


def _time_prior(
    settings: Sequence[Setting], changes: Sequence[str], shape: Shape, folder: Path, seconds: float
) -> float:
    tokens = write_random_tokens(folder / "tokens", shape, codes=1024, classes=_classes(settings))
    pace = Pace(folder / "prior.jsonl", None)
    run = prior_run(settings, "paced", NO_END, [*changes, f"prior.tokens={tokens}"])
    stage2.train(run, folder / "prior", _until(pace, seconds))
    return _rate(pace)


def _until(pace: Pace, seconds: float) -> Callable[[int], bool]:
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


def _rate(pace: Pace) -> float:
    """Images a second in the median step."""
    return statistics.median(line["step"] / line["seconds"] for line in pace.lines[SKIPPED:])


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the lines and bars of a training, which would be taken for the real one."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
