"""Configuration: what a user may get wrong is refused by name."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from shared.config import (
    Config,
    completed,
    config_of,
    dump_config,
    load_config,
    parse_config,
    save_config,
)
from shared.errors import UserError
from stage1_tokenizer.backbones.conv import ConvConfig
from stage1_tokenizer.comparing.config import Comparison
from stage1_tokenizer.run_config import TokenizerRun
from stage2_prior.config import GptConfig, MambaConfig
from stage2_prior.run_config import PriorRun
from tests.support.launch import ROOT

DEMO = ROOT / "configs/demo/tokenizer.yaml"


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_shipped_config_is_valid_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    place = str(path.relative_to(ROOT))
    model = Comparison if "compare" in place else PriorRun if "prior" in place else TokenizerRun
    config = load_config(model, path)
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(model, tmp_path / "again.yaml") == config


def test_overrides_are_values_at_dotted_keys() -> None:
    config = load_config(TokenizerRun, DEMO, ["training.images=7", "data.augment=null", "model.backbone.widths=[8, 8]"])
    backbone = config.model.backbone
    assert isinstance(backbone, ConvConfig)
    assert (config.training.images, config.data.augment, backbone.widths) == (7, None, (8, 8))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.image=5", r"training\.image: there is no such key; did you mean 'images'"),
        ("model.backbone.wdths=[8]", r"wdths: there is no such key; did you mean 'widths'"),
        ("model.backbone.heds=8", r"  model\.backbone\.heds: there is no such key"),
        (
            "model.backbone.patch=8",
            r"model\.backbone\.patch: kind conv does not read it; kinds attention, .* do",
        ),
        ("model.quantiser.levels=[8]", r"model\.quantiser\.levels: kind vector does not read it; kind fsq does"),
        ("model.backbone.kind=convv", r"backbone\.kind: 'convv' is not one of 'conv', .*\(did you mean 'conv'\?\)"),
        ("training.batch_size=0", r"training\.batch_size: .*greater than 0 \(got 0\)"),
        ("training.learning_rate=fast", r"training\.learning_rate: .*\(got 'fast'\)"),
        ("training.precision=fp8", r"training\.precision: .*'bf16' or 'fp32' \(got 'fp8'\)"),
        ("model.backbone.widths=[8, 8, 8]", r"one entry per resolution"),
        ("loss.perceptual.kind=lpisp", r"'lpisp' is not one of .*\(did you mean 'lpips'\?\)"),
        ("name=../up", r"name: a name has letters.*\(got '../up'\)"),
        ("images", r"cannot read the override 'images'"),
        ("name.deep=1", r"'name' is a value"),
        ("training.lr=1", r"training\.lr: there is no such key; did you mean 'learning_rate'\?"),
        ("training.bs=1", r"training\.bs: there is no such key; did you mean 'batch_size'\?"),
        ("name=", r"name: text is needed, and there is none"),
        ("data.source=", r"data\.source: text is needed, and there is none"),
        ("data.sorce=2024: trip", r"data\.sorce: there is no such key; did you mean 'source'"),
        ("training.seed=2026-99-23", r"training.seed=2026-99-23' is not valid YAML: .*month"),
        ("training={a: 1, a: 2}", r"'a' stands twice, in lines 1 and 1"),
    ],
)
def test_mistakes_name_the_key_the_value_and_what_is_allowed(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_config(TokenizerRun, DEMO, [override])


TEXTS = [
    "/x/My Pics #2", "2024: trip", "100", "yes", "null.png", "/x/a=b/c==", "'tis", 'it"s', '"a" and "b"', "{a}", "[x]",
    "*", "&a b", "!x", "%y", "@z", "`", "|", ">", "- a", "? a", "~", "~/pictures", "1e3", "0x10", "2026-11-23", "true",
    " a ", "a\tb", "Null", "C:\\new", "hf:user/name", "{", "#ffffff", "caf\udce9", "\N{SNOWMAN}", "a\nb", "...", "---",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("key", ["source", "split", "image_column"])  # text, and text that may be null
def test_an_override_of_a_text_is_taken_as_it_stands_and_kept(text: str, key: str, tmp_path: Path) -> None:
    config = load_config(TokenizerRun, DEMO, [f"data.{key}={text}"])
    several = key == "source" and text == "[x]"  # sources in a list
    assert getattr(config.data, key) == (["x"] if several else text)
    save_config(config, tmp_path / "kept.yaml")
    assert load_config(TokenizerRun, tmp_path / "kept.yaml") == config


@pytest.mark.parametrize("name", ["100", "yes", "null", "2026-11-23", "1_000"])
def test_a_name_may_look_like_a_number_a_date_or_nothing(name: str) -> None:
    assert load_config(TokenizerRun, DEMO, [f"name={name}"]).name == name


@pytest.mark.parametrize(
    ("written", "meant"),
    [("null", None), ("", None), ('"null"', "null"), ("'null'", "null"), ('"100"', "100"), ("'a''b'", "a'b"),
     (r'"a\tb"', "a\tb"), ("""'"a"'""", '"a"'), ('""', "")],
)  # fmt: skip
def test_null_and_quotes_of_a_text_that_may_be_null(written: str, meant: str | None) -> None:
    assert load_config(TokenizerRun, DEMO, [f"data.label={written}"]).data.label == meant


class Round(Config):
    kind: Literal["round"] = "round"
    size: int = 1


class Named(Config):
    kind: Literal["named"] = "named"
    size: str = "small"


class Mixed(Config):
    either: str | int = 0
    whole: dict[str, Any] | str = ""
    place: Path | None = None
    texts: tuple[str, ...] = ()
    by_name: dict[str, str] | None = None
    numbers: tuple[int, ...] = ()
    shape: Annotated[Round | Named, Field(discriminator="kind")] = Round()


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("either=100", "either", 100),
        ("either='100'", "either", "100"),
        ("either=10 #2", "either", "10 #2"),
        ("either=1.5", "either", "1.5"),
        ("either=yes", "either", "yes"),
        ("whole={a: 1}", "whole", {"a": 1}),
        ("whole={a}.yaml", "whole", "{a}.yaml"),
        ("whole=a: b.yaml", "whole", "a: b.yaml"),
        ("whole.a=1", "whole", {"a": 1}),
        ("place=/a #1", "place", Path("/a #1")),
        ("place=null", "place", None),
        ("texts=[100, yes, null, 'a #1']", "texts", ("100", "yes", "null", "a #1")),
        ("by_name={a: 1}", "by_name", {"a": "1"}),
        ("by_name=null", "by_name", None),
        ("numbers=[1, 2]", "numbers", (1, 2)),
        ("shape={kind: round, size: 2}", "shape", Round(size=2)),
    ],
)
def test_yaml_is_for_what_is_not_text(override: str, key: str, value: object) -> None:
    assert getattr(config_of(Mixed, [override], "here"), key) == value


def test_what_is_text_depends_on_the_kind_of_a_part() -> None:
    assert config_of(Mixed, ["shape.kind=named", "shape.size=100"], "here").shape == Named(size="100")
    assert config_of(Mixed, ["shape.kind=round", "shape.size=100"], "here").shape == Round(size=100)


def test_a_text_that_yaml_reads_as_something_else_is_to_be_quoted_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "numbers.yaml"
    path.write_text("name: 5\ntraining: {images: 5}\n")
    with pytest.raises(UserError, match=r"name: text is needed, and YAML reads 5 as int: put it in quotes"):
        load_config(TokenizerRun, path)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "\x00", "training: 3"])
def test_broken_files_are_one_clear_message(text: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="broken.yaml"):
        load_config(TokenizerRun, path)


def test_a_key_that_stands_twice_is_refused_by_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\ntraining:\n  images: 5\n  seed: 1\n  images: 6\n")
    with pytest.raises(UserError, match=r"twice\.yaml.*'images' stands twice, in lines 3 and 5"):
        load_config(TokenizerRun, path)


def test_a_small_file_that_unfolds_without_end_is_one_short_message(tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    lines = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" if n else "a0: &a0 [x]" for n in range(40)]
    path.write_text("\n".join([*lines, "name: *a39"]))
    with pytest.raises(UserError, match=r"bomb\.yaml") as error:
        load_config(TokenizerRun, path)
    assert len(str(error.value)) < 20_000


class Size(Config):
    side: int


class Pair(Config):
    one: Size
    other: Size


class Defaulted(Pair):
    other: Size = Size(side=2)


def test_an_override_changes_one_of_two_aliases(tmp_path: Path) -> None:
    path = tmp_path / "alias.yaml"
    path.write_text("one: &size {side: 1}\nother: *size\n")
    assert load_config(Pair, path, ["one.side=2"]) == Pair(one=Size(side=2), other=Size(side=1))


def test_a_missing_file_is_named_with_the_nearest_one_there_is() -> None:
    with pytest.raises(UserError, match=r"^there is no configuration nowhere\.yaml$"):
        load_config(TokenizerRun, "nowhere.yaml")
    with pytest.raises(UserError, match=r"demo/tokeniser\.yaml; did you mean .*/configs/demo/tokenizer\.yaml\?"):
        load_config(TokenizerRun, ROOT / "configs/demo/tokeniser.yaml")


@pytest.mark.parametrize(
    ("model", "file", "said"),
    [(TokenizerRun, "prior", "prior.yaml: this is the configuration of a prior, and a tokenizer's is needed"),
     (PriorRun, "tokenizer", "tokenizer.yaml: this is the configuration of a tokenizer, and a prior's is needed")],
)  # fmt: skip
def test_a_configuration_of_the_other_stage_is_one_message(model: type[Config], file: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_config(model, ROOT / f"configs/demo/{file}.yaml")


def test_a_key_of_the_other_stage_is_an_unknown_key() -> None:
    with pytest.raises(UserError, match="model.kind: there is no such key"):
        load_config(TokenizerRun, ROOT / "configs/demo/tokenizer.yaml", ["model.kind=conv"])


@pytest.mark.parametrize("name", ["my run", "../elsewhere", "-x", ".x", "", "a/b", "x\n"])
def test_a_name_that_is_no_directorys_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="name: a name has letters, digits"):
        parse_config(TokenizerRun, {"name": name, "training": {"images": 1}}, where="here")


def test_keys_that_came_since_are_completed_and_those_that_are_gone_left() -> None:
    assert completed({"side": 1}, Size) == {"side": 1}
    assert completed({"one": {"side": 1}}, Defaulted) == {"one": {"side": 1}, "other": {"side": 2}}
    assert completed({"side": 1, "colour": 3}, Size) == {"side": 1, "colour": 3}


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UserError, match="name: this key is needed"):
        parse_config(TokenizerRun, {"training": {"images": 1}}, where="here")


def test_a_file_that_extends_another_changes_its_keys_only(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(
        "name: one\nmodel: {kind: gpt, depth: 3, width: 32, heads: 2}\ntraining: {images: 5}\n"
    )
    (tmp_path / "two.yaml").write_text("extends: one.yaml\nname: two\nmodel: {depth: 4}\n")
    (tmp_path / "three.yaml").write_text("extends: two.yaml\ntraining: {batch_size: 7}\n")
    config = load_config(PriorRun, tmp_path / "three.yaml", ["model.heads=4"])
    assert isinstance(config.model, GptConfig)
    assert (config.name, config.model.depth, config.model.width, config.model.heads) == ("two", 4, 32, 4)
    assert (config.training.images, config.training.batch_size) == (5, 7)


@pytest.mark.parametrize(
    ("extends", "said"),
    [
        ("self.yaml", "self.yaml extends itself"),
        ("nowhere.yaml", "there is no configuration .*nowhere.yaml"),
        ("[a, b]", r"extends must name another configuration's file, not \['a', 'b'\]"),
    ],
)
def test_a_file_that_extends_what_it_cannot_is_refused(tmp_path: Path, extends: str, said: str) -> None:
    (tmp_path / "self.yaml").write_text(f"extends: {extends}\n")
    with pytest.raises(UserError, match=said):
        load_config(PriorRun, tmp_path / "self.yaml")


def test_a_part_of_another_kind_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("name: one\nmodel: {kind: mamba, d_state: 16}\ntraining: {images: 5}\n")
    (tmp_path / "gpt.yaml").write_text("extends: one.yaml\nmodel: {kind: gpt, depth: 4}\n")
    (tmp_path / "same.yaml").write_text("extends: one.yaml\nmodel: {kind: mamba, depth: 4}\n")
    gpt, same = (load_config(PriorRun, tmp_path / f"{name}.yaml") for name in ("gpt", "same"))
    assert (gpt.model.kind, gpt.model.depth, gpt.training.images) == ("gpt", 4, 5)
    assert isinstance(same.model, MambaConfig)
    assert (same.model.d_state, same.model.depth) == (16, 4)
