#!/usr/bin/env bash
# Train on the eight GPUs of one machine, as the paper did.
#   examples/wmt14/launch/run_8_gpus.sh [RECIPE] [more options of train.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

exec accelerate launch --config_file examples/wmt14/launch/eight_gpus.yaml \
  -m examples.wmt14.train --config "${1:-examples/wmt14/configs/paper_big.yaml}" "${@:2}"
