#!/usr/bin/env bash
# See the distributed path run, in seconds and without a GPU: a few steps of the digits in two processes over gloo.
#   examples/vision/launch/smoke_cpu.sh [options of train.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # two processes with a thread pool each would fight over the cores
# --multi_gpu, because accelerate starts only one process for the CPU without MPI; use_cpu makes them compute there.
exec accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no \
  --main_process_port 0 -m examples.vision.train --config examples/vision/configs/digits.yaml \
  --set output_dir=runs/smoke_cpu_vision --set training.use_cpu=true --set training.max_steps=6 "$@"
