#!/usr/bin/env bash
#SBATCH --job-name=embodied-wm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
# Train on a cluster: one torchrun per node, one process per GPU. Two minutes before the time is up (or when a job of
# higher priority comes) SLURM sends SIGTERM; the run saves and ends, and the requeued job goes on from there.
#
#   sbatch scripts/slurm_train.sh model=base trainer=gpu_large data.path=/path/to/store.zarr run_dir=/shared/runs/base
#
# `run_dir` must lie on a file system that all nodes share. GPUS_PER_NODE sets the processes of a node (default: what
# SLURM gives), PORT the port of the first node, PYTHON the interpreter.
set -euo pipefail

run_dir=""
for argument in "$@"; do
  case "$argument" in run_dir=*) run_dir="${argument#run_dir=}" ;; esac
done
[ -n "$run_dir" ] || { echo "give run_dir=FOLDER, on a file system that all nodes share" >&2; exit 2; }

# A requeued job finds the run that it was.
resume=()
[ -f "$run_dir/config.yaml" ] && resume=(resume=true)

nodes="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
head_node="${nodes%%$'\n'*}"
processes="${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(( ${SLURM_CPUS_PER_TASK:-$processes} / processes ))}"

# exec, so that SLURM's signal reaches srun, which hands it to every torchrun, and that to every process.
exec srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes "$SLURM_NNODES" --nproc-per-node "$processes" \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head_node:${PORT:-29500}" \
  -m embodied_wm.cli train "$@" "${resume[@]}"
