#!/usr/bin/env bash
# Train on 2 machines of 4 GPUs each under SLURM. In the repository's folder:  sbatch examples/slurm.sh [SAVE_DIR]
# 2 minutes before its time is up the job is warned: the run writes a checkpoint, and the job is queued again. --resume
# begins where there is no checkpoint yet and goes on where there is one.
#SBATCH --job-name=rkd-teacher
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
out=${1:-runs/teacher}
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# One task a GPU, without torchrun between SLURM and the run: the warning would end torchrun at once. The first process
# may still be writing when the others have ended, so that the end of one must not kill the rest.
# --save_dir, --data and --load are on a disk that all machines see; only the first process writes to --save_dir.
srun --kill-on-bad-exit=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c '
  export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
  exec python3 "$@"' task \
  run.py --mode train --dataset cub200 --base resnet50 --sample distance --margin 0.2 --embedding_size 512 \
  --batch 128 --sync_bn --checkpoint_every 50 --save_dir "$out" --resume
code=$?

if [ "$code" -eq $((128 + $(kill -l USR1))) ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
