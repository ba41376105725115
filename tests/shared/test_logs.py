import logging

import pytest

from shared import logs


def test_a_line_is_shown_once_and_by_the_first_process_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logging.getLogger("shared.of_this_test")
    room = logging.getLogger("shared")
    monkeypatch.setattr(room, "handlers", [])
    monkeypatch.setattr(room, "level", room.level)
    logs.show()
    for _ in range(2):
        log.info("12 images")
    assert capsys.readouterr().err == "12 images\n"
    monkeypatch.setenv("RANK", "1")
    logs.show()
    log.info("13 images")
    log.warning("1 broken")
    assert capsys.readouterr().err == "1 broken\n"
