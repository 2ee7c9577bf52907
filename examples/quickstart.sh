#!/usr/bin/env bash
# The whole job on drawn birds, from random weights, without data, network or accelerator (after the installation):
# teacher, evaluation, student by triplet loss alone, student by RKD, evaluation. Some minutes on 2 CPU cores.
# PROCESSES=2 bash examples/quickstart.sh lets torchrun start each command in 2 processes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$("${PYTHON:-python3}" examples/environment.py)
out=${1:-runs/quickstart}

launch=("$python") shown=python3
if [ "${PROCESSES:-1}" -gt 1 ]; then
  launch+=(-m torch.distributed.run --nproc_per_node "$PROCESSES")
  shown="torchrun --nproc_per_node $PROCESSES"
fi
step() { printf '\n== %s\n' "$1"; shift; printf '   %s %s\n' "$shown" "$*"; "${launch[@]}" "$@"; }

data=(--dataset synthetic --image_size 56)
budget=(--iter_per_epoch 40 --lr_decay_epochs 7 --overwrite)
student=(--base resnet18 --embedding_size 16 --pretrained none --lr 3e-4 --epochs 8)

step "1/6 Train a teacher: ResNet18, 512 dimensions, triplet loss" \
  run.py --mode train "${data[@]}" --base resnet18 --embedding_size 512 --pretrained none --sample distance \
  --lr 3e-4 --epochs 10 "${budget[@]}" --save_dir "$out/teacher"
step "2/6 Evaluate the teacher" \
  run.py --mode eval --load "$out/teacher/best.pth"
step "3/6 Train a student of 16 dimensions by triplet loss alone" \
  run.py --mode train "${data[@]}" "${student[@]}" --sample distance "${budget[@]}" --save_dir "$out/student_triplet"
step "4/6 Distil the teacher into the same student by RKD" \
  run_distill.py "${data[@]}" "${student[@]}" --l2normalize false --teacher_load "$out/teacher/best.pth" \
  --dist_ratio 1 --angle_ratio 2 "${budget[@]}" --save_dir "$out/student_rkd"
step "5/6 Evaluate the student by triplet loss" \
  run.py --mode eval --load "$out/student_triplet/best.pth"
step "6/6 Evaluate the student by RKD" \
  run.py --mode eval --load "$out/student_rkd/best.pth"

printf '\n'
"$python" examples/summary.py "$out/teacher" "$out/student_triplet" "$out/student_rkd"
