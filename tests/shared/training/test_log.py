"""metrics.jsonl through a stop."""

import json
from pathlib import Path

from shared.runs.run_directory import RunDirectory
from shared.training.log import Log, forget_after, read_metrics


def test_metrics_after_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    lines = [json.dumps({"images": images}) for images in (10, 20, 30)]
    run.metrics.write_text("\n".join(lines) + '\n{"images": 4')
    forget_after(run.metrics, 20)
    assert run.metrics.read_text().splitlines() == lines[:2]


def test_a_last_step_beyond_the_length_of_the_run_fills_the_bar(tmp_path: Path) -> None:
    log = Log(RunDirectory(tmp_path), total=100, images=32, main=True, unit="img")
    for _ in range(3):
        log.advance(32)
    log.close()
    assert log.bar.n == 100


def test_a_line_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    lines = [{"images": images, "loss": 1 / images} for images in (16, 32)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    for cut in ("", '{"images": 48, "lo', "[1", "\0\0"):
        (tmp_path / "metrics.jsonl").write_text(text + cut)
        assert read_metrics(tmp_path / "metrics.jsonl") == lines
