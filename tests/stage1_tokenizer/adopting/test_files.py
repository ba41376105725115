"""Which file is meant, and what it is by its content."""

import gzip
import json
import os
import pickle
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shared.errors import UserError
from stage1_tokenizer.adopt import adopt, read_checkpoint
from stage1_tokenizer.adopting.files import find_weights, flatten

NAME = "quantize.embedding.weight"
WEIGHTS = {NAME: torch.arange(6.0).view(3, 2), "encoder.conv_in.weight": torch.ones(1)}


@pytest.mark.parametrize("name", ["it.safetensors", "it.ckpt", "it.pt", "it.bin", "it", "it.safetensors.1"])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_a_file_is_what_its_content_is(name: str, kind: str, tmp_path: Path) -> None:
    if kind == "safetensors":
        save_file(WEIGHTS, tmp_path / name)
    else:
        torch.save(WEIGHTS, tmp_path / name, _use_new_zipfile_serialization=kind == "zip")
    read = read_checkpoint(tmp_path / name)
    assert read.keys() == WEIGHTS.keys()
    assert torch.equal(read[NAME], WEIGHTS[NAME])


@pytest.mark.parametrize("kind", ["safetensors", "zip"])
def test_a_name_need_not_be_utf_8(kind: str, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"gr\xfcn.ckpt")
    try:
        path.touch()
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    save_file(WEIGHTS, tmp_path / "it") if kind == "safetensors" else torch.save(WEIGHTS, tmp_path / "it")
    (tmp_path / "it").replace(path)
    assert torch.equal(read_checkpoint(path)[NAME], WEIGHTS[NAME])


def mistake(kind: str, path: Path) -> Path:
    """A file that somebody took for a checkpoint."""
    texts = {
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 10\n",
        "page": b"<!DOCTYPE html><html>Quota exceeded</html>",
        "old page": b"\n<html><head>",
        "xml": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "json": b'{"error": "not found"}',
        "empty": b"",
        "text": b"Not Found",
        "gzip": gzip.compress(pickle.dumps(WEIGHTS)),
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "pickle": pickle.dumps(WEIGHTS),
        "cut safetensors": b"\x10\x00\x00\x00\x00\x00\x00\x00{",
        "long header": b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
    }
    if kind == "tar":
        with tarfile.open(path, "w") as archive:
            archive.add(__file__, "checkpoint")
    else:
        path.write_bytes(texts[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pointer", "Git LFS pointer.*git lfs pull"),
        ("page", "a web page"),
        ("old page", "a web page"),
        ("xml", "a web page"),
        ("json", "a JSON file"),
        ("empty", "is empty.*fetch it again"),
        ("text", "not a checkpoint that can be read"),
        ("gzip", "compressed archive: unpack"),
        ("tar", "tar archive.*unpack"),
        ("hdf5", "HDF5"),
        ("picture", "not a checkpoint that can be read"),
        ("pickle", "not a checkpoint that can be read.*torch.save"),
        ("cut safetensors", "not a checkpoint that can be read.*cut short"),
        ("long header", "not a checkpoint that can be read"),
    ],
)
def test_what_is_no_checkpoint_is_said_to_be_what_it_is(kind: str, message: str, tmp_path: Path) -> None:
    path = mistake(kind, tmp_path / "it.ckpt")
    with pytest.raises(UserError, match=rf"it\.ckpt .*{message}"):
        adopt(path, "theirs")


@pytest.mark.parametrize(
    "prefix",
    [
        "", "module.", "first_stage_model.", "vae.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.",
        "module.first_stage_model.", "model.vqmodel.", "gen_vision_model.", "tokenizer.vqgan.",
    ],
)  # fmt: skip
@pytest.mark.parametrize("inside", [(), ("state_dict",), ("model",), ("ema",), ("models", "tokenizer")])
def test_prefixes_and_containers_are_taken_off(prefix: str, inside: tuple[str, ...], tmp_path: Path) -> None:
    values: dict = {f"{prefix}{name}": value for name, value in WEIGHTS.items()}
    values |= {"loss.discriminator.weight": torch.ones(1), "cond_stage_model.weight": torch.ones(1)}
    for name in reversed(inside):
        values = {name: values, "step": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}
    torch.save(values, tmp_path / "it.pt")
    read = read_checkpoint(tmp_path / "it.pt")
    assert read.keys() == WEIGHTS.keys()
    assert torch.equal(read[NAME], WEIGHTS[NAME])


