"""sample.py on tiny runs: completion, streaming, guidance options, and what is refused."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import sample
from sampling import panel as panel_module
from sampling.panel import Panel
from sampling.task import distinct
from shared.data.pictures.decode import Reading
from shared.data.pixels import to_uint8
from shared.data.sources.drawings import openmoji
from shared.errors import UserError
from stage1_tokenizer.tokenizer import load_tokenizer
from stage2_prior.completing.extend import open_extended
from stage2_prior.completing.mask import open_masked
from stage2_prior.completing.rows import ShownRows, open_photo
from stage2_prior.decoding.choosing.filters import SamplingConfig
from stage2_prior.decoding.choosing.guidance import GuidanceConfig
from stage2_prior.decoding.decoder import Decoder
from stage2_prior.decoding.settings import USUAL, DrawingSettings, write_settings
from stage2_prior.prior import load_prior
from tests.support.tiny import NAMES
from tests.support.trained import train_both

TOP = ShownRows(shown=3, margin=1, total=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny tokenizer and prior: 4 x 4 tokens of 8 px, two classes."""
    return train_both(tmp_path_factory.mktemp("trained"))


@pytest.fixture(autouse=True)
def runs(trained: Path, own_directory: Path) -> None:
    """Each test has the runs to itself, and two pictures to complete."""
    shutil.copytree(trained / "runs", own_directory / "runs")
    for number, name in ((6, "cat"), (7, "lion")):
        Image.fromarray(openmoji.draw(NAMES, 64, number).pixels_HWC).save(f"{name}.png")
    corner = Image.new("L", (64, 64))
    corner.paste(255, (0, 16, 16, 48))
    corner.save("corner.png")  # white where the first tokens of the second and third row are


def run_sample(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[dict[str, Any]]:
    """What the decoder was asked for, call by call, and the `tokens_BHW` that it gave."""
    calls: list[dict[str, Any]] = []
    generate = Decoder.generate

    def spy(decoder: Decoder, images: Any, *args: Any, **options: Any) -> Tensor:
        tokens_BHW = generate(decoder, images, *args, **options)
        calls.append({**options, "tokens_BHW": tokens_BHW})
        return tokens_BHW

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "generate", spy)
        patch.setattr(sys, "argv", ["sample.py", "--out", "out", *arguments])
        sample.main()
    return calls


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_completions_keep_the_tokens_of_the_shown_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = run_sample(monkeypatch, "--complete", "cat.png", "lion.png", "--keep-rows", "3", "--num", "3")
    tokens_BHW = torch.cat([call["tokens_BHW"] for call in calls])
    tokenizer = load_tokenizer(Path("runs/tokenizer/tiny"))
    for number, name in enumerate(["cat", "lion"]):
        shown_CHW = open_photo(Path(f"{name}.png"), (32, 32), TOP, Reading(10**6)).shown_CHW
        kept_hW = tokenizer.tokenize(shown_CHW[None])[0, :2]
        completions_BHW = tokens_BHW[3 * number : 3 * number + 3]
        assert all(torch.equal(grid_HW[:2], kept_hW) for grid_HW in completions_BHW)
        assert len(completions_BHW.flatten(1).unique(dim=0)) == 3
    written = sorted(path.name for path in Path("out").iterdir())
    cats = [f"cat-seed0-000{n}.png" for n in range(3)]
    assert written == [*cats, "completions.png", *(f"lion-seed0-000{n}.png" for n in range(3))]


