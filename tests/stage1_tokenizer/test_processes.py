"""Stage one by two processes: the same run as by one, and the same cache.

Run as a script, this file is one of the two: it does in the current directory what `by_two` says.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.errors import UserError
from shared.runs.run_directory import RunDirectory
from shared.runs.token_cache import open_cache
from stage1_tokenizer import train as stage1
from stage1_tokenizer.cache import cache_tokens
from stage1_tokenizer.quantisers.vector import VectorConfig
from stage1_tokenizer.run_config import TokenizerRun
from tests.support.launch import launch
from tests.support.narrow import present
from tests.support.tiny import logged, save_drawings, tokenizer_run

STEP = 8  # images, whatever the number of processes
HALF = 48  # images, where a run changes the number of its processes


def configuration(processes: int, accumulation: int = 1, **quantiser: Any) -> TokenizerRun:
    """A run that does not depend on the number of processes, unless `quantiser` says otherwise."""
    config = tokenizer_run(
        Path("drawings"), batch_size=STEP // processes // accumulation, accumulation=accumulation, precision="fp32",
        evaluate_every=32, save_every=48,
    )  # fmt: skip
    # The first codes are random. Those taken from encoder outputs, as revived ones, are of the first process's images:
    # the same on both processes, but others than one process takes.
    codebook = VectorConfig(codes=64, dim=8, **{"warm_up": 0, "revival_window": 0, **quantiser})
    return config.model_copy(update={"model": config.model.model_copy(update={"quantiser": codebook})})


def at_half(images: int) -> bool:
    return images >= HALF


def by_two() -> None:
    stage1.train(configuration(2), Path("two"))
    stage1.train(configuration(2, accumulation=2), Path("two-accumulating"))
    stage1.train(configuration(2), Path("two-then-one"), at_half)
    stage1.train(configuration(2), Path("one-then-two"))
    save = stage1.Trainee.save

    def save_all(self: stage1.Trainee, run: RunDirectory) -> None:
        save(self, run)
        rank = self.accelerator.process_index
        torch.save((self.model.state_dict(), self.ema.average), f"revived-{rank}.pt")

    stage1.Trainee.save = save_all  # type: ignore[method-assign]
    stage1.train(configuration(2, warm_up=8, revival_window=2, revival_steps=0), Path("revived"))
    cache_tokens(Path("two"), batch_size=3)
    cache_tokens(Path("two"), batch_size=3)  # is left as it is


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of all runs, by one process and by two."""
    directory = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        save_drawings(directory / "drawings")
        stage1.train(configuration(1), Path("one"))
        stage1.train(configuration(1), Path("half"), at_half)
        shutil.copytree("half", "one-then-two")  # this process has locked the other
        launch(__file__)
        stage1.train(configuration(1), Path("two-then-one"))
    return directory


@pytest.mark.parametrize("name", ["two", "two-accumulating", "two-then-one", "one-then-two"])
def test_two_processes_log_and_learn_what_one_does(runs: Path, name: str) -> None:
    one, two = logged(runs / "one"), logged(runs / name)
    assert len(one) == len(two) == 10
    assert sum("validation/psnr" in line for line in one) == 3
    for ours, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-5, abs=1e-5)
    first, second = RunDirectory(runs / "one"), RunDirectory(runs / name)
    weights, others = (run.load(present(run.newest())).ema for run in (first, second))
    for own in ("quantiser.recent_RD", "quantiser.written"):  # what a process remembers, of its own images
        del weights[own], others[own]
    torch.testing.assert_close(weights, others, rtol=1e-4, atol=1e-5)
    assert (runs / name / "samples/reconstructions.png").exists()


def test_both_processes_have_one_codebook_through_initialisation_and_revival(runs: Path) -> None:
    one, other = (torch.load(runs / f"revived-{rank}.pt") for rank in range(2))
    replaced = {line["images"]: line["codes_replaced"] for line in logged(runs / "revived") if "codes_replaced" in line}
    assert min(replaced) == 32  # 8 x 64 vectors, 16 an image, whatever the number of processes
    assert replaced.pop(32) == 64
    assert sum(replaced.values()) > 0
    for mine, theirs in zip(one, other, strict=True):
        assert mine.keys() == theirs.keys()
        # Each remembers encoder outputs of its own images: new codes are chosen from the first one's.
        assert [name for name in mine if "recent" not in name and not torch.equal(mine[name], theirs[name])] == []


def test_a_cache_by_two_processes_has_every_image_once_and_in_order(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = open_cache(runs / "two/tokens")
    monkeypatch.chdir(runs)
    shutil.move("two/tokens", "by-two")
    one = open_cache(cache_tokens(Path("two"), batch_size=3))
    assert one.info == two.info
    assert len(one.tokens["train"]) == 2 * 10
    for split in ("train", "validation"):
        assert (one.tokens[split] == two.tokens[split]).all()
        assert (present(one.labels[split]) == two.labels[split]).all()
    assert len({grid.tobytes() for grid in one.tokens["train"][:10]}) == 10  # grids that tell the images apart


def test_a_run_goes_on_with_as_many_images_a_step_only(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    with pytest.raises(UserError, match=r"has 8 images, and would now have 4.*training\.accumulation=2 makes it so"):
        stage1.train(configuration(2), Path("half"))
    _, held_out = stage1.train(configuration(2), Path("two"))  # a finished one is left as it is
    [last] = [line for line in logged(Path("two")) if line["images"] == 96 and "validation/psnr" in line]
    assert held_out.quality().psnr == pytest.approx(last["validation/psnr"], rel=1e-6)


if __name__ == "__main__":
    by_two()
