#!/usr/bin/env bash
# Train on 2 machines of 4 GPUs each under SLURM:  sbatch examples/slurm.sh
# The job asks to be warned 2 minutes before its time is up; the run then writes a checkpoint, and the job is queued
# again. --resume begins where there is no checkpoint yet and goes on where there is one.
#SBATCH --job-name=rkd-teacher
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
out=${1:-runs/teacher}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# --save_dir, --data and --load are on a disk that both machines see; only the first process writes to --save_dir.
srun torchrun --nnodes "$SLURM_NNODES" --nproc_per_node 4 \
  --rdzv_backend c10d --rdzv_endpoint "$first:29500" --rdzv_id "$SLURM_JOB_ID" \
  run.py --mode train --dataset cub200 --base resnet50 --sample distance --margin 0.2 --embedding_size 512 \
  --batch 512 --sync_bn --checkpoint_every 50 --save_dir "$out" --resume

[ -e "$out/result.txt" ] || scontrol requeue "$SLURM_JOB_ID"
