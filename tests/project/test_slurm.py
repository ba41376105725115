"""The Slurm script, with stand-ins for `srun` and `scontrol`: a job that was warned goes on by itself."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.config import save_config
from shared.runs.run_directory import RunDirectory
from tests.support.launch import ROOT
from tests.support.narrow import present
from tests.support.tiny import tokenizer_run

SCRIPT = ROOT / "slurm/train.sh"
SCONTROL = """#!/bin/bash
echo "$@" >> scontrol.log
if [ "$1 $2" = "show hostnames" ]; then echo first; echo second; fi
"""
# Starts $TASKS tasks, as Slurm would on as many GPUs, sends them USR1 once ./warn is there, and returns the highest
# status.
SRUN = """#!{python}
import os, pathlib, signal, subprocess, sys, time
command = sys.argv[next(i for i, word in enumerate(sys.argv) if i and not word.startswith("-")):]
count = int(os.environ["TASKS"])
names = {{"SLURM_NTASKS": str(count)}}
tasks = [
    subprocess.Popen(command, env=os.environ | names | {{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}})
    for i in range(count)
]
while any(task.poll() is None for task in tasks):
    if pathlib.Path("warn").exists():
        pathlib.Path("warn").unlink()
        [task.send_signal(signal.SIGUSR1) for task in tasks]
    time.sleep(0.05)
sys.exit(max(task.returncode for task in tasks))
"""


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def cluster(own_directory: Path) -> dict[str, str]:
    """The environment that Slurm gives a job script, in this directory."""
    executable(own_directory / "bin/scontrol", SCONTROL)
    executable(own_directory / "bin/srun", SRUN.format(python=sys.executable))
    job = {"SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_CPUS_PER_TASK": "3", "TASKS": "2"}
    return os.environ | job | {"PATH": f"{own_directory / 'bin'}:{os.environ['PATH']}"}


def requeued() -> list[str]:
    return [line for line in Path("scontrol.log").read_text().splitlines() if line.startswith("requeue")]


@pytest.mark.parametrize(("status", "again"), [(0, []), (1, []), (75, ["requeue 1234567"]), (137, [])])
def test_a_job_that_asks_to_be_resumed_is_requeued_and_no_other(
    cluster: dict[str, str], status: int, again: list[str]
) -> None:
    said = 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $SRUN_CPUS_PER_TASK $# $*" > said-$RANK'
    executable(Path(".venv/bin/python"), f"#!/bin/bash\n{said}\nexit $((RANK * {status}))\n")
    done = subprocess.run([SCRIPT, "stage2_prior.train", "my prior.yaml", "name=mine"], env=cluster, check=False)
    assert done.returncode == status
    assert requeued() == again
    for rank in range(2):
        given = f"{rank} {rank} 2 first 24567 3 4 -m stage2_prior.train my prior.yaml name=mine"
        assert Path(f"said-{rank}").read_text().strip() == given


def test_the_warning_goes_to_the_training_and_the_log_goes_on() -> None:
    options = [line.removeprefix("#SBATCH ") for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH ")]
    assert {"--signal=USR1@120", "--requeue", "--open-mode=append"} <= set(options)  # B:USR1 would be the script's


def test_a_warned_training_saves_and_the_requeued_job_goes_on(cluster: dict[str, str], drawings: Path) -> None:
    save_config(tokenizer_run(drawings, images=240, batch_size=4, precision="fp32"), Path("tiny.yaml"))
    executable(Path(".venv/bin/python"), f'#!/bin/bash\nexec {sys.executable} -W ignore "$@"\n')
    environment = cluster | {"MASTER_ADDR": "", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(ROOT)}
    executable(Path("bin/scontrol"), SCONTROL.replace("echo first", "echo 127.0.0.1"))
    command: list[str | Path] = [SCRIPT, "stage1_tokenizer.train", "tiny.yaml"]
    run = RunDirectory(Path("runs/tokenizer/tiny"))
    job = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while job.poll() is None and not run.metrics.exists():
        time.sleep(0.05)
    Path("warn").touch()
    _, said = job.communicate()
    assert job.returncode == 75, said
    assert f"stopped after {int(present(run.newest()).name)} images" in said
    assert 0 < int(present(run.newest()).name) < 240
    assert requeued() == ["requeue 1234567"]
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert int(present(run.newest()).name) == 240
    assert requeued() == ["requeue 1234567"]
