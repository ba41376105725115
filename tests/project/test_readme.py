"""What README shows in Python does what it says."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.launch import ROOT


def test_the_lines_of_python_draw_four_images() -> None:
    [lines] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(compile(lines, "README.md", "exec"), {})
    pixels_HWC = np.asarray(Image.open(Path("four.png")))
    assert pixels_HWC.shape == (100, 4 * 100, 3)
    assert len(np.unique(pixels_HWC.reshape(-1, 3), axis=0)) > 20
