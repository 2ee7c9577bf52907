#!/usr/bin/env bash
# Distil on two machines without a scheduler. On each of them, with the address of the first one:
#   bash examples/two_machines.sh 0 192.0.2.1        on the first
#   bash examples/two_machines.sh 1 192.0.2.1        on the second
# Processes talk over the network interface that the machine's own name stands for; where that is another one than the
# machines see each other by, name it: GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0 bash examples/two_machines.sh ...
# Both need the repository, the pictures and the teacher under the same paths; only the first one writes to --save_dir.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -lt 2 ]; then sed -n 2,7p "${BASH_SOURCE[0]}" >&2; exit 2; fi
number=$1 first=$2
shift 2
exec torchrun --nnodes 2 --node_rank "$number" --nproc_per_node "${PROCESSES:-1}" \
  --master_addr "$first" --master_port "${PORT:-29500}" \
  run_distill.py --dataset cub200 --base resnet18 --embedding_size 64 --l2normalize false \
  --teacher_load teacher/best.pth --dist_ratio 1 --angle_ratio 2 --save_dir student "$@"
