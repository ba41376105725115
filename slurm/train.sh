#!/bin/bash
# Trains on as many nodes as Slurm gives, for as long as it takes: a job that runs out of time, or makes way for another,
# saves, and puts itself back in the queue.
#
#     sbatch --nodes 2 --gpus-per-node 8 --ntasks-per-node 8 slurm/train.sh stage1_tokenizer.train CONFIG.yaml key=value ...
#
# Likewise stage1_tokenizer.cache, stage2_prior.train and both evaluate. Submit it from the directory that holds configs/
# and .venv/, which all nodes must share, runs/ included.
#SBATCH --job-name=tessera
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
# To the tasks, not to this script: two minutes before its time is up, each saves after the step and exits with 75.
#SBATCH --signal=USR1@120

RESUME=75

export MASTER_ADDR MASTER_PORT SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))

# One task a GPU, and no torchrun: that would keep the signal from the training, and make 1 of its 75. `exec`, so that
# the signal finds Python and no shell. What Slurm calls them, torch asks for by other names.
srun --kill-on-bad-exit=0 --wait=120 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    exec .venv/bin/python -m "$@"' train "$@"
status=$?

if [ "$status" -eq "$RESUME" ]; then
    echo "job $SLURM_JOB_ID goes on where it stopped, once it is given nodes again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
