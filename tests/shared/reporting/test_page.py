"""Pages and their figures."""

import re
from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest

from shared.reporting.curves import curves_section
from shared.reporting.page import Section, image, page, stages, strip


def test_a_page_needs_nothing_from_elsewhere_and_shows_text_as_text() -> None:
    text = page("<b>", {"run": "a & b"}, [Section("1 < 2", image(b"png", alt='"quoted"'))])
    assert not re.findall(r'(?:src|href)="(?!data:)|url\(|@import', text)
    assert "<h1>&lt;b&gt;</h1>" in text
    assert "<dd>a &amp; b</dd>" in text
    assert "<h2>1 &lt; 2</h2>" in text
    assert 'alt="&quot;quoted&quot;" src="data:image/png;base64,cG5n"' in text


def test_stages_are_spread_evenly_and_keep_first_and_last() -> None:
    paths = [Path(f"samples/{images:09d}.png") for images in range(0, 2000, 100)] + [Path("samples/grid.png")]
    numbers = [images for images, path in stages(paths)]
    assert numbers == [0, 300, 500, 800, 1100, 1400, 1600, 1900]
    assert stages(paths[:3]) == [(0, paths[0]), (100, paths[1]), (200, paths[2])]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[matplotlib.figure.Figure]:
    """The figures that are saved."""
    figures = []
    save = matplotlib.figure.Figure.savefig

    def remember(self: matplotlib.figure.Figure, *arguments: Any, **options: Any) -> None:
        figures.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", remember)
    return figures


def test_curves_have_a_panel_for_each_metric_with_training_and_held_out_in_one(drawn: list) -> None:
    lines = [{"images": 10, "l2": 1.0, "lr": 0.5}, {"images": 10, "validation/l2": 2.0, "validation/images": 7}]
    lines += [{"images": 20, "l2": 0.01, "lr": 0.4}, {"images": 20, "validation/psnr": 30.0}]
    text = curves_section(lines, {"psnr": "PSNR (dB)"}, "images seen").body
    assert re.findall("<figcaption>(.*?)</figcaption>", text) == ["l2", "learning rate", "PSNR (dB)"]
    panels = [axis for figure in drawn for axis in figure.axes]
    assert {axis.get_xlabel() for axis in panels} == {"images seen"}
    curves = [list(zip(*line.get_data(), strict=True)) for line in panels[0].lines]
    assert curves == [[(10, 1.0), (20, 0.01)], [(10, 2.0)]]
    assert [line.get_label() for line in panels[0].lines] == ["training", "held out"]
    assert [axis.get_yscale() for axis in panels] == ["log", "linear", "linear"]


def test_a_run_without_metrics_has_no_curves() -> None:
    assert "too short" in curves_section([], {}, "images seen").body


def test_a_strip_is_pictures_below_what_they_show() -> None:
    text = strip([b"png", b"other"], "a < b")
    assert text.index("a &lt; b") < text.index("cG5n") < text.index("b3RoZXI=")
