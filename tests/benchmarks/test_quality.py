"""The table of recipes: what goes where, what is done once, what is told of several seeds and of what failed."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from shared.config import save_config
from shared.data.pixels import to_float
from shared.errors import UserError
from shared.runs.token_cache import TokenInfo, open_cache
from stage1_tokenizer import train as stage1
from stage1_tokenizer.cache import cache_tokens
from stage2_prior.decoding.settings import SURE, USUAL, DrawingSettings, write_settings
from stage2_prior.judging.reference import labels_like, reference_images
from tests.benchmarks import quality, quality_peer
from tests.benchmarks.recipes.commands import Commands, reason
from tests.benchmarks.recipes.row import PEER, Recipe, Row
from tests.benchmarks.recipes.ruler import Ruler, own_settings
from tests.benchmarks.recipes.table import Measured, Outcome, page, table
from tests.support.tiny import prior_run, tokenizer_run

PLAIN = Recipe("plain", (), ())


def test_a_recipe_divides_its_keys_between_the_stages() -> None:
    recipe = Recipe.of(["both", "training.images=9", "tokenizer.training.images=8", "model.width=7"])
    assert recipe == Recipe("both", ("training.images=8",), ("training.images=9", "model.width=7"))
    with pytest.raises(UserError, match=r"--try x: 'noise' is not key=value"):
        Recipe.of(["x", "noise"])


def test_a_command_is_run_once_and_its_time_counts_each_time(tmp_path: Path) -> None:
    program = tmp_path / "count.py"
    program.write_text(
        "import json, pathlib\nfile = pathlib.Path('count'); file.write_text(file.exists() * file.read_text() + 'x' "
        "if file.exists() else 'x')\nprint('first')\nprint(json.dumps({'length': len(file.read_text())}))\n"
    )
    for _ in range(2):
        commands = Commands(tmp_path / "row")
        assert commands.run(str(program), "a") == {"length": 1}
        taken = commands.seconds
        assert taken > 0
        assert commands.run(str(program), "a") == {"length": 1}
        assert commands.seconds == 2 * taken
    assert Commands(tmp_path / "row").run(str(program), "b") == {"length": 2}
    for length, options, state in [(3, ["c"], ""), (3, ["c"], ""), (4, ["c"], "other"), (5, [], "other")]:
        assert Commands(tmp_path / "row").run(str(program), "b", options=options, state=state) == {"length": length}


def test_a_command_that_fails_is_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = tmp_path / "fail.py"
    program.write_text(
        "import pathlib, sys\nprint('warning', file=sys.stderr)\nif not pathlib.Path('ready').exists():\n"
        "    sys.exit('error: not ready:\\n  wait')\n"
    )
    commands = Commands(tmp_path / "row")
    with pytest.raises(UserError, match=r"fail.py failed in .*row \(exit status 1\): not ready: wait$"):
        commands.run(str(program))
    assert capsys.readouterr().err == "warning\nerror: not ready:\n  wait\n"
    (tmp_path / "row" / "ready").touch()
    again = Commands(tmp_path / "row")
    assert again.run(str(program)) == {}
    assert again.seconds > again.kept[str(program)]["seconds"] * 0.99


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("", "it said nothing"),
        ("Traceback\n  error: in a line\nValueError: no\n", "ValueError: no"),
        ("\r50 %\r    \rerror: a.yaml:\n  key: none\n", "a.yaml: key: none"),
    ],
)
def test_the_reason_is_one_line(said: str, expected: str) -> None:
    assert reason(said) == expected


def measured(**figures: float) -> Measured:
    """Some figures of a row, with a sheet."""
    return Measured(figures, (1, 2), Path("out/prior"), "temperature 1.0", (Path("out/prior/samples.png"),))


def test_a_line_of_the_table_is_of_all_seeds() -> None:
    noise = Recipe("noise", (), ("a=b",))
    rows: dict[Row, Outcome] = {
        Row("faces", 1000, 0, PLAIN): measured(kd_vgg16=0.1, minutes=3.0),
        Row("faces", 1000, 1, PLAIN): measured(kd_vgg16=0.3, minutes=3.0),
        Row("faces", None, 0, noise): measured(kd_vgg16=0.25, fid=7.0),
    }
    assert table(rows).splitlines() == [
        "| set | images | recipe | seeds | minutes | kernel distance | FID |",
        "|---|---:|---|---:|---:|---:|---:|",
        "| faces | 1000 | plain | 2 | 3 ± 0 | 0.2 ± 0.14 |  |",
        "| faces | all | noise | 1 |  | 0.25 | 7 |",
    ]


def test_what_failed_is_counted_and_told_below_the_table() -> None:
    rows: dict[Row, Outcome] = {
        Row("faces", 9, 0, PLAIN): UserError("no room"),
        Row("faces", 9, 1, PLAIN): measured(fid=7.0),
        Row("cats", 9, 0, PLAIN): UserError("no images"),
    }
    assert page(rows, Path("out")).splitlines()[2:] == [
        "| faces | 9 | plain | 1 of 2 | 7 |",
        "| cats | 9 | plain | 0 of 1 |  |",
        "",
        "- failed: faces, 9 images, plain, seed 0: no room",
        "- failed: cats, 9 images, plain, seed 0: no images",
        "",
        "- faces, 9 images, plain, seed 1: [samples](prior/samples.png); drawn with temperature 1.0",
    ]


def test_a_prior_is_drawn_as_its_settings_say_until_others_are_given(tmp_path: Path) -> None:
    assert own_settings(tmp_path, []) == []
    (tmp_path / "early.safetensors").touch()
    assert own_settings(tmp_path, []) == ["sampling.top_p=0.95", "autoguidance=2.0"]
    assert own_settings(tmp_path, ["guidance.scale=2"]) == ["sampling.top_p=0.95"]
    write_settings(tmp_path, SURE, "search", {})
    assert own_settings(tmp_path, ["seed=1"]) == ["sampling.min_p=0.2", "autoguidance=1.5"]
    towards_class = DrawingSettings.model_validate({"guidance": {"scale": 3, "interval": [1, 9]}, "candidates": 4})
    write_settings(tmp_path, towards_class, "search", {})
    assert own_settings(tmp_path, []) == ["guidance.scale=3.0", "guidance.interval=[1, 9]", "candidates=4"]
    assert own_settings(tmp_path, ["autoguidance=2"]) == ["candidates=4"]


def test_drawings_are_judged_anew_after_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Sequence[str]] = []
    found = {"measures": {"psnr": 1.0}, "train": {"bits_per_token": 2.0}, "validation": {"bits_per_token": 3.0}}
    row = Row("faces", 9, 0, PLAIN)
    run = row.folder(tmp_path) / row.prior("prior.yaml", row.tokenizer("tokenizer.yaml")[0])[0]

    def output(_: Commands, command: Sequence[str]) -> object:
        ran.append(command)
        if "--search" in command:
            run.mkdir(parents=True)
            (run / "early.safetensors").touch()
            write_settings(run, USUAL, "search", {})
        return found | DrawingSettings().model_dump(mode="json")

    def judged(*, search: bool = False, plain: bool = False, inception: Path | None = None) -> list[Sequence[str]]:
        ran.clear()
        configs = "tokenizer.yaml", "prior.yaml"
        Ruler(configs, tmp_path, 5, ("seed=1",), plain, search, inception).measure(row)
        return [command[3:] for command in ran if command[0] == "judge.py"]

    monkeypatch.setattr(Commands, "_output", output)
    samples = ["--json", "--samples", "5"]
    usual = ["sampling.top_p=0.95", "autoguidance=2.0"]
    assert judged() == [[*samples, "seed=1"]]
    assert judged() == []
    assert judged(search=True) == [["--search", "autoguidance", "--json"], [*samples, *usual, "seed=1"]]
    assert judged() == []
    assert judged(plain=True) == [[*samples, "seed=1"]]
    assert len(ran) == 1
    assert judged(inception=Path("file")) == [[*samples, *usual, "seed=1", "--inception", "file"]]
    assert [list(command[-2:]) for command in ran] == 2 * [["--inception", "file"]]  # and the evaluation


def test_a_row_of_other_projects_needs_the_minutes_of_ours(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the row that it is to be compared with failed"):
        Ruler(("a", "b"), tmp_path, 5).measure_peer(Row("faces", 9, 0, PEER), UserError("no room"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--plain", "--search"], "--plain draws without the settings that --search finds"),
        (["--inception", "nowhere"], "--inception nowhere: there is no such file"),
        (["--drawing", "sampling.topp=1"], "did you mean 'top_p'"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(
    options: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["quality", *options])
    with pytest.raises(UserError, match=said):
        quality.main()


def test_rows_are_what_the_commands_found(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"https_proxy": "http://127.0.0.1:9", "TORCH_HOME": "torch", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    save_config(tokenizer_run(Path("elsewhere"), images=40), tmp_path / "tokenizer.yaml")
    save_config(prior_run("gpt", images=16, early=[0.3]), tmp_path / "prior.yaml")
    command = ["quality", "--sets", str(drawings), "--sizes", "all", "--seeds", "3", "--samples", "6", "--out", "out"]
    command += ["--tokenizer", str(tmp_path / "tokenizer.yaml"), "--prior", str(tmp_path / "prior.yaml")]
    monkeypatch.setattr(sys, "argv", [*command, "--try", "wrong", "training.imges=9", "--try", "plain"])
    with pytest.raises(UserError, match="1 of 2 rows failed: the same command tries them again"):
        quality.main()
    folder = tmp_path / "out/drawings/all/3"
    said = capsys.readouterr()
    assert said.out.count(f"{folder}: ") == 3 + 4  # commands: the recipes share a tokenizer
    assert f"failed: {drawings}, all images, wrong, seed 3: stage2_prior.train failed in {folder}" in said.err
    first = (tmp_path / "out/table.md").read_text().splitlines()
    [prior] = (folder / "runs/prior").glob("plain-*")
    check_page(first, prior, tmp_path / "out", drawings)
    monkeypatch.setattr(sys, "argv", [*command, "--try", "plain"])
    quality.main()
    assert f"{folder}: " not in capsys.readouterr().out
    again = (tmp_path / "out/table.md").read_text().splitlines()
    assert again == [*first[:4], first[5], "", first[9]]


def check_page(lines: list[str], prior: Path, out: Path, drawings: Path) -> None:
    """Of a recipe that failed and one whose prior is given."""
    titles, _, failed, plain = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:6])
    assert failed == [str(drawings), "all", "wrong", "0 of 1", *[""] * (len(titles) - 4)]
    cells = dict(zip(titles, plain, strict=True))
    found = json.loads((prior / "evaluation/samples.json").read_text())
    assert found["images"] == 6
    assert found["autoguidance"] == USUAL.autoguidance
    assert found["sampling"] == USUAL.sampling.model_dump()
    bits = [json.loads(line) for line in (prior / "metrics.jsonl").read_text().splitlines()][-1]
    [tokenizer] = (prior.parents[1] / "tokenizer").glob("*")
    quality = json.loads((tokenizer / "evaluation/validation.json").read_text())
    expected = {
        "kernel distance": found["measures"]["kd_vgg16"],
        "copying, tokens": found["measures"]["copying_tokens"],
        "PSNR": quality["measures"]["psnr"],
        "bits unseen": bits["validation/bits_per_token"],
    }
    assert {name: cells[name] for name in expected} == {name: f"{value:.4g}" for name, value in expected.items()}
    assert cells["seeds"] == "1"
    assert "FID" not in cells
    evaluation = f"{prior.relative_to(out)}/evaluation"
    sheets = f"[samples]({evaluation}/samples.png), [nearest]({evaluation}/nearest.png)"
    assert (out / evaluation / "samples.png").is_file()
    assert (out / evaluation / "nearest.png").is_file()
    assert lines[7].startswith(f"- failed: {drawings}, all images, wrong, seed 3: stage2_prior.train failed in ")
    assert "did you mean 'images'?" in lines[7]
    assert lines[9:] == [f"- {drawings}, all images, plain, seed 3: {sheets}; drawn with top_p 0.95, autoguidance 2.0"]


@pytest.fixture
def info(drawings: Path) -> TokenInfo:
    """Of 4 x 4 tokens out of 64, of the drawings."""
    run, _ = stage1.train(tokenizer_run(drawings, images=40))
    return open_cache(cache_tokens(run.path)).info


def test_the_other_tokenizer_is_a_codec_of_equal_grids(info: TokenInfo) -> None:
    pytest.importorskip("diffusers")
    images = reference_images(info, "train")
    codec = quality_peer.VqModel(info)
    assert quality_peer.train(codec.model, quality_peer.reconstruction_losses(codec, images, 0), 1e-3, 0.01) > 0
    codec.model.eval()
    tokens_NL, labels_N = quality_peer.tokens_of(codec, images)
    assert tokens_NL.shape == (len(images), 16)
    assert tokens_NL.max() < info.codes
    pixels = torch.stack([images[0, place][0] for place in range(2)])
    with torch.inference_mode():
        expected = codec.model(to_float(pixels)).sample.clamp(-1, 1)
        torch.testing.assert_close(codec.detokenize(tokens_NL[:2].view(-1, *info.grid)), expected)
    assert labels_N.tolist() == labels_like(images, len(images)).tolist()


def test_the_other_prior_is_measured_in_bits_and_draws_grids(info: TokenInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("x_transformers")
    monkeypatch.setattr(quality_peer, "DEPTH", 1)
    model = quality_peer.gpt(info)
    tokens_NL, labels_N = torch.randint(info.codes, (70, 16)), torch.randint(2, (70,))
    losses = quality_peer.prediction_losses(model, tokens_NL, labels_N, info.codes, 0)
    assert quality_peer.train(model, losses, 1e-3, 0.01) > 0
    found = quality_peer.bits(model, tokens_NL, labels_N, info.codes)
    with torch.inference_mode():
        inputs_NL = torch.cat([info.codes + labels_N[:, None], tokens_NL[:, :-1]], 1)
        logp_NLK = model.net(inputs_NL).log_softmax(-1)
    expected = -logp_NLK.gather(2, tokens_NL[:, :, None]).mean() / math.log(2)
    assert found == pytest.approx(float(expected), rel=1e-4)
    grids = quality_peer.drawn(model, labels_N[:5], info)
    assert grids.shape == (5, 4, 4)
    assert 0 <= int(grids.min()) <= int(grids.max()) < info.codes
