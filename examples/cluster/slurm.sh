#!/bin/bash
# A run on SLURM: sbatch slurm.sh. Where it ends too early, the same command goes on from the last checkpoint.
#SBATCH --job-name=rlhfkit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Five minutes before the time is up the run saves and ends:
#SBATCH --signal=B:TERM@300
set -euo pipefail

# The environment and the run's directory are on a file system that all nodes have.
source "$HOME/rlhfkit/.venv/bin/activate"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')

# This script runs on the first node, which is the head; the others join it.
address=$(hostname --ip-address | cut -d ' ' -f 1)
port=$((20000 + SLURM_JOB_ID % 20000))
ray start --head --node-ip-address="$address" --port="$port" --include-dashboard=false \
    --num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats
trap 'ray stop' EXIT
if ((SLURM_NNODES > 1)); then
    srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --exclude="$(hostname)" \
        ray start --address="$address:$port" --num-cpus="$SLURM_CPUS_PER_TASK" --block &
fi

rlhfkit run pairs --run-dir "$HOME/runs/first" --ray "$address:$port" \
    cluster.trainers=4 cluster.trainer_gpus=1 cluster.samplers=4 cluster.sampler_gpus=1 \
    model.path="$HOME/model" data.path="$HOME/pairs.jsonl" &
run=$!
trap 'kill -TERM $run' TERM
code=0
wait $run || code=$?
while kill -0 $run 2>/dev/null; do # the signal ended the waiting, not the run
    code=0
    wait $run || code=$?
done
exit $code
