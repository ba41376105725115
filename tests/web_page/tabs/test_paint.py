"""What a canvas sends: paint is kept until it is asked for, little of it, and what is no paint is one message."""

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.narrow import present

pytest.importorskip("gradio", reason="the web page needs gradio: make develop")

import gradio as gr

from web_page.tabs.paint import MOST_BYTES, MOST_KEPT, Strokes, paint_editor


def layer(painted_HW: np.ndarray) -> bytes:
    pixels_HWC = np.zeros((*painted_HW.shape, 4), dtype=np.uint8)
    pixels_HWC[painted_HW] = 255
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, format="PNG")
    return file.getvalue()


def sent(name: str, content: bytes, kind: str = "layer", index: object = "0") -> Any:
    return SimpleNamespace(data={"type": kind, "index": index, "id": name}, files=[("file", content)])


def asked(name: str) -> Any:
    return SimpleNamespace(id=name, layers=[])


def test_paint_is_told_once() -> None:
    painted_HW = np.random.default_rng(1).random((20, 30)) < 0.5
    strokes = Strokes()
    for kind in ("background", "composite"):
        strokes.accept(sent("a", b"a picture", kind, None))
    strokes.accept(sent("a", layer(painted_HW)))
    assert np.array_equal(present(strokes.painted(asked("a"))), painted_HW)
    assert not present(strokes.painted(asked("a"))).any()
    assert strokes.painted(None) is None


def test_little_is_kept_whatever_is_sent() -> None:
    strokes = Strokes()
    strokes.accept(sent("far", b"x", index="2000000000"))
    strokes.accept(sent("large", bytes(MOST_BYTES + 1)))
    strokes.accept(sent("n" * 1000, b"x"))
    assert not strokes.kept
    for number in range(MOST_KEPT + 5):
        strokes.accept(sent(str(number), b"x"))
    assert list(strokes.kept) == [str(number) for number in range(5, MOST_KEPT + 5)]


@pytest.mark.parametrize(
    "content", [b"", b"no picture", layer(np.ones((9, 9), dtype=bool))[:-40], layer(np.ones((2001, 2000)) > 0)]
)
def test_what_is_no_paint_is_one_message(content: bytes) -> None:
    strokes = Strokes()
    strokes.accept(sent("a", content))
    with pytest.raises(gr.Error, match="what was painted cannot be read"):
        strokes.painted(asked("a"))


def test_the_editor_sends_its_paint_there() -> None:
    editor = paint_editor()
    editor.accept_blobs(sent("a", layer(np.ones((4, 4), dtype=bool))))
    assert editor.preprocess(asked("a")).all()  # type: ignore[union-attr]
    assert not editor.blob_storage
    assert editor.accept_blobs._is_server_fn
