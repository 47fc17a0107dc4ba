#!/bin/bash
# sbatch cluster/slurm.sh [JOB.py] [CONFIG.yaml] [key=value ...]: a job on a Ray of its own, on 8 nodes with
# 8 GPUs each. Change the sizes on the command line: sbatch --nodes=2 cluster/slurm.sh jobs/sft_mdlm.py ...
# Submit from the repository's root, on a file system that all nodes see, with .venv installed.
#SBATCH --job-name=a2d-ray
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail

source .venv/bin/activate
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
[ -s "$HOME/.ray/auth_token" ] || ray get-auth-token --generate >/dev/null   # home is shared by the nodes

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
read -r address _ < <(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --ip-address)
export RAY_ADDRESS="$address:6379"   # the job joins this Ray instead of starting its own

# srun forwards Slurm's SIGTERM; a requeued job continues its run, since run.resume=true is given.
exec srun --kill-on-bad-exit=1 ray symmetric-run --address "$RAY_ADDRESS" \
    --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "$SLURM_CPUS_PER_TASK" \
    --num-gpus "${SLURM_GPUS_PER_NODE:-8}" --metrics-export-port=8080 \
    -- python "${@:-jobs/sft_bd3lm.py}" run.resume=true
