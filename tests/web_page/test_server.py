"""What is refused, and what is given out beside the page."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.errors import UserError
from tests.planning.watching.samples import written_plan
from tests.support.narrow import present
from web_page.run import Run

pytest.importorskip("gradio", reason="the web page needs gradio: make develop")

from web_page.server import serve


def test_an_upload_of_too_many_bytes_gets_our_sentence(
    open_page: Callable[..., Any], drawing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("web_page.server.MOST_BYTES", 100)
    page = open_page()
    page.get_by_role("tab", name="Reconstruct").click()
    page.locator("[role=tabpanel]:visible input[type=file]").set_input_files(drawing)
    page.get_by_text("this page takes 0 MB: make the picture smaller").first.wait_for()


@pytest.mark.parametrize("size", ["250000001", None])
def test_an_upload_of_too_many_bytes_is_refused_before_it_is_read(address: str, size: str | None) -> None:
    with socket.create_connection(("127.0.0.1", present(httpx.URL(address).port))) as it:
        length = f"Content-Length: {size}" if size else "Transfer-Encoding: chunked"
        it.sendall(f"POST /gradio_api/upload HTTP/1.1\r\nHost: a\r\n{length}\r\n\r\n".encode())
        answer = it.recv(10_000).decode()
        while "\r\n\r\n" not in answer or answer.endswith("\r\n\r\n"):
            answer += it.recv(10_000).decode()
    assert answer.startswith("HTTP/1.1 413")
    assert "this page takes 250 MB" in answer


def test_pages_of_plans_are_given_out_and_no_other_file(address: str) -> None:
    plan = written_plan()
    (plan.folder / "index.html").write_text("<p>the end")
    answer = httpx.get(f"{address}runs/plans/mine/index.html")
    assert (answer.text, answer.headers["content-type"]) == ("<p>the end", "text/html; charset=utf-8")
    for other in ("runs/plans/mine/plan.json", "runs/plans/none/index.html", "runs/plans/%2e%2e/index.html"):
        assert httpx.get(f"{address}{other}").status_code == 404


def test_a_port_in_use_is_a_message(run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="cannot serve on 127.0.0.1"):
            serve(run, "127.0.0.1", taken.getsockname()[1])
