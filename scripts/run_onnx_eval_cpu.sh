#!/usr/bin/env bash
# Evaluate an ONNX file on the CPU, on the validation images of a data set:
#   bash scripts/run_onnx_eval_cpu.sh DATASET_PATH ONNX_PATH [--key value …] [--dry_run]
set -eu
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launch --program eval_onnx.py --target CPU --form "DATASET_PATH=dataset_path ONNX_PATH=onnx_path" -- "$@"
