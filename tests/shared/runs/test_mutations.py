"""Mutated configurations and checkpoints: each is used or refused with one message, and runs no code.

`make torture` tries 10,000 of each kind.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from shared.config import Config, load_config, read_extended
from shared.disk.manifest import write_manifest
from shared.errors import UserError
from shared.runs.run_directory import RunDirectory
from shared.training.config import TrainingConfig
from shared.training.devices.accelerator import make_accelerator
from shared.training.trainee import Trainee
from stage1_tokenizer.run_config import TokenizerRun
from stage2_prior.run_config import PriorRun
from tests.support.launch import ROOT


@pytest.fixture(autouse=True, scope="module")
def _smallest_numbers() -> Iterator[None]:
    """Keeps numbers below 1e-38, which training takes for zero and Hypothesis wants to draw."""
    torch.set_flush_denormal(False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "set_flush_denormal", lambda _: True)
        yield


SHIPPED = [  # whole, with what they take over from the file that they extend
    (model, yaml.safe_dump(read_extended(path), default_flow_style=None, sort_keys=False))
    for folder, model in (("tokenizer", TokenizerRun), ("prior", PriorRun), ("demo", None))
    for path in sorted(ROOT.glob(f"configs/{folder}/*.yaml"))
    for model in [model or (PriorRun if "prior" in path.stem else TokenizerRun)]
]
# What YAML and its readers stumble over: tags, anchors, merges, numbers and dates that are none, other bytes.
PIECES = st.sampled_from(
    ["!!python/object/apply:os.system [touch sprung]", "!!python/name:os.system", "&a [*a]", "*a", "<<: {a: 1}",
     "<<: 5", "!!int ''", "!!float x", "!!timestamp x", "!!bool maybe", "!!binary x", "1" * 5000, "0x", "1:99:9",
     "2026-99-99", ".nan", "-.inf", "1e999", "~", "? [a]: b", "? {a: b}", "\t", "---", "...", "%YAML 9.9", "- - -",
     "{" * 500, "[[[", "\x00", "\ufeff", "\ud7ff", "é: ☃", "yes", "kind: vector", "codes: 3", "images: -1", "{}", "[]",
     ": :", "|", ">"]
)  # fmt: skip
TEXT = st.one_of(PIECES, st.text(max_size=12), st.integers().map(str), st.floats().map(str))
QUIET = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)


@st.composite
def mutated_configs(draw: st.DrawFn) -> tuple[type[Config], str]:
    """A shipped configuration with a few pieces put in, taken out, doubled or written over."""
    model, text = draw(st.sampled_from(SHIPPED))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 5, 40])))
        piece = draw(st.one_of(TEXT, st.just(text[start:end] * 2)))
        text = text[:start] + piece + text[end:]
    return model, text


@QUIET
@given(mutated_configs())
def test_a_mutated_config_is_valid_or_one_message(own_directory: Path, mutated: tuple[type[Config], str]) -> None:
    model, text = mutated
    path = own_directory / "mutated.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    use_or_refuse(lambda: load_config(model, path))
    assert not Path("sprung").exists()


@QUIET
@given(st.sampled_from(SHIPPED), st.lists(st.tuples(st.sampled_from(sorted(
    {f"{group}.{key}" for _, text in SHIPPED for group, value in yaml.safe_load(text).items() if isinstance(value, dict)
     for key in [*value, "kind", "x"]} | {"name", "", ".", "a.b.c"})), TEXT), max_size=3))  # fmt: skip
def test_a_mutated_override_is_valid_or_one_message(
    own_directory: Path, shipped: tuple[type[Config], str], overrides: list[tuple[str, str]]
) -> None:
    path = own_directory / "shipped.yaml"
    path.write_text(shipped[1])
    use_or_refuse(lambda: load_config(shipped[0], path, [f"{key}={value}" for key, value in overrides]))


def use_or_refuse(use: Callable[[], object]) -> bool:
    """Whether it could be used; a refusal is one UserError of a sensible length, and nothing else."""
    said = None
    try:
        use()
    except UserError as refusal:
        said = str(refusal)
    event("used" if said is None else "refused")  # which --hypothesis-show-statistics counts
    assert said is None or 0 < len(said) < 20_000
    return said is None


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDirectory]:
    """A run with one checkpoint of a small model and its optimiser, on a disk that need not be waited for."""
    run = RunDirectory(tmp_path_factory.mktemp("saved"))
    trainee = new_trainee()
    trainee.begin_step()
    trainee.backward(trainee.model(torch.ones(2, 4)).mean())
    trainee.end_step()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        trainee.save(run)
        yield run


@contextmanager
def restored(state: Path) -> Iterator[None]:
    """Whatever is done to a state's files within the block is undone at its end."""
    before = {path: path.read_bytes() for path in state.iterdir()}
    try:
        yield
    finally:
        for path, content in before.items():
            if path.read_bytes() != content:
                path.write_bytes(content)


def new_trainee() -> Trainee:
    return Trainee(torch.nn.Linear(4, 3), TrainingConfig(images=8), make_accelerator())


@QUIET
@given(
    file=st.sampled_from(["model.safetensors", "ema.safetensors", "training.pt", "manifest.json"]),
    place=st.floats(0, 1),
    damage=st.one_of(st.integers(0, 7), st.just("cut"), st.binary(max_size=40)),
    rehashed=st.booleans(),
)
def test_a_mutated_checkpoint_is_the_same_or_refused(
    saved_run: RunDirectory, file: str, place: float, damage: int | str | bytes, rehashed: bool
) -> None:
    """rehashed: as a stranger would do it, with a manifest that fits; what is then read must be of the right kind."""
    [state] = saved_run.states()
    path = state / file
    before = path.read_bytes()
    with restored(state):
        path.write_bytes(mutate(before, int(place * (len(before) - 1)), damage))
        same = path.read_bytes() == before
        if rehashed and file != "manifest.json":
            write_manifest(state)
        trainee = new_trainee()
        used = use_or_refuse(lambda: trainee.resume(saved_run))
    assert used or not same
    if used and not (rehashed or file == "manifest.json"):
        assert same


def mutate(content: bytes, place: int, damage: int | str | bytes) -> bytes:
    """Flip a bit, cut the rest off, or put bytes in."""
    if isinstance(damage, int):
        return content[:place] + bytes([content[place] ^ 1 << damage]) + content[place + 1 :]
    return content[:place] + (b"" if isinstance(damage, str) else damage + content[place:])
