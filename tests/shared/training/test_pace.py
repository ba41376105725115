"""The pace of a training, remembered through stops."""

import json
from pathlib import Path

import pytest

from shared.training.pace import Pace


def test_pace_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "pace.jsonl"
    lines = [{"images": images, "step": 8, "seconds": 15.0, "peak": 1.0} for images in (8, 16, 24)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    pace = Pace(path, minutes=0.5)
    assert pace(16)
    assert pace.seconds == 30
    assert pace.summary()["images_per_second"] == pytest.approx(8 / 15)
