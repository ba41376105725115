"""What a program sends in the place of an upload."""

from pathlib import Path

import httpx

from web_page.run import Run


def test_a_program_cannot_name_a_file_of_this_computer(run: Run, address: str, drawing: Path) -> None:
    data = {"data": [{"path": str(drawing)}, run.name]}
    answer = httpx.post(f"{address}gradio_api/call/reconstruct", json=data).json()
    said = httpx.get(f"{address}gradio_api/call/reconstruct/{answer['event_id']}").text
    assert "event: error" in said
    assert "no picture was uploaded: upload the file itself" in said