def test_the_panel_shows_original_masked_and_completions(monkeypatch: pytest.MonkeyPatch) -> None:
    run_sample(monkeypatch, "--complete", "cat.png", "lion.png", "--keep-rows", "3", "--num", "3")
    panel = pixels("out/completions.png")
    assert panel.shape == (2 * 36, 5 * 36, 3)  # 32 px and a gap of 2 on every side
    cells = panel.reshape(2, 36, 5, 36, 3).transpose(0, 2, 1, 3, 4)[:, :, 2:34, 2:34]
    for row, name in enumerate(["cat", "lion"]):
        original_CHW = open_photo(Path(f"{name}.png"), (32, 32), TOP, Reading(10**6)).original_CHW
        assert np.array_equal(cells[row, 0], ((original_CHW + 1) * 127.5).round().permute(1, 2, 0).numpy())
        assert np.array_equal(cells[row, 1, :24], cells[row, 0, :24])
        assert np.ptp(cells[row, 1, 24:]) == 0
        for n in range(3):
            assert np.array_equal(cells[row, 2 + n], pixels(f"out/{name}-seed0-000{n}.png"))


def test_a_completion_does_not_depend_on_what_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--complete", "cat.png", "--keep-rows", "2", "--num", "2", "--margin", "0")
    run_sample(monkeypatch, *arguments)
    before = [pixels(f"out/cat-seed0-000{n}.png") for n in range(2)]
    changed = pixels("cat.png").copy()
    changed[32:] = 255 - changed[32:]
    Image.fromarray(changed).save("cat.png")
    run_sample(monkeypatch, *arguments)
    assert all(np.array_equal(pixels(f"out/cat-seed0-000{n}.png"), before[n]) for n in range(2))


MASKED = ("--complete", "cat.png", "lion.png", "--mask", "corner.png", "--particles", "4", "--margin", "0")


@pytest.mark.parametrize("margin", [0, 1])
def test_what_a_mask_leaves_keeps_its_tokens(monkeypatch: pytest.MonkeyPatch, margin: int) -> None:
    calls = run_sample(monkeypatch, *MASKED[:-1], str(margin), "--num", "3", "--batch-size", "9", "--stream")
    tokens_BHW = torch.cat([call["tokens_BHW"] for call in calls])
    kept_HW = torch.ones(4, 4, dtype=torch.bool)
    kept_HW[1 - margin : 3 + margin, : 1 + margin] = False
    tokenizer = load_tokenizer(Path("runs/tokenizer/tiny"))
    for number, name in enumerate(["cat", "lion"]):
        shown_CHW = open_masked(Path(f"{name}.png"), Path("corner.png"), (32, 32), Reading(10**6)).shown_CHW
        given_HW = tokenizer.tokenize(shown_CHW[None])[0]
        grids_BHW = tokens_BHW[3 * number : 3 * number + 3]
        assert torch.equal(grids_BHW[:, kept_HW], given_HW[kept_HW].expand(3, -1))
        assert len(grids_BHW.flatten(1).unique(dim=0)) == 3
    assert pixels("out/completions.png").shape == (2 * 36, 5 * 36, 3)


def test_what_a_mask_hides_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    run_sample(monkeypatch, *MASKED, "--num", "2")
    before = [pixels(f"out/cat-seed0-000{n}.png") for n in range(2)]
    changed = pixels("cat.png").copy()
    changed[16:48, :16] = 255 - changed[16:48, :16]
    Image.fromarray(changed).save("cat.png")
    run_sample(monkeypatch, *MASKED, "--num", "2")
    assert all(np.array_equal(pixels(f"out/cat-seed0-000{n}.png"), before[n]) for n in range(2))


def test_paste_puts_back_all_that_a_mask_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    run_sample(monkeypatch, *MASKED, "--num", "1")
    plain = pixels("out/lion-seed0-0000.png")
    run_sample(monkeypatch, *MASKED, "--num", "1", "--paste")
    photo = open_masked(Path("lion.png"), Path("corner.png"), (32, 32), Reading(10**6))
    shown = to_uint8(photo.shown_CHW).permute(1, 2, 0).numpy()
    expected = np.where(photo.hidden_HW.numpy()[..., None], plain, shown)
    assert np.array_equal(pixels("out/lion-seed0-0000.png"), expected)
    assert not np.array_equal(expected, plain)


