#!/usr/bin/env bash
# Evaluate an ONNX file on a GPU (needs onnxruntime-gpu), on the validation images of a data set:
#   bash scripts/run_onnx_eval_gpu.sh DATASET_PATH DEVICE_ID ONNX_PATH [--key value …] [--dry_run]
set -eu
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launch --program eval_onnx.py --target GPU \
    --form "DATASET_PATH=dataset_path DEVICE_ID=device_id ONNX_PATH=onnx_path" -- "$@"
