#!/usr/bin/env bash
# Train on the eight GPUs of one machine: 8 x 128 images a step, the learning rate scaled from 256 to 1,024.
#   examples/vision/launch/run_8_gpus.sh [RECIPE] [more options of train.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

exec accelerate launch --multi_gpu --num_processes 8 --num_machines 1 --mixed_precision no --dynamo_backend no \
  -m examples.vision.train --config "${1:-examples/vision/configs/resnet50.yaml}" "${@:2}"
