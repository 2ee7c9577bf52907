#!/usr/bin/env bash
# CUB-200-2011 as in the paper (Park et al. 2019, table 1): a ResNet50 teacher, then ResNet18 students of 16 to 128 dimensions.
# Batch 128; needs an accelerator and, once, a network (1.1 GB of pictures and the ImageNet weights). The published figures,
# Recall@1 in percent: teacher 61.24; students by RKD-DA, not normalised: 48.14, 54.88, 58.68, 60.67.
# A second start goes on where the first one stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$("${PYTHON:-python3}" examples/environment.py)
out=${1:-runs/cub200}

"$python" run.py --mode train --dataset cub200 --download --base resnet50 --sample distance --margin 0.2 \
  --embedding_size 512 --batch 128 --save_dir "$out/teacher" --resume
"$python" run.py --mode eval --load "$out/teacher/best.pth"
for size in 16 32 64 128; do
  "$python" run_distill.py --dataset cub200 --base resnet18 --embedding_size "$size" --l2normalize false --batch 128 \
    --teacher_load "$out/teacher/best.pth" --dist_ratio 1 --angle_ratio 2 --save_dir "$out/student_$size" --resume
  "$python" run.py --mode eval --load "$out/student_$size/best.pth"
done
"$python" examples/summary.py "$out"/teacher "$out"/student_*