def test_parts_that_were_wrapped_one_by_one_are_unwrapped() -> None:
    names = ["encoder._orig_mod.conv_in.weight", "decoder.module.conv_in.weight", "a._fsdp_wrapped_module.b"]
    found = flatten({name: torch.ones(1) for name in names})
    assert list(found) == ["encoder.conv_in.weight", "decoder.conv_in.weight", "a.b"]


def test_dictionaries_in_a_circle_end() -> None:
    values: dict = {"t": torch.ones(1)}
    values["again"] = values
    assert list(flatten(values)) == ["t"]


@pytest.mark.parametrize("averaged", ["ema", "model_ema", "ema_model", "vae_ema"])
def test_averaged_weights_are_taken_and_that_is_said(
    averaged: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": {NAME: torch.zeros(3, 2)}, averaged: {NAME: torch.ones(3, 2)}}, tmp_path / "it.pt")
    assert read_checkpoint(tmp_path / "it.pt")[NAME].sum() == 6
    assert f"averaged weights ({averaged}.) are taken, and not the others (model.)" in capsys.readouterr().out


def test_one_of_several_tokenizers_is_not_guessed(tmp_path: Path) -> None:
    torch.save({"student": {NAME: torch.zeros(3, 2)}, "teacher": {NAME: torch.ones(3, 2)}}, tmp_path / "it.pt")
    with pytest.raises(UserError, match=r"several tokenizers \(student\., teacher\.\): save"):
        read_checkpoint(tmp_path / "it.pt")


def folder(path: Path, *names: str, config: dict[str, str] | None = None) -> Path:
    path.mkdir(exist_ok=True)
    for name in names:
        (path / name).write_bytes(b"x")
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


def test_the_file_of_weights_in_a_folder_is_found(tmp_path: Path) -> None:
    model = "diffusion_pytorch_model"
    names = (f"{model}.bin", f"{model}.fp16.safetensors", f"{model}.safetensors", "README.md")
    assert find_weights(folder(tmp_path / "both", *names)).name == f"{model}.safetensors"
    assert find_weights(folder(tmp_path / "bin", "pytorch_model.bin")).name == "pytorch_model.bin"
    assert find_weights(folder(tmp_path / "half", f"{model}.fp16.safetensors")).name == f"{model}.fp16.safetensors"


def test_the_vq_model_of_a_pipeline_is_found(tmp_path: Path) -> None:
    pipeline = folder(tmp_path / "amused", "model_index.json")
    folder(pipeline / "transformer", "diffusion_pytorch_model.safetensors", config={"_class_name": "UVit2DModel"})
    folder(pipeline / "vqvae", "diffusion_pytorch_model.safetensors", config={"_class_name": "VQModel"})
    assert find_weights(pipeline) == pipeline / "vqvae/diffusion_pytorch_model.safetensors"
    (pipeline / "vqvae/config.json").unlink()
    with pytest.raises(UserError, match="pipeline of diffusers without a VQModel"):
        find_weights(pipeline)


def test_a_folder_that_does_not_say_which_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"several files of weights: give one \(a\.ckpt, b\.ckpt\)"):
        find_weights(folder(tmp_path / "two", "a.ckpt", "b.ckpt"))
    with pytest.raises(UserError, match="holds no weights"):
        find_weights(folder(tmp_path / "none", "README.md"))
    with pytest.raises(UserError, match="no such file or folder"):
        find_weights(tmp_path / "absent")
