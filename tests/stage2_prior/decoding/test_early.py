"""The files that hold what a prior was early in its training."""

from pathlib import Path

from stage2_prior.decoding.early import early_name, kept_early, use_early


def test_they_are_ordered_by_their_share_and_one_is_used(tmp_path: Path) -> None:
    for share in (0.25, 0.03, 0.1):
        (tmp_path / early_name(share)).write_text(f"{share}")
    (tmp_path / "early.safetensors").write_text("0.03")
    names = kept_early(tmp_path)
    assert names == ["early-0.03.safetensors", "early-0.1.safetensors", "early-0.25.safetensors"]
    use_early(tmp_path, names[2])
    assert (tmp_path / "early.safetensors").read_text() == "0.25"
    assert (tmp_path / names[2]).exists()


def test_a_shared_run_has_the_one_that_it_is_drawn_with(tmp_path: Path) -> None:
    assert kept_early(tmp_path) == []
    (tmp_path / "early.safetensors").write_text("0.1")
    assert kept_early(tmp_path) == ["early.safetensors"]
    use_early(tmp_path, "early.safetensors")
    assert (tmp_path / "early.safetensors").read_text() == "0.1"
