#!/usr/bin/env bash
# Train on one GPU; eight accumulated steps stand for the paper's eight GPUs.
#   examples/wmt14/launch/run_one_gpu.sh [RECIPE] [more options of train.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

exec accelerate launch --config_file examples/wmt14/launch/one_gpu.yaml \
  -m examples.wmt14.train --config "${1:-examples/wmt14/configs/paper_big.yaml}" \
  --set training.gradient_accumulation_steps=8 "${@:2}"
