#!/usr/bin/env bash
# See the distributed path run, in seconds and without a GPU: a few steps of the demo in two processes.
#   examples/wmt14/launch/smoke_cpu.sh [options of train.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # two processes with a thread pool each would fight over the cores
exec accelerate launch --config_file examples/wmt14/launch/cpu_two_processes.yaml \
  -m examples.wmt14.train --config examples/wmt14/configs/demo.yaml \
  --set output_dir=runs/smoke_cpu --set training.use_cpu=true --set training.max_steps=6 \
  --set data.demo_train=400 --set data.demo_validation=20 --set data.demo_test=20 "$@"
