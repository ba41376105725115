"""metrics.jsonl through a stop."""

import json
from pathlib import Path

from shared.checkpoint import RunDirectory
from shared.training.log import forget_after


def test_metrics_after_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    lines = [json.dumps({"images": images}) for images in (10, 20, 30)]
    run.metrics.write_text("\n".join(lines) + '\n{"images": 4')
    forget_after(run.metrics, 20)
    assert run.metrics.read_text().splitlines() == lines[:2]
