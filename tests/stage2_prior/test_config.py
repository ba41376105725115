"""Configurations of priors: each kind has its own options, and those that were saved before are still read."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from shared.config import dump_config, load_config, parse_config
from shared.errors import UserError
from shared.runs.run_directory import RunDirectory, read_yaml
from shared.training.config import MAY_CHANGE_ON_RESUME
from stage2_prior.config import GptConfig, HybridConfig, MambaConfig, parse_prior
from stage2_prior.run_config import PriorRun
from tests.support.launch import ROOT

SHIPPED = ROOT / "shipped/avatars/config.yaml"
SIZES = {"images": 8}
# What every run saved while all kinds shared one configuration, whatever its kind read of it.
ONE_FOR_ALL = {
    "kind": "mamba", "depth": 2, "width": 32, "mup_base_width": None, "mup_base_heads": None, "positions": "learned",
    "dropout": 0.1, "conditioning": "token", "label_dropout": 0.1, "heads": 7, "qk_norm": True, "pattern": "mmma",
    "d_state": 16, "headdim": 16, "expand": 2, "chunk_size": 64, "mlp_ratio": 0.0, "head": "full", "head_rank": 64,
}  # fmt: skip
READ: dict[str, dict[str, Any]] = {
    "gpt": {"heads": 4},
    "mamba": {"heads": 7},  # which does not divide the width, and never mattered
    "hybrid": {"heads": 4, "pattern": "ma"},
}


def run_of(model: dict[str, Any]) -> dict[str, Any]:
    return {"name": "a", "model": model, "training": SIZES}


def test_a_prior_is_mamba_unless_said() -> None:
    assert parse_prior({}, "here") == MambaConfig()
    assert parse_prior({"width": 64}, "here") == MambaConfig(width=64)
    assert parse_config(PriorRun, {"name": "a", "training": SIZES}, "here").model == MambaConfig()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 7}, r"model\.heads: kind mamba does not read it; kinds gpt and hybrid do"),
        ({"kind": "mamba", "heads": 7}, r"model\.heads: kind mamba does not read it; kinds gpt and hybrid do"),
        ({"kind": "mamba", "pattern": "ma"}, r"model\.pattern: kind mamba does not read it; kind hybrid does"),
        ({"kind": "gpt", "d_state": 3}, r"model\.d_state: kind gpt does not read it; kinds hybrid and mamba do"),
        ({"kind": "gpt", "mlp_ratio": 0.0}, r"model\.mlp_ratio: kind gpt does not read it"),
        ({"kind": "hybrid", "d_stat": 3}, r"model\.d_stat: there is no such key; did you mean 'd_state'\?"),
        ({"head_rank": 9}, "head_rank 9 is read by head: codes only, and this is head: full: leave it out"),
        ({"kind": "gpt", "head": "tied", "head_rank": 64}, "head_rank 64 is read by head: codes only"),
    ],
)
def test_an_option_that_nothing_reads_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config(PriorRun, run_of(options), "here")


def test_the_codes_head_has_a_rank_unless_said() -> None:
    assert parse_prior({"head": "codes"}, "here").head_rank == 64
    assert parse_prior({"head": "codes", "head_rank": 16}, "here").head_rank == 16
    assert GptConfig(head="codes").at_width(384) == GptConfig(head="codes", head_rank=64, width=384, heads=6)


@pytest.mark.parametrize("model", [GptConfig(), MambaConfig(), HybridConfig(head="codes")], ids=lambda one: one.kind)
def test_a_saved_run_says_what_its_kind_reads_and_is_read_back_equal(
    model: GptConfig | MambaConfig | HybridConfig, tmp_path: Path
) -> None:
    run = parse_config(PriorRun, run_of(model.model_dump()), "here")
    (tmp_path / "config.yaml").write_text(dump_config(run))
    assert read_yaml(tmp_path / "config.yaml")["model"].keys() == type(model).model_fields.keys()
    assert load_config(PriorRun, tmp_path / "config.yaml") == run


@pytest.mark.parametrize("head", ["full", "tied", "codes"])
@pytest.mark.parametrize("kind", ["gpt", "mamba", "hybrid"])
@pytest.mark.parametrize("mup", [True, False])
def test_a_run_of_before_is_read_and_goes_on(kind: str, head: str, mup: bool, tmp_path: Path) -> None:
    saved = run_of({**ONE_FOR_ALL, **READ[kind], "kind": kind, "head": head})
    if not mup:  # before there was muP
        del saved["model"]["mup_base_width"], saved["model"]["mup_base_heads"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    run = load_config(PriorRun, tmp_path / "config.yaml")
    kept = run.model.model_dump()
    expected = {key: saved["model"].get(key) for key in kept}
    assert kept == {**expected, "told_views": False, "head_rank": 64 if head == "codes" else None}
    directory = RunDirectory(tmp_path)
    directory.save(8, {"a": torch.zeros(1)}, {"a": torch.zeros(1)}, {})
    directory.begin(run, MAY_CHANGE_ON_RESUME)  # raises UserError where anything differs
    assert read_yaml(tmp_path / "config.yaml")["model"] == kept


@pytest.mark.parametrize("missing", ["d_state", "head_rank", "pattern"])
def test_all_but_one_of_the_keys_of_before_are_a_users_own(missing: str) -> None:
    options = {key: value for key, value in ONE_FOR_ALL.items() if key != missing} | READ["gpt"] | {"kind": "gpt"}
    options.pop(missing, None)
    with pytest.raises(UserError, match="kind gpt does not read it"):
        parse_prior(options, "here")


def test_a_key_that_no_version_had_is_refused_of_a_run_of_before_too() -> None:
    with pytest.raises(UserError, match="'gtp' is not one of"):
        parse_prior({**ONE_FOR_ALL, "kind": "gtp"}, "here")
    with pytest.raises(UserError, match=r"colour: there is no such key"):
        parse_prior({**ONE_FOR_ALL, "colour": 3}, "here")


def test_the_model_that_comes_along_is_what_its_recipe_makes() -> None:
    made = load_config(PriorRun, ROOT / "configs/bundled/prior.yaml")
    assert load_config(PriorRun, SHIPPED).model == made.model
    assert parse_prior(read_yaml(SHIPPED)["model"], "here") == made.model