@pytest.mark.parametrize(("side", "particles"), [("left", 4), ("down", 1)])
def test_an_extended_picture_has_more_at_a_side(monkeypatch: pytest.MonkeyPatch, side: str, particles: int) -> None:
    given = ("--particles", "4") if side == "left" else ()
    calls = run_sample(
        monkeypatch, "--complete", "cat.png", "lion.png", "--extend", side, "1", "--num", "2", "--stream", *given
    )
    photo = open_extended(Path("lion.png"), side, "1", 1, (32, 32), (4, 4), Reading(10**6))
    tokenizer = load_tokenizer(Path("runs/tokenizer/tiny"))
    given_HW = tokenizer.tokenize(photo.shown_CHW[None])[0]
    kept_HW = torch.ones(4, 4, dtype=torch.bool)
    kept_HW[(slice(None), slice(2)) if side == "left" else (slice(2, None),)] = False  # the new ones and the margin
    tokens_BHW = torch.cat([call["tokens_BHW"] for call in calls])[-2:]
    assert torch.equal(tokens_BHW[:, kept_HW], given_HW[kept_HW].expand(2, -1))
    assert calls[0]["hole"].particles == particles
    drawn_NCHW = to_uint8(tokenizer.detokenize(tokens_BHW))
    lion_CHW = to_uint8(open_photo(Path("lion.png"), (32, 32), TOP, Reading(10**6)).original_CHW)
    for n in range(2):
        written_CHW = torch.from_numpy(pixels(f"out/lion-seed0-000{n}.png").copy()).permute(2, 0, 1)
        new_CHW = drawn_NCHW[n][:, :, :8] if side == "left" else drawn_NCHW[n][:, -8:]
        parts = [new_CHW, lion_CHW] if side == "left" else [lion_CHW, new_CHW]
        assert torch.equal(written_CHW, torch.cat(parts, 2 if side == "left" else 1))


