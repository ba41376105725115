"""The samples on a page are those that the trainings wrote last."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from planning.plan import Plan
from planning.watching.pictures import samples
from shared.data.pixels import to_uint8
from stage1_tokenizer import train as stage1
from stage1_tokenizer.cache import cache_tokens
from stage1_tokenizer.tokenizer import load_tokenizer
from stage2_prior import train as stage2
from tests.planning.watching.samples import written_plan
from tests.support.tiny import prior_run, save_drawings, tokenizer_run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which both stages of the plan were trained for seconds."""
    folder = tmp_path_factory.mktemp("samples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TESSERA_CACHE", str(folder / "cache"))
        source = save_drawings(folder / "drawings")
        run = tokenizer_run(source, evaluate_every=48).model_copy(update={"name": "mine"})
        tokenizer, _ = stage1.train(run)
        training = run.training.model_copy(update={"decoder_only": True})
        changes = {"name": "mine-decoder", "init": str(tokenizer.path), "training": training}
        decoder, _ = stage1.train(run.model_copy(update=changes))
        cache_tokens(decoder.path)
        stage2.train(prior_run(evaluate_every=32).model_copy(update={"name": "mine"}))
    return folder


@pytest.fixture
def plan(place: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Their plan."""
    monkeypatch.chdir(place)
    return written_plan(changes=("data.image_size=32",))


def pictures_of(html: str) -> list[np.ndarray]:
    """The pictures inside some HTML, (H, W, 3) each."""
    files = [base64.b64decode(part.split('"')[0]) for part in html.split("data:image/png;base64,")[1:]]
    return [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]


def test_they_are_the_newest_of_each_training(plan: Plan) -> None:
    shown = samples(plan)
    drawn, real, made = (pictures_of(part) for part in shown.split("</figure>")[:-1])
    tokenizer = load_tokenizer(Path("runs/tokenizer/mine-decoder"))
    [newest] = sorted(Path("runs/prior/mine/samples").glob("*.safetensors"))[-1:]
    assert newest.stem == "000000064"
    assert "after 64 token grids" in shown
    images_BCHW = tokenizer.detokenize(load_file(newest)["tokens"].long())
    assert np.array_equal(drawn, to_uint8(images_BCHW).permute(0, 2, 3, 1).numpy())
    sheet_HWC = np.asarray(Image.open("runs/tokenizer/mine-decoder/samples/reconstructions.png"))
    for row, pictures in enumerate((real, made)):
        for column, picture_HWC in enumerate(pictures):
            top, left = 36 * row + 2, 36 * column + 2
            assert np.array_equal(picture_HWC, sheet_HWC[top : top + 32, left : left + 32])
    assert len(real) == len(made) == sheet_HWC.shape[1] // 36
    assert "at its end" in shown


def test_one_that_was_written_anew_is_shown_anew(plan: Plan) -> None:
    before = samples(plan)
    assert samples(plan) == before
    sheet = Path("runs/tokenizer/mine-decoder/samples/000000144.png")
    Image.open(sheet.with_name("reconstructions.png")).transpose(Image.Transpose.ROTATE_180).save(sheet)
    after = samples(plan)
    sheet.unlink()
    assert after != before
    assert "after 144 images" in after
