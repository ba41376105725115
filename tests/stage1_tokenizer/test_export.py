"""ONNX files against PyTorch: every backbone and quantiser, read back by onnxruntime, and refused where they differ."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from shared.config import parse_config
from shared.data.pixels import to_float
from shared.errors import UserError
from shared.runs.fingerprint import fingerprint
from shared.runs.run_directory import RunDirectory
from shared.training.devices.accelerator import make_accelerator
from shared.training.trainee import Trainee
from stage1_tokenizer import export as command
from stage1_tokenizer.export import (
    Agreement,
    are_ties,
    compare_decoder,
    compare_encoder,
    export,
    real_images,
    tokens_of,
    write_graph,
)
from stage1_tokenizer.judging.images import datasets_of
from stage1_tokenizer.quantisers.quantiser import Quantiser
from stage1_tokenizer.tokenizer import Tokenizer, TokenizerConfig, build_quantiser, load_tokenizer
from tests.support.tiny import QUANTISERS, tokenizer_run

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SEQUENCE: dict[str, Any] = {"patch": 4, "width": 32, "depth": 2, "positions": 4}  # 4: interpolated to the grid of 8
MAMBA: dict[str, Any] = {**SEQUENCE, "d_state": 8, "headdim": 16}
BACKBONES: dict[str, dict[str, Any]] = {
    "conv": {"kind": "conv", "stem": 2, "widths": [16, 32], "depths": [1, 1], "heads": 2, "layer_scale": 0.1},
    "resnet": {"kind": "resnet", "channels": 32, "multipliers": [1, 1, 1], "blocks": 1, "attention": [2], "width": 32},
    "maskgit": {"kind": "maskgit", "channels": 32, "multipliers": [1, 1, 1], "blocks": 1, "width": 32},
    "attention": {"kind": "attention", **SEQUENCE, "depth": 1, "heads": 2, "unpatchify": "conv"},
    "mamba": {"kind": "mamba", **MAMBA, "patch": 2, "depth": 1},  # 256 tokens: four chunks of the scan
    "bimamba": {"kind": "bimamba", **MAMBA, "depth": 1},
    "mambavision": {"kind": "mambavision", **MAMBA, "heads": 2},
}


def saved_run(drawings: Path, backbone: str, quantiser: str, initialised: bool = True) -> Path:
    """An untrained run whose every weight matters."""
    config = tokenizer_run(drawings, quantiser)
    model = type(config.model).model_validate({"backbone": BACKBONES[backbone], "quantiser": QUANTISERS[quantiser]})
    config = config.model_copy(update={"model": model})
    tokenizer = Tokenizer(model)
    tokenizer.quantiser.initialised = initialised
    for name, parameter in tokenizer.named_parameters():
        if not name.startswith("quantiser"):
            parameter.data += 0.05 * torch.randn_like(parameter)
    if quantiser == "residual":  # its codes are encoder outputs once it has seen some
        tokenizer.quantiser.train()(tokenizer.to_codes(tokenizer.encoder(torch.rand(8, 3, 32, 32) * 2 - 1)))
    run = RunDirectory(Path("runs/tokenizer/tiny"))
    run.begin(config, may_change=set())
    Trainee(tokenizer, config.training, make_accelerator()).save(run)
    return run.path


def run_file(path: Path, values: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: values.numpy()})[0])


@pytest.mark.parametrize(("backbone", "quantiser"), list(zip(BACKBONES, [*QUANTISERS, "vector"], strict=True)))
def test_what_is_written_does_what_the_tokenizer_does(drawings: Path, backbone: str, quantiser: str) -> None:
    run = saved_run(drawings, backbone, quantiser)
    found = export(run, run / "onnx")
    assert found.images == 2
    assert found.ties <= 0.01 * found.places
    assert found.places == 2 * 8 * 8 * (4 if backbone == "mamba" else 1)
    encoder, decoder = run / "onnx/encoder.onnx", run / "onnx/decoder.onnx"
    assert sorted((run / "onnx").iterdir()) == [decoder, encoder]

    tokenizer = load_tokenizer(run)
    images = to_float(torch.stack([datasets_of(run, "train")[0][0, position][0] for position in range(5)]))
    tokens = tokenizer.tokenize(images)
    assert tokens.unique().numel() > 5
    theirs = run_file(encoder, images)
    assert theirs.dtype == torch.int64
    assert theirs.shape == tokens.shape
    assert (theirs != tokens).float().mean() < 0.01  # at ties
    pixels = run_file(decoder, tokens)
    assert pixels.std() > 0.01
    assert pixels.abs().max() <= 1
    torch.testing.assert_close(pixels, tokenizer.detokenize(tokens), rtol=0, atol=1e-4)

    for path in (encoder, decoder):
        assert facts_in(path) == {
            "image_size": [32, 32], "image_range": [-1, 1], "grid": list(tokens.shape[1:]), "codes": tokenizer.codes,
            "tokens_per_place": tokenizer.tokens_per_place, "backbone": backbone, "quantiser": quantiser,
            "weights": "averaged over training", "fingerprint": fingerprint(tokenizer),
        }  # fmt: skip

    for parameter in [*tokenizer.to_codes.parameters(), *tokenizer.from_codes.parameters()]:
        parameter.data *= 1.01  # another tokenizer, if only by a little
        parameter.data += 0.01
    with pytest.raises(UserError, match="the exported encoder does not agree with PyTorch: at"):
        compare_encoder(encoder, tokenizer, images)
    with pytest.raises(UserError, match=r"the exported decoder does not agree.*differ by up to 0\.\d+, and 0\.0001"):
        compare_decoder(decoder, tokenizer, tokens)


def facts_in(path: Path) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}


def test_a_folder_stays_as_it_was_where_a_file_does_not_agree(drawings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = saved_run(drawings, "conv", "fsq")
    (run / "onnx").mkdir()
    (run / "onnx/decoder.onnx").write_text("an earlier one")

    def refuse(*_: object) -> float:
        raise UserError("it does not agree")

    monkeypatch.setattr(command, "write_graph", lambda *arguments: arguments[-1].write_text("another"))
    monkeypatch.setattr(command, "compare_encoder", lambda *_: 0)
    monkeypatch.setattr(command, "compare_decoder", refuse)
    with pytest.raises(UserError, match="it does not agree"):
        export(run, run / "onnx")
    assert [path.name for path in (run / "onnx").iterdir()] == ["decoder.onnx"]
    assert (run / "onnx/decoder.onnx").read_text() == "an earlier one"


def test_what_pytorch_cannot_write_is_one_message(tmp_path: Path) -> None:
    class Unwritable(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(UserError, match=r"decoder cannot be written as ONNX by torch .*data-dependent"):
        write_graph(Unwritable(), torch.ones(2, 3), ("tokens", "image"), {}, tmp_path / "decoder.onnx")


def quantiser_of(kind: str) -> tuple[Quantiser, Tensor]:
    """A quantiser with a codebook, and vectors (4, 8, 8, D)."""
    options = parse_config(TokenizerConfig, {"quantiser": QUANTISERS[kind]}, where="test").quantiser
    quantiser = build_quantiser(options)
    z_BHWD = torch.randn(4, 8, 8, options.dim)
    if kind == "residual":
        quantiser.train()(z_BHWD)
    return quantiser.eval(), z_BHWD


@pytest.mark.parametrize("kind", QUANTISERS)
def test_every_quantisers_tokens_are_those_of_its_form_for_onnx(kind: str) -> None:
    quantiser, z_BHWD = quantiser_of(kind)
    assert torch.equal(tokens_of(quantiser, z_BHWD.flatten(0, -2)).flatten(), quantiser.tokenize(z_BHWD).flatten())


@pytest.mark.parametrize("kind", QUANTISERS)
def test_a_tie_is_what_float_error_can_turn(kind: str) -> None:
    """Between two vectors of different tokens lies a border, found here by bisection."""
    quantiser, z_BHWD = quantiser_of(kind)
    first_1D, low_1D, high_1D = z_BHWD[0, :1, 0], z_BHWD[0, :1, 0], z_BHWD[1, :1, 0]
    token_11Q = quantiser.tokenize(first_1D[None, :, None])
    for _ in range(30):
        middle_1D = (low_1D + high_1D) / 2
        same = torch.equal(quantiser.tokenize(middle_1D[None, :, None]), token_11Q)
        low_1D, high_1D = (middle_1D, high_1D) if same else (low_1D, middle_1D)
    beyond_1Q = quantiser.tokenize(high_1D[None, :, None])[0]
    assert not torch.equal(beyond_1Q, token_11Q[0])
    assert are_ties(quantiser, low_1D, beyond_1Q).all()
    assert not are_ties(quantiser, first_1D, beyond_1Q).any()


def test_without_the_packages_one_message_says_what_to_install(drawings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "onnxruntime" else sys)
    with pytest.raises(UserError, match=r"\(onnxruntime\): .* pip install 'onnx>="):
        export(drawings, drawings)


def test_a_run_without_a_codebook_is_refused(drawings: Path) -> None:
    run = saved_run(drawings, "conv", "vector", initialised=False)
    with pytest.raises(UserError, match="has no codebook yet"):
        export(run, run / "onnx")
    assert not (run / "onnx").exists()


def test_it_is_compared_on_other_images_where_asked(drawings: Path, tmp_path: Path) -> None:
    run = saved_run(drawings, "conv", "fsq")
    assert torch.equal(real_images(run, None)[0], to_float(datasets_of(run, "validation")[0][0, 0][0]))
    (tmp_path / "white").mkdir()
    for height in (50, 60):  # two files: copies of one could not be divided
        Image.new("RGB", (40, height), "white").save(tmp_path / "white" / f"{height}.png")
    assert torch.equal(real_images(run, str(tmp_path / "white")), torch.ones(1, 3, 32, 32))


def test_the_command_says_where_it_wrote_and_how_well_it_agrees(
    drawings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = saved_run(drawings, "conv", "fsq")
    asked = []

    def note(*arguments: object) -> Agreement:
        asked.append(arguments)
        return Agreement(2, 128, 1, 3e-7)

    monkeypatch.setattr(command, "export", note)
    monkeypatch.setattr(sys, "argv", ["export", "--images", "openmoji"])
    command.main()
    assert asked == [(run, run / "onnx", "openmoji")]
    said = capsys.readouterr().out
    assert f"wrote {run / 'onnx' / 'encoder.onnx'} and" in said
    assert (
        "on 2 images: tokens differ at 1 of 128 places (ties within float error), decoded images by at most 3e-07"
        in said
    )