def test_paste_puts_the_shown_pixels_back(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--complete", "cat.png", "lion.png", "--keep-rows", "3", "--num", "1")
    run_sample(monkeypatch, *arguments)
    plain = pixels("out/lion-seed0-0000.png")
    run_sample(monkeypatch, *arguments, "--paste")
    pasted = pixels("out/lion-seed0-0000.png")
    photo = open_photo(Path("lion.png"), (32, 32), TOP, Reading(10**6))
    assert np.array_equal(pasted[:24], to_uint8(photo.shown_CHW).permute(1, 2, 0).numpy()[:24])
    assert torch.equal(photo.shown_CHW[:, :23], photo.original_CHW[:, :23])  # the last row is mixed with what is hidden
    assert np.array_equal(pasted[24:], plain[24:])


def test_streaming_changes_no_image_and_shows_whole_rows_on_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    run_sample(monkeypatch, "--num", "5", "--batch-size", "3")
    expected = [pixels(f"out/seed0-000{n}.png") for n in range(5)] + [pixels("out/grid.png")]
    seen: list[np.ndarray] = []
    save = Panel.save

    def save_and_look(panel: Panel) -> None:
        save(panel)
        seen.append(pixels("out/grid.png"))

    monkeypatch.setattr(Panel, "save", save_and_look)
    monkeypatch.setattr(panel_module, "STREAM_SHARE", 1.0)
    run_sample(monkeypatch, "--num", "5", "--batch-size", "3", "--stream")
    got = [pixels(f"out/seed0-000{n}.png") for n in range(5)] + [pixels("out/grid.png")]
    assert all(np.array_equal(one, other) for one, other in zip(expected, got, strict=True))
    assert len(seen) == 2 * 4 + 1  # each row of both batches, and the end
    for rows, panel in enumerate(seen[:4], start=1):
        cells = panel.reshape(36, 5, 36, 3).transpose(1, 0, 2, 3)[:, 2:34, 2:34]
        assert (cells[:3, 8 * rows :] == 128).all()
        assert (cells[3:] == 128).all()
        assert not (cells[:3, : 8 * rows] == 128).all()


def test_streaming_stops_when_it_takes_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    saves: list[Panel] = []
    monkeypatch.setattr(Panel, "save", lambda panel: saves.append(panel))
    monkeypatch.setattr(panel_module, "STREAM_SHARE", 0.0)
    run_sample(monkeypatch, "--num", "5", "--batch-size", "3", "--stream")
    assert len(saves) == 2  # the first row, and the end


def test_only_as_many_images_as_fit_are_in_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(panel_module, "IN_GRID", 3)
        run_sample(patch, "--num", "5", "--batch-size", "2")
    assert pixels("out/grid.png").shape == (36, 3 * 36, 3)
    assert len(list(Path("out").glob("seed0-*.png"))) == 5
    run_sample(monkeypatch, "--complete", "cat.png", "--num", "7")
    assert pixels("out/completions.png").shape == (36, 8 * 36, 3)
    assert len(list(Path("out").glob("cat-seed0-*.png"))) == 7


def test_all_classes_are_drawn_a_row_each_like_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = run_sample(monkeypatch, "--class-label", "all", "--num", "3", "--batch-size", "4")
    names = load_prior(Path("runs/prior/tiny"))[1].class_names
    assert names is not None
    assert torch.cat([call["labels_B"] for call in calls]).tolist() == [0, 0, 0, 1, 1, 1]
    grid = pixels("out/grid.png")
    assert grid.shape == (2 * 36, 3 * 36, 3)
    for row, name in enumerate(names):
        run_sample(monkeypatch, "--class-label", name, "--num", "3")
        for number in range(3):
            alone = pixels(f"out/seed0-000{number}.png")
            assert np.array_equal(pixels(f"out/{name}-seed0-000{number}.png"), alone)
            assert np.array_equal(grid[36 * row + 2 : 36 * row + 34, 36 * number + 2 : 36 * number + 34], alone)


def test_pictures_of_one_name_are_completed_each_as_if_it_were_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("other").mkdir()
    shutil.copy("lion.png", "other/cat.png")
    run_sample(monkeypatch, "--complete", "other/cat.png", "--num", "2")
    alone = [pixels(f"out/cat-seed0-000{n}.png") for n in range(2)]
    run_sample(monkeypatch, "--complete", "cat.png", "other/cat.png", "--num", "2")
    assert all(np.array_equal(pixels(f"out/cat-2-seed0-000{n}.png"), alone[n]) for n in range(2))
    assert not np.array_equal(pixels("out/cat-seed0-0000.png"), alone[0])


def test_names_are_told_apart() -> None:
    assert distinct(["x", "x", "x-2", "y", "x"]) == ["x", "x-2", "x-2-2", "y", "x-3"]


def test_completing_takes_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^--complete takes one class, not 2: "):
        run_sample(monkeypatch, "--complete", "cat.png", "--class-label", "all")


def test_guidance_options_reach_the_decode_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    (call,) = run_sample(
        monkeypatch, "--num", "1", "--class-label", "faces", "--cfg-scale", "3", "--cfg-schedule", "power-cosine",
        "--cfg-power", "1.5", "--cfg-interval", "2", "9",
    )  # fmt: skip
    guidance = GuidanceConfig(scale=3, schedule="power-cosine", power=1.5, interval=(2, 9))
    assert torch.equal(call["cfg_scale"], guidance.scales(16))
    assert call["labels_B"].tolist() == [1]
    (call,) = run_sample(monkeypatch, "--num", "1")
    assert torch.equal(call["cfg_scale"], torch.ones(16))


def test_a_prior_is_drawn_from_by_its_own_settings_where_nothing_else_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = DrawingSettings(sampling=SamplingConfig(temperature=0.8, top_p=0.9), guidance=GuidanceConfig(scale=1.5))
    write_settings(Path("runs/prior/tiny"), own, "search", {})
    for arguments, sampling, scale in [
        ([], own.sampling, 1),  # guidance is of no use without a class
        (["--class-label", "faces"], own.sampling, 1.5),
        (["--class-label", "faces", "--cfg-scale", "1", "--top-p", "1"], SamplingConfig(temperature=0.8, top_p=1), 1),
        (["--temperature", "1"], SamplingConfig(temperature=1, top_p=0.9), 1),
    ]:
        calls = run_sample(monkeypatch, "--num", "1", *arguments)
        assert "(this prior's own: temperature 0.8, top_p 0.9" in capsys.readouterr().out
        given = run_sample(
            monkeypatch, "--num", "1", *arguments, "--temperature", str(sampling.temperature), "--top-p",
            str(sampling.top_p), "--cfg-scale", str(scale),
        )  # fmt: skip
        assert torch.equal(calls[0]["cfg_scale"], torch.full((16,), float(scale)))
        assert torch.equal(calls[0]["tokens_BHW"], given[0]["tokens_BHW"])
        capsys.readouterr()


def test_either_guidance_takes_the_place_of_the_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for own, arguments, autoguidance, scale in [
        (USUAL, [], 2, 1),
        (USUAL, ["--class-label", "faces"], 2, 1),
        (USUAL, ["--class-label", "faces", "--cfg-scale", "3"], 1, 3),
        (USUAL, ["--autoguidance", "1"], 1, 1),
        (DrawingSettings(guidance=GuidanceConfig(scale=1.5)), ["--class-label", "faces", "--autoguidance", "3"], 3, 1),
    ]:
        write_settings(Path("runs/prior/tiny"), own, "search", {})
        [call] = run_sample(monkeypatch, "--num", "1", *arguments)
        assert call["autoguidance"] == autoguidance
        assert torch.equal(call["cfg_scale"], torch.full((16,), float(scale)))
    with pytest.raises(UserError, match="do not go together"):
        run_sample(monkeypatch, "--class-label", "faces", "--autoguidance", "3", "--cfg-scale", "2")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keep-rows", "2"], "--keep-rows is about completing pictures"),
        (["--margin", "0"], "--margin is about completing pictures"),
        (["--paste"], "--paste is about completing pictures"),
        (["--complete", "cat.png", "--keep-rows", "4"], "rows of tokens to keep are 4.*grids have 4.*from 2 .* to 3"),
        (["--complete", "cat.png", "--keep-rows", "1"], "rows of tokens to keep are 1.*from 2"),
        (["--complete", "nowhere.png"], "--complete nowhere.png cannot be read"),
        (["--mask", "mask.png"], "--mask is about completing pictures"),
        (["--extend", "left", "1"], "--extend is about completing pictures"),
        (["--particles", "4"], "--particles is about filling holes"),
        (["--complete", "cat.png", "--mask", "m.png", "--keep-rows", "2"], "--mask and --keep-rows each say"),
        (["--complete", "cat.png", "--mask", "m.png", "--extend", "up", "2"], "--mask and --extend each say"),
        (["--complete", "cat.png", "--mask", "m.png", "--candidates", "2"], "--mask draws particles in place of"),
        (["--complete", "cat.png", "--extend", "up", "1", "--candidates", "2"], "--extend draws particles in place of"),
        (["--complete", "cat.png", "--extend", "up", "1", "--paste"], "--paste is not needed with --extend"),
        (["--complete", "cat.png", "--extend", "top", "1"], "--extend top 1: the side is left, right, up or down"),
        (["--complete", "cat.png", "--extend", "up", "3"], "grids have 4 rows of tokens, .* so extend by 1 to 2"),
        (["--complete", "cat.png", "--mask", "nowhere.png"], "--mask nowhere.png cannot be read"),
        (["--complete", "cat.png", "--mask", "corner.png", "--particles", "0"], "0 particles for an image"),
        (["--complete", "cat.png", "--mask", "corner.png", "--margin", "3"], "none of the 4 x 4 tokens"),
        (["--cfg-power", "2"], "only the power-cosine schedule has one"),
        (["--cfg-interval", "5", "5"], "guidance goes from token 5 to 5"),
        (["--cfg-interval", "16", "20", "--cfg-scale", "2"], "guidance goes from token 16 on"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        run_sample(monkeypatch, *arguments)
    assert not Path("out").exists()
