#!/usr/bin/env bash
# The whole job on drawn birds, from random weights, without data, network or accelerator (after the installation):
# teacher, evaluation, the same student by triplet loss alone, by RKD and by RKD + triplet, evaluation. About 6 minutes
# on 2 CPU cores. Each student has its own best learning rate, as benchmarks/compare.py found it on validation classes.
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

# 10 of the 40 training classes are held out; they choose the epoch of best.pth. No test class has a say.
data=(--dataset synthetic --image_size 56 --val_classes 10 --metrics recall map@r)
budget=(--iter_per_epoch 40 --pretrained none --select val --no_train_recall --overwrite)
student=(--base resnet18 --embedding_size 16 --epochs 5 --lr_decay_epochs 4)
distil=(run_distill.py "${data[@]}" "${student[@]}" "${budget[@]}" --teacher_load "$out/teacher/best.pth")

step "1/6 Train a teacher: ResNet18, 512 dimensions, triplet loss" \
  run.py --mode train "${data[@]}" --base resnet18 --embedding_size 512 --sample distance --lr 3e-4 \
  --epochs 10 --lr_decay_epochs 7 "${budget[@]}" --save_dir "$out/teacher"
step "2/6 Evaluate the teacher" \
  run.py --mode eval --load "$out/teacher/best.pth" --metrics recall map@r --no_train_recall
step "3/6 Train a student of 16 dimensions by triplet loss alone" \
  run.py --mode train "${data[@]}" "${student[@]}" --sample distance --lr 1e-3 "${budget[@]}" --save_dir "$out/student_triplet"
step "4/6 Distil the teacher into the same student by RKD" \
  "${distil[@]}" --teacher_views 8 --dist_ratio 1 --angle_ratio 2 --l2normalize false --lr 3.3e-3 \
  --save_dir "$out/student_rkd"
step "5/6 Distil the teacher into the same student by RKD and triplet loss" \
  "${distil[@]}" --teacher_views 8 --dist_ratio 1 --angle_ratio 2 --triplet_ratio 1 --lr 1e-3 \
  --save_dir "$out/student_best"
step "6/6 Evaluate the best student" \
  run.py --mode eval --load "$out/student_best/best.pth" --metrics recall map@r --no_train_recall

printf '\n'
"$python" examples/summary.py "$out/teacher" "$out/student_triplet" "$out/student_rkd" "$out/student_best"
printf 'What to do with them: "Before and after a training" in README.md\n'
