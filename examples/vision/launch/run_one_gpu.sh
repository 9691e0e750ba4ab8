#!/usr/bin/env bash
# Train on one GPU; two accumulated batches of 128 are the paper's 256 images a step.
#   examples/vision/launch/run_one_gpu.sh [RECIPE] [more options of train.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

exec accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
  -m examples.vision.train --config "${1:-examples/vision/configs/resnet50.yaml}" \
  --set training.gradient_accumulation_steps=2 "${@:2}"
