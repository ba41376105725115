"""The diffs that docs/extending.md shows fit the code as it is."""

import re
import shutil
import subprocess

import pytest

from tests.support.launch import ROOT


@pytest.mark.skipif(shutil.which("git") is None, reason="git checks whether they apply")
def test_each_diff_applies() -> None:
    text = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    diffs = re.findall(r"```diff\n(.*?)```", text, flags=re.DOTALL)
    assert len(diffs) == 3
    for diff in diffs:
        command = ["git", "apply", "--check", "-"]
        done = subprocess.run(command, input=diff, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"docs/extending.md shows a diff that no longer fits:\n{done.stderr}"
