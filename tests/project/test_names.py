"""Names that are not UTF-8, as an old archive leaves them, go through every part and are shown where people read."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator

import sample
from judge import write_page
from shared.errors import UserError, run_command
from shared.runs.token_cache import open_cache
from shared.text import SHOWN, shown
from stage1_tokenizer.cache import cache_tokens, is_whole
from stage1_tokenizer.judging.evaluation import evaluate_run
from stage1_tokenizer.judging.report import write_report
from stage1_tokenizer.tokenizer import load_tokenizer
from stage1_tokenizer.train import train as train_tokenizer
from stage2_prior.train import train as train_prior
from tests.support.tiny import prior_run, save_drawings, tokenizer_run

CAFE, STREET = os.fsdecode(b"caf\xe9"), os.fsdecode(b"stra\xdfe")
ROOT = os.fsdecode(b"Br\xfcssel")


def test_what_cannot_be_decoded_is_shown_as_its_bytes() -> None:
    assert shown("plain \N{SNOWMAN} \\ text") == "plain \N{SNOWMAN} \\ text"
    assert shown(f"{CAFE}/{STREET}") == r"caf\xe9/stra\xdfe"
    assert "\N{SNOWMAN}\N{LATIN SMALL LETTER E WITH ACUTE}".encode("latin-1", SHOWN) == b"\\u2603\xe9"
    assert shown("\ud800") == r"\ud800"


def test_a_command_prints_any_name_on_any_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO(), io.BytesIO()
    streams = [io.TextIOWrapper(*pair) for pair in zip(written, ("ascii", "utf-8"), strict=True)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    monkeypatch.setattr("shared.signals.catch", lambda: None)

    def say() -> None:
        print(CAFE, "\N{SNOWMAN}")
        print(CAFE, "\N{SNOWMAN}", file=sys.stderr)
        raise UserError(STREET)

    with pytest.raises(SystemExit) as ended:
        run_command(say)
    assert ended.value.code == f"error: {STREET}"
    for stream in streams:
        stream.flush()
    assert written[0].getvalue() == b"caf\\xe9 \\u2603\n"
    assert written[1].getvalue() == "caf\\xe9 \N{SNOWMAN}\n".encode()


def test_names_that_are_not_utf8_go_through_every_part(
    own_directory: Path, closed_network: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_drawings(own_directory / ROOT)
    (folder / "faces").rename(folder / CAFE)
    (folder / "animals").rename(folder / STREET)
    for number, picture in enumerate(sorted(folder.rglob("*.png"))):
        picture.rename(picture.with_name(os.fsdecode(b"\xe9%d.png" % number)))
    (folder / CAFE / os.fsdecode(b"\xfcnreadable.png")).write_bytes(b"")
    config = tokenizer_run(folder, images=48)
    config = config.model_copy(update={"data": config.data.model_copy(update={"max_bad_fraction": 0.5})})
    run, _ = train_tokenizer(config)
    again, _ = train_tokenizer(config)  # which reads its configuration back
    assert again.path == run.path
    info = open_cache(cache_tokens(run.path)).info
    assert info.class_names == [CAFE, STREET]
    assert info.data.source == str(folder)
    assert is_whole(run.path / "tokens", info)
    evaluated = evaluate_run(run.path, "validation", 8, None, Accelerator())
    prior, _ = train_prior(prior_run(images=32))
    pages = [write_report(run.path), write_page(prior.path, "last", Accelerator())]
    files = [*pages, *(run.path / "evaluation").glob("*.md"), *own_directory.glob("runs/*/*/*.json"),
             *own_directory.glob("runs/*/*/*.yaml"), *own_directory.glob("runs/*/*/evaluation/*.json")]  # fmt: skip
    for file in files:
        file.read_bytes().decode()  # each is UTF-8
    assert rf"{shown(str(folder))}" in pages[0].read_text()
    assert r"Br\xfcssel" in pages[0].read_text()
    assert json.loads((prior.path / "tokens.json").read_text())["class_names"] == [CAFE, STREET]
    assert evaluated.measures
    load_tokenizer(run.path).save_pretrained(own_directory / "shared")
    assert r"Br\xfcssel" in (own_directory / "shared/README.md").read_text()
    photo = next((folder / CAFE).glob("*.png"))
    out = own_directory / os.fsdecode(b"sch\xf6n")
    options = ["--num", "1", "--out", str(out), "--complete", str(photo), "--class-label", CAFE]
    monkeypatch.setattr(sys, "argv", ["sample.py", "--prior", str(prior.path), *options])
    sys.stdout.reconfigure(errors=SHOWN)  # type: ignore[union-attr]
    sample.main()
    assert [path.name for path in out.glob("*seed0*")] == [f"{photo.stem}-seed0-0000.png"]
    assert r"sch\xf6n" in capsys.readouterr().out
