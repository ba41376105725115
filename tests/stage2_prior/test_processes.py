"""Stage two by two processes, with whole weights (DDP) and with shared-out ones (FSDP2): the same run as by one.

Run as a script, this file is one of the two: it does in the current directory what `by_two` says.
"""

import shutil
from contextlib import chdir, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shared.errors import UserError
from shared.runs.run_directory import RunDirectory, State
from shared.runs.token_cache import Rows, Split, TokenInfo, write_cache
from stage2_prior import train as stage2
from stage2_prior.prior import load_prior
from stage2_prior.run_config import PriorRun
from tests.support.launch import launch
from tests.support.tiny import logged, prior_run, tokenizer_run

STEP = 8  # grids, whatever the number of processes
HALF = 32  # grids, where a run changes the number of its processes
RUN = Path("runs/prior/tiny")


def write_random_cache() -> None:
    """Twelve grids of two views, and five held out, which two processes cannot share evenly."""
    info = TokenInfo(
        grid=(3, 4), codes=20, code_dim=8, tokenizer="nowhere", fingerprint="0", source="none",
        preprocessing={"image_size": [24, 32]}, views=2, class_names=None,
    )  # fmt: skip
    tokens_Bhw = torch.randint(20, (24, 3, 4))
    rows: dict[Split, Rows] = {"train": [(tokens_Bhw, None)], "validation": [(tokens_Bhw[:5] // 2, None)]}
    write_cache(Path("tokens"), info, torch.randn(20, 8), rows)


def configuration(processes: int, accumulation: int = 1, **training: Any) -> PriorRun:
    """A run that does not depend on the number of processes: dropout would, each draws its own."""
    config = prior_run(
        "hybrid", "codes", batch_size=STEP // processes // accumulation, accumulation=accumulation, precision="fp32",
        **{"log_every": 8, "evaluate_every": HALF, "save_every": HALF, **training},
    )  # fmt: skip
    model = config.model.model_copy(update={"dropout": 0.0})
    return config.model_copy(update={"tokens": "../tokens", "model": model})


class Killed(Exception):
    """Stands for a kill between two steps."""


def train(place: str, config: PriorRun, killed_at: int | None = None) -> None:
    """Train in a directory of its own, to the end or until a kill in the step after `killed_at` grids."""
    end_step = stage2.Trainee.end_step

    def end_step_or_die(trainee: stage2.Trainee) -> float:
        if trainee.images == killed_at:
            raise Killed
        return end_step(trainee)

    Path(place).mkdir(exist_ok=True)
    with chdir(place), pytest.MonkeyPatch.context() as patch, suppress(Killed):
        patch.setattr(stage2.Trainee, "end_step", end_step_or_die)
        stage2.train(config)


def spoil_last_step_of_rank_1(patch: pytest.MonkeyPatch) -> None:
    backward = stage2.Trainee.backward

    def backward_of_nan(trainee: stage2.Trainee, loss: torch.Tensor) -> None:
        bad = trainee.images + STEP == trainee.config.images and trainee.accelerator.process_index == 1
        backward(trainee, loss * float("nan") if bad else loss)

    patch.setattr(stage2.Trainee, "backward", backward_of_nan)


def by_two() -> None:
    whole, sharded = configuration(2), configuration(2, shard=True)
    train("whole", whole)
    train("sharded", sharded)
    train("sharded-accumulating", configuration(2, accumulation=2, shard=True))
    train("sharded-killed", sharded, killed_at=HALF + STEP)
    train("sharded-killed", sharded)
    train("two-then-one", sharded, killed_at=HALF)
    train("one-then-two", sharded)
    train("muon-sharded", configuration(2, shard=True, optimizer="muon"), killed_at=HALF)
    train("muon-sharded", configuration(2, shard=True, optimizer="muon"))
    with pytest.MonkeyPatch.context() as patch:
        spoil_last_step_of_rank_1(patch)
        train("spoilt", configuration(2, shard=True, images=HALF, save_every=STEP))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of all runs, by one process and by two."""
    place = tmp_path_factory.mktemp("processes")
    with chdir(place):
        write_random_cache()
        train("one", configuration(1, shard=True))  # alone, it has nothing to share
        train("muon-one", configuration(1, optimizer="muon"))
        train("half", configuration(1), killed_at=HALF)
        shutil.copytree("half", "one-then-two")  # this process has locked the other
        launch(__file__)
        train("two-then-one", configuration(1))
    return place


def state_of(run: Path, age: int = 0) -> State:
    directory = RunDirectory(run)
    return directory.load(directory.states()[age])


SAME = ["whole", "sharded", "sharded-accumulating", "sharded-killed", "two-then-one", "one-then-two"]


@pytest.mark.parametrize(("name", "alone"), [*((name, "one") for name in SAME), ("muon-sharded", "muon-one")])
def test_two_processes_log_and_learn_what_one_does(runs: Path, name: str, alone: str) -> None:
    one, two = logged(runs / alone / RUN), logged(runs / name / RUN)
    assert len(one) == len(two) == 8 + 2
    for line, other in zip(one, two, strict=True):
        assert other == pytest.approx(line, rel=1e-5, abs=1e-5)
    ours, theirs = state_of(runs / alone / RUN), state_of(runs / name / RUN)
    torch.testing.assert_close(ours.model, theirs.model, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.ema, theirs.ema, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.training["optimizer"], theirs.training["optimizer"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", SAME)
def test_whatever_trained_it_a_prior_loads_and_has_drawn(runs: Path, name: str) -> None:
    with chdir(runs / name):
        for weights in ("last", "best"):
            load_prior(RUN, weights)
    drawn, expected = (load_file(runs / run / RUN / "samples/000000064.safetensors") for run in (name, "one"))
    assert (drawn["tokens"] == expected["tokens"]).float().mean() > 0.9  # a weight's last bit may turn a draw


def test_a_sharded_run_resumes_bit_for_bit(runs: Path) -> None:
    straight, resumed = state_of(runs / "sharded" / RUN), state_of(runs / "sharded-killed" / RUN)
    torch.testing.assert_close(straight._asdict(), resumed._asdict(), rtol=0, atol=0)
    assert logged(runs / "sharded" / RUN) == logged(runs / "sharded-killed" / RUN)


def test_a_sharded_step_that_is_not_finite_on_one_process_leaves_nothing_behind(runs: Path) -> None:
    before, after = state_of(runs / "spoilt" / RUN, age=1), state_of(runs / "spoilt" / RUN)
    assert (before.training["images"], after.training["images"]) == (HALF - STEP, HALF)
    assert logged(runs / "spoilt" / RUN)[-2]["bad_steps"] == 1
    for part in ("model", "ema"):
        torch.testing.assert_close(getattr(before, part), getattr(after, part), rtol=0, atol=0)
    moments = (state.training["optimizer"]["state"] for state in (before, after))
    torch.testing.assert_close(*moments, rtol=0, atol=0)


def test_what_does_not_go_with_sharding_is_refused() -> None:
    with pytest.raises(UserError, match="shard: true and compile: true do not go together"):
        configuration(1, shard=True, compile=True)
    with pytest.raises(UserError, match=r"training\.shard"):  # is for priors
        tokenizer_run(Path("drawings"), shard=True)


if __name__ == "__main__":
    by_two()
